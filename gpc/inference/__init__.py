"""From an observation to a chunk of actions."""
