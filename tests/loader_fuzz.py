"""Hostile files and servers for every loader, in one process with little memory: `python loader_fuzz.py COUNT READER...`.

Prints one JSON object: the cases of each reader, those that loaded all the same, what failed, the slowest call (CPU seconds) and
the memory that was needed. A case is known by its reader and number alone.
"""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from mutations import as_json, damaged, mutated
from numpy._core.multiarray import _reconstruct as reconstruct
from numpy._core.multiarray import scalar

from gpc.errors import InputError, RunError

MEMORY, SECONDS, HANGS = 2**30, 5, 120
ALLOCATION = ("not enough memory", "MemoryError", "Unable to allocate", "can't allocate", "std::bad_alloc")


def cards(root):
    import conftest

    from gpc.policies.bundled import load

    base = []
    for name in conftest.TINY:
        card = conftest.make_card(name)
        conftest.save_policy(root / name, card)
        base.append((root / name, card | {"license": "MIT", "training": {"parameters": 3}}))

    def read(rng):
        folder, card = rng.choice(base)
        (folder / "card.json").write_bytes(as_json(rng, card))
        load(str(folder))

    return read


def safetensors(root):
    import conftest

    from gpc.policies.bundled import load

    conftest.save_policy(root, conftest.make_card("tiny-flow"))
    file = root / "weights.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def read(rng):
        content = as_json(rng, header)
        size = rng.choice([len(content)] * 8 + [0, 2**40, 2**63, 7])
        file.write_bytes(size.to_bytes(8, "little") + content + (data if rng.random() < 0.9 else data[:9]))
        load(str(root))

    return read


NAMES = [
    b"c" + name.replace(" ", "\n").encode() + b"\n"
    for name in (
        "collections OrderedDict", "collections Counter", "__builtin__ set", "__builtin__ bytearray", "torch FloatTensor",
        "torch Size", "torch Tensor", "torch FloatStorage", "torch.storage UntypedStorage", "torch._utils _rebuild_tensor_v2",
        "torch._tensor _rebuild_from_type_v2", "numpy dtype", "numpy ndarray", "numpy.core.multiarray scalar",
        "numpy._core.multiarray scalar", "numpy._core.multiarray _reconstruct", "dill._dill _create_array", "__builtin__ bytes",
        "_codecs encode", "posix system",
    )
]  # fmt: skip
PIECES = [
    b"N", b"K\1", b"]", b"}", b")", b"(", b"t", b"\x85", b"\x86", b"s", b"u", b"a", b"e", b"b", b"R", b"q\0", b"h\0", b"Q",
    b"\x81", b".", b"X\1\0\0\0x", b"G\x7f\xf8" + b"\0" * 6,
]  # fmt: skip
START, ENTRY = b"\x80\x02}", b"X\1\0\0\0x"


def text(content):
    return b"X" + len(content).to_bytes(4, "little") + content


def program(rng):
    """A pickle of random operations, or one that grows."""
    times = rng.choice([3, 20, 40, 300, 30_000])
    match rng.randrange(6):
        case 0:  # lists that hold the one before twice
            return START + ENTRY + b"]q\0" + b"0]q\1(h\0h\0eq\0" * times + b"s."
        case 1:  # the same of tuples, as a key: hashing takes as long as they are large
            return START + b")" + b"q\0h\0\x86" * times + b"K\1s."
        case 2:  # hashing is recursive
            return START + b")" + b"\x85" * times + b"K\1s."
        case 3:  # a call with a number
            number = b"J" + rng.choice([10**9, 3, 2**31 - 1]).to_bytes(4, "little", signed=True)
            return START + ENTRY + rng.choice(NAMES) + number + b"\x85Rs."
        case 4:
            codec = rng.choice([b"latin1", b"punycode", b"idna", b"zlib", b"hex"])
            return START + ENTRY + NAMES[-2] + text(b"a" * 10**5) + text(codec) + b"\x86Rs."
        case _:
            return (
                START + b"".join(rng.choice([*PIECES, rng.choice(NAMES)]) for _ in range(rng.randrange(1, 60))) + b"."
            )


class Rebuilt:
    """A tensor with other numbers than it has."""

    def __init__(self, tensor, offset, size, stride):
        self.arguments = (tensor._typed_storage(), offset, size, stride, False, {})

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Number:
    """A number or an array of numpy with a type, a shape and bytes that need not fit."""

    def __init__(self, rng, shape):
        self.code = rng.choice(["f8", "f8", "i4", "b1", "O8", "V8", "U1", "U99999999", "f99", "", 8, None])
        fields = rng.choice([None, None, None, {"a": (np.dtype("O"), 0)}, ("a",)])
        self.state = 3, rng.choice("<<<>|=?"), rng.choice([None, None, (8, 10**9)]), fields, fields, 8, 8, 0
        self.data = bytes(rng.choice([0, 1, 8, 8, 8, 16, 32_000, 10**5]))
        self.shape = None if rng.random() < 0.5 else shape

    def __reduce__(self):
        kind = Called(np.dtype, (self.code, False, True), self.state)
        if self.shape is None:
            return scalar, (kind, self.data)
        return reconstruct, (np.ndarray, (10**9,), b"d"), (1, self.shape, kind, False, self.data)


class Called:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def content_of(rng):
    numbers = [0, 1, 2, -1, 4, 33_000, 10**9, 2**40]
    tensor = torch.zeros(rng.choice([1, 4, 1000]), dtype=rng.choice([torch.float32, torch.float16, torch.int64]))
    dims = rng.randrange(4)
    odd = Rebuilt(
        tensor,
        rng.choice(numbers),
        tuple(rng.choices(numbers, k=dims)),
        tuple(rng.choices(numbers, k=rng.choice([dims, 1]))),
    )
    if rng.random() < 0.3:
        odd = Number(rng, tuple(rng.choices(numbers, k=dims)))
    return mutated(rng, {"model": {"nets": [1, 2, {"a": 0.5}]}, "x": ["t", {"y": 3}], "n": 1}) | {
        "odd": odd if rng.random() < 0.6 else tensor
    }


def pickles(root):
    from gpc.policies.checkpoint import read as load

    file = root / "x.pth"

    def read(rng):
        if rng.random() < 0.5:
            torch.save({}, file)
            with open(file, "rb") as old:
                empty = old.read()
            part = pickle.dumps({}, protocol=2)
            write_pickle(file, program(rng), empty, part)
        else:
            torch.save(content_of(rng), file, _use_new_zipfile_serialization=rng.random() < 0.7)
            file.write_bytes(damaged(rng, file.read_bytes(), 0.4))
        load(file)

    return read


def write_pickle(file, body, empty, part):
    """A torch archive with this pickle in the place of an empty dictionary's."""
    import zipfile

    with zipfile.ZipFile(io.BytesIO(empty)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, body if name.endswith("data.pkl") else old.read(name))


def beso(root):
    from beso_checkpoints import save
    from omegaconf import OmegaConf

    from gpc.policies.from_beso import load

    golden = json.loads((Path(__file__).parent / "data" / "beso.json").read_text())
    case = "push"
    folder = save(root / case, case, golden[case])
    file, scaler = folder / ".hydra" / "config.yaml", folder / "scaler.json"
    settings = OmegaConf.to_container(OmegaConf.load(file))
    statistics = json.loads(scaler.read_text())
    text = file.read_bytes()
    bombs = [
        b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (98 + i, 98 + i, 97 + i, 97 + i) for i in range(24)),
        b"[" * 5000, b"{a: " * 3000, b"- " * 5000, b"x: " + b"9" * 100_000, b"? " * 3000, b"\t", b"<<: *x",
        b"a: !!python/object:os.system x",
    ]  # fmt: skip

    def read(rng):
        file.write_bytes(text)
        scaler.write_text(json.dumps(statistics))
        match rng.randrange(4):
            case 0:
                scaler.write_bytes(as_json(rng, statistics))
            case 1:
                file.write_bytes(rng.choice(bombs) + (text if rng.random() < 0.3 else b""))
            case 2:
                file.write_bytes(damaged(rng, text, 1))
            case _:
                file.write_bytes(as_json(rng, settings))  # JSON is YAML
        load(str(folder))

    return read


def server(root):
    import msgpack
    from models import FixedPolicy, Gaussian

    from gpc.bridge.chunk_source import RemoteSource
    from gpc.policies.remote import RemoteMember
    from gpc.serve.client import RemotePolicy, _map
    from gpc.serve.codec import pack
    from gpc.serve.metadata import check_metadata, policy_metadata

    facts = json.loads(json.dumps(policy_metadata(FixedPolicy(Gaussian()))))
    frame = pack({"actions": np.zeros((16, 2)), "gpc.denoise": 5})
    shapes = [(16, 2), (2,), (0,), (10**6, 1), (1, 16, 2)]
    values = [None, 1, "x" * 10**6, [1], {}, np.nan, np.zeros((16, 2), np.uint8), np.full((16, 2), np.inf)]

    def read(rng):
        client = object.__new__(RemotePolicy)
        client.url, client.metadata = "ws://x", _map(frame_of(rng), "ws://x")
        served = check_metadata(client.metadata, client.url)
        spec = RemoteSource(client).actions
        RemoteMember(client, served.policy, served.actions, served.spec, served.levels, served.fingerprint)
        torch.zeros(spec.horizon, spec.dim)
        answer = _map(damaged(rng, frame, 0.3), "ws://x")
        answer["actions"] = rng.choice([rng.choice(values), np.zeros(rng.choice(shapes))])
        answer["gpc.denoise"] = rng.choice([5, *values])
        client.read_int(answer, "gpc.denoise")
        client.read_array(answer, "actions", (spec.horizon, spec.dim))

    def frame_of(rng):
        content = mutated(rng, facts)
        with contextlib.suppress(OverflowError, ValueError):
            return damaged(rng, msgpack.packb(json.loads(json.dumps(content).replace("@long@", "x" * 10**6))), 0.1)
        return b"\x80"

    return read


def demonstrations(root):
    import h5py
    import zarr

    from gpc.demonstrations import Demonstrations, write_replay_buffer, write_robomimic
    from gpc.demonstrations import read as load

    rng = np.random.default_rng(0)
    some = Demonstrations({"state": rng.normal(size=(12, 3))}, rng.normal(size=(12, 2)), np.array([5, 12]))
    write_robomimic(root / "a.hdf5", some, np.zeros(12), {"env_name": "x"}, [{}, {}])
    write_replay_buffer(root / "b.zarr", some)
    group = zarr.open_group(root / "c.zarr", mode="w", zarr_format=3)
    for key, value in {
        "data/state": some.observations["state"],
        "data/action": some.actions,
        "meta/episode_ends": some.episode_ends,
    }.items():
        group.create_array(key, data=value, chunks=value.shape)
    whole = (root / "a.hdf5").read_bytes()

    def hdf5(rng):
        file = root / "d.hdf5"
        file.write_bytes(whole)
        if rng.random() < 0.4:
            file.write_bytes(damaged(rng, whole, 1)[: rng.choice([10**9, 2000])])
        else:
            with h5py.File(file, "a") as content:
                demo = content["data/demo_0"]
                del demo["actions"]
                shape = rng.choice([(10**12,), (5, 2), (2**20, 2**20), (5,), (0, 2), ()])
                match rng.randrange(6):
                    case 0 if shape:
                        demo.create_dataset("actions", shape, "f8", chunks=True)
                    case 1 if shape:
                        demo.create_dataset("actions", shape, h5py.string_dtype(), chunks=True)
                    case 2:
                        demo["actions"] = h5py.ExternalLink("/etc/passwd", "/data")
                    case 3:
                        demo["actions"] = h5py.SoftLink("/data")
                    case 4:
                        demo.create_dataset("actions", (5, 2), "f8", external=[("/etc/passwd", 0, 80)])
                    case _:
                        demo["actions"] = rng.choice(
                            [np.zeros((5, 2)), np.zeros(5), np.array(b"x"), np.full((5, 2), np.nan)]
                        )
        load(file)

    def replay_buffer(rng):
        folder = root / "e.zarr"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(root / rng.choice(["b.zarr", "c.zarr"]), folder)
        file = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
        if file.name in (".zarray", "zarr.json", ".zgroup"):
            description = json.loads(file.read_text())
            if rng.random() < 0.3:
                extra = {
                    "shape": rng.choice([[10**12], [10**6, 10**6], [-1]]),
                    "chunks": [rng.choice([1, 10**12])] * 2,
                    "dtype": "|O",
                }
                extra |= {
                    "filters": [{"id": "pickle"}],
                    "compressor": {"id": rng.choice(["pickle", "zlib", "lz4"])},
                    "fill_value": 0,
                }
                description |= dict(rng.sample(sorted(extra.items()), rng.randrange(1, 5)))
            file.write_bytes(as_json(rng, description))
        else:
            file.write_bytes(damaged(rng, file.read_bytes(), 0.9))
        load(folder)

    return lambda rng: (hdf5 if rng.random() < 0.4 else replay_buffer)(rng)


def diffusion_policy(root):
    from diffusion_policy_checkpoints import POLICIES, config, payload, save
    from omegaconf import OmegaConf

    from gpc.policies.from_diffusion_policy import load

    base = [(payload(case), OmegaConf.to_container(config(case))) for case in POLICIES if "camera" not in case]

    def configuration(rng, settings):
        """As OmegaConf's objects or, since those would be expanded, as plain containers."""
        changed = mutated(rng, settings)
        if rng.random() < 0.1:
            twice = [1]
            for _ in range(60):
                twice = [twice, twice]
            changed["horizon"] = twice
            changed["policy"] = changed.get("policy") if isinstance(changed.get("policy"), dict) else {}
            changed["policy"]["horizon"] = "${horizon}"
            return changed
        with contextlib.suppress(Exception):
            return OmegaConf.create(changed) if rng.random() < 0.5 else changed
        return changed

    def read(rng):
        content, settings = rng.choice(base)
        save({**content, "cfg": configuration(rng, settings)}, root / "x.ckpt")
        load(str(root / "x.ckpt"))

    return read


def robomimic(root):
    from test_from_robomimic import save

    from gpc.policies.from_robomimic import load

    content = torch.load(save(root / "x.pth"), weights_only=True)
    plain = {key: content[key] for key in ("shape_metadata", "env_metadata", "algo_name", "action_normalization_stats")}
    settings = json.loads(content["config"])

    def read(rng):
        changed = dict(content)
        if rng.random() < 0.6:
            changed["config"] = as_json(rng, settings).decode(errors="replace")
        else:
            changed |= mutated(rng, plain)
        torch.save(changed, root / "y.pth")
        load(str(root / "y.pth"))

    return read


def lerobot(root):
    import lerobot_checkpoints

    from gpc.policies.from_lerobot import load

    folder = lerobot_checkpoints.save(root / "x")[0]
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    named = [path for path in whole if path.suffix == ".json"]

    def read(rng):
        for path, content in whole.items():
            path.write_bytes(content)
        path = rng.choice([*named * 3, *whole])
        if path.suffix == ".json":
            path.write_bytes(as_json(rng, json.loads(whole[path])))
        else:
            path.write_bytes(damaged(rng, whole[path], 1))
        load(str(folder))

    return read


def runs(root):
    import made_up

    from gpc.results.leaderboard import read_run
    from gpc.results.run_folder import read_json, read_rows

    search = {(1.0, 0.0): {1: True, 2: False}, (0.0, 1.0): {1: False, 2: False}}
    folder = made_up.write_search(root / "x", ["a", "b"], search, search, (1.0, 0.0))
    whole = {name: (folder / name).read_bytes() for name in ("manifest.json", "summary.json", "episodes.jsonl")}

    def read(rng):
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        name = rng.choice(list(whole))
        lines = whole[name].splitlines() if name.endswith("l") else [whole[name]]
        i = rng.randrange(len(lines))
        lines[i] = as_json(rng, json.loads(lines[i]))
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
        read_rows(folder / "episodes.jsonl")
        read_json(folder / "summary.json")
        read_run(folder)

    return read


READERS = {
    read.__name__: read
    for read in (cards, safetensors, pickles, beso, server, demonstrations, diffusion_policy, robomimic, lerobot, runs)
}


def attempt(read, rng):
    """How one call ended: None if it loaded, "refused", or what is wrong with it."""
    try:
        read(rng)
    except (InputError, RunError) as error:
        text = str(error)
        if "\n" in text or len(text) > 4000:
            return f"{type(error).__name__} of {len(text)} characters, not on one line: {text[:200]!r}"
        grown = [word for word in ALLOCATION if word in text]
        return f"tried to allocate: {text[:300]}" if grown else "refused"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]!r} at {Path(place.filename).name}:{place.lineno}"
    return None


def hang(*_):
    raise TimeoutError(f"no end within {HANGS} s")


def fuzz(name, count, read):
    """Run the cases of one reader; its part of the report."""
    failures, ends, slowest = {}, {"loaded": 0, "refused": 0}, 0.0
    for number in range(count):
        began = time.process_time()
        signal.alarm(HANGS)
        found = attempt(read, random.Random(f"{name} {number}"))
        signal.alarm(0)
        took = time.process_time() - began
        slowest = max(slowest, took)
        if took > SECONDS:
            found = f"took {took:.1f} s"
        if found in (None, "refused"):
            ends[found or "loaded"] += 1
        else:
            failures[number] = found
    return {"cases": count, **ends, "failures": failures, "slowest": round(slowest, 2)}


@contextlib.contextmanager
def little_memory():
    """While this is entered the process gets `MEMORY` bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main(count, *names):
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, hang)
    report = {}
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as quiet:
        for name in names:
            root = Path(folder) / name
            root.mkdir()
            with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
                read = READERS[name](root)
                attempt(read, random.Random(0))  # what is imported late is no part of a case
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                with little_memory():
                    report[name] = fuzz(name, int(count), read)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            report[name]["megabytes"] = round(grown / 1024)
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
