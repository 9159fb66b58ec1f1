"""One thread that computes what others submit: what comes while it is busy is its next batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class _Task(NamedTuple):
    """Work for a batch, or a function of its own, and the result's future."""

    work: Any
    function: Callable[[], Sequence[Any]] | None  # returns one result
    future: Future[Any]


class BatchThread(Generic[Work, Result]):
    """Computes in order; it never waits for more work.

    Args:
        compute: returns the results of a list of works. If it fails for several, they are computed one by one.
        most: largest number of works in a batch.
        name: name of the thread.
        around: context in which the thread works.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Work]], Sequence[Result]],
        most: int,
        name: str,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._compute, self._most, self._around = compute, most, around
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def submit(self, work: Work) -> Future[Result]:
        """Queue work; cancelling its future drops it if it has not started."""
        return self._put(work, None)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Queue a function; it is called by itself, after what was submitted before it."""
        return self._put(None, lambda: [function()])

    def close(self, timeout: float | None = None) -> None:
        """Finish what was submitted; wait for it, at most `timeout` seconds."""
        self._tasks.put(None)
        self._thread.join(timeout)

    def _put(self, work: Any, function: Callable[[], Sequence[Any]] | None) -> Future[Any]:
        future: Future[Any] = Future()
        self._tasks.put(_Task(work, function, future))
        return future

    def _run(self) -> None:
        with self._around():
            while (task := self._tasks.get()) is not None:
                tasks = [each for each in [task, *self._waiting()] if each.future.set_running_or_notify_cancel()]
                for each in tasks:
                    if each.function is not None:
                        _resolve([each.future], each.function)
                self._run_batch([each for each in tasks if each.function is None])

    def _waiting(self) -> list[_Task]:
        """Return the other tasks that have come, up to a batch."""
        tasks: list[_Task] = []
        while len(tasks) < self._most - 1:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                break
            if task is None:
                self._tasks.put(None)
                break
            tasks.append(task)
        return tasks

    def _run_batch(self, tasks: Sequence[_Task]) -> None:
        """Compute works together, or one by one if that fails for one of them."""
        if not tasks:
            return
        works, futures = [task.work for task in tasks], [task.future for task in tasks]
        if len(tasks) == 1:
            return _resolve(futures, partial(self._compute, works))
        try:
            results = self._compute(works)
        except Exception:
            for task in tasks:
                self._run_batch([task])
        else:
            _resolve(futures, lambda: results)


def _resolve(futures: Sequence[Future[Any]], function: Callable[[], Sequence[Any]]) -> None:
    """Give the results of a function to futures, or its error to all of them."""
    try:
        results = function()
    except BaseException as error:  # who waits for the result would wait forever
        for future in futures:
            future.set_exception(error)
        return
    for future, result in zip(futures, results, strict=True):
        future.set_result(result)
