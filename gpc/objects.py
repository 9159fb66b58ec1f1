"""Objects from plain data, each argument checked by its type, and plain data that describes objects.

A class or function declares its settings once: types, bounds (`Annotated[int, Meta(ge=1)]`) and defaults of its
arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from inspect import Parameter, signature
from math import isnan
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec
import numpy as np

from gpc.errors import InputError, suggest
from gpc.registry import load_entry, name_of
from gpc.schema import check

T = TypeVar("T")
REQUIRED = MISSING
"""The default of a setting that has none."""


class Setting(NamedTuple):
    """An argument: its type, and its default (`REQUIRED` if it has none)."""

    type: Any
    default: Any


def settings_of(kind: Callable[..., Any]) -> dict[str, Setting]:
    """Return the arguments of a class or function by name, without private ones."""
    declared: Any = getattr(kind, "__init__", kind) if isinstance(kind, type) and not is_dataclass(kind) else kind
    try:
        types = get_type_hints(declared, include_extras=True)
    except (NameError, TypeError):  # names that only a type checker imports
        types = {}
    factories = (
        {f.name: f.default_factory for f in fields(kind)} if isinstance(kind, type) and is_dataclass(kind) else {}
    )
    settings = {}
    for name, parameter in signature(kind).parameters.items():
        if name.startswith("_") or parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        factory = factories.get(name, MISSING)
        default = REQUIRED if parameter.default is Parameter.empty else parameter.default
        settings[name] = Setting(types.get(name, Any), default if factory is MISSING else factory())
    return settings


def build(kind: Callable[..., T], data: Mapping[str, Any], where: str, **extra: Any) -> T:
    """Call a class or function with the arguments that plain data holds.

    Args:
        kind: class or function; the types of its arguments are checked.
        data: its arguments by name.
        where: name of the data in errors, as "sampler".
        **extra: further arguments, which are objects already.

    Raises:
        InputError: If an argument is missing, unknown, of another type or out of bounds.
    """
    settings = {name: setting for name, setting in settings_of(kind).items() if name not in extra}
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in signature(kind).parameters.values())
    arguments = {}
    for name, value in data.items():
        if name not in settings and not takes_any:
            raise InputError(f"{where} takes no {name!r}{suggest(name, list(settings)) if settings else ''}")
        arguments[name] = _checked(settings[name].type if name in settings else Any, value, f"{where}.{name}")
    for name, setting in settings.items():
        if setting.default is REQUIRED and name not in arguments:
            raise InputError(f"{where}.{name} is not set; give it on the command line, as in {where}.{name}=VALUE")
    return kind(**arguments, **extra)


def choose(kinds: Mapping[str, Callable[..., T]], data: Mapping[str, Any], where: str, **extra: Any) -> T:
    """Build the object that the entry "type" of plain data names, see `build`.

    Raises:
        InputError: If there is no such type, or an argument does not fit.
    """
    name, rest = split_type(data, where)
    if name not in kinds:
        raise InputError(f"unknown {where} {name!r}{suggest(name, list(kinds))}")
    return build(kinds[name], rest, where, **extra)


def build_registered(group: str, data: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Build the object whose registered type and settings are in plain data."""
    name, settings = split_type(data, where)
    return build(load_entry(group, where, name), settings, where, **extra)


def describe(group: str, thing: Any, without: Iterable[str] = ()) -> Any:
    """Return plain data of an object, the inverse of `build_registered`."""
    return described(thing, lambda kind: name_of(group, kind), without)


def split_type(data: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return the type that plain data names, and its arguments.

    Raises:
        InputError: If it names none.
    """
    name = data.get("type")
    if not isinstance(name, str):
        raise InputError(f"{where} has no type: {name}")
    return name, {key: value for key, value in data.items() if key != "type"}


def _checked(kind: Any, value: Any, where: str) -> Any:
    """Return a value as an argument of this type."""
    for number in _numbers(value):
        if isnan(number):  # every comparison with a bound would be false
            raise InputError(f"{where}={number} is not a number")
    try:
        return check(kind, value, where)
    except TypeError:  # a type that msgspec does not know: the class checks it
        return value


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)


def described(value: Any, name_of: Callable[[Any], str | None] = lambda _: None, without: Iterable[str] = ()) -> Any:
    """Describe a value as plain data; equal data mean equal settings.

    Args:
        value: plain data, an array, a function, or an object whose class declares its settings.
        name_of: returns the registered name of a class or function, None if it has none.
        without: settings that are left out.

    Returns:
        Of an object, {"type": NAME, setting: value, ...}; of a class that is not registered, "class" and its full name
        instead of "type". Of a function its registered or its full name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return {str(key): described(item, name_of) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [described(item, name_of) for item in value]
    if isinstance(value, np.generic | np.ndarray) or hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return name_of(value) or _full_name(value)
    if isinstance(value, partial):
        return {"function": described(value.func, name_of), "args": described([value.args, value.keywords], name_of)}
    name = name_of(type(value))
    return {**({"type": name} if name else {"class": _full_name(type(value))}), **settings_in(value, name_of, without)}


def settings_in(
    value: Any, name_of: Callable[[Any], str | None] = lambda _: None, without: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the settings of an object as plain data.

    They are the arguments of its class, or else its public attributes.
    """
    declared = {key: setting.type for key, setting in settings_of(type(value)).items() if hasattr(value, key)}
    content = {}
    for key in declared or [key for key in vars(value) if not key.startswith("_")]:
        item, kind = getattr(value, key), declared.get(key)
        if type(item) in (kind, *get_args(kind)) and is_dataclass(item):  # a class that needs no name
            content[key] = settings_in(item, name_of)
        elif key not in without:
            content[key] = described(item, name_of)
    return content


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
