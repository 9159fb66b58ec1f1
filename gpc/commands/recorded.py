"""What a run folder says of a configuration, as data: typed, bounded, and without effect until its reader allows it.

A run folder may come from anywhere. `rebuilt` takes from its manifest what an episode depends on and nothing else: how it was
scheduled (engine, executor, run_dir, video) is this machine's affair. What would open a connection, import a module, choose a
path or ask the hub is a `Request`, which the command line grants or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct, field, to_builtins

from gpc.composition.steering import GROUP as COSTS
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import bundled_cards
from gpc.registry import is_ours
from gpc.results.upgrade import completed
from gpc.schema import convert

Count = Annotated[int, Meta(ge=0, le=10**6)]
Size = Annotated[int, Meta(ge=1, le=4096)]
Number = Annotated[float, Meta(ge=-1e12, le=1e12)]
Names = Annotated[list[str], Meta(min_length=1, max_length=1000)]
SINGLE_PROCESS = {
    "engine": {"_target_": "gpc.rollout.engine.Engine", "lanes": 1, "workers": 1},
    "executor": {"_target_": "gpc.rollout.executors.Local"},
}


class Options(Struct, forbid_unknown_fields=True):
    """The options of all environments; `settings` are the simulator's own arguments."""

    task: str = ""
    absolute: bool = False
    image_size: tuple[Size, Size] = (1, 1)
    points: Annotated[int, Meta(ge=1, le=10**6)] = 1
    settings: dict[str, Any] | None = None


class Composer(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A function of `gpc.composition.composed` and its arguments."""

    built: str = field(name="_target_")
    temperature: Number | None = None


class Steer(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The arguments of `gpc.steer`."""

    cost: str
    scale: Number | None = None
    spread: Number | None = None


class Side(Struct):
    """Policies that acted together."""

    policies: Names
    composer: Composer


class Settings(Struct):
    """What determined the results; `sides` are those of a comparison."""

    policies: Names
    fingerprints: dict[str, str]
    sides: list[Side] | None = None


class Resolved(Struct):
    """What an episode depends on of the whole configuration."""

    policies: Names
    env: dict[str, Any]
    sampler: dict[str, Any]
    composer: Composer
    rename_map: dict[str, str] | None = None
    action_names: dict[str, Names] | None = None
    origin: dict[str, str] | None = None
    steer: dict[str, Steer] | None = None


class Manifest(Struct):
    """What a replay needs of manifest.json."""

    config: Settings
    versions: dict[str, str]
    resolved: Resolved | None = None


class Request(NamedTuple):
    """Something that is only done if the reader allows it: the key that asks for it, and what it names."""

    key: str
    value: str


def read_recorded(manifest: Mapping[str, Any], where: str) -> Manifest:
    """Return what a replay needs of a manifest, every field checked; `where` names it in errors."""
    recorded = convert(Manifest, manifest, where)
    resolved = recorded.resolved
    if resolved is None:
        raise InputError(f"{where} was written before run folders held the whole configuration; run it anew elsewhere")
    for key, text in _texts(to_builtins(recorded), ""):
        if "${" in text or text == "???":  # OmegaConf would look up what these name
            raise InputError(f"{where}: {key} is {text[:80]!r}, no value; a recorded configuration holds values alone")
    for key, kind in (("env", EnvSpec), ("sampler", Sampling)):
        arguments = {name: value for name, value in getattr(resolved, key).items() if name != "_target_"}
        convert(kind, arguments, f"{where}: resolved.{key}")
    return recorded


def rebuilt(recorded: Resolved, composer: Composer) -> dict[str, Any]:
    """Return the configuration of an episode, for one simulator in one process."""
    found: dict[str, Any] = to_builtins(recorded)
    config = {key: found[key] or {} for key in ("env", "sampler", "rename_map", "action_names", "origin", "steer")}
    return {**config, "sampler": completed(config["sampler"]), "composer": to_builtins(composer), **SINGLE_PROCESS}


def requests(recorded: Resolved, sources: Sequence[str]) -> Iterator[Request]:
    """Yield what a recorded configuration would load that is not gpc's own; `sources` are its policies of an episode."""
    bundled = bundled_cards()
    yield from (Request("policies", source) for source in sources if source not in bundled)
    options = convert(Options, recorded.env.get("options") or {}, "resolved.env.options")
    if ":" in options.task:
        yield Request("env.options.task", options.task)
    for key, text in _texts(options.settings, "env.options.settings"):
        yield Request(key, text)  # a file or a module, for all that is known of a simulator's arguments
    costs = {f"steer.{name}.cost": steer.cost for name, steer in (recorded.steer or {}).items()}
    for key, cost in (costs | {"sampler.critic": recorded.sampler.get("critic")}).items():
        if cost is not None and not is_ours(COSTS, cost):
            yield Request(key, cost)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every text in plain data, with its place; names of keys count as text of no effect."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, where)
