"""Measure a pickle before it is read: a few bytes may describe a structure without an end."""

from __future__ import annotations

import pickletools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from pickle import UnpicklingError
from typing import IO, Any, cast

OPERATIONS = 500_000  # in one pickle; a tensor takes about 25
WORK = 20_000_000  # nodes put into containers; a shared one is counted at each use
ITEMS = 8  # of a tuple that is read; gpc takes no tensor of more dimensions
DEPTH = 200  # of nested containers; hashing a tuple is recursive in C, without a limit of its own
CALLED = frozenset(
    {
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "__builtin__.complex",
        "__builtin__.set",
        "builtins.complex",
        "builtins.set",
    }
)
"""Names that a pickle may call: tensors and plain containers, and none that allocates by a number."""
TENSOR = "torch._utils._rebuild_tensor"
ENCODE, LATIN = "_codecs.encode", "latin1"  # bytes in protocol 2; other codecs take quadratic time
BYTES = 8  # that count as one node, at each use: numbers of numpy are copied from them
LITERALS = frozenset(
    {
        "NONE",
        "NEWFALSE",
        "NEWTRUE",
        "BININT",
        "BININT1",
        "BININT2",
        "BINFLOAT",
        "LONG1",
        "BINUNICODE",
        "SHORT_BINSTRING",
    }
)
EMPTY = frozenset({"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})
INTO = {"APPEND": 1, "SETITEM": 2, "BUILD": 1, "APPENDS": None, "SETITEMS": None}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}


@dataclass(slots=True)
class Node:
    """An object of the pickle; every shared part is counted at each use."""

    nodes: int = 1
    depth: int = 1
    value: Any = None  # a number, a text or a dotted name; the values of a tuple's items


class Measure:
    """A stack machine for a pickle's operations that keeps sizes and depths only."""

    def __init__(self, called: Collection[str], size: int) -> None:
        self.called, self.size, self.work = called, size, 0
        self.storages: dict[Any, int] = {}
        self.stack: list[Node] = []
        self.marked: list[list[Node]] = []
        self.memo: dict[int, Node] = {}

    def run(self, pickle: Bounded) -> None:
        """Execute the operations up to STOP.

        Raises:
            UnpicklingError: If a limit is exceeded, or a name is called that is not on the list.
            IndexError, KeyError, ValueError, EOFError: If the pickle is damaged.
        """
        for count, (operation, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], pickle))):
            if count > OPERATIONS:
                raise UnpicklingError(f"more than {OPERATIONS} operations")
            self._step(operation.name, argument)

    def _step(self, name: str, argument: Any) -> None:
        if name == "GLOBAL":
            self.stack.append(self._named(argument.replace(" ", ".")))
        elif name in LITERALS:
            self.stack.append(Node(value=argument))
        elif name in EMPTY:
            self.stack.append(Node())
        elif name == "EMPTY_TUPLE":
            self.stack.append(Node(value=[]))
        elif name in INTO:
            items = self._pop(INTO[name])
            self._put(self.stack[-1], items)
        elif name in TUPLES:
            items = self._pop(TUPLES[name])
            value = [item.value for item in items] if len(items) <= ITEMS else None
            self.stack.append(self._put(Node(value=value), items))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            made = self._check_call(function, arguments)
            self.stack.append(self._put(Node(), [arguments, made]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif name == "BINPERSID":
            self.stack.append(self._storage(self.stack.pop()))
        elif name not in ("PROTO", "STOP"):
            raise UnpicklingError(f"unsupported operation {name}")

    def _pop(self, count: int | None) -> list[Node]:
        """Remove and return the last `count` items of the stack, or all since the mark."""
        if count is None:
            items, self.stack = self.stack, self.marked.pop()
            return items
        items, self.stack[-count:] = self.stack[-count:], []
        if len(items) < count:
            raise IndexError("stack of the pickle is empty")
        return items

    def _put(self, container: Node, items: Iterable[Node]) -> Node:
        for item in items:
            self.work += item.nodes
            container.nodes += item.nodes
            container.depth = max(container.depth, 1 + item.depth)
        if self.work > WORK or container.depth > DEPTH:
            raise UnpicklingError("its containers are shared or nested without end")
        return container

    def _storage(self, identifier: Node) -> Node:
        """Count the numbers of a storage ("storage", type, key, device, numbers, ...)."""
        parts = identifier.value if isinstance(identifier.value, list) else []
        key, count = str(parts[2:3]), _number(parts, 4)
        self.storages[key] = count
        if sum(self.storages.values()) > self.size:
            raise UnpicklingError("its tensors need more memory than it has bytes")
        return Node(value=count)

    def _named(self, name: str) -> Node:
        """Return a class or function; torch's unpickler checks the types of torch."""
        if name not in self.called and name != ENCODE and not name.startswith("torch."):
            raise UnpicklingError(f"class {name.removeprefix('__builtin__.')}")
        return Node(value=name)

    def _check_call(self, function: Node, arguments: Node) -> Node:
        """Check a call and return what it makes beside its arguments: bytes."""
        items = arguments.value if isinstance(arguments.value, list) else []
        if function.value == ENCODE and items[1:] == [LATIN]:
            return Node(len(str(items[0])) // BYTES)
        if not isinstance(function.value, str) or function.value not in self.called:
            raise UnpicklingError(f"class {function.value or 'of its own'}")
        if function.value.startswith(TENSOR):
            _check_tensor(items)
        return Node(0)


def _number(parts: Any, index: int) -> int:
    """Return a whole number of at least 0 in a tuple of the pickle."""
    value = parts[index] if isinstance(parts, list) and len(parts) > index else None
    if not isinstance(value, int) or value < 0:
        raise UnpicklingError("a tensor's sizes are no whole numbers")
    return value


def _check_tensor(arguments: list[Any]) -> None:
    """Check that a tensor (storage, offset, sizes, strides, ...) fits its storage.

    torch enlarges a storage that is too small.
    """
    if len(arguments) < 4 or not all(isinstance(part, list) for part in arguments[2:4]):
        raise UnpicklingError(f"a tensor without sizes, or of more than {ITEMS} dimensions")
    count, offset, sizes, strides = _number(arguments, 0), _number(arguments, 1), *arguments[2:4]
    lengths = [_number(sizes, i) for i in range(len(sizes))]
    if not prod(lengths):
        return
    last = offset + sum((length - 1) * _number(strides, i) for i, length in enumerate(lengths))
    if last >= count or prod(lengths) > count:
        raise UnpicklingError(f"a tensor of shape {lengths} is larger than its memory of {count} numbers")


class Bounded:
    """A file whose reads are bounded by its length, since `read` allocates first."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        """Read `count` bytes."""
        if count > self.size:
            raise EOFError("a text that is longer than the file")
        return self.file.read(count)


def measure(pickle: IO[bytes], size: int, called: Iterable[str] = ()) -> None:
    """Check the cost of a pickle from its operations, without building anything.

    Args:
        pickle: file, at the beginning of the pickle.
        size: bytes of the whole file, its tensors included.
        called: names that may be called beside `CALLED`.

    Raises:
        UnpicklingError: If a limit is exceeded, or another name is called.
        IndexError, KeyError, ValueError, EOFError: If the pickle is damaged.
    """
    Measure(CALLED | set(called), size).run(Bounded(pickle, size))
