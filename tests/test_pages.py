"""The pages of results are what the evidence in the repository gives."""

import pages
import pytest
from tables import ROOT

from gpc.results.evidence import Evidence

STUDIES = [path for path in (ROOT / "docs/results/evidence").glob("*.json") if path.with_suffix(".jsonl.gz").exists()]


def test_tables_figures_and_cards_are_those_of_the_evidence(capsys):
    assert pages.main(["--check"]) == 0, capsys.readouterr().out


def test_a_number_that_was_changed_by_hand_is_found(tmp_path):
    text = (ROOT / "docs/results/pusht.md").read_text()
    changed = text.replace("44.5 [37.8, 51.4]", "54.5 [37.8, 51.4]", 1)
    assert changed != text
    assert pages.rebuilt(changed) == pages.rebuilt(text) == text


def test_a_page_with_an_unknown_block_is_refused():
    with pytest.raises(SystemExit, match="no block is named 'nothing'"):
        pages.rebuilt("<!-- generated: nothing -->\n<!-- end -->\n")


def test_every_row_of_the_published_runs_is_there():
    assert sum(len(study.rows(name)) for study in map(Evidence, STUDIES) for name in study.runs) == 41_409
