"""`study.db`: every episode of several runs in one SQLite file, for questions of your own (schema: docs/reports.md).

gpc writes it and never reads it. The run folders stay the truth: the file is made anew from them each time, which costs less
than finding out what has changed, and may be deleted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from gpc.errors import InputError
from gpc.results.leaderboard import Run

SCHEMA = """
CREATE TABLE runs (
    run TEXT PRIMARY KEY, kind TEXT NOT NULL, task TEXT NOT NULL, env TEXT NOT NULL, sampler TEXT NOT NULL,
    manifest TEXT NOT NULL, summary TEXT NOT NULL
);
CREATE TABLE weights (
    run TEXT NOT NULL REFERENCES runs, candidate INTEGER NOT NULL, policy TEXT NOT NULL, fingerprint TEXT NOT NULL,
    weight REAL NOT NULL, parts TEXT NOT NULL, PRIMARY KEY (run, candidate, policy)
) WITHOUT ROWID;
CREATE TABLE episodes (
    run TEXT NOT NULL REFERENCES runs, episode INTEGER NOT NULL, phase TEXT NOT NULL, candidate INTEGER NOT NULL,
    seed INTEGER NOT NULL, success INTEGER NOT NULL, score REAL NOT NULL, steps INTEGER NOT NULL, PRIMARY KEY (run, episode)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


def write_store(runs: Sequence[Run], path: Path) -> None:
    """Replace the file, whole or not at all. Raises InputError where it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        database = sqlite3.connect(temporary)
        database.executescript(SCHEMA)
        with database:
            for run in runs:
                _add(database, run)
        database.close()
        temporary.replace(path)
    except (OSError, UnicodeError, sqlite3.Error) as error:  # a path of undecodable bytes is no text of SQLite
        raise InputError(f"{path} cannot be written: {error}") from None


def _add(database: sqlite3.Connection, run: Run) -> None:
    name, resolved = str(run.path), run.resolved
    texts = [json.dumps(content) for content in (resolved["env"], resolved["sampler"], run.manifest, run.summary)]
    database.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", (name, run.summary["kind"], run.env.name, *texts))
    for row in {row.candidate: row for row in run.rows}.values():
        lines = [(name, row.candidate, p, digest, sum(w) / len(w), json.dumps(w)) for p, digest, w in run.members(row)]
        database.executemany("INSERT INTO weights VALUES (?, ?, ?, ?, ?, ?)", lines)
    episodes = [(name, i, r.phase, r.candidate, r.seed, r.success, r.score, r.steps) for i, r in enumerate(run.rows)]
    database.executemany("INSERT INTO episodes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", episodes)
