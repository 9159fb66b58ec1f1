import itertools
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from threading import Thread

import gymnasium
import numpy as np
import pytest
from saboteur import Saboteur
from toy_envs import Walk, Wide

from gpc.errors import RunError
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.engine import Engine, Job, LaneSpec, RolloutStats, rollout
from gpc.rollout.worker import Lane, LaneCommand

WEIGHTS = ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
JOBS = [Job(c, w, seed) for seed in range(8) for c, w in enumerate(WEIGHTS)]


def env(**options):
    return LaneSpec(EnvSpec(Walk, 4, 20, options), ("position",), 2)


def homing(observation, weights, seeds, chunks):
    """Two ways home under noise keyed by (seed, chunk), mixed by the weights."""
    now = observation["position"][:, -1]
    noise = np.stack([np.random.default_rng([s, c]).normal(size=(4, 2)) for s, c in zip(seeds, chunks, strict=True)])
    slow, fast = -now[:, None] / 8 + 0 * noise, -now[:, None] / 3 + 0.3 * noise
    return weights[:, 0, None, None] * slow + weights[:, 1, None, None] * fast


def table(jobs=JOBS, actor=homing, spec=None, stats=None, **engine):
    episodes = sorted(rollout(jobs, actor, spec or env(), Engine(**engine), stats), key=lambda e: e.job)
    return [(e.job, e.success, e.score, e.steps, e.trajectory["action"].tobytes()) for e in episodes]


@pytest.fixture(scope="module")
def undisturbed():
    return table()


def test_every_job_once_and_mixed_outcomes(undisturbed):
    assert [row[0] for row in undisturbed] == sorted(JOBS)
    assert {row[1] for row in undisturbed} == {True, False}


@pytest.mark.parametrize(("lanes", "workers"), [(1, 1), (7, 2), (60, 2)])
def test_the_table_does_not_depend_on_lanes_and_workers(undisturbed, lanes, workers):
    assert table(lanes=lanes, workers=workers) == undisturbed


def test_the_order_of_jobs_does_not_matter(undisturbed):
    assert table(JOBS[::-1], lanes=5) == undisturbed


@pytest.mark.parametrize(("trouble", "cause"), [("die", "exit code 7"), ("hang", "5 s"), ("raise", "physics exploded")])
def test_a_broken_worker_is_replaced_and_its_episodes_run_again(undisturbed, tmp_path, trouble, cause):
    stats = RolloutStats()
    spec = env(trouble=trouble, marker=str(tmp_path / "once"))
    assert table(spec=spec, stats=stats, lanes=6, timeout=5.0) == undisturbed
    assert len(stats.simulator_failures) == 1
    assert cause in stats.simulator_failures[0]


def test_twenty_simulators_killed_or_stopped_change_nothing(undisturbed):
    stats = RolloutStats()
    actor = Saboteur(homing, 20)
    assert table(actor=actor, stats=stats, lanes=8, workers=4, timeout=4.0, retries=20) == undisturbed
    assert len(actor.struck) == 20
    causes = "\n".join(stats.simulator_failures)
    assert causes.count("exit code -9") == 10
    assert causes.count("did not answer within 4 s") >= 10  # more where a machine is too slow to start one in time


def test_a_half_is_simulated_while_the_actor_acts_for_the_other(tmp_path):
    log, calls = tmp_path / "steps", []
    log.touch()

    def watching(observation, weights, seeds, chunks):
        """Act when the steps of all calls before are done, those of the last one included."""
        deadline = time.monotonic() + 20
        while log.stat().st_size < 4 * sum(map(len, calls)):
            assert time.monotonic() < deadline, "the simulators wait for the actor"
            time.sleep(0.001)
        calls.append(set(seeds))
        return np.zeros((len(seeds), 4, 2))

    stats = RolloutStats()
    jobs = [Job(0, (1.0,), seed) for seed in range(4)]
    list(rollout(jobs, watching, env(trouble="slow", marker=str(log)), Engine(lanes=4, workers=1), stats))
    assert stats.calls == len(calls)
    assert stats.rows == sum(map(len, calls)) == 5 * len(jobs)
    assert any(not one & other for one, other in itertools.pairwise(calls))


def test_a_simulator_that_hangs_delays_no_other(tmp_path):
    stats, before = RolloutStats(), []
    spec = env(trouble="hang", marker=str(tmp_path / "once"))
    for episode in rollout(JOBS, homing, spec, Engine(lanes=4, workers=2, timeout=4.0), stats):
        before += [episode.job] if not stats.simulator_failures else []
    assert len(before) >= len(JOBS) - 2  # but those in its lanes, one in each half
    assert stats.rows < stats.lanes  # a half was called without its late lane


def test_long_messages_in_both_directions_do_not_block_each_other():
    def still(observation, weights, seeds, chunks):
        return np.zeros((len(seeds), 4, 20_000))

    jobs = [Job(0, (1.0,), seed) for seed in range(6)]
    spec = LaneSpec(EnvSpec(Wide, 4, 20), ("position",), 1)
    child = Thread(target=lambda: done.extend(rollout(jobs, still, spec, Engine(lanes=4, workers=1))), daemon=True)
    done = []
    child.start()
    child.join(30)
    assert len(done) == len(jobs)


def test_ctrl_c_waits_for_the_call_in_progress_and_drops_the_next():
    begun, ended = [], []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test process beside others ignores it

    def slow(*inputs):
        begun.append(1)
        time.sleep(0.3)  # meanwhile the other half comes
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        ended.append(1)
        return homing(*inputs)

    try:
        with pytest.raises(KeyboardInterrupt):
            list(rollout(JOBS, slow, env(), Engine(lanes=4, workers=2)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(begun) == len(ended) == 3


def test_a_simulator_that_always_breaks_is_given_up_with_its_seed():
    with pytest.raises(RunError, match=r"gave up after 1 retries of seed 3.*physics exploded"):
        table(spec=env(trouble="always"), lanes=1, workers=1, retries=1)


def test_a_simulator_that_cannot_start_is_said_at_once():
    with pytest.raises(RunError, match="no display found"):
        table(spec=env(trouble="constructor"))


def test_actions_that_are_not_finite_name_weights_and_seed():
    def broken(observation, weights, seeds, chunks):
        actions = homing(observation, weights, seeds, chunks)
        actions[seeds == 5] = np.nan
        return actions

    with pytest.raises(RunError, match=r"NaN or infinity \(weights .*seed 5\)"):
        table(actor=broken)


def test_a_reward_that_is_no_number_names_environment_and_seed():
    with pytest.raises(RunError, match=r"Walk returned a reward of NaN or infinity \(seed 3\)"):
        table(spec=env(trouble="reward"))


PAUSED = """
from collections import deque
from test_engine import JOBS, Engine, RolloutStats, env, homing
from gpc.rollout.engine import _Run
run = _Run(deque(JOBS[:6]), homing, env(trouble="slow"), Engine(), RolloutStats())
run.start()
for episode in run.episodes():
    for worker in run.workers:
        worker.timeout = 2.0  # from now on: a machine may be slow to start one
    print(episode.job.seed, flush=True)
print(run.stats.simulator_failures, flush=True)
for worker in run.workers:
    worker.close()
"""


def test_a_group_that_was_paused_for_longer_than_the_timeout_is_not_a_breakdown():
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", PAUSED], stdout=subprocess.PIPE, text=True, env=here, start_new_session=True
    )
    lines = [child.stdout.readline()]
    os.killpg(child.pid, signal.SIGSTOP)
    time.sleep(3)
    os.killpg(child.pid, signal.SIGCONT)
    lines += child.stdout.readlines()
    assert child.wait() == 0
    assert lines[6:] == ["[]\n"]


def test_actions_of_another_shape_are_refused():
    with pytest.raises(RunError, match=r"shape \(\d+, 3, 2\)"):
        table(actor=lambda *inputs: homing(*inputs)[:, :3])


def test_closing_early_leaves_no_process(tmp_path):
    episodes = rollout(JOBS, homing, env(), Engine(lanes=4))
    assert len(list(itertools.islice(episodes, 2))) == 2
    episodes.close()
    running = subprocess.run(["pgrep", "-f", "gpc[.]rollout[.]worker"], capture_output=True, text=True).stdout
    own = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "gpc[.]rollout[.]worker"], capture_output=True, text=True
    )
    assert own.stdout == "", running


def test_a_trajectory_holds_what_was_done():
    (episode,) = rollout(JOBS[:1], homing, env())
    assert episode.trajectory["action"].shape == (episode.steps, 2)
    assert episode.trajectory["reward"].shape == (episode.steps,)
    assert episode.trajectory["position"].shape == (-(-episode.steps // 4), 2)
    assert episode.score == pytest.approx(episode.trajectory["reward"].max())


class Viewed(Walk):
    """A walker with a camera that counts its pictures."""

    pictures = 0

    def __init__(self):
        super().__init__()
        self.observation_space["picture"] = gymnasium.spaces.Box(0, np.inf, (1,))

    def observe(self, keys=None):
        wanted = ("position", "picture") if keys is None else keys
        self.pictures += "picture" in wanted
        found = {"position": self.position.copy(), "picture": np.array([float(self.pictures)])}
        return {key: found[key] for key in wanted}


def test_only_what_a_policy_reads_of_a_key_is_looked_at():
    spec = LaneSpec(EnvSpec(Walk, 4, 20), n_obs_steps=3, history={"picture": 1})
    lane = Lane(Viewed(), spec, deque(maxlen=3))
    lane.execute(LaneCommand(0, 3, None))
    for looks in (2, 3):
        report = lane.execute(LaneCommand(0, None, np.full((4, 2), 0.01)))
        assert report.observation["picture"].tolist() == [[looks]] * 3
        assert len(np.unique(report.observation["position"], axis=0)) == 3
    assert lane.execute(LaneCommand(0, None, np.full((40, 2), 0.01))).done
    assert lane.env.pictures == 3  # and none of an end
