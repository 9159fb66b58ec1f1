"""The page of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpc.results.charts import lines_chart
from gpc.results.page import Block, chart, data_uri, section, write_page
from gpc.results.report import error_blocks

DISTANCE = "RMS distance, normalised actions"


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
