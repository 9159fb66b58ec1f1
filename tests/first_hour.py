"""What the user of first_hour.sh brings: a data set of LeRobot, a training of robomimic, a robot's client of openpi."""

import argparse
import json
import runpy
import sys
from pathlib import Path

import numpy as np

from gpc.demonstrations import read
from gpc.envs.pusht import INSTRUCTION

HELD_OUT = Path(__file__).parent / "data/pusht-held-out.zarr.zip"


def lerobot_data(root):
    """Write two human demonstrations of PushT as a LeRobotDataset, by LeRobot's own writer."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    sizes = {"observation.state": 2, "observation.environment_state": 16, "action": 2}
    features = {key: {"dtype": "float32", "shape": (size,), "names": None} for key, size in sizes.items()}
    data = read(HELD_OUT, ["agent_pos", "keypoints"]).select([0, 1])
    columns = [data.observations["agent_pos"], data.observations["keypoints"], data.actions]
    dataset = LeRobotDataset.create("mine/pusht", fps=10, features=features, root=root, use_videos=False)
    for begin, end in zip([0, *data.episode_ends[:-1]], data.episode_ends, strict=True):
        for i in range(begin, end):
            frame = {key: column[i].astype(np.float32) for key, column in zip(sizes, columns, strict=True)}
            dataset.add_frame(frame | {"task": INSTRUCTION})
        dataset.save_episode()
    dataset.finalize()


def train_robomimic(data, out):
    """Train robomimic's diffusion policy by its own trainer: two epochs, a rollout after each, as its defaults have it."""
    import robomimic.utils.lang_utils
    from robomimic.config import config_factory
    from robomimic.scripts import train

    config = config_factory("diffusion_policy")
    config.experiment.name = "lift_diffusion"
    config.experiment.validate = config.experiment.render_video = config.experiment.logging.log_tb = False
    config.experiment.rollout.n, config.experiment.rollout.horizon, config.experiment.rollout.rate = 1, 10, 1
    config.experiment.save.every_n_epochs, config.experiment.epoch_every_n_steps = 1, 2
    config.train.data, config.train.output_dir = [{"path": str(Path(data).resolve())}], str(Path(out).resolve())
    config.train.cuda, config.train.num_data_workers, config.train.hdf5_load_next_obs = False, 0, False
    config.train.batch_size, config.train.num_epochs = 8, 2
    config.observation.modalities.obs.low_dim = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
    config.algo.ddpm.num_inference_timesteps = 5
    config.algo.unet.down_dims, config.algo.unet.diffusion_step_embed_dim = [16, 32], 16
    path = Path(f"{out}.json")
    path.write_text(json.dumps(config))
    robomimic.utils.lang_utils.get_lang_emb = lambda text: None  # it would fetch a language model to embed the task
    train.main(
        argparse.Namespace(config=str(path), algo=None, name=None, dataset=None, output=None, debug=False, resume=False)
    )


def client(port):
    """Print the first action of a chunk for one observation, as a robot that has openpi's client."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    server = WebsocketClientPolicy("127.0.0.1", int(port))
    shapes = server.get_server_metadata()["observations"]
    actions = server.infer({key: np.full(shape, 0.5, np.float32) for key, shape in shapes.items()})["actions"]
    assert actions.ndim == 2
    assert np.isfinite(actions).all()
    print("first action", actions[0])


def run_trained_agent(*arguments):
    """Run robomimic's script of this name, without the language model that it would fetch to embed the task."""
    import robomimic.utils.lang_utils

    robomimic.utils.lang_utils.get_lang_emb = lambda text: None
    sys.argv[1:] = arguments
    runpy.run_module("robomimic.scripts.run_trained_agent", run_name="__main__")


def same_counts(printed):
    """Check gpc's evaluations against those of LeRobot and robomimic: keys, episodes, successes (docs/coming-from.md)."""
    ours, theirs = (
        json.loads(Path(file).read_text()) for file in ("runs/lerobot-alone/eval_info.json", "eval/eval_info.json")
    )
    parts = [
        (info["overall"], info["per_task"][0]["metrics"], next(iter(info["per_group"].values())))
        for info in (ours, theirs)
    ]
    for part, its in zip(*parts, strict=True):
        assert part.keys() <= its.keys(), (part.keys(), its.keys())
    for key in ("n_episodes", "pc_success"):
        assert ours["overall"][key] == theirs["overall"][key], key
    text = Path(printed).read_text()
    rollouts = json.loads(text[text.rindex("Average Rollout Stats") :].partition("\n")[2].partition("}")[0] + "}")
    summary = json.loads(Path("runs/robomimic-alone/summary.json").read_text())
    assert rollouts["Num_Success"] == summary["n_success"]
    assert rollouts["Horizon"] == 8


if __name__ == "__main__":
    {
        "run-trained-agent": run_trained_agent,
        "same-counts": same_counts,
        "lerobot-data": lerobot_data,
        "train-robomimic": train_robomimic,
        "client": client,
    }[sys.argv[1]](*sys.argv[2:])
