"""One requirement of a contract."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with this message if the condition is false."""
    if not condition:
        raise AssertionError(message)
