"""Errors for users: one line that names the thing and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class GpcError(Exception):
    """A failure that is reported as one line, without a traceback."""

    exit_code = 1


class InputError(GpcError):
    """Bad input, found before any work starts (exit code 2)."""

    exit_code = 2


class Stopped(GpcError):
    """Ended from outside, by a signal or the stop key, and in good order."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.exit_code = code


class RunError(GpcError):
    """A failure while running; finished work is kept (exit code 1)."""


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error on one line, or its type if it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def type_and_text(error: BaseException, limit: int = 300) -> str:
    """Return the type and the text of an error on one line."""
    return f"{type(error).__name__}: {one_line(error, limit)}"


def missing(what: str, error: Exception) -> str:
    """Return one line about a part that failed while the rest succeeds."""
    return f"{what} is missing: {type_and_text(error)}"


def started_with(folder: object, key: str, old: object, new: object, remedy: str = "") -> str:
    """Return one line about a run folder of other settings; `remedy` ends in "or"."""
    return f"{folder} was started with {key}={old!r}, now it is {new!r}; {remedy}use another run_dir, or delete that folder"


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turn any exception of another package's reader into an InputError."""
    try:
        yield
    except GpcError:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be read: {type_and_text(error, 400)}") from None


def suggest(word: str, known: list[str]) -> str:
    """Return the end of an error line: the nearest known word, or all of them."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(sorted(known))}"
