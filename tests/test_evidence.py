"""A study in two files gives back the runs that it was made of."""

import gzip
import json

import pytest
from made_up import random_search, write_evaluation

from gpc.errors import InputError
from gpc.results.evidence import Evidence, table_of, write_evidence
from gpc.results.leaderboard import read_run


@pytest.fixture
def folders(tmp_path):
    search = random_search(tmp_path / "search", ["a", "b"], lambda _: 5, 7, step=0.25)
    alone = write_evaluation(tmp_path / "alone", ["a"], (1.0,), {200_000 + i: i % 3 == 0 for i in range(9)})
    return [search, alone]


def test_runs_come_back_with_their_summaries(folders, tmp_path):
    path = tmp_path / "study.json"
    write_evidence(path, folders[:1])
    write_evidence(path, folders[1:])  # a run is added, the other stays
    study = Evidence(path)
    assert list(study.runs) == ["search", "alone"]
    for folder in folders:
        run, again = read_run(folder), study.run(folder.name)
        assert again.rows == run.rows
        assert json.loads(json.dumps(again.summary)) == run.summary
        assert again.manifest["config"] == run.manifest["config"]
    content = path.read_bytes(), table_of(path).read_bytes()
    write_evidence(path, folders)
    assert (path.read_bytes(), table_of(path).read_bytes()) == content


def test_rows_of_another_study_and_damaged_ones_are_refused(folders, tmp_path):
    path = tmp_path / "study.json"
    write_evidence(path, folders)
    table = table_of(path).read_bytes()
    table_of(path).write_bytes(gzip.compress(gzip.decompress(table).replace(b"true", b"false", 1)))
    with pytest.raises(InputError, match=r"does not hold the rows that study\.json is about"):
        Evidence(path)
    table_of(path).write_bytes(table[:40] + b"\xff" * 20 + table[60:])
    with pytest.raises(InputError, match=r"study\.jsonl\.gz cannot be read"):
        Evidence(path)
    table_of(path).write_bytes(table[:-9])
    with pytest.raises(InputError, match=r"study\.jsonl\.gz cannot be read"):
        Evidence(path)
    table_of(path).unlink()
    with pytest.raises(InputError, match=r"study\.jsonl\.gz cannot be read: No such file"):
        Evidence(path)


def test_a_run_that_is_not_there_is_one_line_with_the_nearest_name(folders, tmp_path):
    write_evidence(tmp_path / "study.json", folders)
    with pytest.raises(InputError, match=r"has no run 'serch'; did you mean 'search'\?"):
        Evidence(tmp_path / "study.json").run("serch")
