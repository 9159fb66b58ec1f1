"""The run folder: everything an experiment knows, written so that it can be killed at any time.

`manifest.json` says what the run is and, under "resolved", how to run it again; `episodes.jsonl` holds one row for each
finished (phase, candidate, seed), and `trajectories.zarr` what happened in them: "action" and "reward" at every step, and the
numeric observations at every decision, each an array (episodes, length, ...) whose i-th entry belongs to the i-th line of
`episodes.jsonl`, filled up with NaN. A row is acknowledged when it is on disk; the trajectory is on disk before it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Thread
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gpc import schema
from gpc.disk import reason, sync_folder, write_atomically, write_whole, writing
from gpc.errors import GpcError, InputError, RunError, one_line
from gpc.results.trajectories import Trajectories
from gpc.results.upgrade import completed
from gpc.types import Array

SCHEMA_VERSION = 1  # of manifest.json and summary.json
PACKAGES = ("gpc", "torch", "numpy", "scipy", "optuna", "gymnasium", "lerobot", "gym-pusht", "pymunk", "mujoco", "zarr")
NEUTRAL = ("python", "zarr")  # recorded, but they compute nothing that is in a row
WAITING = 64  # finished episodes that may wait for the disk

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Phase = Literal["search", "report", "evaluate", "compare"]
Key = tuple[str, int, int]


class Row(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True):
    """One finished episode; (phase, candidate, seed) is its key."""

    phase: Phase
    candidate: Count
    seed: Count
    weights: Annotated[tuple[float, ...], Meta(min_length=1)]
    success: bool
    score: float
    steps: Annotated[int, Meta(ge=1, le=2**63 - 1)]

    @property
    def key(self) -> Key:
        """What no two rows share."""
        return self.phase, self.candidate, self.seed


class Manifest(msgspec.Struct):
    """What every manifest.json holds; `resolved` is missing in those of early versions."""

    config: dict[str, Any]
    versions: dict[str, str]
    resolved: dict[str, Any] | None = None


class RunFolder:
    """One experiment on disk; open it with the configuration that determines its results, and an episode's longest length.

    `resolved` is the whole configuration, kept for `gpc replay`. Opening a folder again resumes it.

    Raises:
        InputError: the folder cannot be written, belongs to another configuration (the first difference is named), or
            another process writes in it.
        RunError: its rows are damaged.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], length: int, resolved: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self._file, self._access = path, -1, Lock()
        with writing(f"run_dir={path}", InputError):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.fdopen(os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        try:
            self._open(json.loads(json.dumps(config)), length, resolved)
        except BaseException:
            self.close()
            raise

    def _open(self, config: dict[str, Any], length: int, resolved: Mapping[str, Any] | None) -> None:
        rows = self.path / "episodes.jsonl"
        with writing(f"run_dir={self.path}", InputError):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.path} is in use by another gpc process; wait for it or choose another run_dir"
                ) from None
            self._versions = self._check_manifest(config, resolved)
            self._file = os.open(rows, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            self.rows: dict[Key, Row] = {row.key: row for row in _decoded(self._mended(), rows)}
            self._trajectories = Trajectories(self.path, length)
            sync_folder(self.path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and release the lock."""
        with self._access:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
            self._lock.close()

    def append(self, row: Row, trajectory: Mapping[str, Array]) -> None:
        """Keep one episode; see `extend`."""
        self.extend([(row, trajectory)])

    def extend(self, episodes: Sequence[tuple[Row, Mapping[str, Array]]]) -> None:
        """Keep episodes; returns when they are on disk.

        Raises:
            RunError: the folder is gone or cannot be written, as on a full disk; earlier episodes stay.
        """
        with self._access:
            end = self._end()
            try:
                self._trajectories.write(len(self.rows), [trajectory for _, trajectory in episodes])
                write_whole(self._file, b"".join(_line(row) for row, _ in episodes))
                os.fsync(self._file)
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._file, end)
                raise RunError(
                    f"{self.path}: {reason(error)}; {len(self.rows)} finished episodes are kept, the same command goes on"
                ) from None
            self.rows |= {row.key: row for row, _ in episodes}

    def phase(self, name: str) -> list[Row]:
        """The finished rows of a phase, ordered by candidate and seed."""
        return sorted(row for row in self.rows.values() if row.phase == name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file of the folder, whole or not at all."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def check_versions(self) -> None:
        """Check that the folder was begun with the installed packages.

        Raises:
            InputError: another version of a package is installed; more episodes would mix the results of both in one table.
        """
        installed = versions()
        for name, recorded in self._versions.items():
            if name not in NEUTRAL and installed.get(name, recorded) != recorded:
                raise InputError(
                    f"{self.path} was begun with {name} {recorded}, now {installed[name]} is installed, and one table must not "
                    f"mix them; pip install '{name}=={recorded}', or use another run_dir"
                )

    def _mended(self) -> bytes:
        """The rows' file; a last line that a kill left torn is cut off."""
        with os.fdopen(self._file, "rb", closefd=False) as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._file, whole)
        return content[:whole]

    def _end(self) -> int:
        """Where the next row begins; RunError if the file is no longer the folder's."""
        own = os.fstat(self._file)
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(own, (self.path / "episodes.jsonl").stat()):
                return own.st_size
        raise RunError(f"{self.path} was deleted or moved while the run wrote in it; the same command begins it anew")

    def _check_manifest(self, config: dict[str, Any], resolved: Mapping[str, Any] | None) -> Mapping[str, str]:
        """The recorded versions, of a folder that belongs to the configuration."""
        path = self.path / "manifest.json"
        if not path.exists():
            if (self.path / "episodes.jsonl").exists():
                raise InputError(f"{self.path} has episodes but no manifest.json; choose another run_dir")
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "config": config,
                "versions": versions(),
                "resolved": resolved,
            }
            self.write_json("manifest.json", manifest)
            return versions()
        before = read_versioned(Manifest, path)
        for key, old, new in _differences(completed(before["config"]), completed(config)):
            raise InputError(
                f"{self.path} was begun with {key}={old!r}, now it is {new!r}; use another run_dir, or delete that folder"
            )
        return dict(before["versions"])


class Writer:
    """Keep episodes in a thread of its own, beside the networks.

    If `WAITING` episodes wait for the disk, `put` waits. `kept` is called with the number of episodes that have reached the disk
    since the last call. Leaving the block writes the episodes that wait.
    """

    def __init__(self, folder: RunFolder, kept: Callable[[int], None]) -> None:
        self._folder, self._kept, self._failure = folder, kept, list[BaseException]()
        self._queue: Queue[tuple[Row, Mapping[str, Array]] | None] = Queue(WAITING)
        self._thread = Thread(target=self._run, name="gpc-writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._check()

    def put(self, row: Row, trajectory: Mapping[str, Array]) -> None:
        """Hand over an episode; raises the failure of an earlier one."""
        self._check()
        self._queue.put((row, trajectory))

    def _check(self) -> None:
        for error in self._failure:
            raise error

    def _run(self) -> None:
        """Write what waits, together; drop it after a failure, so that `put` returns."""
        going = True
        while going:
            batch = [self._queue.get()]
            with suppress(Empty):
                while len(batch) < WAITING:
                    batch.append(self._queue.get_nowait())
            episodes = [item for item in batch if item is not None]
            going = len(episodes) == len(batch)
            if episodes and not self._failure:
                try:
                    self._folder.extend(episodes)
                    self._kept(len(episodes))
                except BaseException as error:
                    self._failure.append(error)


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path.parent} is not a finished gpc run: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{one_line(path)} cannot be read: {one_line(error)}") from None
    return schema.read(dict[str, Any], path)


def read_versioned(kind: Any, path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder; check its "schema_version" and the fields of `kind`.

    Raises:
        InputError: it is missing or damaged, its version is another one, or a field does not fit and is named.
    """
    content = read_json(path)
    written = content.get("schema_version")
    if written != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {one_line(written, 20)}, not {SCHEMA_VERSION}; use the gpc that wrote it"
        )
    schema.convert(kind, content, str(path))
    return content


def read_rows(path: Path) -> list[Row]:
    """Read an episodes.jsonl, without a last line that a kill left torn.

    Raises:
        InputError: the file cannot be read.
        RunError: a whole line is damaged or repeats an episode; its number and its field are named.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> list[Row]:
    """The rows of whole lines."""
    rows: dict[Key, Row] = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            row = schema.decode(Row, line, f"{path}, line {number} is damaged")
            if row.key in rows:
                raise InputError(
                    f"{path}, line {number} repeats an episode: {row.phase} {row.candidate}, seed {row.seed}"
                )
        except InputError as error:
            raise RunError(f"{error}; delete it and all lines after it, then run the same command again") from None
        rows[row.key] = row
    return list(rows.values())


def searched_seeds(runs: Path, fingerprints: Mapping[str, str]) -> dict[Path, set[int]]:
    """The seeds on which the searches in a folder of runs chose weights of these policies.

    What is no readable search is passed over.
    """
    found = {}
    for path in sorted(runs.glob("*/manifest.json")):
        with suppress(GpcError):
            if read_versioned(Manifest, path)["config"].get("fingerprints") == fingerprints:
                rows = read_rows(path.with_name("episodes.jsonl"))
                found[path.parent] = {row.seed for row in rows if row.phase == "search"}
    return found


def _line(row: Row) -> bytes:
    return json.dumps(msgspec.structs.asdict(row)).encode() + b"\n"


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new
