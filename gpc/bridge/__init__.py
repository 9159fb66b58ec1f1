"""The control loop on a robot."""
