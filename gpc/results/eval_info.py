"""`eval_info.json`, as LeRobot's `lerobot-eval` writes it, for what reads those files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpc.results.run_folder import Row


def eval_info(rows: Sequence[Row], summary: Mapping[str, Any], task: str, task_id: int = 0) -> dict[str, Any]:
    """Return an evaluation under LeRobot's keys: per task, group and episode.

    A time is that of an episode in the command that ran the last ones, times their number. A sum of rewards is null in rows
    of earlier versions.

    Args:
        rows: Episodes, in the order of their seeds.
        summary: Summary with `timing`.
        task: Name of the environment, as LeRobot's `task_group`.
        task_id: Number of the task in its suite.
    """
    sums, scores, successes = zip(*((row.sum_reward, row.score, row.success) for row in rows), strict=True)
    group: dict[str, Any] = {key: summary.get(key) for key in ("avg_sum_reward", "avg_max_reward", "pc_success")}
    group |= {"n_episodes": len(rows), "video_paths": []}
    metrics = {"sum_rewards": sums, "max_rewards": scores, "successes": successes, "video_paths": []}
    seconds = (summary["timing"] or {}).get("seconds_per_episode")
    times = {"eval_s": None if seconds is None else seconds * len(rows), "eval_ep_s": seconds}
    return {
        "per_episode": [
            {
                "episode_ix": i,
                "sum_reward": row.sum_reward,
                "max_reward": row.score,
                "success": row.success,
                "seed": row.seed,
            }
            for i, row in enumerate(rows)
        ],
        "per_task": [{"task_group": task, "task_id": task_id, "metrics": metrics}],
        "per_group": {task: group},
        "overall": group | times,
    }
