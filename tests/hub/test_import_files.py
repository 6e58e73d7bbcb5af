import argparse
import io
import os
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import DenseNet

from chexpert_hf.formats.weight_files import read_weight_file, without_persistent_classes
from chexpert_hf.models.weights import WeightsError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    small = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, bn_size=2, num_classes=3)
    small.train()
    small(torch.randn(4, 3, 64, 64))
    return small.eval()


def same(given, network):
    expected = network.state_dict()
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_zip", [True, False], ids=["since 1.6", "before 1.6"])
def test_a_pickled_module_gives_its_weights_although_its_classes_are_never_made(network, tmp_path, is_zip, monkeypatch):
    torch.save(network, tmp_path / "module.pt", _use_new_zipfile_serialization=is_zip)

    def made(*_):
        raise AssertionError("a module was made")

    monkeypatch.setattr(nn.Module, "__setstate__", made)
    same(read_weight_file(tmp_path / "module.pt").tensors, network)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_only_persistent_classes_are_rewritten(network):
    old = io.BytesIO()
    torch.save(network, old, _use_new_zipfile_serialization=False)
    rewritten = without_persistent_classes(old.getvalue())

    def operations(content):
        stream = io.BytesIO(content)
        return [op.name for _ in range(4) for op, _, _ in pickletools.genops(stream)]

    num_classes = len({type(module) for module in network.modules()})
    before, after = operations(old.getvalue()), operations(rewritten)
    assert before.count("BINPERSID") - after.count("BINPERSID") == num_classes
    assert after.count("REDUCE") - before.count("REDUCE") == num_classes
    plain = io.BytesIO()
    torch.save(network.state_dict(), plain, _use_new_zipfile_serialization=False)
    assert without_persistent_classes(plain.getvalue()) == plain.getvalue()


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_zip", [True, False], ids=["since 1.6", "before 1.6"])
def test_what_a_hostile_file_wants_run_is_named_and_not_run(network, tmp_path, is_zip):
    victim = tmp_path / "victim"
    contents = ({"state_dict": network.state_dict(), "epoch": Hostile(victim)}, [network, Hostile(victim)])
    for content in contents:
        torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(
            WeightsError, match=r"holds (posix|nt)\.mkdir, which is no weights; nothing was run"
        ) as caught:
            read_weight_file(tmp_path / "bad.pt")
        assert len(str(caught.value).splitlines()) == 1
    assert not victim.exists()


class Unknown(nn.Module):
    pass


def test_a_module_of_another_class_is_refused_with_the_way_out(tmp_path):
    torch.save(Unknown(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"Unknown, which is no weights.*torch\.save\(model\.state_dict\(\), FILE\)"):
        read_weight_file(tmp_path / "other.pt")


def test_weights_are_found_wherever_a_checkpoint_keeps_them(network, tmp_path):
    beside = {"args": argparse.Namespace(lr=1), "best": np.float64(0.9), "epoch": 3, "optimizer": {"state": {}}}
    for place in ("state_dict", "model_state_dict", "model_state", "model"):
        torch.save({**beside, place: nn.DataParallel(network).state_dict()}, tmp_path / "file.pth.tar")
        file = read_weight_file(tmp_path / "file.pth.tar")
        same(file.tensors, network)
        assert file.rest["epoch"] == 3


def test_safetensors_and_names_of_wrappers_and_old_names(network, tmp_path):
    old = {}
    for name, tensor in network.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.") if "denselayer" in name else name
        if "num_batches_tracked" not in name:  # as before PyTorch 0.4.1
            old[f"module.densenet121.{name}"] = tensor.clone()
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in old
    save_file(old, tmp_path / "old.safetensors")
    read = dict(read_weight_file(tmp_path / "old.safetensors").tensors)
    expected = network.state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected if "num_batches" not in name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no file of weights"),
        (b"PK\x03\x04 but no archive", "no file of weights"),
        (b"abc" * 100, "no file of weights"),
        (b"\x80\x02}q\x00." * 3, "no file of weights"),
    ],
)
def test_what_is_no_file_of_weights_is_one_line(tmp_path, content, message):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_weight_file(tmp_path / "bad.pth")
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_files_are_one_line(network, tmp_path):
    rng, said = np.random.default_rng(0), []
    for is_zip in (True, False):
        stream = io.BytesIO()
        torch.save({"state_dict": network.state_dict(), "epoch": 1}, stream, _use_new_zipfile_serialization=is_zip)
        whole = stream.getvalue()
        for number in range(40):
            damaged = bytearray(whole)
            if number % 2:
                damaged = damaged[: rng.integers(1, len(whole))]
            else:
                damaged[rng.integers(0, min(len(whole), 3000))] ^= 1 << rng.integers(8)
            (tmp_path / "bad.pth").write_bytes(damaged)
            try:
                read_weight_file(tmp_path / "bad.pth")  # a bit in a name or a tensor changes no structure
            except WeightsError as error:
                said.append(str(error))
    assert len(said) > 40
    assert all(len(line.splitlines()) == 1 for line in said)


def test_no_weights_and_no_file_and_two_networks_are_said(network, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(
        WeightsError, match=r"holds no weights; expected a state_dict, alone or under one of: state_dict,"
    ):
        read_weight_file(tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match=r"none\.pth is not a file"):
        read_weight_file(tmp_path / "none.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"abc")
    with pytest.raises(WeightsError, match="is no safetensors file, or a damaged one"):
        read_weight_file(tmp_path / "bad.safetensors")
    two = {f"{prefix}{name}": tensor for prefix in ("", "module.") for name, tensor in network.state_dict().items()}
    torch.save(two, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match="holds several networks"):
        read_weight_file(tmp_path / "two.pth")
