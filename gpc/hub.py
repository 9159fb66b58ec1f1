"""What a file names is not fetched: the hub of Hugging Face is asked only for what the user typed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

NOT_FETCHED = "what a file names is not fetched: give a folder, or if you trust the name, run `hf download NAME` first"


@contextmanager
def offline() -> Iterator[None]:
    """Enter a block in which names come from folders or the hub's cache, and no code that they bring is offered to be run."""
    constants: Any = import_module("huggingface_hub.constants")
    utils: Any = import_module("huggingface_hub.utils")
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    utils.reset_sessions()
    try:
        with _no_prompt():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
        utils.reset_sessions()


@contextmanager
def _no_prompt() -> Iterator[None]:
    """transformers asks at the terminal, for so many seconds, whether to run the code of a folder; 0: it refuses."""
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
