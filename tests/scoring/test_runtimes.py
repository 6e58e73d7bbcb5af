"""Each runtime against the model itself in PyTorch, and which runtime is chosen when."""

import copy
import importlib.util
import json
import locale
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification
from chexpert_hf.errors import InputError
from chexpert_hf.labels import PARENTS
from chexpert_hf.models import graph_files
from chexpert_hf.models.graph_files import fingerprint
from chexpert_hf.scoring import runtimes
from chexpert_hf.scoring.graphs import conversion, sessions
from chexpert_hf.scoring.graphs.conversion import cache_folder, converted_graph
from chexpert_hf.scoring.graphs.sessions import torch_has_bf16
from chexpert_hf.scoring.runtimes import RuntimeName, open_runtime

from ..conftest import TINY

SIZE = (64, 64)
MULTICLASS = {"Cardiomegaly": "u-multiclass", "Pleural Effusion": "u-multiclass"}
MODELS = {
    "linear head": {},
    "hidden head, u-multiclass, one channel": {
        "head_hidden_size": 8,
        "uncertainty_policies": MULTICLASS,
        "num_channels": 1,
    },
    "hierarchy": {"label_parents": PARENTS},
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory) -> Path:
    """One for all tests, since converting takes a second or two; what lies in it is found by the model's hash."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(shared_cache, monkeypatch):
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(shared_cache))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch, use_cache) -> Path:
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(tiny_model, shared_cache, monkeypatch, openvino) -> list:
    """The sizes that `tiny_model` is converted for from here on; a copy of its graph stands for a conversion."""
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(shared_cache))
    with converted_graph(tiny_model, RuntimeName.OPENVINO, fingerprint(tiny_model), SIZE) as (path, _):
        files = [(path.with_suffix(suffix), path.with_suffix(suffix).read_bytes()) for suffix in (".xml", ".bin")]
    sizes = []

    def copied(model, runtime, path, input_size):
        sizes.append(input_size)
        path.parent.mkdir(parents=True)
        for file, content in files:
            (path.parent / file.name).write_bytes(content)

    monkeypatch.setattr(conversion, "write_graph", copied)
    return sizes


@pytest.fixture
def openvino():
    skip_without("openvino")


@pytest.fixture
def onnx():
    skip_without("onnx", "onnxscript", "onnxruntime")


def skip_without(*packages: str) -> None:
    for package in packages:  # not imported here, where they would call home
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def warmed(**options) -> CheXpertForImageClassification:
    """A tiny model whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, **options)).train()
    with torch.no_grad():
        for _ in range(5):
            model(images(8, model.config.num_channels))
    return model.eval()


def images(batch: int, channels: int = 3, seed: int = 0, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def opened(model, name: str = "auto", precision: str = "auto", folder: Path | None = None, **options):
    options = {"input_size": SIZE, "device": None, "autotune": False, **options}  # for which see test_autotune.py
    return open_runtime(model, folder=folder, runtime=name, precision=precision, **options)


@torch.no_grad()
def expected(model, pixel_values: torch.Tensor):
    output = model(pixel_values, output_saliency=True)
    return output.logits, output.saliency


def largest_difference(runtime, model, pixel_values: torch.Tensor) -> tuple[float, float]:
    """Of the logits, and of the maps relative to their largest value."""
    logits, maps = runtime(pixel_values, saliency=True)
    wanted, wanted_maps = expected(model, pixel_values)
    assert (logits.dtype, maps.dtype) == (torch.float32, torch.float32)
    assert (logits.shape, maps.shape) == (wanted.shape, wanted_maps.shape)
    return (logits - wanted).abs().max().item(), ((maps - wanted_maps).abs().max() / wanted_maps.abs().max()).item()


@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_graph_in_fp32_gives_the_models_logits_and_maps_at_every_batch_size(name, options, request):
    request.getfixturevalue(name)
    model = warmed(**options) if options else request.getfixturevalue("tiny_model")
    runtime = opened(model, name, "fp32")
    assert (runtime.name, runtime.precision) == (name, "fp32")
    for batch in (1, 3, 8, 2):
        differences = largest_difference(runtime, model, images(batch, model.config.num_channels, seed=batch))
        assert max(differences) < 1e-4, batch


@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize("bias", [14.0, 20.0, 60.0])
def test_maps_of_a_graph_under_a_hierarchy_are_right_for_high_logits(name, bias, request):
    request.getfixturevalue(name)
    model = warmed(label_parents=PARENTS)
    torch.nn.init.constant_(model.classifier.bias, bias)
    _, difference = largest_difference(opened(model, name, "fp32"), model, images(3))
    assert difference < 1e-4


def test_torch_in_fp32_is_the_model(tiny_model):
    runtime = opened(copy.deepcopy(tiny_model), "torch", "fp32", device="cpu")
    assert max(largest_difference(runtime, tiny_model, images(3))) < 1e-5


@pytest.mark.parametrize("name", ["openvino", "torch"])
@pytest.mark.parametrize("options", [{}, {"label_parents": PARENTS}], ids=["linear head", "hierarchy"])
def test_bf16_is_within_a_hundredth_of_the_models_probability_and_not_fp32(name, options, request):
    if name == "openvino":
        request.getfixturevalue(name)
        if not runtimes.openvino_has_bf16():
            pytest.skip("this processor has no bf16 instructions")
    model = warmed(**options) if options else request.getfixturevalue("tiny_model")
    runtime = opened(copy.deepcopy(model), name, "bf16", device="cpu")
    got, wanted = runtime(images(8))[0].sigmoid(), expected(model, images(8))[0].sigmoid()
    assert 1e-6 < (got - wanted).abs().max() < 0.01
    assert runtime.precision == "bf16"


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
def test_there_are_no_maps_unless_asked_for(name, tiny_model, request):
    if name != "torch":
        request.getfixturevalue(name)
    assert opened(tiny_model, name, "fp32", device="cpu")(images(1))[1] is None


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_images_of_another_size_than_the_graphs_are_refused(name, tiny_model, request):
    request.getfixturevalue(name)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\), but the graph was made for \(batch, 3, 64, 64\)"):
        opened(tiny_model, name)(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["torch", "onnx", "openvino"])
def test_threads_that_call_at_once_get_their_own_scores(name, tiny_model, request):
    if name != "torch":
        request.getfixturevalue(name)
    runtime = opened(tiny_model, name, "fp32", device="cpu")
    batches = [images(1 + number % 5, seed=number) for number in range(12)]
    wanted = [runtime(batch, saliency=True) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda batch: runtime(batch, saliency=True), batches))
    for (logits, maps), (wanted_logits, wanted_maps) in zip(got, wanted, strict=True):
        torch.testing.assert_close(logits, wanted_logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps, wanted_maps, atol=1e-5, rtol=1e-5)


def test_scores_stay_what_they_are_after_the_next_call(tiny_model, openvino):
    runtime = opened(tiny_model, "openvino", "fp32")
    first = runtime(images(2), saliency=True)
    kept = [tensor.clone() for tensor in first]
    runtime(images(2, seed=1), saliency=True)
    assert all(torch.equal(one, other) for one, other in zip(first, kept, strict=True))


def test_changing_batch_sizes_do_not_cost_memory(tiny_model, openvino):
    psutil = pytest.importorskip("psutil")
    runtime = opened(tiny_model, "openvino", "fp32")

    def after_all_sizes() -> int:
        for batch in [*range(1, 17)] * 3:
            runtime(images(batch))
        return psutil.Process().memory_info().rss

    first = after_all_sizes()
    assert after_all_sizes() - first < 20_000_000


def test_side_by_side_openvino_gives_the_bits_that_it_gives_alone(tiny_model, openvino):
    runtime = opened(tiny_model, "openvino", "fp32")
    streams = runtime.side_by_side()
    if len(streams) == 1:
        pytest.skip("OpenVINO computes one call at a time on this machine")
    assert runtime.side_by_side() is streams  # compiled once
    assert [stream.side_by_side() for stream in streams] == [[stream] for stream in streams]
    inputs = [images(4, seed=seed) for seed in range(12)]
    expected = [runtime(values, saliency=True) for values in inputs]
    with ThreadPoolExecutor(len(streams)) as pool:
        found = list(pool.map(lambda pair: pair[0](pair[1], saliency=True), zip(streams * 12, inputs, strict=False)))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_what_does_not_compute_side_by_side_says_so(tiny_model, onnx, monkeypatch):
    for runtime in (opened(tiny_model, "torch", device="cpu"), opened(tiny_model, "onnx")):
        assert runtime.side_by_side() == [runtime]
    monkeypatch.setattr(sessions, "MAX_PARALLEL", 1)
    one_call = opened(tiny_model, "openvino") if importlib.util.find_spec("openvino") else None
    assert one_call is None or one_call.side_by_side() == [one_call]


# Which runtime is chosen


def test_auto_on_a_cpu_is_openvino_then_onnx_then_torch(tiny_model, on_a_cpu, openvino, onnx, monkeypatch):
    assert opened(tiny_model).name == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    second = opened(tiny_model)
    assert second.name == "onnx"
    assert 'Skipped: OpenVINO: OpenVINO is not installed: pip install "chexpert-hf[openvino]"' in second.reason
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    third = opened(tiny_model)
    assert third.name == "torch"
    assert 'pip install "chexpert-hf[onnx]"' in third.reason
    assert third(images(1))[0].shape == (1, 14)


def test_auto_passes_over_a_broken_library_and_says_so(tiny_model, on_a_cpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", ModuleType("openvino"))  # without anything in it
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    runtime = opened(tiny_model)
    assert runtime.name == "torch"
    assert "OpenVINO: module 'openvino' has no attribute 'Core'" in runtime.reason
    with pytest.raises(InputError, match="OpenVINO: module 'openvino' has no attribute"):
        opened(tiny_model, "openvino")


def test_a_conversion_that_is_not_the_model_is_not_used(tiny_model, openvino, monkeypatch, empty_cache):
    def wrong(model, runtime, path, input_size):
        other = copy.deepcopy(model)
        other.classifier.bias.data += 0.01
        return write_graph(other, runtime, path, input_size)

    write_graph = conversion.write_graph
    monkeypatch.setattr(conversion, "write_graph", wrong)
    with pytest.raises(InputError, match=r"not the model: max abs logit difference of 0\.01 on 2 images"):
        opened(tiny_model, "openvino")
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_auto_on_a_gpu_is_torch_in_bf16_where_it_has_it(capability, precision, tiny_model, monkeypatch, openvino):
    assert opened(tiny_model, "openvino").is_on_cpu  # converted, which needs the real torch.cuda
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert opened(tiny_model, "openvino").is_on_cpu
    places = []
    monkeypatch.setattr(tiny_model, "to", lambda *place, **_: places.append(place) or tiny_model)
    runtime = opened(tiny_model)
    assert (runtime.name, runtime.is_on_cpu, places[0]) == ("torch", False, (torch.device("cuda"),))
    assert (runtime.precision, (torch.bfloat16,) in places) == (precision, precision == "bf16")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_precision_is_bf16_where_the_processor_has_it(has_bf16, tiny_model, monkeypatch, openvino):
    monkeypatch.setattr(runtimes, "openvino_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(runtimes, "torch_has_bf16", lambda _device: has_bf16)
    wanted = "bf16" if has_bf16 else "fp32"
    assert opened(tiny_model, "openvino").precision == wanted
    assert opened(tiny_model, "torch", device="cpu").precision == wanted


def test_openvino_without_bf16_is_passed_over_where_bf16_is_asked_for(tiny_model, on_a_cpu, monkeypatch, openvino):
    monkeypatch.setattr(runtimes, "openvino_has_bf16", lambda: False)
    runtime = opened(tiny_model, precision="bf16")
    assert (runtime.name, runtime.precision) == ("torch", "bf16")
    assert "this processor does not compute in bf16" in runtime.reason


@pytest.mark.parametrize(
    ("capabilities", "has_bf16"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({"bf16": True}, True)],
)
def test_torch_has_bf16_by_the_processors_instructions(capabilities, has_bf16, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert torch_has_bf16(torch.device("cpu")) == has_bf16


def test_auto_on_onnx_is_fp32(tiny_model, onnx):
    assert opened(tiny_model, "onnx").precision == "fp32"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tflite"}, "Unknown runtime 'tflite'; expected one of: auto, torch, onnx, openvino"),
        ({"precision": "int4"}, "Unknown precision 'int4'; expected one of: auto, fp32, bf16, fp16, int8"),
        ({"name": "onnx", "precision": "bf16"}, "ONNX Runtime does not compute in bf16"),
        ({"name": "torch", "precision": "int8"}, "PyTorch does not compute in int8; expected one of: fp32, bf16, fp16"),
        ({"name": "torch", "precision": "fp16", "device": "cpu"}, "fp16 is for GPUs"),
        ({"name": "openvino", "device": "cuda"}, "OpenVINO computes on the CPU here, not on cuda"),
        ({"device": "graphics"}, "There is no device 'graphics'"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(options, message, tiny_model):
    with pytest.raises(InputError, match=message) as caught:
        opened(tiny_model, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_runtime_that_is_not_installed_names_the_pip_command(package, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.removesuffix("runtime")
    with pytest.raises(InputError, match=rf'pip install "chexpert-hf\[{name}\]"'):
        opened(tiny_model, name, "fp32")


@pytest.mark.parametrize("name", ["auto", "onnx", "openvino"])
def test_int8_that_was_not_exported_names_the_command_that_does(name, tiny_model, tiny_folder, request):
    for package in ("onnx", "openvino"):
        request.getfixturevalue(package)
    runtime = "openvino" if name == "auto" else name
    with pytest.raises(InputError, match=rf"export --model {tiny_folder} --runtime {runtime} --precision int8"):
        opened(tiny_model, name, "int8", tiny_folder, device="cpu")


# The cache


def test_a_model_is_converted_once(tiny_model, conversions, empty_cache):
    assert "converted just now" in opened(tiny_model, "openvino").reason
    again = opened(copy.deepcopy(tiny_model), "openvino", "fp32")
    assert "converted earlier" in again.reason
    assert conversions == [SIZE]
    assert max(largest_difference(again, tiny_model, images(2))) < 1e-4


def test_changed_weights_and_another_size_or_version_are_converted_anew(tiny_model, conversions, monkeypatch):
    opened(tiny_model, "openvino")
    assert conversions == []
    monkeypatch.setattr(graph_files, "versions_of", lambda packages: {"openvino": "2030.1"})
    opened(tiny_model, "openvino")
    assert conversions == [SIZE]
    monkeypatch.undo()
    changed = copy.deepcopy(tiny_model)
    changed.classifier.bias.data[3] += 1
    runtime = opened(changed, "openvino", "fp32")
    assert max(largest_difference(runtime, changed, images(2))) < 1e-4


def test_another_size_is_converted_anew(tiny_model, conversions):
    with pytest.raises(InputError, match="the graph was made for"):  # as the copy is not for this size
        opened(tiny_model, "openvino", input_size=(32, 32))
    assert conversions == [(32, 32)]


@pytest.mark.parametrize("suffix", [".bin", ".xml", "export.json"])
def test_a_damaged_graph_in_the_cache_is_converted_again(suffix, tiny_model, conversions, empty_cache):
    opened(tiny_model, "openvino")
    [file] = [path for path in empty_cache.rglob("*") if path.name.endswith(suffix)]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    runtime = opened(tiny_model, "openvino", "fp32")
    assert len(conversions) == 2
    assert max(largest_difference(runtime, tiny_model, images(2))) < 1e-4
    assert "converted earlier" in opened(tiny_model, "openvino").reason


def test_a_cache_that_cannot_be_written_is_done_without(tiny_model, conversions, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "file"))
    runtime = opened(tiny_model, "openvino", "fp32")
    assert "which is not kept" in runtime.reason
    assert "cannot be written" in runtime.reason
    assert max(largest_difference(runtime, tiny_model, images(2))) < 1e-4


def test_conversions_at_the_same_time_leave_one_whole_graph(tiny_model, conversions, empty_cache):
    encoding = locale.getpreferredencoding(do_setlocale=False)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: opened(tiny_model, "openvino", "fp32"), range(4)))
    assert locale.getpreferredencoding(do_setlocale=False) == encoding
    for runtime in found:
        assert max(largest_difference(runtime, tiny_model, images(2))) < 1e-4
    assert len(list((empty_cache / "graphs").iterdir())) == 1
    assert "converted earlier" in opened(tiny_model, "openvino").reason


def test_the_cache_keeps_what_was_used_last(tiny_model, conversions, empty_cache, monkeypatch):
    monkeypatch.setattr(conversion, "MAX_CACHED", 2)
    for name, seconds in [("openvino-old", 1), ("onnx-older", 0), ("onnx-used", 9)]:
        (empty_cache / "graphs" / name).mkdir(parents=True)
        os.utime(empty_cache / "graphs" / name, (seconds, seconds))
    opened(tiny_model, "openvino")
    kept = {path.name for path in (empty_cache / "graphs").iterdir()}
    assert (len(kept), "onnx-used" in kept) == (2, True)
    assert "converted earlier" in opened(tiny_model, "openvino").reason


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv("CHEXPERT_HF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/chexpert-hf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/chexpert-hf")


def test_a_fingerprint_is_of_weights_and_architecture_and_nothing_else(tiny_model):
    loaded = copy.deepcopy(tiny_model)
    loaded.config.operating_points = {"Edema": 0.2}
    assert fingerprint(loaded) == fingerprint(tiny_model)
    loaded.config.label_parents = PARENTS
    assert fingerprint(loaded) != fingerprint(tiny_model)
    changed = copy.deepcopy(tiny_model)
    changed.features.norm5.running_mean[0] += 1e-3
    assert fingerprint(changed) != fingerprint(tiny_model)
    assert fingerprint(tiny_model.to(torch.bfloat16)) != fingerprint(changed)


def test_no_runtime_calls_home(tiny_folder, openvino, onnx, tmp_path):
    """In a fresh process: telemetry is decided on when the libraries are imported."""
    code = f"""
import json, socket, sys
from pathlib import Path
tried = []
socket.getaddrinfo = lambda *address, **options: tried.append(str(address[0])) or []
from chexpert_hf import CheXpertForImageClassification
from chexpert_hf.scoring.runtimes import RuntimeName, open_runtime
folder = Path({str(tiny_folder)!r})
model = CheXpertForImageClassification.from_pretrained(folder)
names = [open_runtime(model, folder=folder, runtime=name, input_size=(64, 64)).name for name in ("openvino", "onnx")]
print(json.dumps([names, tried, sys.modules["openvino_telemetry"]]))
"""
    environment = {  # with the shared cache, whose graphs are there already
        **{name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")},
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home" / ".cache"),
    }
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=environment)
    assert json.loads(answer.stdout.splitlines()[-1]) == [["openvino", "onnx"], [], None]
    left = [path.name for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not {"deviceid", "onnxruntime.db", "openvino_ga_cid", "stats"} & set(left)
