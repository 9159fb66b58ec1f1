"""gpc COMMAND, and the same from Python."""
