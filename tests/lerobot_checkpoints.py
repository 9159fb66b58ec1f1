"""Small LeRobot checkpoints with random weights, saved by LeRobot itself."""

import copy
import json
import sys
from importlib.metadata import version
from types import ModuleType

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.pi0.modeling_pi0 import GemmaConfig as GemmaVariant
from lerobot.processor import TokenizerProcessorStep
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    GemmaConfig,
    GemmaModel,
    PaliGemmaConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

SHAPES = {
    "observation.state": (FeatureType.STATE, (2,)),
    "observation.environment_state": (FeatureType.ENV, (16,)),
    "observation.images.top": (FeatureType.VISUAL, (3, 96, 96)),
    "observation.images.wrist": (FeatureType.VISUAL, (3, 96, 96)),
    "observation.image": (FeatureType.VISUAL, (3, 96, 96)),
}
NORMALISERS = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}
SMALL_UNET = {
    "down_dims": (16, 32), "diffusion_step_embed_dim": 16, "n_groups": 4, "kernel_size": 3, "horizon": 16, "n_action_steps": 8,
    "pretrained_backbone_weights": None, "use_group_norm": True, "use_separate_rgb_encoder_per_camera": False,
}  # fmt: skip


def as_lerobot(frame):
    """One time step as LeRobot's environments give it: images (batch, channels, height, width) in [0, 1]."""
    return {k: v.permute(0, 3, 1, 2).float() / 255 if v.dtype == torch.uint8 else v for k, v in frame.items()}


def statistics(keys, low=0.0, high=512.0, dim=2):
    """Statistics of made-up data, of every kind that a normaliser may ask for."""
    found = {}
    for key, shape in {**{k: SHAPES[k][1] for k in keys}, "action": (dim,)}.items():
        small = (3, 1, 1) if len(shape) == 3 else shape
        span = torch.ones(small) if len(shape) == 3 else torch.full(small, high - low)
        base = torch.zeros(small) if len(shape) == 3 else torch.full(small, low)
        quantiles = {"q01": base + span / 16, "q99": base + span, "q10": base + span / 8, "q90": base + span / 2}
        found[key] = {"min": base, "max": base + span, "mean": base + span / 2, "std": span / 4, **quantiles}
    return found


def features(keys):
    return {key: PolicyFeature(*SHAPES[key]) for key in keys}


def save(
    folder,
    kind="diffusion",
    keys=("observation.state", "observation.environment_state"),
    stats=None,
    dim=2,
    initialise=None,
    **options,
):
    """A checkpoint folder as `lerobot-train` writes it; returns (folder, policy, preprocessor, postprocessor)."""
    torch.manual_seed(0)
    common = {"device": "cpu", "push_to_hub": False, "normalization_mapping": NORMALISERS}
    config = make_policy_config(
        kind,
        input_features=features(keys),
        output_features={"action": PolicyFeature(FeatureType.ACTION, (dim,))},
        **(common | (SMALL_UNET if kind == "diffusion" else {}) | options),
    )
    policy = get_policy_class(kind)(config).eval()
    if initialise:
        initialise(policy)
    pre, post = make_pre_post_processors(config, dataset_stats=stats or statistics(keys, dim=dim))
    for item in (policy, pre, post):
        item.save_pretrained(folder)
    return folder, policy, pre, post


def tiny_vlm(folder):
    """A vision-language model of SmolVLM's kind without weights: a configuration, a tokenizer and an image processor."""
    special = ["<unk>", "<pad>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]
    words = [*special, "\n", *"abcdefghijklmnopqrstuvwxyzPTAS.,:;- 0123456789"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<end_of_utterance>",
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
    )
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(folder)
    attention = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32}
    SmolVLMConfig(
        vision_config={**attention, "image_size": 64, "patch_size": 16},
        text_config={
            "model_type": "llama", **attention, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "pad_token_id": 1,
        },
        image_token_id=4,
        scale_factor=2,
        pad_token_id=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


VLA = {"chunk_size": 12, "n_action_steps": 8, "tokenizer_max_length": 96}


def save_smolvla(folder, dim=2, **options):
    """A SmolVLA checkpoint of a few thousand weights: state, one camera and an instruction."""
    vlm = tiny_vlm(folder.with_name("vlm"))
    small = {"vlm_model_name": str(vlm), "resize_imgs_with_padding": (64, 64), "num_vlm_layers": 2, "num_steps": 10}
    sizes = {"max_state_dim": 4, "max_action_dim": dim}
    return save(folder, "smolvla", ("observation.state", "observation.image"), **(VLA | small | sizes | options))


def save_xvla(folder, dim=2, **options):
    """An X-VLA checkpoint on a Florence-2 of a few thousand weights: state, two cameras and an instruction."""
    two = {"patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True]}
    sizes = {"dim_embed": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2], "depths": [1, 1], "window_size": 4}
    places = {
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 10},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    text = {"vocab_size": 64, "d_model": 16, "max_position_embeddings": 256}
    for part in ("encoder", "decoder"):
        text |= {f"{part}_layers": 1, f"{part}_ffn_dim": 16, f"{part}_attention_heads": 2}
    florence = {
        "vision_config": {**two, **sizes, **places, "projection_dim": 16},
        "text_config": text,
        "projection_dim": 16,
        "vocab_size": 64,
    }
    small = {"florence_config": florence, "tokenizer_name": str(tiny_vlm(folder.with_name("vlm")))}
    head = {"hidden_size": 16, "depth": 1, "num_heads": 2, "num_domains": 4, "len_soft_prompts": 2, "max_len_seq": 512}
    rest = {"resize_imgs_with_padding": (64, 64), "max_state_dim": 20, "max_action_dim": dim, "action_mode": "auto"}
    keys = ("observation.state", "observation.images.top", "observation.images.wrist")

    def initialise(policy):  # LeRobot leaves this one as the memory was
        if hasattr(policy.model.vlm, "image_projection"):  # LeRobot 0.4
            torch.nn.init.normal_(policy.model.vlm.image_projection, std=0.25)

    return save(folder, "xvla", keys, dim=dim, initialise=initialise, **(VLA | small | head | rest | options))


def _keeping(kind, **sizes):
    """A configuration that keeps these sizes, whatever LeRobot assigns."""

    def assign(self, name, value):
        kind.__setattr__(self, name, sizes.get(name, value))

    return type(kind.__name__, (kind,), {"__setattr__": assign})(**sizes)


def _tiny_paligemma():
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PaliGemmaConfig(projection_dim=32)
    config.vision_config = _keeping(SiglipVisionConfig, patch_size=14, projection_dim=32, **vision)
    config.text_config = _keeping(GemmaConfig, vocab_size=64)
    return config


def stand_in_for_patched_transformers(patch):
    """What pi0 and pi0.5 need of it, on the stock one: its check; a cache that reading leaves as it is; time enters the expert.

    The patched one modulates the expert's norms with the time; here the time is added to its input.
    """
    check = ModuleType("transformers.models.siglip.check")
    check.check_whether_transformers_replace_is_installed_correctly = lambda: True
    patch.setitem(sys.modules, check.__name__, check)
    patch.setattr("transformers.models.siglip.check", check, raising=False)
    stock = GemmaModel.forward

    def forward(self, *, inputs_embeds, past_key_values, adarms_cond, **rest):
        seen = inputs_embeds if adarms_cond is None else inputs_embeds + adarms_cond[:, None]
        return stock(self, inputs_embeds=seen, past_key_values=copy.deepcopy(past_key_values), **rest)

    patch.setattr(GemmaModel, "forward", forward)


def shrink_gemma(patch, vlm):
    """LeRobot builds pi0 and pi0.5 of tiny networks, with the tokenizer in `vlm`."""
    configs = {"paligemma": _tiny_paligemma, "gemma": lambda **given: GemmaConfig(**{**given, "vocab_size": 64})}
    size = GemmaVariant(width=32, depth=2, mlp_dim=32, num_heads=8, num_kv_heads=1, head_dim=16)
    for kind in ("pi0", "pi05"):
        patch.setattr(f"lerobot.policies.{kind}.modeling_{kind}.get_gemma_config", lambda variant: size)
        patch.setattr(f"lerobot.policies.{kind}.modeling_{kind}.CONFIG_MAPPING", configs)
        patch.setattr(
            f"lerobot.policies.{kind}.processor_{kind}.TokenizerProcessorStep",
            lambda tokenizer_name, **given: TokenizerProcessorStep(tokenizer_name=str(vlm), **given),
        )


def save_pi(folder, kind, dim=2, **options):
    """A pi0 or pi0.5 checkpoint; under `shrink_gemma` and `stand_in_for_patched_transformers`."""
    small = {
        "max_action_dim": dim,
        "image_resolution": (28, 28),
        "num_inference_steps": 10,
        "tokenizer_max_length": 200,
    }
    modes = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"} if kind == "pi05" else NORMALISERS
    keys = ("observation.state", "observation.image")
    return save(folder, kind, keys, initialise=_modulate, **(VLA | small | {"normalization_mapping": modes} | options))


def _modulate(policy):
    """Let pi0.5 read the time: an untrained one multiplies it by zeros."""
    for name, parameter in policy.named_parameters():
        if "norm.dense." in name:
            torch.nn.init.normal_(parameter, std=0.3)


def save_dit(folder, **options):
    """A multi_task_dit checkpoint on a CLIP of a few thousand weights: state, two cameras and an instruction."""
    clip = tiny_vlm(folder.with_name("clip"))
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**layers, "vocab_size": 64, "max_position_embeddings": 77}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 16})
    ).save_pretrained(clip)
    names = {"vision_encoder_name": str(clip), "text_encoder_name": str(clip), "image_crop_shape": (32, 32)}
    small = {
        "hidden_dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "timestep_embed_dim": 8,
        "horizon": 16,
        "n_action_steps": 8,
    }

    def initialise(policy):  # LeRobot begins with blocks that change nothing
        for block in policy.noise_predictor.transformer_blocks:
            torch.nn.init.normal_(block.adaLN_modulation[-1].weight, std=0.3)

    keys = ("observation.state", "observation.images.top", "observation.images.wrist")
    return save(folder, "multi_task_dit", keys, initialise=initialise, **(names | small | options))


def parity(record, theirs, ours, wanted):
    """The largest difference of two chunks, recorded for the table of docs/lerobot.md (scripts/lerobot_parity.py)."""
    apart = float((ours - wanted).abs().max()) / max(1, float(wanted.abs().max()))
    record(f"{theirs.name} {version('lerobot')}", apart)
    return apart


def change(file, **fields):
    """Spoil a checkpoint: set fields of a JSON file."""

    def do(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return do


def change_step(file, index, **fields):
    """Spoil a checkpoint: set fields of a processor's step."""

    def do(folder):
        path = folder / file
        content = json.loads(path.read_text())
        content["steps"][index] |= fields
        path.write_text(json.dumps(content))

    return do
