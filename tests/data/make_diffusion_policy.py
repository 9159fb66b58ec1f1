"""Writes `diffusion-policy.npz`: what Diffusion Policy and DP3 say of the policies of `tests/diffusion_policy_checkpoints.py`.

Run with both repositories (github.com/real-stanford/diffusion_policy, here at commit 5ba07ac, and
github.com/YanjieZe/3D-Diffusion-Policy at 47385d9), robomimic 0.2.0 and `tests` on the path:

    PYTHONPATH=ROBOMIMIC:DIFFUSION_POLICY:DP3/3D-Diffusion-Policy:tests python tests/data/make_diffusion_policy.py

Their policies, normalisers and samplers are used as they are. Of pytorch3d DP3 imports a name that is not used here: an empty
module will do.
"""

import importlib
from pathlib import Path

import numpy as np
import torch
from diffusers.schedulers import scheduling_ddim, scheduling_ddpm
from diffusion_policy_checkpoints import POLICIES, config, fill, noise, observe, spread
from hydra.utils import instantiate
from omegaconf import OmegaConf

KEPT = ("mask", "memory_mask", "temperature", "pos_x", "pos_y", "num_batches_tracked")


def build(case):
    """The repository's policy, with a normaliser for each of its keys."""
    settings = config(case)
    OmegaConf.resolve(settings)
    policy = instantiate(settings.policy).eval()
    package = "diffusion_policy_3d" if "dp3" in case else "diffusion_policy"
    module = importlib.import_module(f"{package}.model.common.normalizer")
    normaliser, rows = module.LinearNormalizer(), {"action": spread((30, 2), 7).float()}
    normaliser.fit(rows | {k: v.flatten(0, -2) for k, v in observe(case).items() if k != "image"})
    if "camera" in case:
        normaliser["image"] = module.SingleFieldLinearNormalizer.create_identity()
    policy.set_normalizer(normaliser)
    return policy


def refill(policy):
    """Replace the policy's state by formula; returns a row "name shape alias" each, and the buffers that are kept."""
    rows, kept, first, filled = [], {}, {}, {}
    for i, (name, value) in enumerate(policy.state_dict().items()):
        alias = first.setdefault((value.data_ptr(), value.shape), name) if value.numel() else name
        alias = "" if alias == name else alias
        rows.append(f"{name} {'x'.join(map(str, value.shape))} {alias}")
        if name.endswith(KEPT) and not alias:
            kept[name] = value.numpy()
        filled[name] = filled[alias] if alias else value if name in kept else fill(name, tuple(value.shape), i)
    policy.load_state_dict(filled)
    return rows, kept


def predict(policy, case):
    """The chunk that the policy samples from our noise."""
    draws = iter(noise())
    seen = {k: (v / 255).movedim(-1, -3) if k == "image" else v for k, v in observe(case).items()}
    torch.randn = scheduling_ddpm.randn_tensor = scheduling_ddim.randn_tensor = lambda *_, **__: next(draws).clone()
    with torch.no_grad():
        return policy.predict_action(seen)["action_pred"].numpy()


if __name__ == "__main__":
    OmegaConf.register_new_resolver("eval", eval)
    randn, found = torch.randn, {}
    for case in POLICIES:
        torch.randn = randn
        policy = build(case)
        rows, kept = refill(policy)
        found |= {f"{case}/names": np.array(rows), f"{case}/chunk": predict(policy, case)}
        found |= {f"{case}/kept/{name}": value for name, value in kept.items()}
    np.savez_compressed(Path(__file__).parent / "diffusion-policy.npz", **found)
