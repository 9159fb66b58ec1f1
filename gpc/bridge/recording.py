"""The record of a deployed episode, written while it runs; a killed process leaves it readable.

    RUN/episode.zarr    a replay buffer that `gpc.demonstrations.read` reads: data/<key>, data/action, meta/episode_ends, a row
                        for each step; beside it stream/{at, mode, asked, sent, chunk, age, late}, a row for each period
    RUN/events.jsonl    {"at", "kind", "text"}: changes of mode, refused and discarded chunks, failed reads
    RUN/manifest.json   the configuration and versions
    RUN/summary.json    how it ended

`data/action` is what the robot reports as sent; if it reports nothing, or nothing is sent (dry run), what was to be sent,
which is `stream/asked`.

Disk, console and view have a thread and a bounded queue each (`Writer`). A full disk, a stopped terminal or a viewer that
hangs loses its own lines only: neither the control loop nor the other two wait for it.
"""

from __future__ import annotations

import json
import os
import select
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
import zarr

from gpc.bridge.controller import MODES, Event
from gpc.bridge.loop import PeriodRecord
from gpc.demonstrations import ACTION
from gpc.disk import as_json, reason, write_atomically
from gpc.errors import InputError, one_line, type_and_text
from gpc.inert import Console
from gpc.installation import install
from gpc.results.run_folder import versions
from gpc.types import Array

WRITE_EVERY = 1.0  # seconds, which a kill can lose
ROWS = 1024  # of numbers in one chunk of an array; a picture has a chunk of its own
BUFFER = 256 * 2**20  # bytes of periods that wait for a disk: 20 s of pictures at 12 MiB/s
RESERVE = 2**20  # bytes of events that may wait besides
ITEM = 1024  # bytes of a period without its pictures, about
LINES = 2**20  # bytes of what waits for a console, a thousand lines
LONGEST_LINE = 2000  # characters; a pipe that has room takes 4096 bytes at once
COLUMNS = {"command": "asked"}  # of a period's fields, those with another name on disk
UNRECORDED, UNSHOWN = "unrecorded", "unshown"  # kinds of events
Item = PeriodRecord | Event


class Recorder:
    """Writes the record of an episode; a `Sink`, whose methods return at once.

    After a failed write nothing more is recorded: one event on the console and `not_recorded` in the summary report it.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        console: Console | None = None,
        view: bool | str = False,
        origin: float = 0.0,
        buffer: int = BUFFER,
    ) -> None:
        """Open a run folder.

        Args:
            path: folder, which must not hold an episode yet.
            manifest: configuration to keep.
            console: output for events and, once a second, the action.
            view: true shows the episode live in rerun; a path writes it to that .rrd file.
            origin: time that is written as 0, in seconds.
            buffer: largest number of bytes that wait for the disk, and for the view.

        Raises:
            InputError: If the folder holds an episode already or cannot be written, or rerun is missing.
        """
        if (path / "manifest.json").exists():
            raise InputError(f"{path} holds an episode already; choose another run_dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._disk, viewer = Disk(path), View(view) if view else None
            content = {"schema_version": 1, "config": manifest, "versions": versions()}
            write_atomically(path / "manifest.json", as_json(content))
        except OSError as error:
            raise InputError(f"run_dir={path} cannot be written: {reason(error)}") from None
        self.path, self.kinds = path, Counter[str]()
        self._origin, self._printed, self._lock = origin, -np.inf, Lock()
        self._writers = {"disk": self._writer("disk", self._disk.write, buffer)}
        if console:
            self._writers["console"] = self._writer("console", Screen(console).write, LINES)
        if viewer:
            self._writers["view"] = self._writer("view", viewer.write, buffer)

    @property
    def failure(self) -> str:
        """What was not recorded, and why; empty if everything was."""
        disk = self._writers["disk"]
        dropped = f"{disk.dropped} periods and events dropped" if disk.dropped else ""
        return "; ".join(filter(None, (disk.failure, dropped)))

    @property
    def waiting(self) -> int:
        """Number of bytes that wait for the disk."""
        return self._writers["disk"].waiting

    def record(self, record: PeriodRecord) -> None:
        """Pass a period to the disk and the view, and one a second to the console."""
        record = record._replace(at=record.at - self._origin)
        for name, writer in self._writers.items():
            if name != "console":
                writer.offer(record)
            elif record.at - self._printed >= WRITE_EVERY:
                self._printed = record.at
                writer.offer(record._replace(frame=None))

    def event(self, event: Event) -> None:
        """Pass an event to the disk, the view and the console."""
        self._event(event._replace(at=event.at - self._origin))

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left.

        The disk has `timeout` seconds for it, console and view have a second each.
        """
        for name, writer in self._writers.items():
            writer.close(timeout if name == "disk" else 1.0)

    def finish(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Write summary.json, after `close`.

        Returns:
            The summary, with the number of steps and with what was not recorded or shown.
        """
        content = {**summary, "steps": self._disk.steps}
        if dropped := {name: writer.dropped for name, writer in self._writers.items() if writer.dropped}:
            content["dropped"] = dropped
        if self.failure:
            content["not_recorded"] = self.failure
        try:
            write_atomically(self.path / "summary.json", as_json(content))
        except OSError as error:
            content["not_recorded"] = "; ".join(filter(None, (self.failure, f"summary.json: {one_line(error)}")))
        return content

    def _writer(self, name: str, write: Callable[[Item | None], None], limit: int) -> Writer:
        kind = UNRECORDED if name == "disk" else UNSHOWN
        return Writer(name, write, limit, lambda at, text: self._event(Event(at, kind, f"{name}: {text}"), name))

    def _event(self, event: Event, about: str = "") -> None:
        """Pass an event to every writer except the one that it is about."""
        with self._lock:  # events come from the loop, from its watch and from the writers
            self.kinds[event.kind] += 1
        for name, writer in self._writers.items():
            if name != about:
                writer.offer(event)


class Writer(Thread):
    """Passes items to a function in a thread of its own, through a bounded queue.

    `offer` never waits: an item that finds no room is dropped and counted, and so is every item after an error of `write`.

    Attributes:
        failure: text of the first error; empty if there was none.
        dropped: number of dropped items.
        waiting: bytes in the queue.
    """

    def __init__(
        self, name: str, write: Callable[[Item | None], None], limit: int, lost: Callable[[float, str], None]
    ) -> None:
        """Start the thread.

        Args:
            name: name of the thread.
            write: function that takes an item, and None at the end.
            limit: largest number of bytes in the queue.
            lost: is called with the time and the reason of the first dropped item and of the first error.
        """
        super().__init__(name=f"gpc-{name}", daemon=True)
        self.failure, self.dropped, self.waiting = "", 0, 0
        self._write, self._limit, self._lost = write, limit, lost
        self._full, self._lock = False, Lock()
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self.start()

    def offer(self, item: Item) -> None:
        """Put an item into the queue if there is room, else drop it."""
        size, limit = _size(item), self._limit + (RESERVE if isinstance(item, Event) else 0)
        with self._lock:
            room = not self.failure and self.waiting + size <= limit
            first = not (room or self.failure or self._full)
            if room:
                self.waiting += size
            else:
                self.dropped, self._full = self.dropped + 1, True
        if room:
            self._queue.put(item)
        elif first:
            self._lost(item.at, "items come faster than they are written; those that find no room are dropped")

    def close(self, timeout: float) -> None:
        """Write what waits; what is not written within `timeout` seconds is dropped."""
        self._queue.put(None)
        self.join(timeout)
        if self.is_alive():
            self._fail(f"what was left was not written within {timeout:g} s")

    def run(self) -> None:
        """Write items until the queue is closed."""
        at = 0.0
        while (item := self._queue.get()) is not None:
            at = item.at
            self._pass(item, at)
            with self._lock:
                self.waiting -= _size(item)
        self._pass(None, at)

    def _pass(self, item: Item | None, at: float) -> None:
        if self.failure:
            with self._lock:
                self.dropped += item is not None
            return
        try:
            self._write(item)
        except BaseException as error:  # of any kind: the robot must not stop for it
            if self._fail(type_and_text(error)):
                self._lost(at, f"{self.failure}; the robot runs on without it")

    def _fail(self, text: str) -> bool:
        """Keep the first failure; return whether it is this one."""
        with self._lock:
            first = not self.failure
            self.failure = self.failure or text
        return first


def _size(item: Item) -> int:
    """Return the bytes of an item, about."""
    if isinstance(item, Event):
        return ITEM + len(item.text)
    return ITEM + sum(value.nbytes for value in (item.frame or {}).values())


class Disk:
    """The files of an episode that grow: events.jsonl and episode.zarr."""

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, 0.0
        self._events = (path / "events.jsonl").open("ab", buffering=0)
        self._steps, self._stream = _Table(path, "data"), _Table(path, "stream")

    @property
    def steps(self) -> int:
        """Number of steps on disk."""
        return self._steps.count

    def write(self, item: Item | None) -> None:
        """Write a period or event; None writes what is left."""
        if item is None:
            self._flush()
            self._events.close()
        elif isinstance(item, Event):
            self._append(json.dumps(item._asdict()).encode() + b"\n")
        else:
            self._add(item)

    def _append(self, line: bytes) -> None:
        """Write a complete line of events.jsonl, or nothing."""
        end = os.fstat(self._events.fileno()).st_size
        try:
            while line:
                line = line[self._events.write(line) :]
            os.fsync(self._events.fileno())
        except OSError:
            with suppress(OSError):
                self._events.truncate(end)
            raise

    def _add(self, record: PeriodRecord) -> None:
        action = np.where(np.isnan(record.sent), record.command, record.sent)
        if record.frame is not None and not np.isnan(action).any():
            self._steps.add({**record.frame, ACTION: action})
        row = {COLUMNS.get(name, name): value for name, value in record._asdict().items() if name != "frame"}
        row["mode"] = np.uint8(MODES.index(record.mode))
        self._stream.add({name: np.asarray(value) for name, value in row.items()})
        if record.at - self._written > WRITE_EVERY:
            self._flush()
            self._written = record.at

    def _flush(self) -> None:
        """Write rows first, then their number: a reader drops rows beyond it."""
        self._stream.flush()
        if self._steps.flush():
            root = zarr.open_group(self._path / "episode.zarr", mode="a", zarr_format=2)
            ends = np.array([self._steps.count])
            if "meta" in root:
                root["meta/episode_ends"][:] = ends  # type: ignore[index]
            else:
                root.create_group("meta").create_array("episode_ends", data=ends)


class Screen:
    """The console: events, and once a second the mode and the action."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def write(self, item: Item | None) -> None:
        """Print a line as soon as the console takes one."""
        if item is None:
            return
        if isinstance(item, Event):
            text = f"{item.kind}: {item.text}"
        else:
            text = (
                f"{item.mode}  {np.array2string(item.command, precision=4, suppress_small=True, max_line_width=1000)}"
            )
        with suppress(OSError, ValueError):  # not a file
            select.select([], [self._console.file.fileno()], [])  # here, not in `print`, which would keep a lock
        try:
            line = f"{item.at:8.2f} s  {text[:LONGEST_LINE]}"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
        except SystemExit:  # rich's answer to a closed pipe
            raise BrokenPipeError("the reader of the output is gone") from None


class _Table:
    """Named arrays that grow by rows in one group of the episode."""

    def __init__(self, path: Path, group: str) -> None:
        self._group = zarr.open_group(path / "episode.zarr", mode="a", zarr_format=2).require_group(group)
        self._waiting: dict[str, list[Array]] = {}
        self._arrays: dict[str, Any] = {}
        self.count = 0

    def add(self, row: Mapping[str, Array]) -> None:
        for name, value in row.items():
            self._waiting.setdefault(name, []).append(value)

    def flush(self) -> int:
        """Write the rows that wait; return their number."""
        rows = len(next(iter(self._waiting.values()), []))
        for name, values in self._waiting.items():
            block = np.stack(values)
            if name not in self._arrays:
                shape, rows_each = block.shape[1:], 1 if block.ndim > 2 else ROWS
                self._arrays[name] = self._group.create_array(
                    name, shape=(0, *shape), chunks=(rows_each, *shape), dtype=block.dtype
                )
            self._arrays[name].resize((self.count + rows, *block.shape[1:]))
            self._arrays[name][self.count :] = block
        self.count += rows
        self._waiting = {}
        return rows


class View:
    """The episode in rerun (https://rerun.io): numbers as curves, pictures, events."""

    def __init__(self, to: bool | str) -> None:
        try:
            self._rerun = import_module("rerun")
        except ImportError as error:
            raise InputError(f"view={to} needs rerun ({error}): {install('rerun')}") from None
        try:
            self._rerun.init("gpc deploy", spawn=to is True)
            if isinstance(to, str):
                self._rerun.save(to)
        except Exception as error:  # whatever rerun raises
            raise InputError(f"view={to} cannot be opened: {one_line(error)}") from None

    def write(self, item: Item | None) -> None:
        """Show a period or event."""
        if item is None:
            return
        rerun = self._rerun
        rerun.set_time("time", duration=item.at)
        if isinstance(item, Event):
            rerun.log("events", rerun.TextLog(f"{item.kind}: {item.text}"))
            return
        rerun.log("asked", rerun.Scalars(item.command))
        rerun.log("sent", rerun.Scalars(item.sent))
        rerun.log("age", rerun.Scalars([item.age]))
        for key, value in (item.frame or {}).items():
            picture = value.ndim == 3 and value.dtype == np.uint8
            rerun.log(f"observation/{key}", rerun.Image(value) if picture else rerun.Scalars(np.ravel(value)))
