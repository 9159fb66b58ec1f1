"""Compose pretrained robot policies."""
