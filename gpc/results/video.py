"""Videos: recorded actions done again before a camera, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np

from gpc.disk import writing
from gpc.errors import RunError, one_line
from gpc.inert import label
from gpc.policy.env_spec import EnvSpec
from gpc.results.run_folder import Row, read_rows
from gpc.results.summary import by_candidate, read_summary
from gpc.results.trajectories import read_trajectory
from gpc.rollout.env import Environment, make_env
from gpc.types import Array


def record_video(spec: EnvSpec, path: Path, count: int) -> None:
    """Write `episodes.mp4`: the recorded actions of each candidate's first `count` report seeds, done again side by side."""
    rows, summary = read_rows(path / "episodes.jsonl"), read_summary(path)
    place = {row: i for i, row in enumerate(rows)}
    groups = list(by_candidate([row for row in rows if row.phase != "search"]).values())
    panels: list[tuple[str, list[Array]]] = [(_title(group[0], summary), []) for group in groups]
    with closing(make_env(spec)) as env:
        for i in range(min(count, len(groups[0]))):
            films = [film(env, row.seed, read_trajectory(path, place[row])["action"]) for row in (g[i] for g in groups)]
            longest = max(map(len, films))
            for (_, frames), shown in zip(panels, films, strict=True):
                frames += shown + [shown[-1]] * (longest - len(shown))
    write_video(path / "episodes.mp4", panels)


def film(env: Environment, seed: int, actions: Array) -> list[Array]:
    """What a camera sees of these actions (steps, action) after a reset with this seed."""
    env.reset(seed=seed)
    frames = []
    for action in actions:
        env.advance(action)
        frames.append(cast(Array, env.render()))
    return frames


def write_video(path: Path, panels: Sequence[tuple[str, Sequence[Any]]], fps: int = 20) -> None:
    """Write an mp4 of several episodes side by side: (title, frames (height, width, 3) uint8) for each panel.

    Raises:
        RunError: the file cannot be written; an older one stays.
    """
    temporary = path.with_name(f"unfinished-{path.name}")
    with writing(path):
        temporary.unlink(missing_ok=True)  # in a folder of others it may be a link to any file
        temporary.touch(exist_ok=False)
        try:
            try:
                _encode(temporary, panels, fps)
                _check_whole(temporary)
            except OSError as error:
                raise RunError(f"{path} cannot be written: {one_line(error, 80)} (is the disk full?)") from None
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _encode(path: Path, panels: Sequence[tuple[str, Sequence[Any]]], fps: int) -> None:
    import imageio.v2 as imageio
    from PIL import Image, ImageDraw

    longest = max(len(frames) for _, frames in panels)
    settings: dict[str, Any] = {"codec": "libx264", "macro_block_size": 16, "quality": 6, "ffmpeg_log_level": "quiet"}
    with imageio.get_writer(path, fps=fps, **settings) as writer:
        for i in range(longest):
            shown = []
            for title, frames in panels:
                frame = frames[min(i, len(frames) - 1)]
                canvas = Image.new("RGB", (frame.shape[1], frame.shape[0] + 32), "white")
                canvas.paste(Image.fromarray(frame), (0, 32))
                ImageDraw.Draw(canvas).text((6, 9), label(title), fill="black", font_size=14)
                shown.append(np.asarray(canvas))
            cast(Any, writer).append_data(np.concatenate(shown, axis=1))


def _check_whole(path: Path) -> None:
    """Raise OSError if a video ends early: an encoder whose disk is full at the very end does not fail."""
    from imageio_ffmpeg import count_frames_and_secs

    try:
        count_frames_and_secs(path)
    except RuntimeError as error:
        raise OSError(one_line(error)) from None


def _title(row: Row, summary: Mapping[str, Any]) -> str:
    if row.phase == "compare":
        return str(summary["sides"][row.candidate]["name"])
    parents = {tuple(p["weights"]): p["name"] for p in summary.get("parents", [])}
    return str(parents.get(row.weights, "composed " + ", ".join(f"{w:g}" for w in row.weights)))
