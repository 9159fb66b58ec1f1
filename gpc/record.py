"""The run folder: everything an experiment knows, written so that it can be killed at any time.

`manifest.json` says what the run is and, under "resolved", how to run it again; `episodes.jsonl` holds one row for each
finished (phase, candidate, seed), and `trajectories.zarr` what happened in them: "action" and "reward" at every step, and the
numeric observations at every decision, each an array (episodes, length, ...) whose i-th entry belongs to the i-th line of
`episodes.jsonl`, filled up with NaN. A row is acknowledged when it is on disk; the trajectory is written before it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np
import zarr

from gpc.config import completed
from gpc.env import Array
from gpc.errors import GpcError, InputError, RunError

PACKAGES = ("gpc", "torch", "numpy", "scipy", "optuna", "gymnasium", "lerobot", "gym-pusht", "pymunk", "mujoco", "zarr")
Key = tuple[str, int, int]
ROOM = 256  # episodes for which a trajectory array makes room at a time


@dataclass(frozen=True, order=True)
class Row:
    """One finished episode; (phase, candidate, seed) is its key."""

    phase: str
    candidate: int
    seed: int
    weights: tuple[float, ...]
    success: bool
    score: float
    steps: int

    @property
    def key(self) -> Key:
        """What no two rows share."""
        return self.phase, self.candidate, self.seed


class RunFolder:
    """One experiment on disk; open it with the configuration that determines its results, and an episode's longest length.

    `resolved` is the whole configuration, kept for `gpc replay`. Opening a folder again resumes it. Raises InputError where
    the folder belongs to another configuration (the first difference is named) or another process writes in it, RunError
    where its rows are damaged.
    """

    def __init__(
        self, path: Path, config: Mapping[str, Any], length: int, resolved: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.length = path, length
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.fdopen(os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        except OSError as error:
            raise InputError(f"run_dir={path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(
                f"{path} is in use by another gpc process; wait for it or choose another run_dir"
            ) from None
        self._check_manifest(json.loads(json.dumps(config)), resolved)
        self.rows: dict[Key, Row] = {row.key: row for row in read_rows(path / "episodes.jsonl", mend=True)}
        self._file: IO[bytes] = (path / "episodes.jsonl").open("ab")
        self._group = zarr.open_group(path / "trajectories.zarr", mode="a")
        self._arrays = dict(self._group.arrays())

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process in."""
        self._file.close()
        self._lock.close()

    def append(self, row: Row, trajectory: Mapping[str, Array]) -> None:
        """Keep one episode; returns when it is on disk. Raises RunError where the disk is full: earlier rows stay."""
        end = self._file.tell()
        try:
            self._write_trajectory(len(self.rows), trajectory)
            self._file.write(json.dumps(asdict(row)).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self._file.fileno(), end)
            why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            kept = len(self.rows)
            raise RunError(f"{self.path}: {why}; {kept} finished episodes are kept, the same command goes on") from None
        self.rows[row.key] = row

    def phase(self, name: str) -> list[Row]:
        """The finished rows of a phase, ordered by candidate and seed."""
        return sorted(row for row in self.rows.values() if row.phase == name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file of the folder, whole or not at all."""
        write_atomically(self.path / name, json.dumps(content, indent=1) + "\n")

    def _write_trajectory(self, index: int, trajectory: Mapping[str, Array]) -> None:
        for name, value in trajectory.items():
            shape = (self.length, *value.shape[1:])
            if name not in self._arrays:
                self._arrays[name] = self._group.create_array(
                    name, shape=(0, *shape), chunks=(1, *shape), dtype=value.dtype, fill_value=np.nan
                )
            array = self._arrays[name]
            if index >= array.shape[0]:
                array.resize((index + ROOM, *shape))
            filled = np.full(shape, np.nan, value.dtype)
            filled[: len(value)] = value
            array[index] = filled

    def _check_manifest(self, config: dict[str, Any], resolved: Mapping[str, Any] | None) -> None:
        path = self.path / "manifest.json"
        if not path.exists():
            if (self.path / "episodes.jsonl").exists():
                raise InputError(f"{self.path} has episodes but no manifest.json; choose another run_dir")
            manifest = {"schema_version": 1, "config": config, "versions": versions(), "resolved": resolved}
            self.write_json("manifest.json", manifest)
            return
        before = read_json(path)["config"]
        for key, old, new in _differences(completed(before), completed(config)):
            raise InputError(
                f"{self.path} was begun with {key}={old!r}, now it is {new!r}; use another run_dir, or delete that folder"
            )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a run folder; InputError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path.parent} is not a finished gpc run: it has no {path.name}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return content


def read_rows(path: Path, mend: bool = False) -> list[Row]:
    """The rows of an episodes.jsonl; `mend` cuts off a last line that a kill left incomplete.

    Raises RunError naming the first whole line that cannot be read.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if mend and whole < len(content):
        os.truncate(path, whole)
    rows = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            fields = json.loads(line)
            rows.append(Row(**fields | {"weights": tuple(fields["weights"])}))
        except (ValueError, TypeError, KeyError):
            raise RunError(
                f"{path}, line {number} is damaged; delete it and all lines after it, then run the same command again"
            ) from None
    return rows


def searched_seeds(runs: Path, fingerprints: Mapping[str, str]) -> dict[Path, set[int]]:
    """The seeds on which the searches in a folder of runs chose weights of these policies.

    What is no readable search is passed over.
    """
    found = {}
    for path in sorted(runs.glob("*/manifest.json")):
        with suppress(GpcError, OSError, LookupError, TypeError):
            if read_json(path)["config"]["fingerprints"] == fingerprints:
                rows = read_rows(path.with_name("episodes.jsonl"))
                found[path.parent] = {row.seed for row in rows if row.phase == "search"}
    return found


def read_trajectory(path: Path, episode: int) -> dict[str, Array]:
    """What was recorded of a run folder's episode, without the filling; `episode` is its line in episodes.jsonl, from 0.

    Raises InputError where it is missing or damaged.
    """
    try:
        arrays = dict(zarr.open_group(path / "trajectories.zarr", mode="r").arrays())
        found = {name: np.asarray(array[episode]) for name, array in arrays.items()}
    except (OSError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"{path / 'trajectories.zarr'} has no episode {episode} that can be read: {error}") from None
    if "action" not in found:
        raise InputError(f"{path} has episodes.jsonl but no actions; copy its trajectories.zarr, too")
    return {name: value[~np.isnan(value.reshape(len(value), -1)).all(1)] for name, value in found.items()}


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, sees the old or the new content, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # in a folder of others it may be a link to any file
    with temporary.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new
