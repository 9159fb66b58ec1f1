"""The check of wording finds each kind of problem, and accepts plain text."""

import pytest
import wording

CASES = {
    "a person": ('"""Return what nobody reads."""\n', "'nobody'"),
    "a function as a person": ('"""Return what the policy says."""\n', "'says'"),
    "a comment": ("x = 1  # the function told it\n", "'told'"),
    "a text": ('raise ValueError("the server asks for it")\n', "'asks'"),
    "a variable": ("found = 1\n", "variable 'found'"),
    "a long first line": (f'def act():\n    """Return {"x" * 80}."""\n', "first line of 88 characters"),
    "raises in prose": (
        'def act():\n    """Act.\n\n    Raises InputError where it fails.\n    """\n',
        "a section `Raises:`",
    ),
    "where for if": ('def act():\n    """Return None where it fails."""\n', "`if`, for a condition"),
    "an old name": ("class Pilot:\n    pass\n", "'Pilot': a name of an earlier version"),
}
PLAIN = '"""Rows of a table."""\n\n\ndef act(rows):\n    """Return the sum of rows."""\n    return sum(rows)\n'


@pytest.mark.parametrize(("text", "problem"), CASES.values(), ids=CASES)
def test_a_problem_is_reported_once_with_its_line(text, problem, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(text)
    (report,) = wording.problems(path)
    assert problem in report[1]


def test_plain_text_has_no_problem(tmp_path):
    (tmp_path / "module.py").write_text(PLAIN)
    assert list(wording.problems(tmp_path / "module.py")) == []


def test_code_in_a_page_is_not_prose(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("A search.\n\n```python\nsaid = 1\n```\n\nIt told `nobody`.\n")
    assert [line for line, _ in wording.problems(page)] == [7]
