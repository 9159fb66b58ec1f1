"""The policies that come with gpc, and the format they are kept in: a folder with `weights.safetensors` and `card.json`.

A card may instead name a checkpoint of another codebase in its folder: `"checkpoint": "robomimic:lift-diffusion.pth"`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gpc.denoise import Denoiser, NetworkDenoiser, Prediction, frozen
from gpc.errors import InputError
from gpc.load import load_policy, suggest
from gpc.networks import Encoder, Transformer, UNet
from gpc.noise import Karras, LinearFlow, NoiseLevels, Schedule, VariancePreserving
from gpc.policy import ActionSpec, Observation, ObservationSpec, Policy

BUNDLED = Path(__file__).parent / "bundled"
WEIGHTS, CARD = "weights.safetensors", "card.json"


class ConditionalNetwork(nn.Module):
    """An observation encoder and the network that it conditions, as one module (one weights file)."""

    def __init__(self, model: Mapping[str, Any], actions: ActionSpec) -> None:
        super().__init__()
        self.encoder = Encoder(model["inputs"], model["n_obs_steps"])
        options = dict(model["network"])
        match options.pop("type"):
            case "unet":
                self.network: nn.Module = UNet(actions.dim, self.encoder.condition_dim, **options)
            case "transformer":
                self.network = Transformer(actions.dim, self.encoder.condition_dim, actions.horizon, **options)
            case other:
                raise InputError(f"card.json: unknown network type {other!r}; use unet or transformer")

    def forward(self, x: Tensor, label: Tensor, observation: Observation) -> Tensor:
        """Encode and predict, as in training."""
        out: Tensor = self.network(x, label, self.encoder(observation))
        return out


def build_schedule(spec: Mapping[str, Any]) -> Schedule:
    """The schedule that a card names."""
    options = dict(spec)
    match options.pop("type"):
        case "squaredcos":
            return VariancePreserving.squaredcos(**options)
        case "flow":
            return LinearFlow(**options)
        case "karras":
            return Karras(**options)
        case other:
            raise InputError(f"card.json: unknown schedule type {other!r}; use squaredcos, flow or karras")


@dataclass(frozen=True)
class BundledPolicy:
    """A bundled network as a `gpc.policy.Policy`."""

    name: str
    module: ConditionalNetwork
    schedule: Schedule
    prediction: Prediction
    actions: ActionSpec
    observations: ObservationSpec
    card: Mapping[str, Any]

    @property
    def levels(self) -> NoiseLevels:
        """Trained range of sigma."""
        return self.schedule.levels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the card's model and actions (normalisers included) and of all weights."""
        digest = hashlib.sha256(json.dumps([self.card["model"], self.card["actions"]], sort_keys=True).encode())
        for key, value in sorted(self.module.state_dict().items()):
            digest.update(key.encode() + value.numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Encode the observation once."""
        self.observations.check(observation)
        condition = self.module.encoder({key: observation[key] for key in self.observations.shapes})
        network = frozen(lambda x, label: self.module.network(x, label, condition))
        return NetworkDenoiser(network, self.schedule, self.prediction)


def build(card: Mapping[str, Any]) -> BundledPolicy:
    """The policy that a card describes, with fresh weights (the training script starts here).

    Raises InputError where a field of the card is missing or unknown.
    """
    try:
        said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["actions"].items()}
        actions = ActionSpec(**said)
        model = card["model"]
        shapes = {key: tuple(spec["shape"]) for key, spec in model["inputs"].items()}
        return BundledPolicy(
            name=card["name"],
            module=ConditionalNetwork(model, actions),
            schedule=build_schedule(model["schedule"]),
            prediction=model["prediction"],
            actions=actions,
            observations=ObservationSpec(shapes, model["n_obs_steps"]),
            card=card,
        )
    except (KeyError, TypeError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{CARD} of {card.get('name', 'a policy')}: {reason}") from None


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a policy folder; InputError where it is missing or not JSON."""
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text())
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {CARD}; a gpc policy folder has {CARD} and {WEIGHTS}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{folder / CARD} is not valid JSON: {error}") from None
    return card


def load(source: str) -> Policy:
    """Load a bundled policy by name, or a policy folder by path.

    Raises InputError where the policy is unknown or its files are missing, cut short or of another network.
    """
    folder = BUNDLED / source if source in names() else Path(source)
    if not folder.is_dir():
        raise InputError(f"no bundled policy and no folder is called {source!r}{suggest(source, names())}")
    card = read_card(folder)
    if "checkpoint" in card:
        loader, _, file = card["checkpoint"].partition(":")
        if Path(file).name != file:
            raise InputError(f"{folder / CARD} names the checkpoint {file!r}, which is not in its folder")
        return load_policy(f"{loader}:{folder / file}")
    policy = build(card)
    try:
        policy.module.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {WEIGHTS}; train it with scripts/train.py or copy it there") from None
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({reason}); it is cut short or of another network"
        ) from None
    policy.module.eval().requires_grad_(False)
    return policy


def names() -> list[str]:
    """Names of the bundled policies."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{CARD}"))
