"""Calls of each policy type of LeRobot: encode an observation once, then call the network at any (x, t)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lerobot.policies.smolvla.modeling_smolvla import make_att_2d_masks
from lerobot.utils.constants import OBS_IMAGES, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from gpc.inference.settings import Sampling
from gpc.policies.schedulers import READ, Scheduler, read_scheduler, sampling_of
from gpc.score.denoiser import Network, Prediction
from gpc.score.noise import LinearFlow, Schedule

Batch = dict[str, Tensor]
"""LeRobot's batch after its preprocessor: key -> (rows, n_obs_steps, ...)."""

Bound = tuple[Network, tuple[Any, ...]]
"""A network, and its condition: encoded observations, trees of tensors with a row for each."""

Encode = Callable[..., tuple[Any, Any]]
"""LeRobot's backbone over a prefix: returns (.., cache of its keys and values)."""

Weights = dict[str, Tensor]


def _as_named(policy: Any, weights: Weights) -> Weights:
    """Return weights as they are named."""
    return weights


class Family(NamedTuple):
    """A policy type of LeRobot: its training, and the calls of its network.

    Attributes:
        schedule: returns the noise schedule of a policy.
        prediction: returns the prediction type of a configuration.
        horizon: returns the steps of a chunk.
        bind: encodes a batch and returns the network with its condition.
        bound: returns the limit of normalised actions.
        steps: processor steps without which the network's input differs from the training.
        added: keys that those steps add to a batch.
        refusal: returns why a configuration is not supported, or None.
        sampling: returns the sampler of a configuration.
        renamed: returns a file's weights under the names of a network.
        in_stored_dtype: whether each weight computes in the dtype of the file, as LeRobot trains it.
        building: a block in which LeRobot builds the network.
        extra: LeRobot's extra with the packages of the policy; by default its type.
    """

    schedule: Callable[[Any], Schedule]
    prediction: Callable[[Any], Prediction]
    horizon: Callable[[Any], int]
    bind: Callable[[Any, Batch], Bound]
    bound: Callable[[Any], float | None] = lambda config: None
    steps: frozenset[str] = frozenset()
    added: tuple[str, ...] = ()
    refusal: Callable[[Any], str | None] = lambda config: None
    sampling: Callable[[Any], Sampling | None] = lambda config: Sampling(
        "euler", config.num_inference_steps, grid="flow"
    )
    renamed: Callable[[Any, Weights], Weights] = _as_named
    in_stored_dtype: bool = False
    building: Callable[[], AbstractContextManager[None]] = nullcontext
    extra: str = ""

    @property
    def language(self) -> bool:
        """Whether the policy reads an instruction."""
        return OBS_LANGUAGE_TOKENS in self.added


def _diffusion_network(policy: Any, batch: Batch) -> Bound:
    cameras = list(policy.config.image_features)
    if cameras:
        batch = batch | {OBS_IMAGES: torch.stack([batch[key] for key in cameras], dim=-4)}
    return policy.diffusion.unet, (policy.diffusion._prepare_global_conditioning(batch),)


def _dit_network(policy: Any, batch: Batch) -> Bound:
    words = {key: batch[key][:, -1] for key in TOKENS}
    return policy.noise_predictor, (policy.observation_encoder.encode(policy._prepare_batch(batch | words)),)


def _dit_schedule(policy: Any) -> Schedule:
    config = policy.config
    if config.objective == "diffusion":
        return _scheduler(config).schedule
    is_beta = config.timestep_sampling_strategy == "beta"
    return LinearFlow(t_min=max(1 - config.timestep_sampling_s, 0.001) if is_beta else 0.001, reverse=True)


def _dit_sampling(config: Any) -> Sampling | None:
    if config.objective == "diffusion":
        return _sampling(config)
    is_euler = config.integration_method == "euler"
    return Sampling("euler", config.num_integration_steps, grid="flow") if is_euler else None


def _ends_in_noise(config: Any) -> str | None:
    if config.objective == "flow_matching" and config.sigma_min > 0:
        return f"sigma_min={config.sigma_min:g} leaves noise on the trained actions; gpc composes flows that end at sigma 0"
    return None


@contextmanager
def _clip_without_weights() -> Iterator[None]:
    """Let LeRobot build CLIP of its configuration: the file has its weights."""
    module: Any = import_module("lerobot.policies.multi_task_dit.modeling_multi_task_dit")
    kinds = {name: getattr(module, name) for name in ("CLIPVisionModel", "CLIPTextModel")}
    for name, kind in kinds.items():
        setattr(module, name, SimpleNamespace(from_pretrained=partial(_of_configuration, kind)))
    try:
        yield
    finally:
        vars(module).update(kinds)


def _of_configuration(kind: Any, name: str) -> Any:
    return kind(kind.config_class.from_pretrained(name))


def _scheduler(config: Any) -> Scheduler:
    settings = {key: value for key, value in vars(config).items() if key in READ}
    return read_scheduler(settings, "LeRobot's configuration")


def _sampling(config: Any) -> Sampling | None:
    steps = config.num_inference_steps or config.num_train_timesteps
    return sampling_of(f"{config.noise_scheduler_type}Scheduler", steps, vars(config))


def _now(batch: Batch) -> Batch:
    """Return the newest step: vision-language-action policies read no history."""
    return {key: value[:, -1] for key, value in batch.items()}


def _unpadded(network: Network, config: Any, width: int) -> Network:
    """Restrict a network of `width` action dimensions to those of the robot.

    The other dimensions were trained on zeros, so they stay on their exact path, t times one fixed noise.
    """
    dim = config.action_feature.shape[0]
    noise = torch.randn((1, config.chunk_size, width - dim), generator=torch.Generator().manual_seed(0))
    there = {noise.device: noise}  # a recording cannot copy it from the host

    def unpadded(x: Tensor, t: Tensor, *condition: Any) -> Tensor:
        if x.device not in there:
            there[x.device] = noise.to(x.device)
        return network(torch.cat([x, t[:, None, None] * there[x.device]], dim=-1), t, *condition)[..., :dim]

    return unpadded


def _after_prefix(
    policy: Any,
    prefix: tuple[Tensor, Tensor, Tensor],
    encode: Encode,
    state: Mapping[str, Tensor],
) -> Bound:
    """Encode a prefix (embedded, padding, attention) once, as the condition."""
    embedded, padding, attention = prefix
    _, cache = encode(
        attention_mask=make_att_2d_masks(padding, attention),
        position_ids=torch.cumsum(padding, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embedded, None],
    )

    def network(x: Tensor, t: Tensor, padding: Tensor, tree: Any, state: Mapping[str, Tensor]) -> Tensor:
        velocity: Tensor = policy.model.denoise_step(
            prefix_pad_masks=padding, past_key_values=_cache_of(tree), x_t=x, timestep=t, **state
        )
        return velocity

    return _unpadded(network, policy.config, policy.config.max_action_dim), (padding, _tree_of(cache), dict(state))


def _tree_of(cache: Any) -> Any:
    """Return the tensors of a cache of keys and values."""
    return cache if isinstance(cache, dict) else tuple((layer.keys, layer.values) for layer in cache.layers)


def _cache_of(tree: Any) -> Any:
    """Return a new cache of tensors, since LeRobot appends to it.

    SmolVLA of LeRobot 0.4 reads a dictionary.
    """
    return tree if isinstance(tree, dict) else import_module("transformers").DynamicCache(tree)


def _words(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]


def _smolvla_network(policy: Any, batch: Batch) -> Bound:
    now, model = _now(batch), policy.model
    prefix = model.embed_prefix(*policy.prepare_images(now), *_words(now), state=policy.prepare_state(now))
    encode = partial(model.vlm_with_expert.forward, use_cache=policy.config.use_cache)
    if "fill_kv_cache" in signature(encode).parameters:  # LeRobot 0.4
        encode = partial(encode, fill_kv_cache=True)
    return _after_prefix(policy, prefix, encode, {})


def _pi0_network(policy: Any, batch: Batch) -> Bound:
    """Bind pi0, whose expert reads the state at every step, or pi0.5 (no state)."""
    now, backbone = _now(batch), policy.model.paligemma_with_expert
    backbone.paligemma.language_model.config._attn_implementation = "eager"  # as LeRobot's sample_actions does

    def encode(attention_mask: Tensor, **rest: Any) -> tuple[Any, Any]:
        encoded: tuple[Any, Any] = backbone.forward(
            attention_mask=_masks_4d(policy, attention_mask), use_cache=True, **rest
        )
        return encoded

    prefix = policy.model.embed_prefix(*policy._preprocess_images(now), *_words(now))
    state = {"state": policy.prepare_state(now)} if policy.config.type == "pi0" else {}
    return _after_prefix(policy, prefix, encode, state)


def _masks_4d(policy: Any, mask: Tensor) -> Tensor:
    make = getattr(policy.model, "_prepare_attention_masks_4d", None)  # LeRobot 0.4
    make = make or import_module("lerobot.policies.common.vla_utils").prepare_attention_masks_4d
    masks: Tensor = make(mask)
    return masks


def _pi_names(policy: Any, weights: Weights) -> Weights:
    """Return weights of openpi or another release under this one's names.

    As LeRobot's `from_pretrained` does.
    """
    fixed = policy._fix_pytorch_state_dict_keys(weights, policy.config)
    return {name if name.startswith("model.") else f"model.{name}": value for name, value in fixed.items()}


def _xvla_names(policy: Any, weights: Weights) -> Weights:
    """Return weights of LeRobot 0.4's own Florence-2 under this one's names."""
    module: Any = import_module("lerobot.policies.xvla.modeling_xvla")
    is_old = getattr(module, "_is_vendored_florence_state_dict", lambda weights: False)
    return dict(module._remap_vendored_florence_state_dict(weights)) if is_old(weights) else weights


def _xvla_network(policy: Any, batch: Batch) -> Bound:
    """Bind X-VLA in the robot's actions: a gripper's logit becomes a probability.

    The probability is the mean of the gripper's action given x.
    """
    model, dtype = policy.model, policy.model._get_target_dtype()
    inputs = policy._build_model_inputs(_now(batch))
    encoded = model.forward_vlm(inputs["input_ids"], inputs["image_input"].to(dtype), inputs["image_mask"])

    def network(x: Tensor, t: Tensor, encoded: dict[str, Tensor], proprio: Tensor, domain: Tensor) -> Tensor:
        state, action = model.action_space.preprocess(proprio, x.to(dtype))
        out = model.transformer(domain_id=domain, action_with_noise=action, proprio=state, t=t.to(dtype), **encoded)
        denoised: Tensor = model.action_space.postprocess(out)
        return denoised

    condition = encoded, inputs["proprio"].to(dtype), inputs["domain_id"]
    return _unpadded(network, policy.config, model.dim_action), condition


def _bends_grippers(config: Any) -> str | None:
    if config.adapt_to_pi_aloha:
        return "adapt_to_pi_aloha bends the gripper's actions; that is no scale and offset to compose"
    return None


def _needs_patched_transformers(config: Any) -> str | None:
    """Make LeRobot 0.4's own check of transformers; later ones bring the patch."""
    if find_spec("lerobot.policies.pi_gemma"):
        return None
    try:
        check: Any = import_module("transformers.models.siglip.check")
    except ImportError:
        check = None
    if check is None or not check.check_whether_transformers_replace_is_installed_correctly():
        return (
            f"a LeRobot {config.type} policy needs LeRobot 0.6 (Python 3.12), or a patched transformers (its branch "
            "fix/lerobot_openpi); on the stock one the cache grows at every step and the velocity of pi05 ignores t"
        )
    return None


def _action_space(config: Any) -> str | None:
    """Return why an action space of X-VLA is not supported, or None.

    Its loss and output must agree, so that the network returns E[x0 | x].
    """
    from lerobot.policies.xvla.action_hub import ACTION_REGISTRY, build_action_space

    mode, dim = config.action_mode.lower(), config.action_feature.shape[0]
    if mode == "so101_bimanual":
        return (
            "action_mode 'so101_bimanual' fits its grippers by squared error and then bends them by a sigmoid: its "
            "prediction is not the executed action, so there is no denoised action to compose"
        )
    supported = sorted(ACTION_REGISTRY.keys() - {"so101_bimanual"})
    if mode not in supported:
        return f"action_mode {config.action_mode!r} is unknown; gpc reads {', '.join(supported)}"
    space = build_action_space(mode, **({"real_dim": dim, "max_dim": config.max_action_dim} if mode == "auto" else {}))
    width = space.postprocess(torch.zeros(1, 1, space.dim_action)).shape[-1]
    if width != dim:
        return f"action_mode {mode!r} makes actions of {width} dimensions, output_features declares {dim}"
    return None


TOKENS = (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)
PI0 = Family(
    schedule=lambda policy: LinearFlow(t_min=0.001),
    prediction=lambda config: "velocity",
    horizon=lambda config: config.chunk_size,
    bind=_pi0_network,
    steps=frozenset({"tokenizer_processor"}),
    added=TOKENS,
    refusal=_needs_patched_transformers,
    renamed=_pi_names,
    extra="pi",
)
FAMILIES = {
    "diffusion": Family(
        schedule=lambda policy: _scheduler(policy.config).schedule,
        prediction=lambda config: _scheduler(config).prediction,
        horizon=lambda config: config.horizon,
        bind=_diffusion_network,
        bound=lambda config: _scheduler(config).bound,
        sampling=_sampling,
    ),
    "multi_task_dit": Family(
        schedule=_dit_schedule,
        prediction=lambda config: (
            _scheduler(config).prediction if config.objective == "diffusion" else "reverse_velocity"
        ),
        horizon=lambda config: config.horizon,
        bind=_dit_network,
        bound=lambda config: _scheduler(config).bound if config.objective == "diffusion" else None,
        steps=frozenset({"tokenizer_processor"}),
        added=TOKENS,
        refusal=_ends_in_noise,
        sampling=_dit_sampling,
        building=_clip_without_weights,
    ),
    "smolvla": PI0._replace(
        bind=_smolvla_network,
        refusal=_bends_grippers,
        renamed=_as_named,
        in_stored_dtype=True,  # its language model is in bfloat16; transformers 4.57 shifts the patches of float32
        extra="",
        sampling=lambda config: Sampling("euler", config.num_steps, grid="flow"),
    ),
    "pi0": PI0,
    "pi05": PI0._replace(steps=PI0.steps | {"pi05_prepare_state_tokenizer_processor_step"}),
    "xvla": PI0._replace(
        prediction=lambda config: "sample",
        bind=_xvla_network,
        steps=frozenset({"tokenizer_processor", "xvla_add_domain_id"}),
        added=(OBS_LANGUAGE_TOKENS, "domain_id"),
        refusal=_action_space,
        renamed=_xvla_names,
        extra="",
        sampling=lambda config: Sampling("renoise", max(1, config.num_denoising_steps), grid="flow"),
    ),
}
REFUSED = {
    "act": "has no score to compose: it regresses one action chunk (L1 loss)",
    "vqbet": "has no score to compose: it chooses codes of a vector-quantised action",
    "pi0_fast": "has no score to compose: it writes actions as text tokens",
    "tdmpc": "has no score to compose: it plans with a learned value",
    "sac": "has no score to compose: its actor is one Gaussian, not a denoiser",
    "gaussian_actor": "has no score to compose: its actor is one Gaussian, not a denoiser",
    "eo1": "is not supported yet: it flows beside a Qwen2.5-VL of 3 billion weights",
    "evo1": "has no score to compose: its flow begins at uniform noise, and a score belongs to Gaussian noise",
    "lingbot_va": "has no score to compose: its flow begins at uniform noise, and a score belongs to Gaussian noise",
    "vla_jepa": "is not supported: its last steps (clipped and binary grippers) are no scale and offset to compose",
    "molmoact2": "is not supported: its last steps (clamped and masked actions, another frame) are no scale and offset to compose",
    "fastwam": "is not supported: its last step (a toggled gripper) is no scale and offset to compose",
    "reward_classifier": "has no score to compose: it judges images and predicts no action",
    "sarm": "has no score to compose: it judges progress and predicts no action",
    "groot": (
        "is not supported: it builds its vision-language model from code and files that it fetches from the hub "
        "(trust_remote_code), which gpc does not run, and needs peft and dm-tree"
    ),
    "wall_x": "is not supported: it needs peft, torchdiffeq, qwen_vl_utils and another transformers (LeRobot's extra 'wallx')",
}
