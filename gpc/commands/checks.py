"""What a configuration shows to be wrong before anything is imported that takes long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gpc import schema
from gpc.commands.config import Config, plain
from gpc.errors import InputError, started_with, suggest
from gpc.installation import install
from gpc.policy.sources import check_source, split_source
from gpc.registry import ENVS, load_entry, names
from gpc.schema import Seed
from gpc.serve.address import Address
from gpc.types import DEVICE_KEYS
from gpc.weights.simplex import Weights

WEIGHTINGS = "two lists of weights, as in 'weights=[[0.4,0.6],[0,1]]'"
DEVICES = "as in 'device=[cpu,cuda]' or 'dtype=[null,bfloat16]'"
SAME = ("seed", "weights", "block", "report.seed", "report.episodes")
"""Settings that a run folder records as a configuration has them."""
REPORT_SEED = 200_000
"""First seed of a search's report, as in configs/search.yaml."""
LOGS = ["wandb", "trackio", "tensorboard"]
"""Values of `log`, each also the name of its package and its extra."""
SEVERAL = {"search": "a search", "diagnose": "a diagnosis"}


@runtime_checkable
class HasTasks(Protocol):
    """An environment whose class has the names of its tasks."""

    def check_task(self, task: str) -> None:
        """Raise an InputError if there is no such task."""


def check_config(name: str, config: Config) -> None:
    """Check sources, weights, paths and the environment's task of a command.

    Raises:
        InputError: If one does not fit.
    """
    if name == "serve-env":
        return _check_task(config)
    if config["policies"] or config.get("server") is None:
        sources = sources_of(config)
        for source in sources:
            loader, path = split_source(source)
            check_source(source)
            if loader == "remote":
                Address.parse(path)
        check_weights(name, config, len(sources))
    elif config.get("server") is not None:
        Address.parse(config["server"])
    check_log(config.get("log"))
    _check_paths(config)
    _check_task(config)


def check_log(name: str | None) -> None:
    """Check that where a run is logged is known and installed, without importing it."""
    if name is not None and name not in LOGS:
        raise InputError(f"log={name} is unknown{suggest(name, LOGS)}; give {', '.join(LOGS)}, or null for none")
    if name is not None and find_spec(name) is None:
        raise InputError(f"log={name} needs a package that is missing: {install(name)}")


def sources_of(config: Config) -> Sequence[str]:
    """Return the sources of a configuration's policies.

    Raises:
        InputError: If they are no list, none, or one is named twice.
    """
    sources: Any = config["policies"]
    if isinstance(sources, str):
        raise InputError(f"policies={sources} must be a list, as in 'policies=[{sources}]'")
    if not sources:
        raise InputError("policies=[] is empty; name at least one")
    twice = [source for i, source in enumerate(sources) if source in sources[:i]]
    if twice:
        raise InputError(f"policies names {twice[0]!r} twice")
    return list(sources)


def check_weights(name: str, config: Config, count: int) -> None:
    """Check number and form of the weights for `count` policies."""
    if name in SEVERAL:
        need_two(SEVERAL[name], count)
    if name == "compare":
        weightings_of(config, count)
    elif name in ("evaluate", "serve", "deploy"):
        weights_of(config, count)


def need_two(what: str, count: int) -> None:
    """Raise an InputError if there are fewer than two policies."""
    if count < 2:
        raise InputError(f"{what} needs at least two policies, as in 'policies=[pusht-diffusion,pusht-flow]'")


def weights_of(config: Config, count: int) -> Weights:
    """Return the weights for `count` policies; one policy alone needs none."""
    weights = [1.0] if config["weights"] is None and count == 1 else config["weights"]
    if weights is None:
        raise InputError(f"{count} policies need weights, as in 'weights=[{','.join(['0.5'] * 2)}]'")
    return parse_weights(weights, count)


def weightings_of(config: Config, count: int) -> list[Weights] | None:
    """Return the weights of both sides of a comparison; None if a policy is a side.

    Raises:
        InputError: If the configuration has neither two policies, nor two lists of weights, nor two devices.
    """
    weightings: Any = config["weights"]
    if any(isinstance(config[key], Sequence) and not isinstance(config[key], str) for key in DEVICE_KEYS):
        if weightings is None and count == 1:
            return [(1.0,)] * 2
        if weightings and not isinstance(weightings[0], Sequence):  # of both sides
            return [parse_weights(weightings, count)] * 2
    if weightings is None:
        if count != 2:
            raise InputError(f"compare takes two policies, not {count}, or {WEIGHTINGS}, or two devices, {DEVICES}")
        return None
    if len(weightings) != 2 or not all(isinstance(w, Sequence) and not isinstance(w, str) for w in weightings):
        raise InputError(f"weights={weightings}: compare takes {WEIGHTINGS}, or with one list two devices, {DEVICES}")
    return [parse_weights(weights, count) for weights in weightings]


def parse_weights(weights: Sequence[Any], count: int) -> Weights:
    """Return the weights for `count` policies as floats.

    Raises:
        InputError: If one is no number, or their number is another.
    """
    if not all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights):
        raise InputError(f"weights=[{', '.join(map(str, weights))}] must be numbers, as in 'weights=[0.4,0.6]'")
    if len(weights) != count:
        raise InputError(f"{len(weights)} weights for {count} policies; give one each")
    return tuple(float(w) for w in weights)


def first_seed(seed: int | None, run_dir: str | Path | None) -> int:
    """Return the first seed of an evaluation, by default that of its folder.

    A new folder has that of a search's report: it is paired with winner and parents, and no search chooses weights there.
    """
    if seed is None and run_dir and (manifest := Path(run_dir, "manifest.json")).is_file():
        seed = _value(schema.read(dict[str, Any], manifest), "config.seed")
    first: int = schema.check(Seed, REPORT_SEED if seed is None else seed, "seed")
    return first


def _check_paths(config: Config) -> None:
    """Check that demonstrations exist, and that the run folder can be one."""
    demonstrations, run_dir = config.get("demonstrations"), config.get("run_dir")
    if demonstrations and not Path(demonstrations).exists():
        raise InputError(f"demonstrations: {demonstrations} does not exist")
    if run_dir and Path(run_dir).exists() and not Path(run_dir).is_dir():
        raise InputError(f"run_dir={run_dir} is a file; give a folder, new or of the same run")
    if run_dir and (manifest := Path(run_dir, "manifest.json")).is_file():
        _check_same(Path(run_dir), schema.read(dict[str, Any], manifest).get("config"), config)


def _check_same(folder: Path, recorded: Any, config: Config) -> None:
    """Compare what needs no policy with a run; `RunFolder` compares the rest."""
    for key in SAME:
        old, new = _value(recorded, key), _value(plain(config), key)
        if old is not None and new is not None and old != new:
            raise InputError(started_with(folder, key, old, new))


def _value(node: Any, key: str) -> Any:
    """Return the value of a dotted key; None if there is none."""
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _check_task(config: Config) -> None:
    """Check the environment's task, if its class has the names."""
    node: Any = config.get("env") or {}
    task = (node.get("options") or {}).get("task")
    if task and node.get("type") in names(ENVS):
        kind = load_entry(ENVS, "env", node["type"])
        if isinstance(kind, HasTasks):
            kind.check_task(task)
