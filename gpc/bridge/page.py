"""The page of a deployed episode, made of its record: actions against limits, holds, latencies, camera pictures."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from io import BytesIO
from os.path import isdir
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zarr

from gpc import schema
from gpc.bridge.controller import MODES, OK
from gpc.demonstrations import ACTION
from gpc.errors import InputError, reading
from gpc.results.charts import action_chart, timing_chart
from gpc.results.page import Block, chart, data_uri, section, write_page
from gpc.results.run_folder import Manifest, read_json, read_versioned
from gpc.stored_arrays import Budget, read_zarr, zarr_array
from gpc.types import Array

STREAM = ("at", "mode", "asked", "sent", "age", "late")
MOST_DIMENSIONS, MOST_EVENTS, PICTURES = 16, 500, 6
READ_BYTES = 2**30  # of the stream, in a folder of others
EPISODE = "episode.zarr"


def deployed(path: Path) -> bool:
    """Return whether a folder holds the record of a deployed episode."""
    return isdir(path / EPISODE)  # unlike Path.is_dir it raises nothing


def write_deploy_page(path: Path) -> Path:
    """Write `report.html` of a deployed episode and return it.

    Raises:
        InputError: If the record is damaged or of another version.
        RunError: If the page cannot be written.
    """
    config, summary, stream = _record(path)
    blocks = _outline(config, summary, stream)
    blocks += [("heading", "Actions against limits"), ("note", ACTIONS)]
    blocks += section("the actions", partial(_actions, config, stream))
    blocks += [("heading", "Latencies"), *_latencies(stream)]
    blocks += section("the camera pictures", partial(_pictures, path / EPISODE))
    blocks += [("heading", "Events"), *section("the events", partial(_events, path / "events.jsonl"))]
    robot = config.get("robot")
    name = robot.get("type") if isinstance(robot, dict) else robot
    return write_page(path / "report.html", f"Deployed on {name}, {summary.get('mode', config.get('mode'))}", blocks)


def deployment_in_study(path: Path) -> list[Block]:
    """Return the part of a study's page about a deployed episode."""
    config, summary, stream = _record(path)
    return [*_outline(config, summary, stream), *_latencies(stream)]


def _record(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Array]]:
    """Read configuration, summary and the rows of every period.

    The summary is empty if the episode did not end in order.
    """
    manifest = read_versioned(Manifest, path / "manifest.json")
    summary = read_json(path / "summary.json") if (path / "summary.json").is_file() else {}
    return manifest["config"] | {"versions": manifest["versions"]}, summary, _stream(path)


def _outline(config: Mapping[str, Any], summary: Mapping[str, Any], stream: Mapping[str, Array]) -> list[Block]:
    """Return how the episode ended, and its facts."""
    seconds = float(stream["at"][-1]) if len(stream["at"]) else 0.0
    held = float((stream["mode"] != MODES.index(OK)).mean()) if len(stream["at"]) else 0.0
    ended = f"Ended after {seconds:.1f} s: {summary.get('why')}." if summary else "The episode did not end in order."
    verdict = f"{ended} {100 * held:.1f} % of the periods were no fresh action (hold or stop)."
    return [("verdict", verdict), ("facts", _facts(config, summary, config["versions"]))]


def _latencies(stream: Mapping[str, Array]) -> list[Block]:
    return chart("delays and ages", partial(timing_chart, stream["at"], stream["late"], stream["age"]))


ACTIONS = (
    "Lines: what was to be sent and what the robot reports as sent, in its units; dashed: the limits of position; shaded: periods "
    "in which the filter held or stopped."
)


def _facts(config: Mapping[str, Any], summary: Mapping[str, Any], versions: Mapping[str, str]) -> list[tuple[str, str]]:
    facts = [("command", str(config["command"]))] if "command" in config else []
    for name in (
        "periods",
        "steps",
        "missed_deadlines",
        "jitter_ms",
        "chunks",
        "chunk_ms",
        "events",
        "dropped",
        "not_recorded",
    ):
        if name in summary:
            value = summary[name]
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            facts.append((name.replace("_", " "), text))
    facts.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    return facts


def _stream(path: Path) -> dict[str, Array]:
    """Read the rows of every period."""
    with reading(path / EPISODE):
        root, budget = zarr.open_group(path / EPISODE, mode="r", zarr_format=2), Budget(path / EPISODE, READ_BYTES)
        if "at" not in root["stream"]:  # type: ignore[operator]
            raise InputError(f"{path} holds no period: the episode ended before its first action")
        columns = {name: read_zarr(root, f"stream/{name}", budget) for name in STREAM}
    count = min(map(len, columns.values()))
    for name, dimensions in zip(STREAM, (1, 1, 2, 2, 1, 1), strict=True):
        if columns[name].ndim != dimensions:
            raise InputError(f"{path / EPISODE}: stream/{name} has shape {columns[name].shape}")
    return {name: column[:count] for name, column in columns.items()}


class _Limits(msgspec.Struct):
    low: list[float | None]
    high: list[float | None]


def _actions(config: Mapping[str, Any], stream: Mapping[str, Array]) -> list[Block]:
    """Return a chart for each action dimension."""
    dim, names = stream["asked"].shape[1], (config.get("features") or {}).get("actions") or []
    limits = schema.convert(_Limits, config["limits"], "limits") if "limits" in config else _Limits([], [])
    holds, blocks = stream["mode"] != MODES.index(OK), list[Block]()
    for k in range(min(dim, MOST_DIMENSIONS)):
        name = str(names[k]) if k < len(names) else f"action {k}"
        bounds = [side[k] for side in (limits.low, limits.high) if k < len(side)]
        curves = {"to be sent": stream["asked"][:, k], "sent": stream["sent"][:, k]}
        blocks += chart(name, partial(action_chart, name, stream["at"], curves, bounds, holds))
    if dim > MOST_DIMENSIONS:
        blocks.append(("note", f"the first {MOST_DIMENSIONS} of {dim} dimensions"))
    return blocks


def _pictures(episode: Path) -> list[Block]:
    """Return some pictures of each camera, from the beginning to the end."""
    from PIL import Image

    root, budget, blocks = (
        zarr.open_group(episode, mode="r", zarr_format=2)["data"],
        Budget(episode, READ_BYTES),
        list[Block](),
    )
    for key in sorted(root.array_keys()) if isinstance(root, zarr.Group) else []:
        array = zarr_array(root, key, budget, PICTURES)
        if key == ACTION or array.ndim < 4 or not array.shape[0]:
            continue
        blocks.append(("note", key))
        for index in np.unique(np.linspace(0, array.shape[0] - 1, PICTURES).astype(int)):
            frame = np.asarray(array[index]).reshape(-1, *array.shape[-3:])[-1]
            frame = np.moveaxis(frame, 0, -1) if frame.shape[0] in (1, 3) else frame
            pixels = frame if frame.dtype == np.uint8 else (255 * np.clip(frame, 0, 1)).astype(np.uint8)
            file = BytesIO()
            Image.fromarray(pixels.squeeze()).save(file, "png")
            blocks.append(("picture", (f"{key}, step {index}", data_uri(file.getvalue(), "image/png"))))
    return [("heading", "Camera pictures"), *blocks] if blocks else []


class _Event(msgspec.Struct):
    at: float
    kind: str
    text: str


def _events(file: Path) -> list[Block]:
    """Return the events as a table."""
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        events = [
            schema.decode(_Event, line, str(file))
            for line in lines.read(2**22).splitlines(keepends=True)
            if line.endswith(b"\n")
        ]
    rows = [["s", "kind", "text"], *([f"{event.at:.2f}", event.kind, event.text] for event in events[:MOST_EVENTS])]
    more: list[Block] = (
        [("note", f"the first {MOST_EVENTS} of {len(events)} events")] if len(events) > MOST_EVENTS else []
    )
    return [("table", rows), *more]
