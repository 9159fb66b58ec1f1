"""What a deployed episode leaves behind, written while it runs in a thread of its own: kill it anywhere, it stays readable.

    RUN/episode.zarr    a replay buffer that `gpc.demonstrations.read` reads: data/<key>, data/action, meta/episode_ends, a row
                        for each step; beside it stream/{at, mode, asked, sent, chunk, age, late}, a row for each period
    RUN/events.jsonl    {"at", "kind", "text"}: changes of mode, refused and discarded chunks, failed reads
    RUN/manifest.json   the configuration and versions
    RUN/summary.json    how it ended

`action` is what the robot says was sent; where it does not say, or nothing is sent (dry run), what was asked.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import zarr

from gpc.bridge.loop import Tick
from gpc.bridge.pilot import MODES, Event
from gpc.demonstrations import ACTION
from gpc.env import Array
from gpc.errors import InputError
from gpc.inert import Console
from gpc.record import versions, write_atomically

EVERY = 1.0  # seconds between writings: what a kill can cost
ROWS = 1024  # of numbers in one chunk of an array; pictures have one each


class Recorder:
    """The loop's `Sink`. `view` shows it live in rerun, or keeps it in an .rrd file; `close` writes what is left.

    Raises InputError where the folder holds an episode already, or rerun is missing.
    """

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        console: Console | None = None,
        view: bool | str = False,
        origin: float = 0.0,
    ) -> None:
        """The operator reads on `console`; times are written as seconds since `origin`."""
        if (path / "manifest.json").exists():
            raise InputError(f"{path} holds an episode already; choose another run_dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
            content = {"schema_version": 1, "config": manifest, "versions": versions()}
            write_atomically(path / "manifest.json", json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"run_dir={path} cannot be written: {error.strerror}") from None
        self.path, self.kinds, self.failure = path, Counter[str](), ""
        self._console, self._origin, self._told = console, origin, -EVERY
        self._view = View(view) if view else None
        self._events = (path / "events.jsonl").open("ab")
        self._steps, self._stream = _Table(path, "data"), _Table(path, "stream")
        self._written = 0.0
        self._queue: SimpleQueue[Tick | Event | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="gpc-recorder", daemon=True)
        self._thread.start()

    def tick(self, tick: Tick) -> None:
        """See `Sink`."""
        self._queue.put(tick)

    def event(self, event: Event) -> None:
        """See `Sink`."""
        self._queue.put(event)

    def close(self, timeout: float = 30.0) -> None:
        """Write what is left; `failure` says what could not be kept."""
        self._queue.put(None)
        self._thread.join(timeout)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json; after `close`."""
        told = {**summary, "steps": self._steps.count} | ({"not_recorded": self.failure} if self.failure else {})
        write_atomically(self.path / "summary.json", json.dumps(told, indent=1) + "\n")

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._keep(item)
            self._flush()
        except Exception as error:  # a full disk must not end in an arm that nobody drives
            self.failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            self._events.close()

    def _keep(self, item: Tick | Event) -> None:
        item = item._replace(at=item.at - self._origin)
        self._tell(item)
        if self._view:
            self._view.show(item)
        if isinstance(item, Event):
            self.kinds[item.kind] += 1
            self._events.write(json.dumps(item._asdict()).encode() + b"\n")
            self._events.flush()
            os.fsync(self._events.fileno())
            return
        done = np.where(np.isnan(item.sent), item.asked, item.sent)
        if item.frame is not None and not np.isnan(done).any():
            self._steps.add({**item.frame, ACTION: done})
        told = {name: value for name, value in item._asdict().items() if name != "frame"}
        told["mode"] = np.uint8(MODES.index(item.mode))
        self._stream.add({name: np.asarray(value) for name, value in told.items()})
        if item.at - self._written > EVERY:
            self._flush()
            self._written = item.at

    def _tell(self, item: Tick | Event) -> None:
        """Events, and once a second what is sent."""
        if isinstance(item, Event):
            words = f"{item.kind}: {item.text}"
        elif item.at - self._told >= EVERY:
            self._told = item.at
            words = f"{item.mode}  {np.array2string(item.asked, precision=4, suppress_small=True, max_line_width=1000)}"
        else:
            return
        if self._console:
            self._console.print(f"{item.at:8.2f} s  {words}", highlight=False, soft_wrap=True, markup=False)

    def _flush(self) -> None:
        """Rows first, then how many there are: a reader cuts off what the second does not cover."""
        self._stream.flush()
        if self._steps.flush():
            root = zarr.open_group(self.path / "episode.zarr", mode="a", zarr_format=2)
            ends = np.array([self._steps.count])
            if "meta" in root:
                root["meta/episode_ends"][:] = ends  # type: ignore[index]
            else:
                root.create_group("meta").create_array("episode_ends", data=ends)


class _Table:
    """Rows of named arrays that grow in one group of the episode."""

    def __init__(self, path: Path, group: str) -> None:
        self._group = zarr.open_group(path / "episode.zarr", mode="a", zarr_format=2).require_group(group)
        self._waiting: dict[str, list[Array]] = {}
        self._arrays: dict[str, Any] = {}
        self.count = 0

    def add(self, row: Mapping[str, Array]) -> None:
        for name, value in row.items():
            self._waiting.setdefault(name, []).append(value)

    def flush(self) -> int:
        """Write; returns how many rows."""
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
    """The episode live in rerun (https://rerun.io): numbers as curves, pictures, events as text."""

    def __init__(self, to: bool | str) -> None:
        try:
            self._rerun = import_module("rerun")
        except ImportError as error:
            raise InputError(f"view={to} needs rerun ({error}): pip install rerun-sdk") from None
        self._rerun.init("gpc deploy", spawn=to is True)
        if isinstance(to, str):
            self._rerun.save(to)

    def show(self, item: Tick | Event) -> None:
        """One period or event."""
        rerun = self._rerun
        rerun.set_time("time", duration=item.at)
        if isinstance(item, Event):
            rerun.log("events", rerun.TextLog(f"{item.kind}: {item.text}"))
            return
        rerun.log("asked", rerun.Scalars(item.asked))
        rerun.log("sent", rerun.Scalars(item.sent))
        rerun.log("age", rerun.Scalars([item.age]))
        for key, value in (item.frame or {}).items():
            picture = value.ndim == 3 and value.dtype == np.uint8
            rerun.log(f"observation/{key}", rerun.Image(value) if picture else rerun.Scalars(np.ravel(value)))
