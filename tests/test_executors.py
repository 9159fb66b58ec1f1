"""Rollouts on a Ray cluster of this machine: the local run's episodes, whatever happens to a node."""

import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from test_engine import JOBS, env, homing

from gpc.errors import InputError, RunError
from gpc.rollout.engine import Engine, RolloutStats
from gpc.rollout.executors import Local, Ray

ray = pytest.importorskip("ray")
ENGINE = Engine(lanes=4, workers=1)


@dataclass(frozen=True)
class Sluggish:
    """Slow, and leaves a mark of each node it runs on."""

    marks: Path

    def __call__(self, *call):
        (self.marks / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.05)
        return homing(*call)


def broken(*_):
    raise ValueError("no such weights")


class Unloadable:
    """An actor that arrives on a node without what it needs."""

    __call__ = staticmethod(homing)

    def __reduce__(self):
        return import_module, ("not_on_this_node",)


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    system = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}  # a dead node is noticed in 2 s
    system |= {"worker_niceness": 0, "enable_worker_prestart": False, "prestart_worker_first_driver": False}
    spare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    head = {"num_cpus": 1, "_system_config": system, **spare}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def table(episodes):
    rows = sorted(episodes, key=lambda e: e.job)
    return [(e.job, e.success, e.score, e.steps, e.trajectory["action"].tobytes()) for e in rows]


def test_no_cluster_at_the_address():  # first: it needs that no cluster is connected yet
    with pytest.raises(InputError, match=r"executor\.address=localhost:1: no Ray cluster answers"):
        list(Ray("localhost:1")(JOBS, homing, env(), ENGINE, RolloutStats()))


def test_a_node_killed_in_the_middle_changes_no_episode(cluster, tmp_path):
    local = table(Local()(JOBS, homing, env(), ENGINE, RolloutStats()))
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    stats, found = RolloutStats(), []
    for episode in Ray(cpus=1, shard=4)(JOBS, Sluggish(tmp_path), env(), ENGINE, stats):
        if not found:
            while not (tmp_path / node.node_id).exists():
                time.sleep(0.05)
            cluster.remove_node(node, allow_graceful=False)
        found.append(episode)
    assert table(found) == local
    assert len(stats.simulator_failures) == 1
    assert "Ray cluster died" in stats.simulator_failures[0]
    assert stats.actor_seconds > 0


def test_what_cannot_run_is_one_line(cluster):
    with pytest.raises(InputError, match=r"nodes have \[1\] cores; choose fewer"):
        list(Ray(cpus=2)(JOBS, homing, env(), ENGINE, RolloutStats()))
    with pytest.raises(RunError, match="no such weights"):
        list(Ray(cpus=1)(JOBS, broken, env(), ENGINE, RolloutStats()))
    with pytest.raises(RunError, match=r"cannot load the policies.*not_on_this_node"):
        list(Ray(cpus=1)(JOBS, Unloadable(), env(), ENGINE, RolloutStats()))


class Nodes:
    """A cluster's nodes: (cores, GPUs) of each."""

    def __init__(self, *nodes):
        self.nodes = lambda: [{"Alive": True, "Resources": {"CPU": float(a), "GPU": float(b)}} for a, b in nodes]


@pytest.mark.parametrize(
    ("options", "room"),
    [
        ({}, 12),
        ({"gpus": 1}, 3),
        ({"gpus": 2}, 1),
        ({"gpus": 0.5}, 6),
        ({"gpus": 0.6}, 3),  # a fraction is of one GPU
        ({"gpus": 0.1}, 12),
        ({"gpus": 1, "cpus": 16}, 1),
        ({"gpus": 0.5, "actors": 4}, 4),
    ],
)
def test_a_cluster_holds_as_many_actors_as_cores_and_gpus_allow(options, room):
    assert Ray(**options)._room(Nodes((16, 2), (8, 1), (1, 4))) == room


def test_gpus_that_a_cluster_has_not_are_named():
    with pytest.raises(InputError, match=r"executor\.gpus=4: the Ray cluster's nodes have \[2, 0\] GPUs; choose fewer"):
        Ray(gpus=4)._room(Nodes((16, 2), (8, 0)))
    for gpus in (-1, 1.5):
        with pytest.raises(InputError, match=f"executor.gpus={gpus}: give 0, a fraction of one GPU"):
            Ray(gpus=gpus)


@pytest.mark.parametrize("options", [{"cpus": 0}, {"shard": 0}, {"actors": 0}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(InputError, match="must be 1 or more"):
        Ray(**options)
