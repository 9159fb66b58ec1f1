"""scripts/bench_gpu.py runs on the CPU, so that it works at its first call on a card."""

import json
import subprocess
import sys

import bench_gpu


def test_every_part_runs_and_writes_what_it_measured(tmp_path):
    files = tmp_path / "gpu.md", tmp_path / "gpu.json"
    options = ["--quick", "--device", "cpu", "--out", files[0], "--json", files[1]]
    subprocess.run([sys.executable, bench_gpu.__file__, *options], check=True)  # its own process: it draws and computes
    page, figures = files[0].read_text(), json.loads(files[1].read_text())
    assert figures.keys() == {"facts", *bench_gpu.PARTS}
    assert "Not measured" not in page
    assert all(figures["bits"][what] for what in figures["bits"] if what != "part_seconds")
    assert [row[1] for row in figures["adapters"]["rows"]] == ["0.0e+00"] * len(figures["adapters"]["rows"])


def test_a_part_that_fails_leaves_a_line_and_the_next_one_runs(tmp_path, monkeypatch, capfd):
    def fails(bench):
        raise RuntimeError("no card\nhere")

    monkeypatch.setattr(bench_gpu, "PARTS", {"one": fails, "two": lambda bench: bench.say("two ran")})
    bench_gpu.main(["--device", "cpu"])
    out = capfd.readouterr().out
    assert "Not measured: RuntimeError: no card here." in out
    assert "two ran" in out
