"""Structured mutations of plain data: types swapped, numbers huge or none, keys missing, unknown or twice, deep and long values."""

import copy
import json

DEEP, LONG = "@deep@", "@long@"
NUMBERS = [
    -1,
    0,
    1,
    3,
    10**9,
    10**18,
    2**63,
    -(10**9),
    10**40,
    0.5,
    -0.0,
    1e-300,
    1e9,
    1e308,
    float("nan"),
    float("inf"),
]
TEXTS = ["", "x", "../../x", "\x1b[31m", "a\nb", "${x}", "1e9", "ws://127.0.0.1:9", DEEP, LONG]
CONTAINERS = [[], {}, [[]], [None], [10**9], {"": {}}, {"type": "x"}, [0] * 3000]
HOSTILE = [None, True, False, *NUMBERS, *TEXTS, *CONTAINERS]


def places(node, path=()):
    """The path of every node."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def parent_of(root, path):
    for key in path[:-1]:
        root = root[key]
    return root


def change(rng, root, path):
    """One mutation at one place."""
    parent, key = parent_of(root, path), path[-1]
    value = parent[key]
    match rng.randrange(7):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(["horizn", "", "x" * 300, "é", "../x", key + " "])] = value
        case 2 if isinstance(value, bool | int | float):
            parent[key] = rng.choice([value * 10**6, -value, value + 1, value / 3, str(value), [value]])
        case 3 if isinstance(parent, list):
            parent += parent[:1] * rng.choice([1, 50, 5000])
        case 4 if isinstance(value, str):
            parent[key] = rng.choice([value * 1000, value[:1], value.upper(), 7, value + "/.."])
        case _:
            parent[key] = copy.deepcopy(rng.choice(HOSTILE))


def mutated(rng, root):
    """A copy with one to four mutations."""
    root = copy.deepcopy(root)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        paths = [path for path in places(root) if path]
        if paths:
            change(rng, root, rng.choice(paths))
    return root


def as_json(rng, root):
    """JSON bytes of a mutated copy, sometimes damaged."""
    text = json.dumps(mutated(rng, root) if rng.random() < 0.95 else rng.choice(HOSTILE))
    depth = rng.choice([50, 2000, 100_000])
    text = text.replace(f'"{DEEP}"', rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]), 20)
    text = text.replace(LONG, "x" * 10**6, 20)  # the case itself must fit into the memory that the reader has
    if rng.random() < 0.05:  # a key twice
        text = text.replace('"', '"name": 3, "', 1) if text.startswith("{") else text
    return damaged(rng, text.encode(), 0.15)


def damaged(rng, content, share):
    """The bytes, or in this share of cases cut or with some of them flipped."""
    if rng.random() >= share or len(content) < 2:
        return content
    if rng.random() < 0.4:
        return content[: rng.randrange(len(content))]
    content = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)
