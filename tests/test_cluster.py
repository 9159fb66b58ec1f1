"""Rollouts on a Ray cluster of this machine: the local run's episodes, whatever happens to a node."""

import time

import pytest
from test_rollout import JOBS, env, homing

from gpc.cluster import Local, Ray
from gpc.errors import InputError, RunError
from gpc.rollout import Engine, Health

ray = pytest.importorskip("ray")
ENGINE = Engine(lanes=4, workers=1)


def sluggish(*call):
    time.sleep(0.05)
    return homing(*call)


def broken(*_):
    raise ValueError("no such weights")


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def table(episodes):
    rows = sorted(episodes, key=lambda e: e.job)
    return [(e.job, e.success, e.score, e.steps, e.trajectory["action"].tobytes()) for e in rows]


def test_a_node_killed_in_the_middle_changes_no_episode(cluster):
    local = table(Local()(JOBS, homing, env(), ENGINE, Health()))
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    health, found = Health(), []
    for episode in Ray(cpus=1, shard=4)(JOBS, sluggish, env(), ENGINE, health):
        if not found:
            cluster.remove_node(node, allow_graceful=False)
        found.append(episode)
    assert table(found) == local
    assert len(health.breakdowns) == 1
    assert "Ray cluster died" in health.breakdowns[0]
    assert health.actor_seconds > 0


def test_what_cannot_run_is_one_line(cluster):
    with pytest.raises(InputError, match=r"nodes have \[1\] cores; choose fewer"):
        list(Ray(cpus=2)(JOBS, homing, env(), ENGINE, Health()))
    with pytest.raises(RunError, match="no such weights"):
        list(Ray(cpus=1)(JOBS, broken, env(), ENGINE, Health()))


def test_no_cluster_at_the_address():
    with pytest.raises(InputError, match=r"executor\.address=localhost:1: no Ray cluster answers"):
        list(Ray("localhost:1")(JOBS, homing, env(), ENGINE, Health()))


@pytest.mark.parametrize("options", [{"cpus": 0}, {"shard": 0}, {"actors": 0}])
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(InputError, match="must be 1 or more"):
        Ray(**options)
