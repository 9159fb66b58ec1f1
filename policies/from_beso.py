"""Trainings of BESO (Reuss et al. 2023, arXiv 2304.02532) as policies: `beso:DIR`, `beso_unconditional:DIR`.

DIR holds `.hydra/config.yaml`, `model_state_dict.pth` (the averaged weights) and, if the training scaled its data,
`scaler.json`, which BESO computes from its data set and does not store. The transformer reads the last `window_size`
states and predicts an action for each. Training adds the same level of noise to all of them, so all are sampled here;
the newest is executed. docs/checkpoints.md lists what BESO's own rollouts do differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpc import schema
from gpc.errors import InputError, one_line
from gpc.inference.settings import Sampling
from gpc.policies.checkpoint import MALFORMED, CheckpointPolicy, fingerprint, read, unwrapped
from gpc.policies.dry_run import dry_run
from gpc.policies.settings import Settings, read_yaml
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec, is_whole
from gpc.score.denoiser import Denoiser, NetworkDenoiser, no_grad
from gpc.score.noise import STEPS, Karras

Number = TypeVar("Number", int, float)
CONFIG, WEIGHTS, SCALER = ".hydra/config.yaml", "model_state_dict.pth", "scaler.json"
INNER = "agents.model.inner_model"
SERVED = {
    "agents._target_": "beso.agents.diffusion_agents.beso_agent.BesoAgent",
    "agents.pred_last_action_only": False,
    "agents.input_encoder._target_": "beso.agents.input_encoders.obs_encoder.NoEncoder",
    "agents.model._target_": "beso.agents.diffusion_agents.k_diffusion.score_wrappers.GCDenoiser",
    f"{INNER}._target_": "beso.agents.diffusion_agents.k_diffusion.score_gpts.DiffusionGPT",
}
SAMPLERS = {"ddim": "euler", "euler": "euler", "euler_ancestral": "ancestral", "dpmpp_2m": "dpmpp_2m"}
"""BESO's names of gpc's samplers; it has others."""
LARGEST = 10**9  # of a setting; the size of a network is limited by its weights
TINY = 1e-12  # BESO adds it to every standard deviation
HIDDEN = {10: [2, 5, 6, 7, 8, 9]}  # length of a goal -> numbers that BESO sets to zero: all except block positions
CLIP = 1.1  # BESO clips executed actions to this multiple of the data's range


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """A transformer block, normalised before each half."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        x = x + self.attn(self.ln1(x))
        out: Tensor = x + self.mlp(self.ln2(x))
        return out


class ScoreTransformer(nn.Module):
    """BESO's network under the names of its parameters.

    The tokens are noise, goals, state 1, action 1, state 2, action 2, ...
    """

    def __init__(
        self, state: int, action: int, width: int, layers: int, heads: int, goals: int, window: int, linear_output: bool
    ) -> None:
        super().__init__()
        self.goals = goals
        self.tok_emb = nn.Linear(state, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, goals + window + 1, width))  # the last is never used
        self.sigma_emb = nn.Linear(1, width)
        self.action_emb = nn.Linear(action, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width)
        hidden = nn.Sequential(nn.Linear(width, 100), nn.SiLU(), nn.Linear(100, action))
        self.action_pred = nn.Linear(width, action) if linear_output else hidden

    def embed(self, goals: Tensor, states: Tensor) -> Tensor:
        """Embed scaled goals and states, (batch, goals + window, width)."""
        out: Tensor = self.tok_emb(torch.cat([goals, states], 1)) + self.pos_emb[:, :-1]
        return out

    def forward(self, x: Tensor, label: Tensor, tokens: Tensor) -> Tensor:
        """Predict actions.

        Args:
            x: scaled actions, (batch, window, action).
            label: log(sigma) / 4, (batch,).
            tokens: from `embed`.
        """
        actions = self.action_emb(x) + self.pos_emb[:, self.goals : -1]
        pairs = torch.stack([tokens[:, self.goals :], actions], 2).flatten(1, 2)
        sequence = torch.cat([self.sigma_emb(label[:, None, None]), tokens[:, : self.goals], pairs], 1)
        out: Tensor = self.action_pred(self.ln_f(self.blocks(sequence))[:, self.goals + 2 :: 2])
        return out


@dataclass(frozen=True, repr=False)
class BesoPolicy(CheckpointPolicy):
    """A BESO policy; it reads "state" and, if it is conditional, "goal"."""

    network: ScoreTransformer
    mean: Tensor  # (state,)
    std: Tensor

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Scale and embed the states and the newest goal once."""
        observation = self.observations.read(observation)
        states = self._scaled(observation["state"])
        goals = states.new_zeros(len(states), self.network.goals, states.shape[-1])
        if "goal" in self.observations.shapes:
            goals = self._scaled(observation["goal"][:, -1])
            goals[..., HIDDEN.get(goals.shape[-1], [])] = 0
        tokens = self.network.embed(goals, states)
        return NetworkDenoiser(no_grad(self.network), self.schedule, "edm", condition=(tokens,))

    def _scaled(self, value: Tensor) -> Tensor:
        return (value - self.mean) / self.std


def load(source: str) -> BesoPolicy:
    """Load the folder of a training, conditional if the network has goals.

    Raises:
        InputError: If a file is missing or damaged, or a setting is not supported.
    """
    folder = Path(source).expanduser()
    settings = _settings(folder / CONFIG)
    return _policy(folder, settings, conditional=bool(settings.get(f"{INNER}.goal_conditioned")))


def load_unconditional(source: str) -> BesoPolicy:
    """Load the same network with its goals at zero.

    It is the unconditional half of classifier-free guidance (arXiv 2207.12598).

    Raises:
        InputError: If `load` raises it, or the training dropped no goals.
    """
    folder = Path(source).expanduser()
    settings = _settings(folder / CONFIG)
    for key in ("goal_conditioned", "goal_drop"):
        value = settings.get(f"{INNER}.{key}")
        if not value:
            raise InputError(
                f"{folder} has {INNER}.{key}={one_line(value, 80)}: it was never trained without its goal; take beso:DIR, or a "
                "training with cond_mask_prob above 0"
            )
    return _policy(folder, settings, conditional=False)


def _settings(path: Path) -> Settings:
    """Read the settings of a training as data."""
    try:
        settings = Settings(path, read_yaml(path))
    except FileNotFoundError:
        raise InputError(
            f"no file {str(path)!r}; beso:DIR takes the folder of a training, with {CONFIG} in it"
        ) from None
    for key, value in SERVED.items():
        setting = settings.get(key)
        if setting != value:
            raise InputError(f"{path} has {key}={one_line(setting, 80)}; gpc reads {value}")
    return settings


def _policy(folder: Path, settings: Settings, conditional: bool) -> BesoPolicy:
    state, action, window = (
        _positive(settings, f"{INNER}.{key}") for key in ("state_dim", "action_dim", "obs_seq_len")
    )
    if settings.get("agents.window_size") != window:
        raise InputError(f"{settings.path} has agents.window_size other than {INNER}.obs_seq_len={window}")
    goals = _positive(settings, f"{INNER}.goal_seq_len") if settings.get(f"{INNER}.goal_conditioned") else 0
    scaler = _scaler(folder / SCALER, settings, state, action)
    schedule = Karras(
        sigma_data=_positive(settings, "agents.model.sigma_data", float),
        sigma_min=_positive(settings, "agents.sigma_min", float),
        sigma_max=_positive(settings, "agents.sigma_max", float),
    )
    shapes: dict[str, tuple[int, ...]] = {"state": (state,)} | ({"goal": (goals, state)} if conditional else {})
    files = [path for path in (folder / CONFIG, folder / SCALER, folder / WEIGHTS) if path.is_file()]
    suffix = "" if conditional or not goals else "-unconditional"
    return BesoPolicy(
        name=folder.resolve().name + suffix,
        folder=folder,
        network=_network(folder / WEIGHTS, settings, state, action, goals, window),
        fingerprint=" ".join(map(fingerprint, files)) + suffix,
        schedule=schedule,
        actions=ActionSpec(
            window,
            scaler.scale,
            scaler.offset,
            start=1 - window,
            bound=scaler.bound,
        ),
        observations=ObservationSpec(shapes, window),
        mean=scaler.mean,
        std=scaler.std,
        n_action_steps=1,
        sampling=_sampling(settings, schedule),
    )


def _sampling(settings: Settings, schedule: Karras) -> Sampling | None:
    """Return the sampler of BESO's agent; None if it is none of gpc's."""
    method = SAMPLERS.get(str(settings.find("agents.sampler_type", None)))
    steps = settings.find("agents.num_sampling_steps", None)
    if method is None or not is_whole(steps, STEPS, 1):
        return None
    return Sampling(method, steps, schedule.sigma_max, schedule.sigma_min, "exponential")


def _positive(settings: Settings, key: str, kind: type[Number] = int) -> Number:
    value = settings.get(key)
    if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value <= LARGEST:
        raise InputError(
            f"{settings.path} has {key}={one_line(repr(value), 80)}; it must be a number above 0 ({kind.__name__}), at most "
            f"{LARGEST:g}"
        )
    return kind(value)


@dataclass(frozen=True)
class Scaler:
    """Normalisers: mean, std of states and goals; scale, offset, bound of actions."""

    mean: Tensor
    std: Tensor
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    bound: float | None = None


def _scaler(path: Path, settings: Settings, state: int, action: int) -> Scaler:
    """Read the statistics of BESO's `Scaler` or `MinMaxScaler`; identity if unscaled."""
    if not settings.get("workspaces.scale_data"):
        return Scaler(torch.zeros(state), torch.ones(state), (1.0,) * action, (0.0,) * action)
    ends = settings.find("workspaces.use_minmax_scaler", False)
    first, second = ("min", "max") if ends else ("mean", "std")
    statistics = _statistics(path, {"state": {"mean": state, "std": state}, "action": {first: action, second: action}})
    a, b = (torch.tensor(statistics["action"][name], dtype=torch.float64) for name in (first, second))
    scale, offset = ((b - a) / 2, (a + b) / 2) if ends else (torch.where(b > 0, b + TINY, b), a)
    mean, std = (torch.tensor(statistics["state"][name]) for name in ("mean", "std"))
    return Scaler(mean, std + TINY, tuple(scale.tolist()), tuple(offset.tolist()), CLIP if ends else None)


def _statistics(path: Path, form: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, list[float]]]:
    """Read a file with `form[part][name]` numbers under each part and name."""
    example = json.dumps({part: {k: f"{n} numbers" for k, n in names.items()} for part, names in form.items()})
    if not path.exists():
        raise InputError(
            f"{path} is missing; BESO stores no scaler, so write what it computed from the data set: {example}"
        )
    try:
        content = schema.read(dict[str, dict[str, list[float]]], path)
    except InputError as error:
        raise InputError(f"{path} is not of the form {example}: {error}") from None
    for part, names in form.items():
        for name, count in names.items():
            if len(content.get(part, {}).get(name, ())) != count:
                raise InputError(f"{path} is not of the form {example}: {part}.{name} is not {count} numbers")
    return content


def _network(path: Path, settings: Settings, state: int, action: int, goals: int, window: int) -> ScoreTransformer:
    width, layers, heads = (_positive(settings, f"{INNER}.{key}") for key in ("embed_dim", "n_layers", "n_heads"))
    if width % heads:
        raise InputError(f"{settings.path} has {INNER}.embed_dim={width}, which {heads} heads do not divide")
    linear = bool(settings.find(f"{INNER}.linear_output", False))
    weights = {
        k.removeprefix("inner_model."): v
        for k, v in unwrapped(read(path), path).items()
        if not k.endswith(".attn.mask")
    }

    def build() -> ScoreTransformer:
        return ScoreTransformer(state, action, width, layers, heads, goals, window, linear)

    try:
        dry_run(build, weights, path.stat().st_size, str(settings.path))
        network = build()
        network.load_state_dict(weights)
    except MALFORMED as error:
        raise InputError(
            f"{path}: its weights do not fit the network of {settings.path}: {one_line(error, 200)}"
        ) from None
    return network.eval().requires_grad_(False)
