"""Small LeRobot checkpoints with random weights, saved by LeRobot itself."""

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

SHAPES = {
    "observation.state": (FeatureType.STATE, (2,)),
    "observation.environment_state": (FeatureType.ENV, (16,)),
    "observation.images.top": (FeatureType.VISUAL, (3, 96, 96)),
    "observation.images.wrist": (FeatureType.VISUAL, (3, 96, 96)),
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
