"""Run folders, statistics, reports."""
