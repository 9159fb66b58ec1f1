"""A diagnosis as a table, in sentences, and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpc.results.charts import lines_chart
from gpc.results.page import Block, chart, data_uri, section, write_page
from gpc.results.report import error_blocks

DISTANCE = "RMS distance, normalised actions"


def member_table(diagnosis: Mapping[str, Any]) -> list[list[str]]:
    """Return a line for each policy, the head first."""
    table = [["policy", "reads", "steps", "sigma", "ms per chunk", "alignment"]]
    for member in diagnosis["members"]:
        low, high = member["sigma"]
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


def write_diagnosis_page(
    folder: Path, diagnosis: Mapping[str, Any], members: Sequence[Sequence[str]], sentences: Sequence[str], command: str
) -> Path:
    """Write `report.html` of a diagnosis.

    Args:
        folder: Its folder, which holds `chunks.png`.
        diagnosis: Content of diagnosis.json.
        members: What each policy reads and plans, as lines of a table.
        sentences: Its findings; the first is the verdict.
        command: The command line; empty in Python.
    """
    verdict, *others = sentences
    apart, decisions = diagnosis["disagreement_by_sigma"], diagnosis["disagreement_by_decision"]
    count = len(next(iter(decisions.values())))
    milliseconds = 1000 * diagnosis["seconds_per_chunk"]["composition"]
    facts = [("a chunk", f"{milliseconds:.0f} ms, of the composition"), ("seed", str(diagnosis["seed"]))]
    blocks: list[Block] = [("verdict", verdict)]
    blocks += [("facts", [*([("command", command)] if command else []), *facts]), ("table", members)]
    blocks += [("text", sentence) for sentence in others]
    blocks += [("state", f"{name}: {fault}") for name, fault in diagnosis.get("faults", {}).items()]
    blocks += [("heading", "Disagreement by noise level")]
    blocks += chart("by noise level", partial(lines_chart, apart, diagnosis["sigmas"], "sigma", DISTANCE, "xy"))
    blocks += [("heading", "Disagreement along the episode"), ("note", "Mean over the noise levels.")]
    blocks += chart("by decision", partial(lines_chart, decisions, range(count), "decision", DISTANCE))
    if errors := diagnosis.get("denoising_error"):
        blocks += [("heading", "Denoising errors"), *error_blocks(errors)]

    def chunks() -> list[Block]:
        picture = (folder / "chunks.png").read_bytes()
        return [("picture", ("chunks of each policy for one observation", data_uri(picture, "image/png")))]

    blocks += [("heading", "Chunks in the middle of the episode"), *section("chunks.png", chunks)]
    title = "Diagnosis: " + ", ".join(member["name"] for member in diagnosis["members"])
    return write_page(folder / "report.html", title, blocks)
