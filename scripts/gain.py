"""Measure when composing pays: pairs and triples of parents from the same and from different data, for docs/results/gain.md.

    python scripts/gain.py --runs runs/gain            # hours; a finished run is only read, an interrupted one resumes
    python scripts/gain.py --runs runs/gain --list     # what it will run

Parents are bundled policies. `NAME-KofN` learned the K-th of N disjoint parts of the demonstrations (scripts/train.py). Of each
composition the weights are searched on a grid, on seeds that choose nothing else; held-out demonstrations predict its gain. The
winner and every parent then run on the same fresh seeds, with the same noise.
`scripts/pages.py --add docs/results/evidence/gain.json RUN ...` adds the runs to the evidence.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from tables import ROOT, run

from gpc.policies.bundled import BUNDLED

HELD_OUT = ROOT / "tests/data/pusht-held-out.zarr.zip"
FAMILIES = ("diffusion", "flow", "beso")
SEARCHED, FRESH, SEED = 100, 1000, 210_000  # episodes for each weight, episodes of each policy, first fresh seed

Members = tuple[str, ...]


def halves() -> Iterator[Members]:
    """Yield pairs: disjoint halves or the same half, of one family or of two."""
    for first in FAMILIES:
        yield f"{first}-1of2", f"{first}-2of2"
        for second in FAMILIES:
            if first != second:
                yield f"{first}-1of2", f"{second}-2of2"
    for first, second in combinations(FAMILIES, 2):
        yield f"{first}-1of2", f"{second}-1of2"


def thirds() -> Iterator[Members]:
    """Yield pairs and triples of disjoint thirds, of one family and of three."""
    for family in FAMILIES:
        yield f"{family}-1of3", f"{family}-2of3"
        yield f"{family}-1of3", f"{family}-2of3", f"{family}-3of3"
    yield "diffusion-1of3", "flow-2of3", "beso-3of3"
    yield "diffusion-1of2", "diffusion-2of2", "flow-1of2"


def whole() -> Iterator[Members]:
    """Yield pairs of all data, and of a half with all data: unequal parents."""
    yield from combinations((*FAMILIES, "image"), 2)
    for family in FAMILIES:
        yield family, f"{family}-1of2"


def compositions() -> list[Members]:
    """Return the compositions whose parents are bundled."""
    members = [tuple(f"pusht-{name}" for name in names) for part in (halves, thirds, whole) for names in part()]
    return [names for names in members if all((BUNDLED / name).is_dir() for name in names)]


def name_of(members: Members) -> str:
    """Return the name of a composition's runs."""
    return "+".join(name.removeprefix("pusht-") for name in members)


def measure(members: Members, folder: Path) -> None:
    """Search the weights of a composition, then run its winner and its parents on fresh seeds."""
    fresh = (f"episodes={FRESH}", f"seed={SEED}")
    found = run(
        "search", folder / f"{name_of(members)}-search", members,
        "env=pusht", "search=grid", f"search.episodes={SEARCHED}", "report.episodes=1", f"demonstrations={HELD_OUT}",
    )  # fmt: skip
    for parent in members:
        run("evaluate", folder / name_of((parent,)), (parent,), "env=pusht", *fresh)
    weights = ",".join(f"{weight:g}" for weight in found["winner"]["weights"])
    run("evaluate", folder / name_of(members), members, "env=pusht", f"weights=[{weights}]", *fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/gain")
    parser.add_argument("--list", action="store_true", help="print the compositions and run nothing")
    args = parser.parse_args()
    for members in compositions():
        if args.list:
            print(name_of(members))
        else:
            measure(members, args.runs)


if __name__ == "__main__":
    main()
