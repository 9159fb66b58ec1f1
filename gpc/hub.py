"""Blocks in which Hugging Face's libraries download nothing that a file names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

NOT_FETCHED = "what a file names is not fetched: give a folder, or if you trust the name, run `hf download NAME` first"


@contextmanager
def offline() -> Iterator[None]:
    """Resolve names in folders and the hub's cache only, and never offer to run code."""
    constants: Any = import_module("huggingface_hub.constants")
    utils: Any = import_module("huggingface_hub.utils")
    reset_sessions = getattr(utils, "reset_sessions", lambda: None)  # from 1.0 on each request reads the constant
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    reset_sessions()
    try:
        with _no_prompt():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
        reset_sessions()


@contextmanager
def _no_prompt() -> Iterator[None]:
    """Make transformers refuse the code of a folder instead of prompting for it."""
    try:
        code: Any = import_module("transformers.dynamic_module_utils")
    except ImportError:
        yield
        return
    before, code.TIME_OUT_REMOTE_CODE = code.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    finally:
        code.TIME_OUT_REMOTE_CODE = before
