"""A policy in another process as a member of a composition: `remote:ws://host:port`, served there by `gpc serve`.

The process may have another torch, another GPU or run on another machine. Observations are sent once for a chunk; (x,
sigma) and the denoised actions once for a step of the sampler, in float64. The chunk is therefore that of the local
policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpc.inference.settings import Sampling
from gpc.policy.spec import ActionSpec, Dtype, Observation, ObservationSpec, policy_repr
from gpc.score.denoiser import Denoiser
from gpc.score.noise import NoiseLevels
from gpc.serve.client import RemotePolicy
from gpc.serve.codec import DENOISED, ENCODE, HANDLE, SIGMA, X
from gpc.serve.metadata import check_metadata


@dataclass(frozen=True)
class RemoteDenoiser:
    """A batch of observations that the server has encoded."""

    server: RemotePolicy
    handle: int

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise on the server.

        Raises:
            RunError: If the server is gone, has dropped the batch, or sends something else.
        """
        reply = self.server.call({HANDLE: self.handle, X: x.numpy(), SIGMA: sigma.numpy()})
        return torch.from_numpy(self.server.read_array(reply, DENOISED, tuple(x.shape))).to(x.dtype)


@dataclass(frozen=True)
class RemoteMember:
    """The policy of a server as a `gpc.policy.spec.Policy`."""

    server: RemotePolicy
    name: str
    actions: ActionSpec
    observations: ObservationSpec
    levels: NoiseLevels
    fingerprint: str
    n_action_steps: int | None = None
    sampling: Sampling | None = None

    def __repr__(self) -> str:
        return policy_repr(self)

    def to(self, device: torch.device, dtype: Dtype | None) -> RemoteMember:
        """Return the policy itself: its server chooses the device."""
        return self

    def condition(self, observation: Observation) -> Denoiser:
        """Send the observations, which the server encodes."""
        arrays = {key: value.numpy() for key, value in self.observations.read(observation).items()}
        return RemoteDenoiser(self.server, self.server.read_int(self.server.call({ENCODE: arrays}), HANDLE))


def load(url: str) -> RemoteMember:
    """Connect to a server with the token of its host in ~/.netrc, if there is one.

    Raises:
        InputError: If the server is none of gpc's, or describes no policy.
        RunError: If no server answers.
    """
    server = RemotePolicy(url)
    served = check_metadata(server.metadata, url)
    return RemoteMember(
        server,
        served.policy,
        served.actions,
        served.spec,
        served.levels,
        served.fingerprint,
        served.n_action_steps,
        served.sampling,
    )
