"""Files of gpc on a disk."""

import json

from gpc.disk import as_json


def test_numbers_that_json_lacks_are_null():
    text = as_json({"a": [1.5, float("nan")], "b": {"c": (float("inf"), -float("inf"), True)}, "d": "NaN"})
    constants = []
    assert json.loads(text, parse_constant=constants.append) == {
        "a": [1.5, None],
        "b": {"c": [None, None, True]},
        "d": "NaN",
    }
    assert constants == []
