"""Videos of recorded actions, executed again in front of a camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
from msgspec import Meta, Struct, to_builtins

from gpc import schema
from gpc.disk import as_json, write_atomically, writing
from gpc.errors import RunError, one_line
from gpc.inert import label
from gpc.results.run_folder import Row, read_rows
from gpc.results.summary import by_candidate, read_summary
from gpc.results.trajectories import read_trajectory
from gpc.rollout.env import Environment, LaneSpec, make_env
from gpc.types import Array

VIDEO, CLIPS = "episodes.mp4", "episodes.json"
FPS = 20


class Clip(Struct):
    """The part of `episodes.mp4` that shows one seed, in seconds."""

    seed: Annotated[int, Meta(ge=0)]
    start: Annotated[float, Meta(ge=0, le=1e9)]
    end: Annotated[float, Meta(ge=0, le=1e9)]


def record_video(spec: LaneSpec, path: Path, count: int) -> None:
    """Write `episodes.mp4` of seeds that `chosen` chooses, and `episodes.json`.

    Winner and parents, or both sides, are side by side.
    """
    rows, summary = read_rows(path / "episodes.jsonl"), read_summary(path)
    place = {row: i for i, row in enumerate(rows)}
    groups = list(by_candidate([row for row in rows if row.phase != "search"]).values())
    panels: list[tuple[str, list[Array]]] = [(_title(group[0], summary), []) for group in groups]
    played = [{row.seed: row for row in group} for group in groups]
    clips = list[Clip]()
    with closing(make_env(spec.env, spec.observation_keys)) as env:
        for seed in chosen(played, count):
            frames_of = [render(env, seed, read_trajectory(path, place[rows[seed]])["action"]) for rows in played]
            longest = max(map(len, frames_of))
            for (_, frames), clip in zip(panels, frames_of, strict=True):
                frames += clip + [clip[-1]] * (longest - len(clip))
            end = len(panels[0][1]) / FPS
            clips.append(Clip(seed, end - longest / FPS, end))
    write_video(path / VIDEO, panels)
    write_atomically(path / CLIPS, as_json([to_builtins(clip) for clip in clips]))


def chosen(groups: Sequence[Mapping[int, Row]], count: int) -> list[int]:
    """Choose the seeds that show most.

    First those on which the groups differ, of each pattern of successes in turn, then those that all lose, then the others.

    Args:
        groups: Rows of each policy or mixture, by seed.
        count: Largest number of seeds.
    """
    patterns: dict[tuple[bool, ...], list[int]] = {}
    for seed in sorted(groups[0]):
        if all(seed in rows for rows in groups):
            patterns.setdefault(tuple(rows[seed].success for rows in groups), []).append(seed)
    differing = [seeds for pattern, seeds in sorted(patterns.items(), reverse=True) if len({*pattern}) > 1]
    turns = [seed for turn in zip_longest(*differing) for seed in turn if seed is not None]
    alike = [patterns.get((success,) * len(groups), []) for success in (False, True)]
    return [*turns, *alike[0], *alike[1]][:count]


def read_clips(path: Path) -> list[Clip]:
    """Read `episodes.json` of a run folder; earlier versions wrote none."""
    file = path / CLIPS
    return schema.read(list[Clip], file) if file.is_file() else []


def render(env: Environment, seed: int, actions: Array) -> list[Array]:
    """Return a picture after each action (steps, action), from a reset with the seed."""
    env.reset(seed=seed)
    frames = []
    for action in actions:
        env.advance(action)
        frames.append(cast(Array, env.render()))
    return frames


def write_video(path: Path, panels: Sequence[tuple[str, Sequence[Any]]], fps: int = FPS) -> None:
    """Write an mp4 file of several episodes side by side.

    Args:
        path: The file.
        panels: Title and frames (height, width, 3) uint8 of each episode.
        fps: Frames per second.

    Raises:
        RunError: If the file cannot be written; an older one stays.
    """
    temporary = path.with_name(f"unfinished-{path.name}")
    with writing(path):
        temporary.unlink(missing_ok=True)  # in a folder of others it may be a link to any file
        temporary.touch(exist_ok=False)
        try:
            try:
                _encode(temporary, panels, fps)
                _check_complete(temporary)
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
            row = []
            for title, frames in panels:
                frame = frames[min(i, len(frames) - 1)]
                canvas = Image.new("RGB", (frame.shape[1], frame.shape[0] + 32), "white")
                canvas.paste(Image.fromarray(frame), (0, 32))
                ImageDraw.Draw(canvas).text((6, 9), label(title), fill="black", font_size=14)
                row.append(np.asarray(canvas))
            cast(Any, writer).append_data(np.concatenate(row, axis=1))


def _check_complete(path: Path) -> None:
    """Check that a video does not end early: on a full disk an encoder may not fail.

    Raises:
        OSError: If it does.
    """
    from imageio_ffmpeg import count_frames_and_secs

    try:
        count_frames_and_secs(path)
    except RuntimeError as error:
        raise OSError(one_line(error)) from None


def _title(row: Row, summary: Mapping[str, Any]) -> str:
    if row.phase == "compare":
        return str(summary["sides"][row.candidate]["name"])
    if len(row.weights) == 1:
        return str(summary["policies"][0])
    parents = {tuple(p["weights"]): p["name"] for p in summary.get("parents", [])}
    return str(parents.get(row.weights, "composed " + ", ".join(f"{w:g}" for w in row.weights)))
