"""Measure what a card gives: `python scripts/bench_gpu.py [--only PART ...] [--device cuda]`. Under 5 minutes on an H100.

Each part stands alone; one that fails, as without the library of an adapter, leaves its error in one line. Medians; ratios are of
timings of this run. `--quick --device cpu` is a smoke test. `scripts/gpu.sh` runs this on a bare machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gpc
from gpc.composition.average import AveragedChunks
from gpc.composition.composed import ComposedPolicy
from gpc.errors import one_line
from gpc.inference.actor import ChunkActor
from gpc.inference.chunk import sample_actions, sample_chunk
from gpc.inference.device import Device
from gpc.inference.placement import Placement, place
from gpc.policy.adapt import PolicyView
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import Policy
from gpc.results.stats import mean_interval, paired_difference
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.keyed_noise import keyed_noise

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from adapters import ADAPTERS, chunk, observe

PAIR = ("pusht-diffusion", "pusht-flow")
SEED = 400_000
LIMIT = 1e-5  # difference from the CPU, of a normalised action
LIMITS_MS = {1: 8.0, 1024: 45.0}  # of a chunk in float32
FASTER = 50  # than 100 DDPM steps
SMOLVLM = {  # sizes of SmolVLM2-500M's layers
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
        "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "pad_token_id": 1,
    },
    "image_token_id": 4,
    "scale_factor": 4,
    "pad_token_id": 1,
}  # fmt: skip


@dataclass
class Bench:
    """Settings, and what was measured.

    Attributes:
        device: Name of the device.
        quick: Whether this is a smoke test.
        lines: Markdown.
        figures: The same, as plain data.
    """

    device: str
    quick: bool
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.say("\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        for row in rows:
            self.say("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")

    def many(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def engine(self) -> gpc.Engine:
        """The default."""
        return gpc.Engine(4, 1) if self.quick else gpc.Engine()

    @property
    def sampling(self) -> gpc.Sampling:
        """dpmpp_2m, 8 levels."""
        return gpc.Sampling(steps=self.many(8, 2))

    def wait(self) -> None:
        """Wait for the device."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def median_ms(self, call: Callable[[], object], repeats: int) -> float:
        """Return the median of a call, after three (recording and its checks) that are not counted."""
        spans, warm = [], self.many(3, 0)
        for _ in range(warm + repeats):
            self.wait()
            begin = time.perf_counter()
            call()
            self.wait()
            spans.append(1000 * (time.perf_counter() - begin))
        return statistics.median(spans[warm:])

    def ways(self) -> dict[str, Device]:
        """Return how networks may compute on the device."""
        rest = {"tf32": Device(self.device, tf32=True), "bfloat16": Device(self.device, dtype="bfloat16")}
        return {"float32": Device(self.device)} | rest


def pair() -> ComposedPolicy:
    return gpc.compose([gpc.load_policy(name) for name in PAIR], [0.5, 0.5])


def placements(policy: Policy) -> Iterator[Placement]:
    """Yield the placements within a placed policy."""
    if isinstance(policy, PolicyView):
        if isinstance(policy.condition_fn, Placement):
            yield policy.condition_fn
        else:
            yield from placements(policy.policy)
    for member in policy.policies if isinstance(policy, ComposedPolicy | AveragedChunks) else ():
        yield from placements(member)


def eager(policy: Policy) -> Policy:
    """Return a placed policy, now without recordings."""
    for placement in placements(policy):
        placement.network.recorded = False
    return policy


def chunk_call(policy: Policy, rows: int, sampling: gpc.Sampling) -> Callable[[], Tensor]:
    """Return what samples chunks, observations and noise being there."""
    observation = policy.observations.read(observe(policy, rows))
    numbers = np.arange(rows)
    noise = keyed_noise(numbers, 0 * numbers, sampling.n_noise_draws(policy), policy.actions.shape)
    return lambda: sample_chunk(policy, observation, noise, sampling)


def speed(bench: Bench) -> None:
    """Time a chunk by batch size, and 100 DDPM steps as the paper has them."""
    sizes = (1, 2) if bench.quick else (1, 16, 64, 256, 1024)
    repeats, rows = bench.many(30, 1), []
    ways = {name: (device, False, True) for name, device in bench.ways().items()}
    ways |= {
        "float32, one size of batch": (Device(bench.device), True, True),
        "eager": (Device(bench.device), False, False),
    }
    for name, (device, reproducible, recorded) in ways.items():
        policy = place(pair(), device, reproducible)
        policy = policy if recorded else eager(policy)
        times = {size: bench.median_ms(chunk_call(policy, size, bench.sampling), repeats) for size in sizes}
        bench.figures[name] = times
        rows.append((name, *times.values()))
    policy = place(pair(), Device(bench.device), False)
    whole = {}
    for size in sizes:
        raw, seeds = observe(policy, size), np.arange(size)
        whole[size] = bench.median_ms(lambda: sample_actions(policy, bench.sampling, raw, seeds, 0 * seeds), repeats)  # noqa: B023
    rows.append(("float32, with noise and units", *whole.values()))
    bench.say(
        f"{' + '.join(PAIR)}, {bench.sampling.method}, {bench.sampling.steps} levels: ms for the chunks of a batch."
    )
    bench.table(("way", *map(str, sizes)), rows)
    late = {size: bench.figures["float32"][size] for size, most in LIMITS_MS.items() if size in sizes}
    ends = ", ".join(f"{ms:.1f} of {LIMITS_MS[size]:.0f} ms at {size}" for size, ms in late.items())
    bench.say(f"\nfloat32 against its limit: {ends}.")
    host_share(bench)


def host_share(bench: Bench) -> None:
    """Measure the arithmetic of the host: a chunk whose networks cost nothing."""
    rows = []
    for size in (1,) if bench.quick else (1, 256, 1024):
        free = [without_network(gpc.load_policy(name)) for name in PAIR]
        host = bench.median_ms(chunk_call(gpc.compose(free, [0.5, 0.5]), size, bench.sampling), bench.many(30, 1))
        full = bench.median_ms(
            chunk_call(place(pair(), Device(bench.device), False), size, bench.sampling), bench.many(30, 1)
        )
        rows.append((size, host, full, f"{100 * host / full:.0f} %"))
    bench.figures["host"] = rows
    bench.say("\nArithmetic of the host (sampler, composition) in a chunk: the same with networks that return zeros.")
    bench.table(("batch", "host, ms", "whole, ms", "share"), rows)


def without_network(policy: Policy) -> Policy:
    """Return a policy whose network costs nothing."""
    one = policy.condition(policy.observations.read(observe(policy, 1)))
    assert isinstance(one, NetworkDenoiser)
    free = NetworkDenoiser(lambda x, label: torch.zeros_like(x), one.schedule, one.prediction)
    return PolicyView(policy, policy.actions, policy.observations, "", lambda inner, observation: free)


def paper(bench: Bench) -> None:
    """Time 100 DDPM steps of diffusers with two U-Nets, eagerly, against a chunk."""
    from diffusers import DDPMScheduler

    device, rows = torch.device(bench.device), []
    unet = gpc.load_policy("pusht-diffusion").module.network
    networks = [unet.to(device), unet]
    width = gpc.load_policy("pusht-diffusion").module.encoder.condition_dim
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(bench.many(100, 5))

    @torch.inference_mode()
    def steps(x: Tensor, condition: Tensor) -> None:
        for t in scheduler.timesteps:
            label = torch.full((len(x),), int(t), device=device)
            noise = sum(0.5 * network(x, label, condition) for network in networks)
            x = scheduler.step(noise, t, x).prev_sample

    for size in (1, 50):
        x, condition = torch.randn(size, 16, 2, device=device), torch.zeros(size, width, device=device)
        slow = bench.median_ms(lambda: steps(x, condition), bench.many(3, 1))  # noqa: B023
        fast = bench.median_ms(
            chunk_call(place(pair(), Device(bench.device), False), size, bench.sampling), bench.many(30, 1)
        )
        rows.append((size, slow, fast, slow / fast))
    bench.figures["rows"] = rows
    bench.say(f"100 DDPM steps of diffusers, two U-Nets, eager, against a chunk; to be {FASTER} times faster.")
    bench.table(("batch", "100 DDPM steps, ms", "gpc, ms", "ratio"), rows)


def adapters(bench: Bench) -> None:
    """Compare chunks on the device with those on the CPU, for every adapter."""
    rows = []
    names = list(ADAPTERS)[:: bench.many(1, 5)]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                policy = ADAPTERS[name](Path(folder))
                exact = chunk(policy, Device("cpu"))
                there = place(policy, Device(bench.device))
                first = chunk(there, Device(bench.device))
                again = bool(torch.equal(first, chunk(place(policy, Device(bench.device)), Device(bench.device))))
                far = {way: float((chunk(policy, device) - exact).abs().max()) for way, device in bench.ways().items()}
                recorded = [placement.network.recorded for placement in placements(there)]
                rows.append(
                    (name, *(f"{value:.1e}" for value in far.values()), again, all(recorded) and bool(recorded))
                )
            except Exception as error:
                rows.append((name, one_line(error, 99), "", "", "", ""))
    bench.figures["rows"] = rows
    bench.say(
        f"Chunks of 16 observations against the CPU's: largest difference of a normalised action; limit {LIMIT:.0e}."
    )
    bench.table(("policy", *bench.ways(), "twice the same bits", "recorded"), rows)


def bits(bench: Bench) -> None:
    """Compare runs bit for bit, with other lanes and workers."""
    actor = ChunkActor(pair(), bench.sampling, 8, Device(bench.device))
    count = bench.many(300, 20)
    raw, seeds = observe(pair(), count), np.arange(count)
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])[seeds % 3]

    def rows_of(rows: np.ndarray) -> np.ndarray:
        return actor({k: value[rows] for k, value in raw.items()}, weights[rows], seeds[rows], 0 * rows)

    whole, order = rows_of(seeds), np.random.default_rng(0).permutation(count)
    parts = np.concatenate([rows_of(part) for part in np.array_split(order, 7)])
    same = {"rows of a batch in any order, in parts of other sizes": bool((parts == whole[order]).all())}
    episodes, tables = bench.many(64, 2), []
    engines = (bench.engine, bench.engine, gpc.Engine(24, 3))[bench.many(0, 1) :]
    for engine in engines:
        result = evaluated(bench, pair(), Device(bench.device), episodes, engine)
        tables.append([(row.seed, row.score, row.steps) for row in sorted(result.rows, key=lambda row: row.seed)])
    same[f"{episodes} episodes, run twice"] = tables[0] == tables[-2]
    same[f"{episodes} episodes, with 24 lanes in 3 workers"] = tables[0] == tables[-1]
    bench.figures |= same
    bench.say("Bit for bit, float32.")
    bench.table(("what", "equal"), list(same.items()))


def evaluated(bench: Bench, policy: Policy, device: Device, episodes: int, engine: gpc.Engine) -> gpc.Result:
    env = EnvSpec("pusht", max_steps=bench.many(300, 16))
    return gpc.evaluate(policy, env, episodes=episodes, seed=SEED, sampler=bench.sampling, device=device, engine=engine)


def success(bench: Bench) -> None:
    """Compare 300 episodes by pairs: CPU and device, float32 and faster."""
    episodes, results = bench.many(300, 4), {}
    for name, device in ({"CPU": Device("cpu")} | bench.ways()).items():
        begin = time.perf_counter()
        result = evaluated(bench, pair(), device, episodes, bench.engine)
        rows = sorted(result.rows, key=lambda row: row.seed)
        results[name] = rows, time.perf_counter() - begin
    rows = []
    for name, base in (("float32", "CPU"), ("tf32", "float32"), ("bfloat16", "float32")):
        (mine, seconds), (theirs, _) = results[name], results[base]
        low, high = paired_difference([row.success for row in mine], [row.success for row in theirs])
        apart = [a.score - b.score for a, b in zip(mine, theirs, strict=True)]
        score_low, score_high = mean_interval(apart)
        difference = np.mean([row.success for row in mine]) - np.mean([row.success for row in theirs])
        score = f"{np.mean(apart):+.4f} [{score_low:+.4f}, {score_high:+.4f}]"
        rows.append((name, base, seconds, f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]", score))
    bench.figures["rows"] = rows
    bench.say(
        f"{episodes} episodes of PushT on the same seeds; on the CPU {results['CPU'][1]:.1f} s. Intervals are of 95 %."
    )
    bench.table(("way", "against", "seconds", "difference of success", "difference of score"), rows)


def search(bench: Bench) -> None:
    """Time a grid search of 11 weights x 100 episodes."""
    policies = [gpc.load_policy(name) for name in PAIR]
    episodes, step = bench.many(100, 2), 0.1 if not bench.quick else 0.5

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        gpc.search(
            policies, EnvSpec("pusht", max_steps=steps), search=gpc.Grid(step=step, episodes=episodes),
            report_episodes=2, sampler=bench.sampling, device=Device(bench.device), engine=bench.engine,
        )  # fmt: skip
        return time.perf_counter() - begin

    start, whole = seconds(1), seconds(bench.many(300, 16))
    bench.figures |= {"seconds": whole, "start": start, "engine": str(bench.engine)}
    bench.say(
        f"gpc search, {round(1 / step) + 1} weights x {episodes} episodes of PushT (and 2 report seeds): {whole:.1f} s, of which "
        f"{start:.1f} s for episodes of one step (start, recordings, run folder): {whole - start:.1f} s after that; limit 15 s. "
        f"{bench.engine} on {os.cpu_count()} cores."
    )


def vla(bench: Bench) -> None:
    """Time SmolVLA composed with a LeRobot diffusion policy, and its memory."""
    from lerobot_checkpoints import save, save_smolvla, statistics, tiny_vlm
    from transformers import SmolVLMConfig

    rows = []
    with tempfile.TemporaryDirectory() as name:
        root, keys = Path(name), ("observation.state", "observation.image")
        folders = {"SmolVLA, tiny": save_smolvla(root / "tiny" / "vla")[0]}
        if not bench.quick:
            config = tiny_vlm(root / "vlm")
            SmolVLMConfig(**SMOLVLM).save_pretrained(config)
            sizes = {"vlm_model_name": str(config), "num_vlm_layers": 16, "num_steps": 10, "chunk_size": 50}
            sizes |= {"max_state_dim": 32, "max_action_dim": 32, "n_action_steps": 50, "tokenizer_max_length": 48}
            folders["SmolVLA, real sizes"] = save(root / "vla", "smolvla", keys, **sizes)[0]
        other = save(root / "ddpm", keys=keys, stats=statistics(keys, 0, 500), crop_shape=(84, 84))[0]
        for title, folder in folders.items():
            members = [gpc.load_policy(f"lerobot:{path}") for path in (folder, other)]
            for way, device in bench.ways().items():
                if way != "tf32" and not (bench.quick and way == "bfloat16"):
                    rows.append((title, way, *vla_figures(bench, members, device)))
    bench.figures["rows"] = rows
    bench.say(
        f"SmolVLA + a LeRobot diffusion policy, one observation, {bench.sampling.steps} levels; 10 chunks a second wanted."
    )
    bench.table(("policy", "way", "ms a chunk", "chunks a second", "peak memory, GiB"), rows)


def vla_figures(bench: Bench, members: Sequence[Policy], device: Device) -> tuple[float, float, float]:
    """Return ms a chunk, chunks a second, peak memory in GiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    there = place(gpc.compose(members, [0.5, 0.5]), device, False)
    raw, seed = observe(there, 1), np.zeros(1, int)
    ms = bench.median_ms(lambda: sample_actions(there, bench.sampling, raw, seed, seed), bench.many(20, 1))
    return ms, 1000 / ms, peak_memory()


def peak_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def pictures(bench: Bench) -> None:
    """Time MuJoCo's pictures, on the device of EGL that is found."""
    from gpc.rollout.gl import choose_gl, given_settings

    begin, backend = time.perf_counter(), choose_gl()
    found = time.perf_counter() - begin
    import mujoco  # loads the backend that was chosen

    spheres = "".join(f'<geom size=".1" pos="{i % 10} {i // 10} 1"/>' for i in range(100))
    world = f'<mujoco><worldbody><light pos="5 5 9"/>{spheres}</worldbody></mujoco>'
    model = mujoco.MjModel.from_xml_string(world)
    data, frames = mujoco.MjData(model), bench.many(500, 3)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 84, 84) as renderer:
        renderer.update_scene(data)
        begin = time.perf_counter()
        for _ in range(frames):
            renderer.render()
        rate = frames / (time.perf_counter() - begin)
    bench.figures |= {"backend": backend, "settings": given_settings(), "frames a second": rate}
    bench.say(
        f"100 spheres, 84x84, one process: {rate:.0f} pictures a second by {given_settings()} (found in {found:.1f} s)."
    )


def robosuite(bench: Bench) -> None:
    """Time robosuite's pictures, as policies with a camera observe them."""
    from gpc.envs.from_robosuite import Robosuite

    env = Robosuite(("agentview_image",))
    env.reset(seed=0)
    env.observe()
    frames, begin = bench.many(200, 3), time.perf_counter()
    for _ in range(frames):
        env.observe()
    rate = frames / (time.perf_counter() - begin)
    env.close()
    bench.figures["frames a second"] = rate
    bench.say(f"Lift, agentview, 84x84, one process: {rate:.0f} pictures a second.")


def memory(bench: Bench) -> None:
    """Report the peak of the device's memory over all parts."""
    bench.figures["GiB"] = peak_memory()
    bench.say(f"Peak memory of the device since the last part that measures it: {peak_memory():.2f} GiB.")


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "speed": speed, "paper": paper, "adapters": adapters, "bits": bits, "search": search, "success": success,
    "memory": memory, "vla": vla, "pictures": pictures, "robosuite": robosuite,
}  # fmt: skip


@contextmanager
def titled(bench: Bench, name: str, figures: dict[str, Any]) -> Iterator[None]:
    """Give a part its heading, its time, and its error in one line."""
    bench.say(f"\n## {name}\n")
    begin, bench.figures = time.perf_counter(), figures.setdefault(name, {})
    try:
        yield
    except Exception as error:
        bench.figures["error"] = one_line(f"{type(error).__name__}: {error}", 300)
        bench.say(f"Not measured: {bench.figures['error']}.")
    bench.figures["part_seconds"] = time.perf_counter() - begin


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu with --quick")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts, in this order")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few episodes, meaningless times")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # as gpc evaluate has it
    bench, figures, begin = Bench(args.device, args.quick), {}, time.perf_counter()
    facts = Device(args.device).facts(PAIR) | {"torch": torch.__version__, "cores": str(os.cpu_count())}
    figures["facts"] = facts
    bench.say("# On a card\n")
    bench.say(f"`python scripts/bench_gpu.py {' '.join(argv if argv is not None else sys.argv[1:])}` on {platform.machine()}: "
              f"{', '.join(f'{key} {value}' for key, value in facts.items())}.")  # fmt: skip
    for name in args.only:
        with titled(bench, name, figures):
            PARTS[name](bench)
        write(args, bench, figures)
    bench.say(f"\n{time.perf_counter() - begin:.0f} s in all.")
    write(args, bench, figures)


def write(args: argparse.Namespace, bench: Bench, figures: Mapping[str, Any]) -> None:
    """Write what is there so far: a later part may take the process with it."""
    if args.out:
        args.out.write_text("\n".join(bench.lines) + "\n")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
