"""Evidence of a study: the rows of several runs in one table, and one file of what produced them.

`NAME.json` holds each run's manifest as it was recorded, the weights of each candidate and the winner of a search.
`NAME.jsonl.gz` holds the rows, one JSON object a line, with the name of the run, in the order in which the episodes finished.
Summaries and figures are computed from both.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gpc import schema
from gpc.disk import reason, write_atomically
from gpc.errors import InputError, one_line, suggest
from gpc.results.leaderboard import Run, read_run
from gpc.results.run_folder import Count, Phase, Row
from gpc.results.summary import summarize_evaluation, summarize_search
from gpc.results.upgrade import upgraded
from gpc.weights.simplex import Weights, one_hot

SCHEMA_VERSION = 1


class Recorded(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One run without its rows; winner and denoising errors are those of a search."""

    manifest: dict[str, Any]
    weights: dict[Count, Weights]
    winner: Count | None = None
    infrastructure_errors: Count = 0
    denoising_error: dict[str, Any] | None = None

    def summary(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Compute the summary of the run, as in summary.json."""
        names = self.manifest["config"]["policies"]
        if self.winner is None:
            return summarize_evaluation(names, sorted(rows), self.infrastructure_errors)
        parts = len(self.weights[self.winner]) // len(names)
        candidates = {weights: candidate for candidate, weights in self.weights.items()}
        parents = {name: candidates[one_hot(i, len(names)) * parts] for i, name in enumerate(names)}
        phases = [[row for row in rows if row.phase == phase] for phase in ("search", "report")]
        summary = summarize_search(names, phases[0], phases[1], self.winner, parents, self.infrastructure_errors)
        return summary | ({"denoising_error": self.denoising_error} if self.denoising_error else {})


class Study(Struct, forbid_unknown_fields=True):
    """The content of NAME.json; `sha256` is that of the rows before compression."""

    schema_version: int
    sha256: str
    runs: dict[str, Recorded]


class _Line(Struct, forbid_unknown_fields=True):
    """One row of NAME.jsonl.gz."""

    run: str
    phase: Phase
    candidate: Count
    seed: Count
    success: bool
    score: float
    steps: Count
    reported: bool = True


class Evidence:
    """A study that is read.

    Args:
        path: NAME.json, beside NAME.jsonl.gz.

    Raises:
        InputError: If one of both is missing or damaged, or they do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        study = schema.read(Study, path)
        if study.schema_version != SCHEMA_VERSION:
            raise InputError(f"{path} has schema_version {study.schema_version}, not {SCHEMA_VERSION}")
        self.runs = study.runs
        content = _read_table(table_of(path))
        if hashlib.sha256(content).hexdigest() != study.sha256:
            raise InputError(f"{table_of(path)} does not hold the rows that {path.name} is about")
        self._rows: dict[str, list[Row]] = {name: [] for name in study.runs}
        for number, text in enumerate(content.splitlines(), 1):
            where = f"{table_of(path)}, line {number} is damaged"
            line = schema.decode(_Line, text, where)
            recorded = self.runs.get(line.run)
            if recorded is None or line.candidate not in recorded.weights:
                raise InputError(f"{where}: {path.name} has no such run or candidate")
            self._rows[line.run].append(_row(line, recorded))

    def recorded(self, name: str) -> Recorded:
        """Return a run without its rows.

        Raises:
            InputError: If the study has no such run.
        """
        if name not in self.runs:
            raise InputError(f"{self.path} has no run {name!r}{suggest(name, list(self.runs))}")
        return self.runs[name]

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a run, in the order in which the episodes finished."""
        self.recorded(name)
        return self._rows[name]

    def run(self, name: str) -> Run:
        """Return a run with its summary."""
        recorded, rows = self.recorded(name), self.rows(name)
        manifest = upgraded(recorded.manifest)
        return Run(self.path.with_suffix("") / name, manifest, recorded.summary(rows), tuple(rows))


def table_of(path: Path) -> Path:
    """Return the file of the rows of a study."""
    return path.with_suffix(".jsonl.gz")


def write_evidence(path: Path, folders: Sequence[Path]) -> None:
    """Add finished runs to a study; a run of the same name is replaced.

    Args:
        path: NAME.json; the rows go beside it.
        folders: Run folders of `gpc evaluate` and `gpc search`. Their names become the names of the runs.

    Raises:
        InputError: If a folder is no such run, or the study is damaged.
        RunError: If a file cannot be written.
    """
    study = Evidence(path) if path.exists() else None
    runs: dict[str, tuple[Recorded, Sequence[Row]]] = {}
    if study:
        runs |= {name: (recorded, study.rows(name)) for name, recorded in study.runs.items()}
    for folder in folders:
        run = read_run(folder)
        runs[folder.resolve().name] = _without_rows(run), run.rows
    lines = [line for name, (_, rows) in runs.items() for line in map(_line_of(name), rows)]
    content = "".join(lines).encode()
    recorded = {name: recorded for name, (recorded, _) in runs.items()}
    study_json = msgspec.to_builtins(
        Study(SCHEMA_VERSION, hashlib.sha256(content).hexdigest(), recorded), str_keys=True
    )
    write_atomically(table_of(path), gzip.compress(content, mtime=0))
    write_atomically(path, json.dumps(study_json, allow_nan=False) + "\n")


def _without_rows(run: Run) -> Recorded:
    if run.summary["kind"] == "comparison":
        raise InputError(f"{run.path} is a comparison; evidence holds runs of gpc evaluate and gpc search")
    weights = {row.candidate: row.weights for row in run.rows}
    winner = None
    if run.summary["kind"] == "search":
        winner = {weights: candidate for candidate, weights in weights.items()}[tuple(run.summary["winner"]["weights"])]
    config = run.manifest["config"]
    early = {
        key: value for key, value in config.items() if key != "fingerprints"
    }  # some manifests lack parts of "resolved"
    resolved = early | (run.manifest.get("resolved") or {})
    return Recorded(
        {**run.manifest, "resolved": resolved},
        dict(sorted(weights.items())),
        winner,
        run.summary["infrastructure_errors"],
        run.summary.get("denoising_error"),
    )


def _line_of(name: str) -> Any:
    def line(row: Row) -> str:
        fields = {key: value for key, value in msgspec.to_builtins(row).items() if key != "weights"}
        return json.dumps({"run": name, **fields}, allow_nan=False) + "\n"

    return line


def _row(line: _Line, recorded: Recorded) -> Row:
    weights = recorded.weights[line.candidate]
    return Row(line.phase, line.candidate, line.seed, weights, line.success, line.score, line.steps, line.reported)


def _read_table(path: Path) -> bytes:
    """Read the rows, at most `schema.FILE_LIMIT` bytes."""
    try:
        with gzip.open(path) as file:
            content = file.read(schema.FILE_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from None
    if len(content) > schema.FILE_LIMIT:
        raise InputError(f"{path} holds more than {schema.FILE_LIMIT} bytes")
    return content
