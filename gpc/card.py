"""The schema of `card.json`, which describes a policy in gpc's own format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gpc import schema

CARD = "card.json"
LIMIT = 2**20  # bytes of a card
OBSERVATION = 2**24  # numbers in one observation (`gpc.policy.spec.NUMBERS`, which needs torch)

Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f/\\]+\Z")]
Text = Annotated[str, Meta(max_length=2000)]
Width = Annotated[int, Meta(ge=1, le=2**14)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
Number = Annotated[float, Meta(ge=-1e9, le=1e9)]
Shape = Annotated[list[Annotated[int, Meta(ge=1, le=OBSERVATION)]], Meta(min_length=1, max_length=4)]
Steps = Annotated[int, Meta(ge=1, le=256)]


class Input(Struct, forbid_unknown_fields=True):
    """One observation key, read by `gpc.policies.networks.Encoder`."""

    shape: Shape
    offset: Number | Annotated[list[Number], Meta(max_length=2**14)] | UnsetType = UNSET
    scale: Positive | Annotated[list[Positive], Meta(max_length=2**14)] | UnsetType = UNSET
    angles: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=2**14)] = []
    image: bool = False
    points: bool = False

    def __post_init__(self) -> None:
        if prod(self.shape) > OBSERVATION:
            raise ValueError(f"an observation holds at most {OBSERVATION} numbers")
        if self.image and (len(self.shape) != 3 or self.shape[2] != 3 or min(self.shape[:2]) < 4):
            raise ValueError("an image has the shape [height, width, 3], at least 4 pixels each")
        if self.points and (len(self.shape) != 2 or self.shape[1] != 3):
            raise ValueError("points have the shape [number, 3]")
        if (self.image and self.points) or ((self.image or self.points) and self.angles):
            raise ValueError("an input is an image, points or numbers, of which numbers alone have angles")

    def check_numbers(self) -> None:
        """Check that offset, scale and angles fit the shape of an input of numbers.

        Raises:
            ValueError: If they do not fit.
        """
        width = self.shape[-1]
        if len(set(self.angles)) < len(self.angles) or any(i >= width for i in self.angles):
            raise ValueError(f"angles are different indices below {width}")
        for value in (self.offset, self.scale):
            if value is UNSET or (isinstance(value, list) and len(value) != width - len(self.angles)):
                raise ValueError(f"offset and scale are one number, or {width - len(self.angles)} without the angles")


class UNet(Struct, tag_field="type", tag="unet", forbid_unknown_fields=True):
    """Arguments of `gpc.policies.networks.UNet`."""

    widths: Annotated[list[Width], Meta(min_length=1, max_length=16)] | UnsetType = UNSET
    embedding: Annotated[int, Meta(ge=4, le=2**14, multiple_of=2)] | UnsetType = UNSET
    kernel: Annotated[int, Meta(ge=1, le=63)] | UnsetType = UNSET
    label_scale: Positive | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.kernel is not UNSET and self.kernel % 2 == 0:
            raise ValueError("kernel must be odd")


class Transformer(Struct, tag_field="type", tag="transformer", forbid_unknown_fields=True):
    """Arguments of `gpc.policies.networks.Transformer`."""

    width: Annotated[int, Meta(ge=4, le=2**14, multiple_of=2)] | UnsetType = UNSET
    depth: Annotated[int, Meta(ge=1, le=256)] | UnsetType = UNSET
    heads: Annotated[int, Meta(ge=1, le=1024)] | UnsetType = UNSET
    label_scale: Positive | UnsetType = UNSET


class SquaredCos(Struct, tag_field="type", tag="squaredcos", forbid_unknown_fields=True):
    """Arguments of `gpc.score.noise.VariancePreserving.squaredcos`."""

    steps: Annotated[int, Meta(ge=2, le=10_000)]
    max_beta: Annotated[float, Meta(gt=0, lt=1)] | UnsetType = UNSET


Time = Annotated[float, Meta(ge=0, le=1)]


class Flow(Struct, tag_field="type", tag="flow", forbid_unknown_fields=True):
    """Arguments of `gpc.score.noise.LinearFlow`."""

    t_min: Annotated[float, Meta(ge=0, lt=1)] | UnsetType = UNSET
    t_max: Time | UnsetType = UNSET
    reverse: bool | UnsetType = UNSET


class Karras(Struct, tag_field="type", tag="karras", forbid_unknown_fields=True):
    """Arguments of `gpc.score.noise.Karras`."""

    sigma_data: Positive | UnsetType = UNSET
    sigma_min: Positive | UnsetType = UNSET
    sigma_max: Positive | UnsetType = UNSET


class Model(Struct, forbid_unknown_fields=True):
    """Network, schedule and observations."""

    inputs: Annotated[dict[Name, Input], Meta(min_length=1, max_length=64)]
    n_obs_steps: Steps
    network: UNet | Transformer
    schedule: SquaredCos | Flow | Karras
    prediction: Literal["noise", "sample", "v", "velocity", "reverse_velocity", "edm"]

    def __post_init__(self) -> None:
        for value in self.inputs.values():
            if not value.image:
                value.check_numbers()
        if (self.prediction == "edm") != isinstance(self.schedule, Karras):
            raise ValueError("prediction edm and a karras schedule go together")


class Actions(Struct, forbid_unknown_fields=True):
    """Fields of `gpc.policy.spec.ActionSpec`, which checks their ranges."""

    horizon: int
    scale: list[float]
    offset: list[float]
    names: list[Name] | UnsetType | None = UNSET
    start: int | UnsetType = UNSET
    dt: float | UnsetType = UNSET
    bound: float | UnsetType | None = UNSET
    relative: bool | UnsetType | None = UNSET


class Training(Struct):
    """The training; other fields are free."""

    parameters: Annotated[int, Meta(ge=0)] | UnsetType = UNSET


class Measured(Struct):
    """Measured scores; other fields are free."""

    n_episodes: Annotated[int, Meta(ge=1)]
    avg_max_reward: Number
    avg_max_reward_ci95: tuple[Number, Number]


class Sampler(Struct, forbid_unknown_fields=True):
    """Fields of `gpc.inference.settings.Sampling`, which checks their ranges."""

    method: str
    steps: int
    sigma_max: float | UnsetType = UNSET
    sigma_min: float | UnsetType = UNSET
    grid: str | UnsetType = UNSET


class Inference(Struct, forbid_unknown_fields=True):
    """How the policy was measured."""

    sampler: Sampler | UnsetType = UNSET
    n_action_steps: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET


class About(Struct, kw_only=True):
    """Fields of every card; `env` is the task of the training, as in `env=lift`."""

    name: Name
    summary: Text = ""
    license: Text = ""
    training: Training | UnsetType = UNSET
    measured: Measured | UnsetType = UNSET
    env: Literal["pusht", "lift", "can", "square", "tool_hang", "transport"] | UnsetType = UNSET


class OwnCard(About, forbid_unknown_fields=True, kw_only=True):
    """A policy with a network of gpc's own; its weights lie beside the card."""

    model: Model
    actions: Actions
    inference: Inference | UnsetType = UNSET


class Observed(Struct, forbid_unknown_fields=True):
    """The observations of a checkpoint, for people; gpc reads the checkpoint itself."""

    inputs: Annotated[dict[Name, Input], Meta(min_length=1, max_length=64)]


FILE = re.compile(
    r"(beso|beso_unconditional|diffusion_policy|lerobot|robomimic):([^\x00-\x1f\x7f/\\.][^\x00-\x1f\x7f/\\]{,199})"
)


class CheckpointCard(About, forbid_unknown_fields=True, kw_only=True):
    """A policy in a file or folder beside the card: "loader:name"."""

    checkpoint: str
    model: Observed | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not FILE.fullmatch(self.checkpoint):
            raise ValueError(f"the checkpoint {self.checkpoint[:80]!r} is not in its folder, or of no loader of files")


def check(card: Mapping[str, Any], where: str = CARD) -> None:
    """Check a card, read or to be written; `where` names it in errors.

    Raises:
        InputError: If a field is missing, unknown, of another type or out of bounds.
    """
    schema.convert(CheckpointCard if "checkpoint" in card else OwnCard, card, where)


def read(path: Path) -> dict[str, Any]:
    """Read and check a card.

    Raises:
        InputError: If there is no card, it is no JSON, or it does not fit the schema.
    """
    card: dict[str, Any] = schema.read(dict[str, Any], path, LIMIT)
    check(card, str(path))
    return card


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network or schedule of a card, without its type."""
    return {key: value for key, value in options.items() if key != "type"}
