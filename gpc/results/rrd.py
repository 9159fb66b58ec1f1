"""A run for rerun (rerun.io): its recorded episodes as one .rrd file.

Under each weights the episodes stand one after another on the timeline `step`, those of one seed at the same place, the video's
pictures, too: what a mixture and its parents do from one initial state is seen side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from gpc.errors import InputError, RunError, one_line
from gpc.installation import install
from gpc.results.leaderboard import Run, read_run
from gpc.results.run_folder import Row
from gpc.results.summary import mixture
from gpc.results.trajectories import read_trajectory
from gpc.results.video import CLIPS, FPS, VIDEO, Clip
from gpc.schema import check, read

RECORDED = ("action", "reward")
"""Arrays of a trajectory with an entry for each step; the others, observations, have one for each decision."""


def write_rrd(path: Path, file: Path) -> None:
    """Write trajectories, actions, scores and the video of a run folder.

    Args:
        path: Run folder, finished.
        file: The .rrd file.

    Raises:
        InputError: If the folder is not a finished run, its trajectories are damaged, or rerun is missing.
        RunError: If the file cannot be written.
    """
    run = read_run(path)
    try:
        rerun = import_module("rerun")
    except ImportError:
        raise InputError(f"--rrd needs rerun-sdk: {install('rerun')}") from None
    try:
        stream = rerun.RecordingStream(f"gpc {path.resolve().name}")
        stream.save(file)
        _write_episodes(rerun, stream, run)
        _write_video(rerun, stream, run)
        stream.flush()
        stream.disconnect()
    except (InputError, RunError):
        raise
    except Exception as error:  # whatever rerun raises
        raise RunError(f"{file} cannot be written: {one_line(error)}") from None


def _write_episodes(rerun: Any, stream: Any, run: Run) -> None:
    n_action_steps = check(
        Annotated[int, Meta(ge=1, le=10**4)], run.manifest["config"]["env"]["n_action_steps"], "n_action_steps"
    )
    for phase in dict.fromkeys(row.phase for row in run.rows):
        rows = [(i, row) for i, row in enumerate(run.rows) if row.phase == phase]
        place = _places(run, [row for _, row in rows])
        for i, row in rows:
            entity = [phase, _title(run, row)]
            arrays = read_trajectory(run.path, i)
            for name, values in ((name, values) for name, values in arrays.items() if len(values)):
                part = [name] if name in RECORDED else ["observation", name]
                steps = place[row.seed] + np.arange(len(values)) * (1 if name in RECORDED else n_action_steps)
                _send(rerun, stream, [*entity, *part], steps, values.reshape(len(values), -1))
            end = np.array([place[row.seed] + row.steps - 1])
            _send(rerun, stream, [*entity, "score"], end, np.array([[row.score]]))
            _send(rerun, stream, [*entity, "success"], end, np.array([[row.success]], float))
            _send(rerun, stream, [*entity, "seed"], end, np.array([[row.seed]], float))


def _places(run: Run, rows: Sequence[Row]) -> dict[int, int]:
    """Return the first step of each seed's episodes."""
    longest = max(row.steps for row in run.rows) + 1  # a step of nothing between two episodes
    return {seed: k * longest for k, seed in enumerate(sorted({row.seed for row in rows}))}


def _title(run: Run, row: Row) -> str:
    """Return the weights of a row, or its side's name in a comparison."""
    sides = run.summary.get("sides")
    return str(sides[row.candidate]["name"]) if sides else mixture(row.weights)


def _send(rerun: Any, stream: Any, entity: Sequence[str], steps: Any, values: Any) -> None:
    stream.send_columns(
        rerun.new_entity_path(list(entity)),
        indexes=[rerun.TimeColumn("step", sequence=steps)],
        columns=rerun.Scalars.columns(scalars=values),
    )


def _write_video(rerun: Any, stream: Any, run: Run) -> None:
    """Write the pictures of the video at the steps of its seeds."""
    files = [run.path / name for name in (VIDEO, CLIPS)]
    if not all(file.is_file() and not file.is_symlink() for file in files):
        return
    video = rerun.AssetVideo(path=files[0])
    times = video.read_frame_timestamps_nanos()
    place, frames, steps = _places(run, [row for row in run.rows if row.phase != "search"]), list[int](), list[int]()
    for clip in read(list[Clip], files[1]):
        if clip.seed in place:
            begin, end = (min(len(times), round(second * FPS)) for second in (clip.start, clip.end))
            frames += range(begin, end)
            steps += range(place[clip.seed], place[clip.seed] + end - begin)
    stream.log("episodes", video, static=True)
    stream.send_columns(
        "episodes",
        indexes=[rerun.TimeColumn("step", sequence=steps)],
        columns=rerun.VideoFrameReference.columns_nanos(times[frames]),
    )
