"""Robots behind LeRobot's `Robot` interface: simulated ones, LeRobot's own by type, and arms on ROS 2."""
