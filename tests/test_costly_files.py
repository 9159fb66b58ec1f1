"""Small files and short answers that would cost much, or break a loader: each is refused in one line, at once."""

import collections
import importlib
import json
import pickle
import time
import zipfile

import h5py
import msgpack
import numpy as np
import pytest
import torch
import zarr
from beso_checkpoints import save as save_beso
from conftest import make_card, save_policy
from models import FixedPolicy, Gaussian
from test_from_beso import GOLDEN

from gpc.bridge.chunk_source import RemoteSource
from gpc.card import read as read_card
from gpc.demonstrations import Demonstrations, read, write_replay_buffer, write_robomimic
from gpc.errors import InputError, RunError
from gpc.policies.bundled import BUNDLED, build
from gpc.policies.checkpoint import read as read_checkpoint
from gpc.policy.load import load_policy
from gpc.serve.client import RemotePolicy, _map
from gpc.serve.metadata import check_metadata, policy_metadata

TWICE = "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
)


for adapter in ("from_robomimic", "from_diffusion_policy"):  # importing them takes longer than any load
    importlib.import_module(f"gpc.policies.{adapter}")


@pytest.fixture(autouse=True)
def soon():
    """Every test here ends at once, whatever the file would cost."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 5


def refused(load, *words, error=InputError):
    with pytest.raises(error) as caught:
        load()
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_yaml_aliases_are_not_expanded(tmp_path):
    folder = save_beso(tmp_path / "push", "push", GOLDEN["push"])
    (folder / ".hydra/config.yaml").write_text("a: &a [x, x]\n" + TWICE)
    refused(lambda: load_policy(f"beso:{folder}"), "it uses aliases")


def shared(times):
    node = [1]
    for _ in range(times):
        node = [node, node]
    return node


@pytest.mark.parametrize("place", ["env_metadata", "algo_name"])
def test_shared_lists_of_a_pickle_are_not_walked(tmp_path, place):
    keys = ("model", "config", "algo_name", "shape_metadata", "env_metadata")
    torch.save({**{key: {} for key in keys}, "algo_name": "diffusion_policy", place: shared(60)}, tmp_path / "x.pth")
    refused(lambda: load_policy(f"robomimic:{tmp_path / 'x.pth'}"), "shared or nested without end")


def test_shared_lists_of_settings_are_not_expanded(tmp_path):
    content = {"cfg": {"policy": {"_target_": "${x}"}, "x": shared(14)}, "state_dicts": {}}
    torch.save(content, tmp_path / "x.ckpt")
    refused(lambda: load_policy(f"diffusion_policy:{tmp_path / 'x.ckpt'}"), "shared without end")


def tuples(times, shared):
    """Opcodes of a dictionary whose key is a tuple of tuples."""
    grow = b"q\0h\0\x86" if shared else b"\x85"
    return b"\x80\x02})" + grow * times + b"K\1s."


GLOBALS = {
    name: b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    for module, name in [
        ("__builtin__", "bytearray"),
        ("torch", "FloatTensor"),
        ("torch", "Tensor"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("_codecs", "encode"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
    ]
}
ENTRY, NUMBER, ACCENTS = b"\x80\x02}X\1\0\0\0x", b"J\0\0\0\x7f", b"X\xa0\x86\1\0" + b"\xc3\xa9" * 50_000
LONG_NUMBER = b"\x8a\xff" + b"\x7f" * 255
PROGRAMS = {
    "a key that takes for ever to hash": tuples(60, True),
    "a key that breaks the stack": tuples(300_000, False),
    "a call with a number": ENTRY + GLOBALS["bytearray"] + NUMBER + b"\x85Rs.",
    "a legacy tensor": ENTRY + GLOBALS["FloatTensor"] + NUMBER + b"\x85Rs.",
    "a call in a call": b"".join(
        [ENTRY, GLOBALS["_rebuild_from_type_v2"], b"(", GLOBALS["FloatTensor"], GLOBALS["Tensor"], NUMBER, b"\x85}tRs."]
    ),
    "bytes that are made again and again": b"".join(
        [ENTRY, GLOBALS["encode"], b"q\0X\xa0\x86\1\0" + b"a" * 100_000, b"q\1X\6\0\0\0latin1q\2\x86Rs"]
        + [b"X\4\0\0\0%04d" % i + b"h\0h\1h\2\x86Rs" for i in range(3000)]
        + [b"."]
    ),
    "a shape whose product takes quadratic time": b"".join(
        [
            ENTRY,
            GLOBALS["_reconstruct"],
            GLOBALS["ndarray"],
            b")K\1\x87R(K\1(",
            LONG_NUMBER,
            b"q\0" + b"h\0" * 50_000,
            b"tNNNtbs.",
        ]
    ),
    "a codec of quadratic time": ENTRY + GLOBALS["encode"] + ACCENTS + b"X\x08\0\0\0punycode\x86Rs.",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_pickle_is_measured_before_it_is_read(tmp_path, program):
    path = tmp_path / "x.pth"
    torch.save({}, tmp_path / "empty.pth")
    with zipfile.ZipFile(tmp_path / "empty.pth") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, program if name.endswith("data.pkl") else old.read(name))
    refused(lambda: read_checkpoint(path), "x.pth is not loaded")


class Wide:
    """A tensor of 2^30 numbers in 4 bytes of memory."""

    def __init__(self, ones=0):
        self.sizes = (*[1] * ones, 2**15, 2**15)

    def __reduce__(self):
        storage, strides = torch.zeros(1)._typed_storage(), (*[1] * (len(self.sizes) - 2), 0, 0)
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.sizes, strides, False, collections.OrderedDict())


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_every_kind_that_a_training_saves_are_read(tmp_path, new):
    """One number, none, a part of a memory, turned, of eight dimensions, and with settings beside them."""
    memory = torch.arange(24.0)
    tensors = [torch.tensor(3), torch.zeros(0, 5), memory[4:], memory.view(4, 6).T, torch.zeros([1] * 8), memory.half()]
    content = {
        "tensors": tensors,
        "parameter": torch.nn.Parameter(memory),
        "counts": collections.Counter([1]),
        "raw": b"\xff\0",
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    found = read_checkpoint(tmp_path / "x.pth")
    assert all(torch.equal(a, b) for a, b in zip(found.pop("tensors"), tensors, strict=True))
    assert torch.equal(found.pop("parameter"), memory)
    assert found == {"counts": content["counts"], "raw": content["raw"]}


@pytest.mark.parametrize("new", [True, False])
def test_a_tensor_is_not_larger_than_its_memory(tmp_path, new):
    for ones, fault in [(0, "larger than its memory"), (7, "more than 8 dimensions")]:
        content = {"model": Wide(ones), "pad": torch.zeros(33_000)}
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
        refused(lambda: read_checkpoint(tmp_path / "x.pth"), fault)


def test_many_views_of_one_memory_are_not_many_tensors(tmp_path):
    memory = torch.zeros(1000)
    torch.save({"model": [memory[:999] for _ in range(100)]}, tmp_path / "x.pth")
    refused(lambda: read_checkpoint(tmp_path / "x.pth"), "more than 8 times as many")


def test_an_old_file_does_not_choose_how_much_is_allocated(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"x": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x03Ntq", b"J\0\0\0\x7fNtq"))
    refused(lambda: read_checkpoint(path), "more memory than it has bytes")


# path in the card -> value, for each of the fields of tiny-noise and tiny-flow
CARDS = {
    "depth": ("tiny-flow", "model.network.depth", 10**9),
    "depth within its bound": ("tiny-flow", "model.network.depth", 256),
    "width": ("tiny-flow", "model.network.width", 10**9),
    "width within its bound": ("tiny-flow", "model.network.width", 2**14),
    "widths": ("tiny-noise", "model.network.widths", [2**14] * 16),
    "a kernel without a middle": ("tiny-noise", "model.network.kernel", 4),
    "kernel": ("tiny-noise", "model.network.kernel", 10**9),
    "timesteps": ("tiny-noise", "model.schedule.steps", 10**9),
    "a picture": ("tiny-noise", "model.inputs.state", {"shape": [10**9, 10**9, 3], "image": True}),
    "a picture of nothing": ("tiny-noise", "model.inputs.state", {"shape": [1, 1, 3], "image": True}),
    "horizon": ("tiny-noise", "actions.horizon", 10**9),
    "history": ("tiny-noise", "model.n_obs_steps", 10**9),
    "start": ("tiny-noise", "actions.start", 10**9),
    "no actions": ("tiny-noise", "actions", None),
    "a name that is a number": ("tiny-noise", "name", 3),
    "a name that is a path": ("tiny-noise", "name", "../../x"),
    "a name with an escape sequence": ("tiny-noise", "name", "\x1b[31m"),
    "angles beyond the end": ("tiny-noise", "model.inputs.state.angles", [99]),
    "scales of another number": ("tiny-noise", "model.inputs.state.scale", [1.0, 2.0]),
    "a scale of nothing": ("tiny-noise", "model.inputs.state.scale", 0),
    "inputs that are a list": ("tiny-noise", "model.inputs", []),
    "a schedule that is a word": ("tiny-noise", "model.schedule", "flow"),
    "time that is over": ("tiny-flow", "model.schedule.t_min", 1),
    "another prediction": ("tiny-flow", "model.prediction", "epsilon"),
    "heads that do not fit": ("tiny-flow", "model.network.heads", 7),
    "a horizon in words": ("tiny-flow", "actions.horizon", "16"),
    "an offset that is none": ("tiny-flow", "actions.offset", [None, 1]),
    "an unknown field": ("tiny-flow", "sumary", "x"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "place", "value"), CARDS.values(), ids=CARDS)
def test_a_card_is_checked_field_by_field(tmp_path, name, place, value):
    card = json.loads(json.dumps(make_card(name)))
    save_policy(tmp_path / "policy", card)
    *parents, last = place.split(".")
    node = card
    for key in parents:
        node = node[key]
    node[last] = value
    (tmp_path / "policy/card.json").write_text(json.dumps(card))
    refused(lambda: load_policy(f"bundled:{tmp_path / 'policy'}"), "card.json")


@pytest.mark.parametrize(
    "checkpoint", ["bundled:..", "remote:x", "robomimic:../x", "lerobot:x@" + "0" * 40, "robomimic:", 3]
)
def test_a_card_names_a_checkpoint_in_its_folder_and_nothing_else(tmp_path, monkeypatch, checkpoint):
    """Else it opens a connection, or chooses a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/card.json").write_text(json.dumps({"name": "x", "checkpoint": checkpoint}))
    refused(lambda: load_policy("bundled:mine"), "card.json", "checkpoint")


def test_cards_that_are_written_are_checked_too():
    refused(lambda: build(make_card("tiny-noise", horizon=10**9)), "card.json: action spec")
    for path in BUNDLED.glob("*/card.json"):
        assert read_card(path) == json.loads(path.read_text())


FACTS = json.loads(json.dumps(policy_metadata(FixedPolicy(Gaussian()))))
SERVERS = {
    "a horizon of 8 GB": {"actions": FACTS["actions"] | {"horizon": 10**9}},
    "a start beyond all": {"actions": FACTS["actions"] | {"start": 10**12}},
    "a scale that is none": {"actions": FACTS["actions"] | {"scale": [float("nan"), 1.0]}},
    "an endless bound": {"actions": FACTS["actions"] | {"bound": float("inf")}},
    "offsets that are words": {"actions": FACTS["actions"] | {"offset": ["x", "y"]}},
    "a horizon that is half": {"actions": FACTS["actions"] | {"horizon": 1.5}},
    "no actions": {"actions": None},
    "a picture of 10^18 numbers": {"observations": {"x": [10**9, 10**9]}},
    "a shape that is a word": {"observations": {"x": "big"}},
    "half a history": {"n_obs_steps": 0.5},
    "a history of years": {"n_obs_steps": 10**9},
    "levels that descend": {"levels": FACTS["levels"] | {"trained": [2.0, 1.0]}},
    "levels that are none": {"levels": 3},
    "a name of a megabyte": {"policy": "x" * 10**6},
    "a name that is a number": {"policy": 3},
    "no fingerprint": {"fingerprint": None},
}


@pytest.mark.parametrize("change", SERVERS.values(), ids=SERVERS)
def test_metadata_of_a_server_are_checked(change):
    refused(lambda: check_metadata(FACTS | change, "ws://x"), "policy server ws://x")


ANSWERS = {
    "nothing": {},
    "words": {"actions": "x"},
    "another shape": {"actions": np.zeros((3, 2))},
    "NaN": {"actions": np.full((16, 2), np.nan)},
    "a list": {"actions": [[0.0, 0.0]] * 16},
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_a_server_are_checked(answer):
    client = object.__new__(RemotePolicy)
    client.url, client.metadata = "ws://x", FACTS
    source = RemoteSource(client)
    assert client.read_array({"actions": np.zeros((16, 2))}, "actions", (16, 2)).shape == (16, 2)
    refused(
        lambda: client.read_array(answer, "actions", (source.actions.horizon, 2)),
        "policy server ws://x",
        error=RunError,
    )
    refused(lambda: client.read_int({"gpc.denoise": -1}, "gpc.denoise"), "policy server ws://x", error=RunError)


@pytest.mark.parametrize(
    "frame", [b"\xdd\xff\xff\xff\xff", b"\x93\1\2", msgpack.packb({1: 2}), "text", msgpack.packb([1])]
)
def test_a_frame_of_a_server_that_is_none_names_the_server(frame):
    refused(lambda: _map(frame, "policy server ws://x"), "policy server ws://x", error=RunError)


def demonstrations(path):
    some = Demonstrations({"state": np.ones((12, 3))}, np.ones((12, 2)), np.array([5, 12]))
    write_replay_buffer(path, some)
    return some


def rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


STORES = {
    "10^12 rows": {"shape": [10**12, 2]},
    "10^12 rows in a chunk": {"chunks": [10**12, 2]},
    "a chunk for each of 10^6 rows": {"shape": [10**6, 2], "chunks": [1, 2]},
    "texts through pickle": {
        "dtype": "|O",
        "fill_value": "",
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 5}],
    },
}


@pytest.mark.parametrize("fields", STORES.values(), ids=STORES)
def test_an_array_of_zarr_is_compared_with_its_store(tmp_path, fields, monkeypatch):
    """Nothing is unpickled."""
    demonstrations(tmp_path / "x.zarr")
    rewrite(tmp_path / "x.zarr/data/state/.zarray", **fields)
    unpickled = []
    monkeypatch.setattr(pickle, "loads", unpickled.append)
    refused(lambda: read(tmp_path / "x.zarr"), "x.zarr")
    assert unpickled == []


def hdf5(demo):
    return {
        "10^12 rows": lambda: demo.create_dataset("actions", (10**12, 2), "f4", chunks=True),
        "texts": lambda: demo.create_dataset("actions", (5, 2), h5py.string_dtype()),
        "a link to another file": lambda: demo.__setitem__("actions", h5py.ExternalLink("other.hdf5", "/secret")),
        "numbers of another file": lambda: demo.create_dataset(
            "actions", (5, 2), "f8", external=[("other.hdf5", 0, 80)]
        ),
        "a circle": lambda: demo.__setitem__("actions", h5py.SoftLink("/data/demo_0/actions")),
    }


@pytest.mark.parametrize("case", hdf5(None))
def test_an_array_of_hdf5_lies_in_its_file_and_is_no_larger(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    some = demonstrations(tmp_path / "x.zarr")
    write_robomimic(tmp_path / "x.hdf5", some, np.zeros(12), {"env_name": "x"}, [{}, {}])
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["secret"] = np.ones((5, 2))
    with h5py.File(tmp_path / "x.hdf5", "a") as file:
        del file["data/demo_0/actions"]
        hdf5(file["data/demo_0"])[case]()
    refused(lambda: read(tmp_path / "x.hdf5"), "x.hdf5")


def test_ends_that_wrap_around_are_not_increasing(tmp_path):
    some = demonstrations(tmp_path / "x.zarr")
    ends = zarr.open_group(tmp_path / "x.zarr", mode="a")["meta"]
    ends.create_array("episode_ends", data=np.array([7, 5, 12], np.uint64), overwrite=True)
    refused(lambda: read(tmp_path / "x.zarr"), "do not divide")
    assert some.episode_ends.tolist() == [5, 12]
