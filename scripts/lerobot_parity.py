"""Write the table of parity with LeRobot in docs/lerobot.md, of test runs with `pytest --junitxml=FILE`, one a LeRobot.

pytest tests/test_lerobot_dit.py tests/test_lerobot_families.py tests/test_from_lerobot.py --junitxml=FILE.xml
python scripts/lerobot_parity.py FILE.xml ...
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).parent.parent / "docs/lerobot.md"


def main(files):
    found = {}
    for file in files:
        for entry in ElementTree.parse(file).iter("property"):
            policy, version = entry.get("name").split()
            found.setdefault(policy, {}).setdefault(version, []).append(float(entry.get("value")))
    versions = sorted({version for row in found.values() for version in row})
    rows = [
        "| policy | " + " | ".join(f"LeRobot {version}" for version in versions) + " |",
        "|---" * (len(versions) + 1) + "|",
    ]
    for policy, row in sorted(found.items()):
        cells = (f"{max(row[version]):.1e}" if version in row else "none" for version in versions)
        rows.append(f"| `{policy}` | {' | '.join(cells)} |")
    page = PAGE.read_text()
    PAGE.write_text(
        re.sub(
            r"(<!-- parity -->\n).*?(<!-- end -->)", lambda m: m[1] + "\n".join(rows) + "\n" + m[2], page, flags=re.S
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
