"""A run in W&B, Trackio or TensorBoard, beside its folder: `log=`.

Each finished episode is a step: success and score so far, of all episodes of a phase and of each weights. At the end follow the
table, the verdict and the figures. The run folder keeps what a resumed run needs: a random token, of which the hash is the
run's id there, and the number of episodes that were sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from os import environ, getenv
from pathlib import Path
from secrets import token_hex
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from msgspec import Meta, Struct

from gpc.disk import write_atomically
from gpc.errors import InputError, one_line
from gpc.inert import notice
from gpc.results.report import rows_of
from gpc.results.run_folder import Row, RunFolder, read_json
from gpc.results.summary import mixture, read_summary
from gpc.schema import read

FILE = "log.json"
PROJECT = "gpc"
HEAD = ("name", "phase", "n_episodes", "pc_success", "low", "high", "avg_max_reward", "score_low", "score_high")
Table = Sequence[Sequence[str | float]]
"""Rows of a table, the head first."""


class Subject(NamedTuple):
    """The run that is logged: id and name, its folder, its configuration."""

    id: str
    name: str
    path: Path
    config: Mapping[str, Any]


class Backend(Protocol):
    """What a run is sent to; made of a `Subject`, whose run it continues."""

    def numbers(self, values: Mapping[str, float], episode: int) -> None:
        """Send curves' values after an episode."""

    def results(self, verdict: str, table: Table, figures: Sequence[Path]) -> None:
        """Send what a finished run has found; figures are PNG files."""

    def close(self) -> None:
        """Send what waits."""


class Wandb:
    """Weights & Biases (wandb.ai).

    Environment variables and `wandb login` choose server and account. Its local files go to ./wandb, or to WANDB_DIR, never
    to the run folder: wandb reads settings, also its server, from there.
    """

    def __init__(self, run: Subject) -> None:
        import wandb

        self._wandb = wandb
        here = Path(getenv("WANDB_DIR", ".")).resolve()
        if here.is_relative_to(run.path.resolve()):
            raise InputError(
                f"wandb would read settings of the run folder {run.path}; start elsewhere, or set WANDB_DIR"
            )
        project = environ.get("WANDB_PROJECT", PROJECT)
        quiet = wandb.Settings(console="off")
        self._run = wandb.init(
            project=project, id=run.id, name=run.name, config=dict(run.config), resume="allow", settings=quiet
        )
        self._run.define_metric("episode")
        self._run.define_metric("*", step_metric="episode")

    def numbers(self, values: Mapping[str, float], episode: int) -> None:
        """Send curves' values after an episode."""
        self._run.log({**values, "episode": episode})

    def results(self, verdict: str, table: Table, figures: Sequence[Path]) -> None:
        """Send what a finished run has found."""
        self._run.summary["verdict"] = verdict
        pictures = {file.stem: self._wandb.Image(str(file)) for file in figures}
        self._run.log({"table": self._wandb.Table(columns=list(table[0]), data=list(table[1:])), **pictures})

    def close(self) -> None:
        """Send what waits."""
        self._run.finish()


class Trackio:
    """Trackio (github.com/gradio-app/trackio).

    It is on this machine unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL is set.
    """

    def __init__(self, run: Subject) -> None:
        import trackio

        self._trackio = trackio
        self._run = trackio.init(PROJECT, f"{run.name}-{run.id}", config=dict(run.config), resume="allow", embed=False)

    def numbers(self, values: Mapping[str, float], episode: int) -> None:
        """Send curves' values after an episode."""
        self._run.log(dict(values), step=episode)

    def results(self, verdict: str, table: Table, figures: Sequence[Path]) -> None:
        """Send what a finished run has found."""
        pictures = {file.stem: self._trackio.Image(str(file)) for file in figures}
        head, *rows = table
        columns = self._trackio.Table(columns=list(head), data=[list(row) for row in rows])
        self._run.log({"verdict": self._trackio.Markdown(verdict), "table": columns, **pictures})

    def close(self) -> None:
        """Send what waits."""
        self._run.finish()


class TensorBoard:
    """Event files in the run folder, of which `tensorboard --logdir runs` shows all."""

    def __init__(self, run: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path))

    def numbers(self, values: Mapping[str, float], episode: int) -> None:
        """Send curves' values after an episode."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, episode)

    def results(self, verdict: str, table: Table, figures: Sequence[Path]) -> None:
        """Send what a finished run has found."""
        import numpy as np
        from PIL import Image

        head, *rows = (" | ".join(str(cell).replace("|", "/") for cell in row) for row in table)
        if verdict:
            self._writer.add_text("verdict", verdict)
        self._writer.add_text("table", "\n".join([head, "|".join(["---"] * len(table[0])), *rows]))
        for file in figures:
            self._writer.add_image(file.stem, np.asarray(Image.open(file).convert("RGB")), dataformats="HWC")

    def close(self) -> None:
        """Send what waits."""
        self._writer.close()


BACKENDS: Mapping[str, Callable[[Subject], Backend]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": TensorBoard,
}


class Kept(Struct):
    """The content of log.json."""

    token: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    sent: dict[str, Annotated[int, Meta(ge=0)]]


class RunLog:
    """A run that a backend follows; a backend that fails is left out with a notice.

    Args:
        name: Of the backend; None for none.
        sides: Names of the sides of a comparison; candidates of other runs have their weights as names.
    """

    def __init__(self, name: str | None = None, sides: Sequence[str] = ()) -> None:
        self._name, self._sides, self._sent = name or "", sides, 0
        self._backend: Backend | None = None
        self._path: Path | None = None
        self._totals: dict[str, tuple[int, int, float]] = {}

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        with self._guarded() as backend:
            if backend and self._path:
                self._keep(self._path, {**self._state.sent, self._name: self._sent})
                backend.close()

    def start(self, folder: RunFolder) -> None:
        """Open the backend, and send the episodes of the folder that it lacks."""
        with self._guarded():
            if self._name and self._path is None:
                self._path = folder.path
                file, config = folder.path / FILE, read_json(folder.path / "manifest.json")["config"]
                state = self._state = read(Kept, file) if file.exists() else Kept(token_hex(16), {})
                self._keep(folder.path, state.sent)
                digest = sha256(f"{state.token} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()
                name = folder.path.resolve().name
                self._backend = BACKENDS[self._name](Subject(digest[:16], name, folder.path, config))
                for row in islice(folder.rows.values(), state.sent.get(self._name, 0)):
                    self._values(row)
                    self._sent += 1
        self.advance(folder)

    def advance(self, folder: RunFolder) -> None:
        """Send the episodes that have been written since the last call."""
        with self._guarded() as backend:
            if backend:
                for row in islice(folder.rows.values(), self._sent, None):
                    self._sent += 1
                    backend.numbers(self._values(row), self._sent)

    def results(self, path: Path) -> None:
        """Send table, verdict and figures of a finished run."""
        with self._guarded() as backend:
            if backend:
                summary = read_summary(path)
                rows = [
                    (name, phase, *(figures[key] for key in HEAD[2:4]), *figures["pc_success_ci95"],
                     figures["avg_max_reward"], *figures["avg_max_reward_ci95"])
                    for name, phase, figures in rows_of(summary)
                ]  # fmt: skip
                figures = [file for file in sorted(path.glob("*.png")) if not file.is_symlink()]
                backend.results(summary.get("verdict", ""), [HEAD, *rows], figures)

    def _keep(self, path: Path, sent: dict[str, int]) -> None:
        write_atomically(path / FILE, msgspec.json.encode(Kept(self._state.token, sent)))

    def _values(self, row: Row) -> dict[str, float]:
        """Return success and score so far, of the row's phase and of its candidate."""
        name = self._sides[row.candidate] if self._sides else mixture(row.weights)
        label = re.sub(r"[^-\w.]+", "_", name).strip("_")  # what TensorBoard takes as a name
        values = dict[str, float]()
        for curve in (row.phase, f"{row.phase}/{label}"):
            n, wins, total = self._totals.get(curve, (0, 0, 0.0))
            n, wins, total = self._totals[curve] = n + 1, wins + row.success, total + row.score
            values |= {f"{curve}/pc_success": 100 * wins / n, f"{curve}/avg_max_reward": total / n}
        return values

    @contextmanager
    def _guarded(self) -> Iterator[Backend | None]:
        """Yield the backend, which is closed to the run by its first failure."""
        try:
            yield self._backend
        except Exception as error:  # whatever it raises: the episodes matter more
            self._backend = None
            notice(f"log={self._name} has failed, the run continues without it: {one_line(error)}")
