"""Which runtime and precision `auto` takes on a CPU, with speeds that the tests set."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from chexpert_hf.errors import InputError
from chexpert_hf.models.graph_files import Precision, RuntimeName
from chexpert_hf.scoring import autotune, runtimes
from chexpert_hf.scoring.autotune import choice_file, fastest, images_per_second
from chexpert_hf.scoring.graphs.sessions import Runtime
from chexpert_hf.scoring.runtimes import open_runtime

OPENVINO, ONNX, TORCH = RuntimeName.OPENVINO, RuntimeName.ONNX, RuntimeName.TORCH
FP32, BF16 = Precision.FP32, Precision.BF16
SIZE = (64, 64)


class Stub(Runtime):
    """A runtime that computes nothing."""

    def __init__(self, name: RuntimeName, precision: Precision):
        super().__init__(precision)
        self.name, self.reason = name.value, f"{name.value} in {precision.value}"

    def __call__(self, pixel_values, *, saliency=False):
        return torch.zeros(len(pixel_values), 14), None


class Machine:
    """A machine with runtimes of set speeds (images per second); `missing` are not installed, `broken` fail."""

    def __init__(self, speeds):
        self.speeds, self.missing, self.broken, self.timings, self.opened = speeds, set(), set(), [], []

    def open(self, model, device, folder, input_size, name, precision):
        if name in self.missing:
            raise InputError(f"{name.value} is not installed") from ImportError()
        if name in self.broken:
            raise RuntimeError("no memory")
        self.opened.append((name, precision))
        return Stub(name, precision)

    def images_per_second(self, candidates, shape):
        self.timings.append((len(candidates), shape))
        return [self.speeds[RuntimeName(one.name), Precision(one.precision)] for one in candidates]


@pytest.fixture
def machine(monkeypatch, tmp_path) -> Machine:
    fast = Machine(
        {(OPENVINO, FP32): 72, (OPENVINO, BF16): 140, (TORCH, FP32): 50, (TORCH, BF16): 79, (ONNX, FP32): 70}
    )
    monkeypatch.setattr(runtimes, "_open", fast.open)
    monkeypatch.setattr(autotune, "images_per_second", fast.images_per_second)
    monkeypatch.setattr(runtimes, "openvino_has_bf16", lambda: True)
    monkeypatch.setattr(runtimes, "torch_has_bf16", lambda _device: True)
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "cache"))
    return fast


def opened(model, runtime: str = "auto", precision: str = "auto", **options) -> Runtime:
    settings = {"folder": None, "device": "cpu", "input_size": SIZE, **options}
    return open_runtime(model, runtime=runtime, precision=precision, **settings)


def taken(model, runtime: str = "auto", precision: str = "auto", **options) -> tuple[str, str]:
    chosen = opened(model, runtime, precision, **options)
    return chosen.name, chosen.precision


@pytest.mark.parametrize(
    ("bf16", "precision"), [(109.9, FP32), (110.1, BF16), (60, FP32)], ids=["under a tenth", "over a tenth", "slower"]
)
def test_bf16_is_taken_only_if_it_is_a_tenth_faster(bf16, precision):
    rates = {(OPENVINO, FP32): 100, (OPENVINO, BF16): bf16, (TORCH, FP32): 80, (TORCH, BF16): 90}
    assert fastest(rates) == (OPENVINO, precision)


def test_within_a_precision_the_fastest_runtime_is_taken_however_small_the_gain():
    assert fastest({(OPENVINO, FP32): 70, (TORCH, FP32): 70.1}) == (TORCH, FP32)
    assert fastest({(OPENVINO, BF16): 70, (TORCH, BF16): 71}) == (TORCH, BF16)


def test_auto_takes_the_fastest_and_says_in_a_line_what_it_timed(tiny_model, machine):
    chosen = opened(tiny_model)
    assert (chosen.name, chosen.precision) == ("openvino", "bf16")
    timed = "timed: openvino bf16 140, torch bf16 79, openvino fp32 72, torch fp32 50 images/s."
    assert chosen.reason == f"openvino in bf16; {timed}"
    assert machine.timings == [(4, (3, 64, 64))]


def test_a_slow_bf16_is_not_taken_though_the_processor_has_it(tiny_model, machine):
    machine.speeds |= {(OPENVINO, BF16): 55, (TORCH, BF16): 44}  # a Xeon without AMX
    assert taken(tiny_model) == ("openvino", "fp32")
    assert taken(tiny_model, "torch") == ("torch", "fp32")
    assert taken(tiny_model, "openvino", "bf16") == ("openvino", "bf16")  # asked for


def test_what_is_asked_for_is_kept(tiny_model, machine):
    machine.speeds[TORCH, FP32] = 1000
    assert taken(tiny_model, "openvino") == ("openvino", "bf16")
    assert taken(tiny_model, "auto", "fp32") == ("torch", "fp32")
    assert taken(tiny_model, "auto", "bf16") == ("openvino", "bf16")


def test_onnx_runtime_is_timed_only_without_openvino(tiny_model, machine):
    opened(tiny_model)
    assert (ONNX, FP32) not in machine.opened
    machine.missing = {OPENVINO}
    machine.speeds[ONNX, FP32] = 75
    assert taken(tiny_model, "auto", "fp32") == ("onnx", "fp32")


def test_the_choice_is_kept_so_that_the_same_machine_always_chooses_the_same(tiny_model, machine):
    first = opened(tiny_model)
    machine.speeds = dict.fromkeys(machine.speeds, 1.0)
    again = opened(tiny_model)
    assert (again.name, again.precision, again.reason) == (first.name, first.precision, first.reason)
    assert len(machine.timings) == 1


def test_members_of_one_architecture_choose_alike_and_another_size_is_timed(tiny_model, machine):
    opened(tiny_model)
    tiny_model.classifier.bias.data += 1
    opened(tiny_model)
    assert len(machine.timings) == 1
    opened(tiny_model, input_size=(96, 96))
    assert machine.timings[1:] == [(4, (3, 96, 96))]


@pytest.mark.parametrize("changed", ["processor_name", "num_processors", "versions"])
def test_another_machine_or_version_is_timed(changed, tiny_model, machine, monkeypatch):
    opened(tiny_model)
    if changed == "versions":
        monkeypatch.setattr(autotune.graph_files, "versions_of", lambda packages: {"openvino": "2030.1"})
    else:
        monkeypatch.setattr(autotune, changed, lambda: "another")
    opened(tiny_model)
    assert len(machine.timings) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runtime": "tflite", "precision": "fp32"}', "\0" * 100])
def test_a_damaged_choice_is_made_again(content, tiny_model, machine):
    first = opened(tiny_model)
    file = choice_file(tiny_model, SIZE, (RuntimeName.AUTO, Precision.AUTO))
    kept = file.read_bytes()
    file.write_text(content)
    assert opened(tiny_model).reason == first.reason
    assert file.read_bytes() == kept
    assert json.loads(kept)["images_per_second"]["openvino bf16"] == 140


def test_a_cache_that_cannot_be_written_is_no_error(tiny_model, machine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "file"))
    assert taken(tiny_model) == taken(tiny_model) == ("openvino", "bf16")
    assert len(machine.timings) == 2


def test_what_is_not_installed_is_named_each_time(tiny_model, machine):
    machine.missing = {OPENVINO, ONNX}
    first, second = opened(tiny_model), opened(tiny_model)
    assert (first.name, first.precision) == ("torch", "bf16")
    assert first.reason.endswith(". Skipped: OpenVINO: openvino is not installed; ONNX Runtime: onnx is not installed.")
    assert first.reason == second.reason
    assert len(machine.timings) == 1


def test_a_failure_that_may_pass_is_not_kept(tiny_model, machine):
    machine.broken, machine.missing = {OPENVINO}, {ONNX}
    assert taken(tiny_model) == ("torch", "bf16")
    machine.broken = set()
    assert taken(tiny_model) == ("openvino", "bf16")


def test_a_choice_that_breaks_later_is_made_again(tiny_model, machine):
    opened(tiny_model)
    machine.broken = {OPENVINO}
    chosen = opened(tiny_model)
    assert (chosen.name, chosen.precision) == ("torch", "bf16")
    assert "Skipped: OpenVINO: no memory" in chosen.reason


def test_one_candidate_is_not_timed(tiny_model, machine, monkeypatch):
    monkeypatch.setattr(runtimes, "torch_has_bf16", lambda _device: False)
    assert taken(tiny_model, "torch") == ("torch", "fp32")
    assert taken(tiny_model, "openvino", "fp32") == ("openvino", "fp32")
    assert machine.timings == []


def test_without_autotune_nothing_is_timed(tiny_model, machine, tmp_path):
    assert opened(tiny_model, autotune=False).name == "openvino"
    assert machine.timings == []
    assert not (tmp_path / "cache").exists()


def test_the_speed_of_a_runtime_is_that_of_its_best_batch(monkeypatch):
    now = [0.0]

    class Timed(Stub):
        def __call__(self, pixel_values, *, saliency=False):
            now[0] += next(seconds) * len(pixel_values)
            return super().__call__(pixel_values)

    seconds = iter([9, 9, 0.2, 0.1, 0.5, 0.3, 0.4, 0.05, *[1.0] * 100])  # a warm-up each, then in turns
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: now[0])
    runtimes_ = [Timed(OPENVINO, FP32), Timed(TORCH, FP32)]
    assert images_per_second(runtimes_, (3, *SIZE)) == pytest.approx([5, 20])


def test_real_runtimes_are_timed_and_the_choice_computes_the_model(tiny_model, monkeypatch, tmp_path):
    if importlib.util.find_spec("openvino") is None:
        monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path))
    chosen = opened(tiny_model, "auto", "fp32")
    pixel_values = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(chosen(pixel_values)[0], tiny_model(pixel_values).logits, atol=1e-4, rtol=0)
    [kept] = Path(tmp_path, "choices").iterdir()
    assert json.loads(kept.read_text())["runtime"] == chosen.name
