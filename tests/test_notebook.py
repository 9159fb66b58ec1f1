"""docs/first-mixture.ipynb runs, and its outputs in the repository are of its cells."""

import re

import nbformat
import pytest
from notebook import PAGE, executed

BRIEF = 'gpc.EnvSpec("policy", max_steps=16)'
SHORTER = {
    "gpc.evaluate(b,": f"gpc.evaluate(b, {BRIEF},",
    "gpc.compare(mixture, b,": f"gpc.compare(mixture, b, {BRIEF},",
    "    [a, b],": f"    [a, b], {BRIEF},",
}
NUMBERS = re.compile(r"[-+]?\d[\d.]*(e-?\d+)?")


@pytest.fixture(scope="module")
def stored():
    return nbformat.read(PAGE, as_version=4)


def test_it_runs_and_its_outputs_are_those_in_the_repository(stored):
    for cell, again in zip(stored.cells, executed(SHORTER).cells, strict=True):
        kinds = [[output.output_type, *sorted(output.get("data", []))] for output in cell.get("outputs", [])]
        assert kinds == [[output.output_type, *sorted(output.get("data", []))] for output in again.get("outputs", [])]
        for old, new in zip(cell.get("outputs", []), again.get("outputs", []), strict=True):
            assert NUMBERS.sub("N", _text(old))[:30] == NUMBERS.sub("N", _text(new))[:30]


def test_its_outputs_show_no_machine_and_stay_small(stored):
    assert PAGE.stat().st_size < 150_000
    outputs = [output for cell in stored.cells for output in cell.get("outputs", [])]
    text = "".join(_text(output) + output.get("data", {}).get("text/html", "") for output in outputs)
    assert "/tmp" not in text
    assert "/home" not in text
    assert not re.search(r"\d:\d\d:\d\d left", text)
    assert text.count("data:image/png") == 3
    assert "95 %" in text


def _text(output):
    return output.text if output.output_type == "stream" else output.data["text/plain"]
