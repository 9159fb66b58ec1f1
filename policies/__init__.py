"""Adapters that turn outside checkpoints into gpc policies, one file per codebase."""
