"""`gpc doctor`: the devices that are found, and whether policies fit their memory."""

import pytest
import torch

from gpc.commands.cli import main
from gpc.commands.doctor import GIB, _devices, verdict
from gpc.composition.composed import compose
from gpc.inference.device import Memory
from gpc.inference.modules import Size, module_on, size_of

CARD = Memory("cuda:0", "NVIDIA H100", 70 * GIB, 79 * GIB)
SIZES = {"small": Size(10**6, 4 * 10**6, 2 * 10**6), "large": Size(7 * 10**9, 28 * 10**9, 14 * 10**9)}


@pytest.fixture
def machine(monkeypatch):
    def make(devices, **versions):
        monkeypatch.setattr("gpc.inference.device.devices_here", lambda: devices)
        monkeypatch.setattr("gpc.inference.device.software", lambda: {"torch": "2.11.0", **versions})
        return list(_devices())

    return make


def test_each_card_is_a_line_with_its_memory(machine):
    rows = machine([CARD, CARD._replace(name="cuda:1", free=None)], cuda="13.0", driver="580.1")
    assert [row.what for row in rows] == ["cuda:0", "cuda:1"]
    assert rows[0].state == "NVIDIA H100, 70.0 of 79.0 GiB free (torch 2.11.0, cuda 13.0, driver 580.1)"
    assert rows[1].state == "NVIDIA H100 (torch 2.11.0, cuda 13.0, driver 580.1)"


def test_without_a_card_the_cpu_is_no_fault_but_a_driver_without_its_torch_is(machine):
    (row,) = machine([])
    assert (row.state, row.fix) == ("no card, the CPU only (torch 2.11.0)", "")
    (row,) = machine([], driver="580.1")
    assert "a torch for this driver" in row.fix


def test_what_does_not_fit_is_told_what_to_do():
    assert verdict(SIZES, []) == "There is no card here: the networks compute on the CPU."
    assert verdict(SIZES, [CARD]).startswith("The weights fit: cuda:0 has 71,680 MiB free")
    tight, full = CARD._replace(free=20 * GIB), CARD._replace(free=GIB)
    assert "Choose dtype=bfloat16, another device for one policy, as in 'device={large: cpu}', or" in verdict(
        SIZES, [tight]
    )
    assert (
        "Choose another device for one policy, as in 'device={large: cuda:1}', or serve it from another machine, remote:"
        in (verdict(SIZES, [full, CARD._replace(name="cuda:1")]))
    )
    assert "is not known" in verdict(SIZES, [Memory("mps:0", "mps")])


def test_the_weights_of_a_composition_are_counted_as_they_are_moved(parents):
    whole = size_of(compose(parents))
    assert whole == Size(*map(sum, zip(*map(size_of, parents), strict=True)))
    assert whole.parameters == sum(w.numel() for policy in parents for w in policy.module.parameters())
    moved = [module_on(policy.module, torch.device("cpu"), "bfloat16") for policy in parents]
    tensors = [tensor for module in moved for tensor in (*module.parameters(), *module.buffers())]
    assert whole.halved == sum(tensor.nbytes for tensor in tensors) < whole.bytes


def test_the_doctor_takes_policies(tiny, parents, monkeypatch, capsys):
    monkeypatch.setattr("gpc.commands.doctor._pictures", list)
    assert main(["doctor", *tiny]) == 0
    text = capsys.readouterr().out
    counts = [size_of(policy).parameters for policy in parents]
    assert all(f"{count:,}" in text for count in (*counts, sum(counts)))
    assert "There is no card here" in text
    assert main(["doctor", "pusht-flo"]) == 2
    assert "did you mean 'pusht-flow'" in capsys.readouterr().err
