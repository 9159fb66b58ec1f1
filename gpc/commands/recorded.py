"""The configuration in a run folder, as data: typed, bounded, and without effect until the user allows it.

A run folder may come from anywhere. `rebuilt` takes from its manifest what an episode depends on and nothing else: how it was
scheduled (engine, executor, run_dir, video) is chosen by this machine. What would open a connection, import a module, choose a
path or load from the hub is a `Request`, which the command line grants or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct, to_builtins

from gpc.composition.steering import GROUP as COSTS
from gpc.errors import InputError, one_line
from gpc.inference.settings import Sampling
from gpc.policy.load import bundled_cards
from gpc.registry import COMPOSERS, ENVS, is_ours
from gpc.results.devices import DeviceSettings
from gpc.results.upgrade import upgraded
from gpc.schema import convert

Count = Annotated[int, Meta(ge=0, le=10**6)]
Size = Annotated[int, Meta(ge=1, le=4096)]
Number = Annotated[float, Meta(ge=-1e12, le=1e12)]
Names = Annotated[list[str], Meta(min_length=1, max_length=1000)]
TYPED = {"env": ENVS, "composer": COMPOSERS}
"""Parts of a configuration that name a registered type, and the group of entry points."""


class Options(Struct, forbid_unknown_fields=True):
    """The options of all environments; `settings` are the simulator's own arguments."""

    task: str = ""
    absolute: bool = False
    image_size: tuple[Size, Size] = (1, 1)
    points: Annotated[int, Meta(ge=1, le=10**6)] = 1
    states: str = ""
    settings: dict[str, Any] | None = None
    address: str = ""
    benchmark: str = ""
    task_id: Annotated[int, Meta(ge=0, le=10**4)] = 0


class Env(Struct, forbid_unknown_fields=True):
    """The settings of `gpc.policy.env_spec.EnvSpec` that a configuration holds."""

    type: str
    n_action_steps: Annotated[int, Meta(ge=1, le=10**4)] | None = None
    max_steps: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    options: dict[str, Any] | None = None


class Steer(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The arguments of `gpc.steer`."""

    cost: str
    scale: Number | None = None
    spread: Number | None = None


class Side(DeviceSettings, kw_only=True):
    """Policies that acted together."""

    policies: Names
    composer: dict[str, Any]


class Settings(DeviceSettings, kw_only=True):
    """What determined the results; sides of a comparison have a device each."""

    policies: Names
    fingerprints: dict[str, str]
    sides: list[Side] | None = None


class Resolved(Struct):
    """What an episode depends on of the whole configuration."""

    policies: Names
    env: dict[str, Any]
    sampler: dict[str, Any]
    composer: dict[str, Any]
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
    """A key of a manifest, and the value that needs the permission of the user."""

    key: str
    value: str


def read_recorded(manifest: Mapping[str, Any], where: str) -> Manifest:
    """Return what a replay needs of a manifest, checked; `where` names it in errors."""
    recorded = convert(Manifest, upgraded(manifest), where)
    resolved = recorded.resolved
    if resolved is None:
        raise InputError(f"{where} was written before run folders held the whole configuration; run it anew elsewhere")
    for key, text in _texts(to_builtins(recorded), ""):
        if "${" in text or text == "???":  # OmegaConf would look up what these name
            raise InputError(f"{where}: {key} is {text[:80]!r}, no value; a recorded configuration holds values alone")
    for part in (resolved.env, resolved.composer, *(side.composer for side in recorded.config.sides or ())):
        if not isinstance(part.get("type"), str):
            raise InputError(
                f"{where}: {one_line(part.get('class', part), 80)} is no registered type; the run was begun in Python: "
                "call the function again with the same run_dir"
            )
    convert(Env, resolved.env, f"{where}: resolved.env")
    convert(Sampling, resolved.sampler, f"{where}: resolved.sampler")
    return recorded


def rebuilt(recorded: Resolved, composer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of an episode."""
    content: dict[str, Any] = to_builtins(recorded)
    config = {key: content[key] or {} for key in ("env", "sampler", "rename_map", "action_names", "origin", "steer")}
    return {**config, "composer": dict(composer)}


def requests(recorded: Resolved, composer: Mapping[str, Any], sources: Sequence[str]) -> Iterator[Request]:
    """Yield what a recorded configuration would load that is not gpc's own.

    Args:
        recorded: the configuration.
        composer: composer of the episode.
        sources: policies of the episode.
    """
    bundled = bundled_cards()
    yield from (Request("policies", source) for source in sources if source not in bundled)
    for key, node in (("env", recorded.env), ("composer", composer)):
        if not is_ours(TYPED[key], node["type"]):
            yield Request(f"{key}.type", node["type"])
    ours = is_ours(ENVS, recorded.env["type"])
    options = convert(Options, (recorded.env.get("options") if ours else None) or {}, "resolved.env.options")
    if ":" in options.task:
        yield Request("env.options.task", options.task)
    if options.address:
        yield Request("env.options.address", options.address)
    for key, text in _texts(options.settings, "env.options.settings"):
        yield Request(key, text)  # a file or a module, for all that is known of a simulator's arguments
    costs = {f"steer.{name}.cost": steer.cost for name, steer in (recorded.steer or {}).items()}
    for key, cost in (costs | {"sampler.best_of.cost": (recorded.sampler.get("best_of") or {}).get("cost")}).items():
        if cost is not None and not is_ours(COSTS, cost):
            yield Request(key, cost)


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield every text in plain data with its place; names of keys are left out."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, where)
