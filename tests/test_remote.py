"""A member of a composition in another process: the chunk is that of the members here, and a lost server is said."""

import os
import signal
import time
from collections import deque

import numpy as np
import pytest
import torch
from models import FixedPolicy, Gaussian, state
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from serving import SAMPLING, gpc_serve, served

from gpc.composition.composed import compose, join_observations
from gpc.envs.pusht import PushT
from gpc.errors import InputError, RunError
from gpc.inference.chunk import sample_actions
from gpc.inference.device import Device
from gpc.inference.placement import place
from gpc.inference.settings import Sampling
from gpc.policy.load import load_policy
from gpc.policy.spec import ActionSpec
from gpc.serve import RemotePolicy

RNG = np.random.default_rng(0)


def remote(address):
    return load_policy(f"remote:{address}")


def chunks(policy, rows, sampling=SAMPLING):
    """Chunks of seeds 0 .. rows - 1 on random observations, the same for every policy."""
    spec, rng = join_observations([policy]), np.random.default_rng(1)
    observation = {key: rng.uniform(0, 512, (rows, 2, *shape)) for key, shape in sorted(spec.shapes.items())}
    return sample_actions(policy, sampling, observation, np.arange(rows), np.zeros(rows, np.int64))


@pytest.mark.parametrize("method", ["dpmpp_2m", "euler", "ancestral"])
@pytest.mark.parametrize("rows", [1, 20])
def test_here_and_there_give_the_chunk_of_both_here_bit_for_bit(parents, method, rows):
    sampling = Sampling(method, 5)
    with served(compose(parents[1:])) as address:
        there = remote(address)
        mixed = compose([parents[0], there], [0.4, 0.6])
        assert np.array_equal(chunks(mixed, rows, sampling), chunks(compose(parents, [0.4, 0.6]), rows, sampling))
        assert (there.name, there.fingerprint) == (parents[1].name, parents[1].fingerprint)
        assert (there.actions, there.levels) == (parents[1].actions, parents[1].levels)
        assert there.observations == parents[1].observations


def test_a_discrete_member_and_a_composition_may_be_remote(parents):
    both = compose(parents, [0.3, 0.7])
    with served(both) as address:
        there = remote(address)
        assert there.levels == both.levels
        assert np.array_equal(chunks(there, 3), chunks(both, 3))


def test_a_session_keeps_a_few_encoded_batches_and_says_which():
    with served(FixedPolicy(Gaussian()), max_batch=3) as address:
        there = remote(address)
        x, sigma = torch.ones(1, 16, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
        denoisers = [there.condition(state()) for _ in range(5)]
        for denoiser in denoisers[1:]:
            assert torch.equal(denoiser(x, sigma), Gaussian()(x, sigma))
        with pytest.raises(RunError, match="encode again"):
            denoisers[0](x, sigma)
        three = there.condition(state(3))(x.expand(3, -1, -1), sigma.expand(3))
        assert torch.equal(three, Gaussian()(x, sigma).expand(3, -1, -1))
        with pytest.raises(RunError, match=r"1 to 3 \(the server's max_batch\)"):
            there.condition(state(4))
        with pytest.raises(RunError, match="'x' must be"):
            denoisers[4](x[:, :5], sigma)
        with pytest.raises(RunError, match="positive"):
            denoisers[4](x, -sigma)
        assert torch.equal(denoisers[4](x, sigma), Gaussian()(x, sigma))


def test_a_server_that_goes_away_amid_a_chunk_is_named_and_met_again():
    with served(FixedPolicy(Gaussian())) as address:
        there = remote(address)
        denoiser = there.condition(state())
    with pytest.raises(RunError, match=address):
        denoiser(torch.ones(1, 16, 2), torch.tensor(1.0))
    port = int(address.rsplit(":")[-1])
    with served(FixedPolicy(Gaussian()), port=port):
        with pytest.raises(RunError, match="encode again"):  # not the batch of another session, whatever its handle
            denoiser(torch.ones(1, 16, 2), torch.tensor(1.0))
        assert chunks(there, 1).shape == (1, 16, 2)
    other = FixedPolicy(Gaussian(), fingerprint="other")
    with served(other, port=port):
        with pytest.raises(RunError, match="is gone"):
            chunks(there, 1)
        with pytest.raises(RunError, match="another policy than before"):
            chunks(there, 1)


def test_what_does_not_fit_is_said_before_anything_runs(parents):
    one_dimension = FixedPolicy(Gaussian(), ActionSpec(16, (1.0,), (0.0,)))
    with served(one_dimension) as address, pytest.raises(InputError, match="acts in 1 dimensions without names"):
        compose([parents[0], remote(address)], [0.5, 0.5])


POLICY, STEPS, EACH = "pusht-flow", 24, 8
KEYS = [f"policies=[{POLICY}]", "sampler.steps=4", "reproducible=true"]


@pytest.fixture(scope="module")
def process():
    with gpc_serve(*KEYS) as (process, address):
        yield process, address


def episode(act, keys):
    """PushT under `act`, a function of the last two observations; its executed actions and rewards."""
    env = PushT(max_steps=STEPS, observation_keys=tuple(keys))
    frame, _ = env.reset(seed=3)
    frames, actions, rewards = deque([frame, frame], maxlen=2), [], []
    for _ in range(STEPS):
        action = act({key: np.stack([frame[key] for frame in frames]) for key in keys})
        frame, reward, *_ = env.step(action)
        frames.append(frame)
        actions.append(action)
        rewards.append(reward)
    env.close()
    return np.array(actions), np.array(rewards)


def test_openpis_client_drives_pusht_as_the_policy_does_here(process):
    policy = load_policy(POLICY)
    keys = list(policy.observations.shapes)
    client = WebsocketClientPolicy(process[1])
    broker = ActionChunkBroker(client, EACH)
    there, rewards = episode(lambda observation: broker.infer(observation)["actions"], keys)
    chunk, plans = deque(), []

    def here(observation):
        if not chunk:
            rows = {key: np.repeat(value[None], 16, 0) for key, value in observation.items()}
            seeds, number = np.full(16, client.get_server_metadata()["seed"]), np.full(16, len(plans))
            plans.append(sample_actions(policy, SAMPLING, rows, seeds, number)[0])
            chunk.extend(plans[-1][1 : 1 + EACH])
        return chunk.popleft()

    actions, here_rewards = episode(here, keys)
    assert len(plans) == STEPS // EACH
    assert np.array_equal(there, actions)
    assert np.array_equal(rewards, here_rewards)
    assert actions.std() > 5


def test_a_frozen_server_costs_the_timeout_and_its_late_answer_nothing(process):
    server, address = process
    client = RemotePolicy(address, timeout=20)
    observation = {key: RNG.uniform(0, 512, shape) for key, shape in client.metadata["observations"].items()}
    client.reset(1)
    first = client.infer(observation)["actions"]
    os.kill(server.pid, signal.SIGSTOP)
    client.timeout = 0.5
    began = time.monotonic()
    with pytest.raises(RunError, match=r"no answer within 0\.5 s"):
        client.infer(observation)
    assert time.monotonic() - began < 5
    os.kill(server.pid, signal.SIGCONT)
    client.timeout = 20
    client.reset(1)
    assert np.array_equal(client.infer(observation)["actions"], first)


def test_sigterm_amid_a_chunk_is_a_clean_end_there_and_a_clear_error_here(process):
    server, address = process
    mixed = compose([load_policy("pusht-diffusion"), remote(address)], [0.4, 0.6])
    denoiser = mixed.condition({key: torch.zeros(1, 2, *shape) for key, shape in mixed.observations.shapes.items()})
    x, sigma = torch.ones(1, mixed.actions.horizon, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert denoiser(x, sigma).shape == x.shape
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    with pytest.raises(RunError, match=f"policy server {address}"):
        denoiser(x, sigma)


def test_a_remote_member_stays_where_it_is(parents):
    with served(parents[0]) as address:
        member = remote(address)
        placed = place(compose([member, parents[1]]), Device("cpu", dtype="bfloat16"))
        assert placed.policies[0] is member
        assert placed.policies[1] is not parents[1]
