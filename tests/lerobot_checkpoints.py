"""Small LeRobot checkpoints with random weights, saved by LeRobot itself."""

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
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
SMALL_UNET = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16, "n_groups": 4, "kernel_size": 3}


def statistics(keys, low=0.0, high=512.0):
    """Statistics of made-up data, of every kind that a normaliser may ask for."""
    found = {}
    for key, shape in {**{k: SHAPES[k][1] for k in keys}, "action": (2,)}.items():
        small = (3, 1, 1) if len(shape) == 3 else shape
        span = torch.ones(small) if len(shape) == 3 else torch.full(small, high - low)
        base = torch.zeros(small) if len(shape) == 3 else torch.full(small, low)
        found[key] = {"min": base, "max": base + span, "mean": base + span / 2, "std": span / 4}
    return found


def features(keys):
    return {key: PolicyFeature(*SHAPES[key]) for key in keys}


def save(folder, kind="diffusion", keys=("observation.state", "observation.environment_state"), stats=None, **options):
    """A checkpoint folder as `lerobot-train` writes it; returns (folder, policy, preprocessor, postprocessor)."""
    torch.manual_seed(0)
    config = make_policy_config(
        kind,
        input_features=features(keys),
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
        push_to_hub=False,
        normalization_mapping=NORMALISERS,
        **(SMALL_UNET if kind == "diffusion" else {}),
        **options,
    )
    policy = get_policy_class(kind)(config).eval()
    pre, post = make_pre_post_processors(config, dataset_stats=stats or statistics(keys))
    for item in (policy, pre, post):
        item.save_pretrained(folder)
    return folder, policy, pre, post


def tiny_vlm(folder):
    """A vision-language model of SmolVLM's kind without weights: a configuration, a tokenizer and an image processor."""
    special = ["<unk>", "<pad>", "<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]
    words = [*special, "\n", *"abcdefghijklmnopqrstuvwxyzPT.- "]
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


def save_smolvla(folder, **options):
    """A SmolVLA checkpoint of a few thousand weights: state, one camera and an instruction."""
    vlm = tiny_vlm(folder.with_name("vlm"))
    keys = ("observation.state", "observation.image")
    small = {"vlm_model_name": str(vlm), "resize_imgs_with_padding": (64, 64), "num_vlm_layers": 2, "chunk_size": 12}
    settings = {
        "n_action_steps": 8,
        "max_state_dim": 4,
        "max_action_dim": 2,
        "num_steps": 10,
        "tokenizer_max_length": 64,
    }
    return save(folder, "smolvla", keys, **(small | settings | options))
