"""The bundled policies and their format: a folder with `weights.safetensors` and `card.json`.

A card may instead name a checkpoint of another codebase in its folder: `"checkpoint": "robomimic:lift-diffusion.pth"`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gpc.card import CARD, check, chosen, read
from gpc.errors import InputError, one_line, suggest
from gpc.inference.settings import Sampling
from gpc.objects import build as build_object
from gpc.policies.dry_run import dry_run
from gpc.policies.networks import Encoder, Transformer, UNet
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import load_registered
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec, Policy, policy_repr
from gpc.score.denoiser import Denoiser, NetworkDenoiser, Prediction, no_grad
from gpc.score.noise import Karras, LinearFlow, NoiseLevels, Schedule, VariancePreserving

BUNDLED = Path(__file__).parent / "bundled"
WEIGHTS = "weights.safetensors"


class ConditionalNetwork(nn.Module):
    """An observation encoder and the network that it conditions, as one module."""

    def __init__(self, model: Mapping[str, Any], actions: ActionSpec) -> None:
        super().__init__()
        self.encoder = Encoder(model["inputs"], model["n_obs_steps"])
        options = chosen(model["network"])
        if model["network"]["type"] == "unet":
            self.network: nn.Module = UNet(actions.dim, self.encoder.condition_dim, **options)
        else:
            self.network = Transformer(actions.dim, self.encoder.condition_dim, actions.horizon, **options)

    def forward(self, x: Tensor, label: Tensor, observation: Observation) -> Tensor:
        """Encode and predict, as in training."""
        out: Tensor = self.network(x, label, self.encoder(observation))
        return out


def build_schedule(spec: Mapping[str, Any]) -> Schedule:
    """Build the noise schedule of a card."""
    kinds: dict[str, Callable[..., Schedule]] = {
        "squaredcos": VariancePreserving.squaredcos,
        "flow": LinearFlow,
        "karras": Karras,
    }
    return kinds[spec["type"]](**chosen(spec))


@dataclass(frozen=True)
class BundledPolicy:
    """A bundled network as a `gpc.policy.spec.Policy`."""

    name: str
    module: ConditionalNetwork
    schedule: Schedule
    prediction: Prediction
    actions: ActionSpec
    observations: ObservationSpec
    card: Mapping[str, Any]
    folder: Path | None = None
    n_action_steps: int | None = None
    sampling: Sampling | None = None

    def __repr__(self) -> str:
        return policy_repr(self)

    @property
    def levels(self) -> NoiseLevels:
        """Noise levels of the schedule."""
        return self.schedule.levels

    @property
    def simulator(self) -> EnvSpec | None:
        """The environment that the card names, as in `env=lift`."""
        return EnvSpec(self.card["env"]) if "env" in self.card else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights, and of the card's model and actions."""
        digest = hashlib.sha256(json.dumps([self.card["model"], self.card["actions"]], sort_keys=True).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(key.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Encode the observation once."""
        condition = self.module.encoder(self.observations.read(observation))
        return NetworkDenoiser(no_grad(self.module.network), self.schedule, self.prediction, condition=(condition,))


def build(card: Mapping[str, Any], where: str = CARD) -> BundledPolicy:
    """Build the policy of a card with fresh weights, as training starts with.

    Args:
        card: content of a card.json.
        where: name of the card in errors.

    Raises:
        InputError: If the card does not fit its schema (`gpc.card`), or its parts do not fit each other.
    """
    check(card, where)
    model, measured = card["model"], card.get("inference", {})
    with _naming(where):
        return BundledPolicy(
            name=card["name"],
            module=_network(card),
            schedule=build_schedule(model["schedule"]),
            prediction=model["prediction"],
            actions=_actions(card),
            observations=_observations(model),
            card=card,
            n_action_steps=measured.get("n_action_steps"),
            sampling=build_object(Sampling, measured["sampler"], "sampler") if "sampler" in measured else None,
        )


def _actions(card: Mapping[str, Any]) -> ActionSpec:
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in card["actions"].items()}
    return ActionSpec(**fields)


def _observations(model: Mapping[str, Any]) -> ObservationSpec:
    images = [key for key, value in model["inputs"].items() if value.get("image")]
    return ObservationSpec({k: tuple(v["shape"]) for k, v in model["inputs"].items()}, model["n_obs_steps"], images)


def _network(card: Mapping[str, Any]) -> ConditionalNetwork:
    return ConditionalNetwork(card["model"], _actions(card))


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn errors of parts that do not fit into an InputError that names the card."""
    try:
        yield
    except (InputError, RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise InputError(f"{where}: {one_line(error)}") from None


def load(source: str) -> Policy:
    """Load a bundled policy by name, or a policy folder by path.

    Raises:
        InputError: If the policy is unknown, or its files are missing, cut short or of another network.
    """
    folder = BUNDLED / source if source in names() else Path(source)
    if not folder.is_dir():
        raise InputError(f"no bundled policy and no folder is called {source!r}{suggest(source, names())}")
    path = folder / CARD
    if not path.is_file():
        raise InputError(f"{folder} holds no {CARD}; a gpc policy folder has {CARD} and {WEIGHTS}")
    card = read(path)
    if "checkpoint" in card:
        loader, _, name = card["checkpoint"].partition(":")
        if not (folder / name).exists():
            raise InputError(f"{path} names the checkpoint {name!r}, which is not in its folder")
        return load_registered(f"{loader}:{folder / name}")
    return _with_weights(card, path, folder / WEIGHTS)


def _with_weights(card: Mapping[str, Any], path: Path, file: Path) -> BundledPolicy:
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise InputError(f"{file.parent} holds no {WEIGHTS}; train it with scripts/train.py or copy it there") from None
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); it is cut short") from None
    with _naming(str(path)):
        dry_run(lambda: _network(card), weights, file.stat().st_size, "it")
    policy = replace(build(card, str(path)), folder=path.parent)
    policy.module.load_state_dict(weights)
    policy.module.eval().requires_grad_(False)
    return policy


def names() -> list[str]:
    """Return the names of the bundled policies."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}"))
