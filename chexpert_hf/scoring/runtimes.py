"""What computes the scores: PyTorch, ONNX Runtime or OpenVINO behind one call, chosen by what is there.

`auto` is PyTorch on a GPU; on a CPU OpenVINO, else ONNX Runtime, else PyTorch, for in this order they are fast there.
Graphs for OpenVINO and ONNX Runtime are in the model folder (`chexpert-hf export`) or converted on first use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from chexpert_hf.errors import InputError
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import GraphError, Precision, RuntimeName, find_graph, fingerprint
from chexpert_hf.scoring.graphs.graph_cache import SESSIONS, converted_graph
from chexpert_hf.scoring.graphs.sessions import TorchRuntime, openvino_has_bf16, torch_has_bf16

__all__ = ["Precision", "Runtime", "RuntimeName", "open_runtime"]

_Choice = TypeVar("_Choice", RuntimeName, Precision)

_ON_CPU = (RuntimeName.OPENVINO, RuntimeName.ONNX, RuntimeName.TORCH)

_PRECISIONS = {
    RuntimeName.OPENVINO: {Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8},
    RuntimeName.ONNX: {Precision.FP32, Precision.FP16, Precision.INT8},
    RuntimeName.TORCH: {Precision.FP32, Precision.BF16, Precision.FP16},
}

_TITLES = {RuntimeName.OPENVINO: "OpenVINO", RuntimeName.ONNX: "ONNX Runtime", RuntimeName.TORCH: "PyTorch"}


class Runtime(Protocol):
    """A model that is ready to compute; several threads may call it at the same time.

    Attributes:
        name: "torch", "onnx" or "openvino".
        precision: "fp32", "bf16", "fp16" or "int8".
        reason: What was chosen and why, in a line for a user.
        is_on_cpu: Whether it computes on the cores that everything else needs, too.
    """

    name: str
    precision: str
    reason: str
    is_on_cpu: bool

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Scores a batch.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, from the image processor.
            saliency: Whether to return maps.

        Returns:
            Float32 logits `(batch, num_labels)` and maps `(batch, num_labels, h, w)` or None; on the CPU, or on the GPU
            if it computed them.
        """

    def side_by_side(self) -> "Sequence[Runtime]":
        """Runtimes of the same model that compute at the same time, each on its share of the processors.

        Called by a thread each, they do more together than this one, whose threads wait for each other at every layer
        and for whatever else runs; a single call takes longer. Only this one where there is no such thing.
        """


@dataclass(frozen=True)
class _Request:
    model: CheXpertForImageClassification
    folder: Path | None
    precision: Precision
    device: torch.device
    num_threads: int | None
    input_size: tuple[int, int]


def open_runtime(
    model: CheXpertForImageClassification,
    *,
    folder: Path | None,
    runtime: str = RuntimeName.AUTO.value,
    precision: str = Precision.AUTO.value,
    device: str | torch.device | None = None,
    num_threads: int | None = None,
    input_size: tuple[int, int],
) -> Runtime:
    """Makes a model ready to compute.

    `precision="auto"` is bf16 on a CPU that multiplies bf16 (with PyTorch and OpenVINO), else fp32. fp16 is PyTorch on
    a GPU, or an exported graph; int8 is always an exported graph.

    Args:
        model: The model. PyTorch computes with this very one: it is moved to the device.
        folder: The model folder, where exported graphs are looked for; None for a model that is in memory only.
        runtime: One of `RuntimeName`. "auto" takes the next one where one is missing or broken, and says so.
        precision: One of `Precision`.
        device: Where to compute; if None, a GPU where there is one and the runtime can use it.
        num_threads: On the CPU; all cores if None. PyTorch has one number for the whole process.
        input_size: (height, width) of the image processor, in pixels.

    Raises:
        InputError: If what was asked for does not exist, is not installed, or has not been exported.
    """
    wanted, number = _one_of(RuntimeName, runtime, "runtime"), _one_of(Precision, precision, "precision")
    if num_threads is not None and num_threads < 1:
        raise InputError(f"num_threads is {num_threads}, expected at least 1.")
    place = _device(device, wanted)
    request = _Request(model, folder, number, place, num_threads, input_size)
    passed_over = []
    for name in _candidates(wanted, number, place):
        try:
            opened = _open(name, request)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with an optional library, there is the next
            passed_over.append(f"{_TITLES[name]}: {_line(error)}")
        else:
            if passed_over:
                opened.reason += f". Passed over: {'; '.join(passed_over)}"
            opened.reason += "."
            return opened
    raise InputError(f"The model cannot be computed as asked. {'; '.join(passed_over)}.")


def _candidates(wanted: RuntimeName, precision: Precision, device: torch.device) -> list[RuntimeName]:
    names = [wanted] if wanted is not RuntimeName.AUTO else _ON_CPU if device.type == "cpu" else [RuntimeName.TORCH]
    able = [name for name in names if precision in _PRECISIONS[name] | {Precision.AUTO}]
    if not able:
        able_to = ", ".join(item.value for item in Precision if item in _PRECISIONS[names[0]])
        raise InputError(f"{_TITLES[names[0]]} does not compute in {precision.value}; expected one of: {able_to}.")
    return able


def _open(name: RuntimeName, request: _Request) -> Runtime:
    if name is RuntimeName.TORCH:
        return _open_torch(request)
    precision = request.precision
    if name is RuntimeName.OPENVINO:
        precision = _openvino_precision(precision)
    elif precision is Precision.AUTO:
        precision = Precision.FP32
    return _open_graph(name, precision, request)


def _open_torch(request: _Request) -> Runtime:
    precision, device = request.precision, request.device
    if precision is Precision.AUTO:
        # Not on a GPU: there the network waits for the files, and autocast was slower (README, Speed).
        precision = Precision.BF16 if device.type == "cpu" and torch_has_bf16() else Precision.FP32
    if precision is Precision.FP16 and device.type == "cpu":
        raise InputError("fp16 is for GPUs; on a CPU it is slower than fp32")
    opened = TorchRuntime(request.model, precision, device, request.num_threads)
    opened.reason = f"PyTorch in {precision.value} on {device}"
    return opened


def _openvino_precision(precision: Precision) -> Precision:
    if precision not in (Precision.AUTO, Precision.BF16):
        return precision
    if openvino_has_bf16():
        return Precision.BF16
    if precision is Precision.BF16:
        raise GraphError("this processor does not compute in bf16")
    return Precision.FP32


def _open_graph(name: RuntimeName, precision: Precision, request: _Request) -> Runtime:
    """From the model folder; if that has none that can be used, from the cache."""
    weights = Precision.FP32 if precision is Precision.BF16 else precision
    key = fingerprint(request.model)
    start = f"{_TITLES[name]} in {precision.value} on the CPU, with"
    note = ""
    if request.folder is not None:
        try:
            exported = find_graph(request.folder, name, weights, key, request.input_size)
            if exported is not None:
                opened = SESSIONS[name](exported, precision, request.num_threads)
                opened.reason = f"{start} the exported {exported.relative_to(request.folder).as_posix()}"
                return opened
        except Exception as error:  # noqa: BLE001 - a damaged graph makes its runtime raise anything
            note = f" ({_line(error)})"
    if weights is not Precision.FP32:
        command = f"chexpert-hf export {request.folder or 'MODEL'} --runtime {name.value} --precision {weights.value}"
        raise GraphError(f"there is no {weights.value} graph of this model{note}; make one: {command}")
    with converted_graph(request.model, name, key, request.input_size) as (path, origin):
        opened = SESSIONS[name](path, precision, request.num_threads)
    opened.reason = f"{start} {origin}{note}"
    return opened


def _device(device: str | torch.device | None, runtime: RuntimeName) -> torch.device:
    uses_gpu = runtime in (RuntimeName.AUTO, RuntimeName.TORCH)
    if device is None:
        if uses_gpu and torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if uses_gpu and torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"There is no device {device!r}; expected cpu, cuda, cuda:1, mps or the like.") from error
    if not uses_gpu and place.type != "cpu":
        raise InputError(f"{_TITLES[runtime]} computes on the CPU here, not on {device}; use the runtime torch.")
    return place


def _one_of(kind: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        expected = ", ".join(item.value for item in kind)
        raise InputError(f"Unknown {what} {value!r}; expected one of: {expected}.") from None


def _line(error: Exception) -> str:
    """The first line of what went wrong."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
