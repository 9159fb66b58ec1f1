"""A diagnosis as a table, in sentences, and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from gpc import schema
from gpc.results.charts import lines_chart
from gpc.results.page import Block, chart, data_uri, section, write_page
from gpc.results.report import error_blocks
from gpc.results.run_folder import read_json

FILE = "diagnosis.json"
DISTANCE = "RMS distance, normalised actions"


def member_table(diagnosis: Mapping[str, Any]) -> list[list[str]]:
    """Return a line for each policy, the head first."""
    table = [["policy", "reads", "steps", "sigma", "ms per chunk", "alignment"]]
    for member in diagnosis["members"]:
        low, high = (float("inf") if sigma is None else sigma for sigma in member["sigma"])  # JSON has no infinity
        table.append(
            [
                member["name"],
                f"{', '.join(member['reads'])} ({member['n_obs_steps']} times)",
                "{} to {}".format(*member["steps"]),
                f"{low:.3g} to {high:.3g}, {member['trained_levels'] or 'any'} levels",
                f"{1000 * diagnosis['seconds_per_chunk'][member['name']]:.0f}",
                member["note"] or f"exact, noise x {member['noise_ratio']:.3g}",
            ]
        )
    return table


def distances_apart(diagnosis: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each pair of policies."""
    sentences = []
    for pair, distances in diagnosis["disagreement_by_sigma"].items():
        largest = int(np.argmax(distances))
        sentences.append(
            f"{pair} are furthest apart at sigma {diagnosis['sigmas'][largest]:.2g} ({distances[largest]:.3f} of a normalised "
            f"action) and end {distances[-1]:.3f} apart."
        )
    return sentences


def prediction(diagnosis: Mapping[str, Any]) -> str:
    """Return what demonstrations predict, or how to add them."""
    verdict: str = diagnosis.get("denoising_error", {}).get("verdict", "")
    return verdict or "Held-out demonstrations add the likely gain: demonstrations=FILE."


class _Member(Struct):
    name: str


class _Named(Struct):
    """What the title of a page needs of a diagnosis."""

    members: list[_Member]


def diagnosed(path: Path) -> bool:
    """Return whether a folder holds a diagnosis."""
    return isfile(path / FILE)  # unlike Path.is_file it raises nothing


def write_diagnosis_page(folder: Path) -> Path:
    """Write `report.html` of a diagnosis from the files in its folder; return it.

    Raises:
        InputError: If diagnosis.json is damaged.
        RunError: If the page cannot be written.
    """
    diagnosis, names = read_json(folder / FILE), schema.read(_Named, folder / FILE)
    blocks = section(FILE, partial(_findings, diagnosis))

    def along() -> list[Block]:
        decisions = diagnosis["disagreement_by_decision"]
        count = len(next(iter(decisions.values())))
        return chart("by decision", partial(lines_chart, decisions, range(count), "decision", DISTANCE))

    def chunks() -> list[Block]:
        picture = (folder / "chunks.png").read_bytes()
        return [("picture", ("chunks of each policy for one observation", data_uri(picture, "image/png")))]

    blocks += [("heading", "Disagreement along the episode"), ("note", "Mean over the noise levels.")]
    blocks += section("the decisions", along)
    if errors := diagnosis.get("denoising_error"):
        blocks += [("heading", "Denoising errors"), *section("the errors", partial(error_blocks, errors))]
    blocks += [("heading", "Chunks in the middle of the episode"), *section("chunks.png", chunks)]
    title = "Diagnosis: " + ", ".join(member.name for member in names.members)
    return write_page(folder / "report.html", title, blocks)


def diagnosis_in_study(folder: Path) -> list[Block]:
    """Return the part of a study's page about a diagnosis."""
    return _findings(read_json(folder / FILE))


def _findings(diagnosis: Mapping[str, Any]) -> list[Block]:
    """Return the verdict, the policies, and the disagreement by noise level."""
    verdict, others = prediction(diagnosis), distances_apart(diagnosis)
    milliseconds = 1000 * diagnosis["seconds_per_chunk"]["composition"]
    facts = [("command", str(diagnosis["command"]))] if "command" in diagnosis else []
    facts += [("a chunk", f"{milliseconds:.0f} ms, of the composition"), ("seed", str(diagnosis["seed"]))]
    blocks: list[Block] = [("verdict", verdict), ("facts", facts), ("table", member_table(diagnosis))]
    blocks += [("text", sentence) for sentence in others]
    blocks += [("state", f"{name}: {fault}") for name, fault in diagnosis.get("faults", {}).items()]
    drawn = partial(lines_chart, diagnosis["disagreement_by_sigma"], diagnosis["sigmas"], "sigma", DISTANCE, "xy")
    return [*blocks, ("note", "Disagreement by noise level."), *chart("by noise level", drawn)]
