"""LeRobot's multi_task_dit with both of its objectives, saved by LeRobot itself: its own chunks."""

import numpy as np
import pytest
import torch
from lerobot_checkpoints import as_lerobot, change, parity, save_dit

pytest.importorskip("lerobot.policies.multi_task_dit", reason="LeRobot 0.4.4 has no multi_task_dit")

import gpc
from gpc.errors import InputError
from gpc.inference.chunk import sample_chunk
from gpc.policy.observation import write_text
from gpc.testing.policy import check_policy

TASKS = ["push the T", "lift the block"]  # this CLIP reads their first letter
OBJECTIVES = {
    "noise": {"noise_scheduler_type": "DDIM", "num_inference_steps": 10, "clip_sample": False},
    "sample": {
        "noise_scheduler_type": "DDIM",
        "num_inference_steps": 10,
        "clip_sample": False,
        "prediction_type": "sample",
    },
    "flow": {"objective": "flow_matching", "num_integration_steps": 10},
}


def look(policy, seed):
    """Two rows of two steps with instructions, as gpc's environments give them and as LeRobot's policies read them."""
    rng, frames = np.random.default_rng(seed), {}
    for key, shape in policy.observations.shapes.items():
        image = len(shape) == 3
        value = rng.integers(0, 256, (2, 2, *shape), np.uint8) if image else rng.uniform(0, 512, (2, 2, *shape))
        frames[key] = torch.from_numpy(value if image else value.astype(np.float32))
    frames["task"] = torch.from_numpy(np.stack([write_text(task) for task in TASKS]))[:, None].repeat(1, 2, 1)
    return frames


@pytest.mark.parametrize("options", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_chunk_is_lerobots(tmp_path, options, record_property):
    folder, theirs, pre, _ = save_dit(tmp_path / "dit", **options)
    policy = gpc.load_policy(f"lerobot:{folder}")
    mine = look(policy, 0)
    frames = {key: value for key, value in mine.items() if key != "task"}
    steps = [pre(as_lerobot({k: v[:, i] for k, v in frames.items()}) | {"task": TASKS}) for i in (0, 1)]
    batch = {key: torch.stack([step[key] for step in steps], 1) for key in frames}
    words = {key: value for key, value in steps[1].items() if "language" in key}
    torch.manual_seed(5)
    with torch.no_grad():
        wanted = theirs._generate_actions(theirs._prepare_batch(batch | words))
    torch.manual_seed(5)
    noise = torch.randn(2, 16, 2)
    ours, other = (sample_chunk(policy, mine, x[None].double(), policy.sampling)[:, 1:9] for x in (noise, 0.99 * noise))
    assert parity(record_property, theirs, ours, wanted) < 1e-5
    assert float((other - wanted).abs().max()) > 1e-4
    x, sigma = noise.double(), torch.tensor(1.0, dtype=torch.float64)
    sigma = sigma if policy.levels.trained is None else torch.as_tensor(policy.levels.trained[50], dtype=torch.float64)
    out = policy.condition(mine)(x, sigma)
    for key in mine:
        assert (policy.condition(mine | {key: mine[key].flip(0)})(x, sigma) - out).abs().max() > 0, key
    check_policy(policy, trained=False)


def test_a_flow_that_ends_in_noise_is_refused(tmp_path):
    folder = save_dit(tmp_path / "dit", objective="flow_matching")[0]
    change("config.json", sigma_min=0.1)(folder)
    with pytest.raises(InputError, match=r"sigma_min=0\.1 leaves noise on the trained actions"):
        gpc.load_policy(f"lerobot:{folder}")
