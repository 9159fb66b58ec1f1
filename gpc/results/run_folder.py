"""The run folder of an experiment, complete on disk up to any kill.

`manifest.json` holds the configuration, with "resolved" the full one. `episodes.jsonl` holds one row for each finished
(phase, candidate, seed). `trajectories.zarr` holds "action" and "reward" of every step and the numeric observations of every
decision: arrays (episodes, length, ...), padded with NaN, whose entry i belongs to line i of `episodes.jsonl`. A row is
acknowledged when it is on disk; its trajectory is on disk before it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, Queue
from threading import Lock, Thread
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from gpc import schema
from gpc.disk import reason, sync_folder, write_atomically, write_whole, writing
from gpc.errors import GpcError, InputError, RunError, one_line, started_with
from gpc.inert import notice
from gpc.registry import USER_MODULES
from gpc.results.trajectories import Trajectories
from gpc.results.upgrade import upgraded, upgraded_config
from gpc.types import DEVICE_KEYS, Array

SCHEMA_VERSION = 1  # of manifest.json
PACKAGES = (
    "gpc", "torch", "numpy", "scipy", "optuna", "gymnasium", "lerobot", "gym-pusht", "pymunk", "mujoco", "robosuite",
    "gymnasium-robotics", "zarr",
)  # fmt: skip
NEUTRAL = ("python", "zarr", "commit")  # recorded, but they compute nothing that is in a row
WAITING = 64  # finished episodes that may wait for the disk

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Phase = Literal["search", "report", "evaluate", "compare"]
Key = tuple[str, int, int]


class Row(msgspec.Struct, frozen=True, order=True, forbid_unknown_fields=True, omit_defaults=True):
    """One finished episode; (phase, candidate, seed) is its key.

    `reported` is false if the environment reports no success; `success` is then false. Earlier versions recorded no
    `sum_reward`.
    """

    phase: Phase
    candidate: Count
    seed: Count
    weights: Annotated[tuple[float, ...], Meta(min_length=1)]
    success: bool
    score: float
    steps: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    reported: bool = True
    sum_reward: float | None = None

    @property
    def key(self) -> Key:
        """Unique identifier of the episode: phase, candidate and seed."""
        return self.phase, self.candidate, self.seed


class Manifest(msgspec.Struct):
    """The fields of every manifest.json; early versions have no `resolved`."""

    config: dict[str, Any]
    versions: dict[str, str]
    resolved: dict[str, Any] | None = None


class RunFolder:
    """One experiment on disk; a folder that exists is resumed.

    Args:
        path: The folder.
        config: The settings that determine the results.
        length: Largest number of steps of an episode.
        resolved: The full configuration, for `gpc replay`.
        facts: Cards and the versions of their software, which are recorded beside those of packages.

    Raises:
        InputError: If the folder cannot be written, belongs to another configuration (the first difference is named), or
            another process writes in it.
        RunError: If its rows are damaged.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        length: int,
        resolved: Mapping[str, Any] | None = None,
        facts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path, self._file, self._access, self._facts = path, -1, Lock(), facts
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
            self.rows: dict[Key, Row] = {row.key: row for row in _decoded(self._complete_lines(), rows)}
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

    def extend(self, episodes: Sequence[tuple[Row, Mapping[str, Array]]]) -> None:
        """Add episodes; returns when they are on disk.

        Raises:
            RunError: If a score is not finite, or the folder is gone or cannot be written, as on a full disk; earlier episodes
                stay.
        """
        lines = b"".join(_line(row) for row, _ in episodes)
        with self._access:
            end = self._end()
            try:
                self._trajectories.write(len(self.rows), [trajectory for _, trajectory in episodes])
                write_whole(self._file, lines)
                os.fsync(self._file)
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._file, end)
                raise RunError(
                    f"{self.path}: {reason(error)}; {len(self.rows)} finished episodes are kept, the same command resumes the run"
                ) from None
            self.rows |= {row.key: row for row, _ in episodes}

    def phase(self, name: str) -> list[Row]:
        """Return the finished rows of a phase, ordered by candidate and seed."""
        return sorted(row for row in self.rows.values() if row.phase == name)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Replace a JSON file of the folder atomically.

        Raises:
            RunError: If a number is not finite, which JSON cannot hold, or the file cannot be written.
        """
        path = self.path / name
        write_atomically(path, _json(content, str(path), indent=1) + "\n")

    @property
    def versions(self) -> dict[str, str]:
        """Versions of packages with which the run began."""
        return dict(self._versions)

    def check_versions(self) -> None:
        """Check that the folder was started with the installed packages.

        Raises:
            InputError: If another version of a package is installed; more episodes would mix the results of both versions.
        """
        for name, fact in self._facts.items():
            if self._versions.get(name, fact) != fact:
                notice(
                    f"{self.path} was started with {name} {self._versions[name]}, now it is {fact}: the new rows may differ in "
                    "their last digits from what they would have been"
                )
        installed = versions()
        for name, recorded in self._versions.items():
            if name not in NEUTRAL and installed.get(name, recorded) != recorded:
                remedy = f"restore {name}" if name in USER_MODULES else f"pip install '{name}=={recorded}'"
                raise InputError(
                    f"{self.path} was started with {name} {recorded}, now {installed[name]} is installed, and one table must not "
                    f"mix them; {remedy}, or use another run_dir"
                )

    def _complete_lines(self) -> bytes:
        """Cut off a last line that a kill left incomplete; return the lines of the file."""
        with os.fdopen(self._file, "rb", closefd=False) as file:
            content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.ftruncate(self._file, end)
        return content[:end]

    def _end(self) -> int:
        """Return the position of the next row.

        Raises:
            RunError: If the open file is no longer the one in the folder.
        """
        status = os.fstat(self._file)
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(status, (self.path / "episodes.jsonl").stat()):
                return status.st_size
        raise RunError(f"{self.path} was deleted or moved while the run wrote in it; the same command begins it anew")

    def _check_manifest(self, config: dict[str, Any], resolved: Mapping[str, Any] | None) -> Mapping[str, str]:
        """Check that the folder has this configuration; return its recorded versions."""
        path = self.path / "manifest.json"
        if not path.exists():
            if (self.path / "episodes.jsonl").exists():
                raise InputError(f"{self.path} has episodes but no manifest.json; choose another run_dir")
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "config": config,
                "versions": versions() | dict(self._facts),
                "resolved": resolved,
            }
            self.write_json("manifest.json", manifest)
            return versions()
        recorded = read_versioned(Manifest, path)
        for key, old, new in _differences(upgraded(recorded)["config"], upgraded_config(config)):
            value = json.dumps(old).strip('"')
            remedy = f"choose {key}={value}, or " if key in DEVICE_KEYS else ""
            raise InputError(started_with(self.path, key, old, new, remedy))
        return dict(recorded["versions"])


class Writer:
    """Write episodes in a separate thread, parallel to the networks.

    If `WAITING` episodes wait for the disk, `put` waits. Leaving the block writes the episodes that wait.

    Args:
        folder: Where the episodes go.
        on_written: Is called with the number of episodes that have reached the disk since the last call.
    """

    def __init__(self, folder: RunFolder, on_written: Callable[[int], None]) -> None:
        self._folder, self._on_written, self._failure = folder, on_written, list[BaseException]()
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
        """Write the waiting episodes together; after a failure drop them: `put` returns."""
        open_ = True
        while open_:
            batch = [self._queue.get()]
            with suppress(Empty):
                while len(batch) < WAITING:
                    batch.append(self._queue.get_nowait())
            episodes = [item for item in batch if item is not None]
            open_ = len(episodes) == len(batch)
            if episodes and not self._failure:
                try:
                    self._folder.extend(episodes)
                    self._on_written(len(episodes))
                except BaseException as error:
                    self._failure.append(error)


def versions() -> dict[str, str]:
    """Return versions of Python and packages, and the hashes of user modules.

    Packages are those of `PACKAGES`, user modules those that the user named (`gpc.registry.USER_MODULES`).
    """
    return {**_installed(), **USER_MODULES}


@cache
def _installed() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    checkout = Path(__file__).parents[2]
    if (checkout / ".git").exists():
        describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):
            installed["commit"] = subprocess.run(
                describe, capture_output=True, text=True, check=True, timeout=5
            ).stdout.strip()
    return installed


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run folder.

    Raises:
        InputError: If it is missing or damaged.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path.parent} is not a finished gpc run: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{one_line(path)} cannot be read: {one_line(error)}") from None
    return schema.read(dict[str, Any], path)


def read_versioned(kind: Any, path: Path, versions: tuple[int, ...] = (SCHEMA_VERSION,)) -> dict[str, Any]:
    """Read a JSON file of a run folder and check it.

    Args:
        kind: Type of the content.
        path: The file.
        versions: Values of "schema_version" that can be read, the newest last.

    Raises:
        InputError: If it is missing or damaged, its version is another one, or a field does not fit and is named.
    """
    content = read_json(path)
    written = content.get("schema_version")
    if written is None:
        raise InputError(f"{path} has no schema_version: it is of no search, evaluation or comparison")
    if written not in versions:
        raise InputError(
            f"{path} has schema_version {one_line(written, 20)}, not {versions[-1]}; use the gpc that wrote it"
        )
    schema.convert(kind, content, str(path))
    return content


def read_rows(path: Path) -> list[Row]:
    """Read an episodes.jsonl, without a last line that a kill left incomplete.

    Raises:
        InputError: If the file cannot be read.
        RunError: If a complete line is damaged or repeats an episode; its number and its field are named.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> list[Row]:
    """Decode the rows of complete lines."""
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
    """Return the search seeds of each run in a folder that searched these policies.

    Runs that cannot be read are skipped.
    """
    seeds = {}
    for path in sorted(runs.glob("*/manifest.json")):
        with suppress(GpcError):
            if read_versioned(Manifest, path)["config"].get("fingerprints") == fingerprints:
                rows = read_rows(path.with_name("episodes.jsonl"))
                seeds[path.parent] = {row.seed for row in rows if row.phase == "search"}
    return seeds


def _line(row: Row) -> bytes:
    fields = {name: value for name, value in msgspec.structs.asdict(row).items() if value is not None}
    return _json(fields, f"the row of seed {row.seed}").encode() + b"\n"


def _json(content: Mapping[str, Any], where: str, indent: int | None = None) -> str:
    """Encode as JSON.

    Raises:
        RunError: If a number is not finite, such as a score of an environment with a reward of NaN.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError:
        raise RunError(
            f"{where} holds a number that is not finite: does the environment return finite rewards?"
        ) from None


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif old != new:
        yield where, old, new
