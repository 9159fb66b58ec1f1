"""Environments, simulator processes and the engine that keeps them busy."""
