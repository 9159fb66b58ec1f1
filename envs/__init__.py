"""Simulator adapters, one file per outside simulator."""
