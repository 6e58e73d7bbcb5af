"""A model behind one call, computed by torch, ONNX Runtime or OpenVINO: pixel values in, logits and maps out."""

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import Precision, RuntimeName
from chexpert_hf.scoring.graphs.conversion import INPUT, OUTPUTS
from chexpert_hf.scoring.graphs.optional_libraries import import_onnxruntime, import_openvino

_LOGITS, _SALIENCY = OUTPUTS
_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

# Always said, for by itself OpenVINO takes bf16 wherever the processor has it. Graphs of fp16 and int8 weights compute
# the rest in float32, so that what was measured when they were exported holds on every processor.
_OPENVINO_HINTS: Mapping[Precision, str] = {
    Precision.FP32: "f32",
    Precision.BF16: "bf16",
    Precision.FP16: "f32",
    Precision.INT8: "f32",
}

MOST_SIDE_BY_SIDE = 8
"""Calls at once: each has tensors of its own."""

_ERRORS_ONLY = 3

# By the names of `torch.cpu.get_capabilities`: instructions that multiply bf16, not those that emulate it.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def torch_has_bf16() -> bool:
    """Whether this CPU multiplies bf16, as far as torch can tell."""
    # Of torch 2.9 and newer; older ones do not say.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def openvino_has_bf16() -> bool:
    """Whether OpenVINO can compute in bf16 on this CPU.

    Raises:
        GraphError: If OpenVINO is not installed.
    """
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class TorchRuntime:
    """PyTorch, on any of its devices; bf16 and fp16 by autocast.

    Args:
        model: Moved to the device, put into evaluation mode and laid out channels last, which convolutions prefer.
        precision: FP32, BF16 or FP16.
        device: Where to compute.
        num_threads: Of all of torch in this process, if given.
    """

    name = RuntimeName.TORCH.value

    def __init__(
        self,
        model: CheXpertForImageClassification,
        precision: Precision,
        device: torch.device,
        num_threads: int | None = None,
    ) -> None:
        self.precision, self.reason = precision.value, ""
        self.is_on_cpu = device.type == "cpu"
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._dtype = _AUTOCAST.get(precision)
        self._device = device
        self._model = model.to(device).eval()
        self._model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Float32 logits `(batch, num_labels)` and, on request, maps `(batch, num_labels, h, w)`, on the device."""
        values = pixel_values.to(self._device, self._model.dtype, memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            output = self._model(values, output_saliency=saliency)
        return output.logits.float(), output.saliency.float() if saliency else None

    def side_by_side(self) -> "Sequence[TorchRuntime]":
        """This one alone."""
        return [self]


class OpenVINORuntime:
    """A graph in OpenVINO, on the CPU; all threads work on one call.

    Args:
        path: The graph's `.xml` file.
        precision: FP32 or BF16 for a graph of float32 weights; FP16 or INT8 for one that was exported in it.
        num_threads: All cores if None.
    """

    name = RuntimeName.OPENVINO.value
    is_on_cpu = True

    def __init__(self, path: Path, precision: Precision, num_threads: int | None = None) -> None:
        openvino = import_openvino()
        self.precision, self.reason = precision.value, ""
        self._core = openvino.Core()
        self._graph = self._core.read_model(path)
        self._options = {"INFERENCE_PRECISION_HINT": _OPENVINO_HINTS[precision]}
        if num_threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = str(num_threads)
        self._shape = tuple(side.get_length() for side in list(self._graph.input(INPUT).partial_shape)[1:])
        self._request = self._compiled("LATENCY").create_infer_request()
        # A request holds the tensors of one call.
        self._lock = threading.Lock()
        self._streams: list[OpenVINORuntime] = []

    def _compiled(self, hint: str) -> Any:
        # Without OpenVINO's cache of compiled graphs. It saves .07 s where starting takes 5; it is not checked (one
        # flipped bit in it gave other scores without a word), sets the locale of the whole process while it writes, and
        # after a graph had come from it, a signal ended the process (OpenVINO 2026).
        options = {**self._options, "PERFORMANCE_HINT": hint, "PERFORMANCE_HINT_NUM_REQUESTS": str(MOST_SIDE_BY_SIDE)}
        return self._core.compile_model(self._graph, "CPU", options)

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Float32 logits `(batch, num_labels)` and, on request, maps `(batch, num_labels, h, w)`, on the CPU.

        Raises:
            ValueError: If the images are not of the graph's size.
        """
        values = _checked(pixel_values, self._shape).numpy()
        with self._lock:
            outputs = self._request.infer({INPUT: values}, share_inputs=True)  # the outputs are copies
        maps = torch.from_numpy(outputs[_SALIENCY]) if saliency else None
        return torch.from_numpy(outputs[_LOGITS]), maps

    def side_by_side(self) -> "Sequence[OpenVINORuntime]":
        """See `Runtime`; OpenVINO's streams. Compiled when they are first asked for."""
        with self._lock:
            if not self._streams:
                compiled = self._compiled("THROUGHPUT")
                count = min(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"), MOST_SIDE_BY_SIDE)
                self._streams = [self._with(compiled.create_infer_request()) for _ in range(count)]
            return self._streams if len(self._streams) > 1 else [self]

    def _with(self, request: Any) -> "OpenVINORuntime":
        other = copy.copy(self)
        other._request, other._lock, other._streams = request, threading.Lock(), [other]
        return other


class ONNXRuntime:
    """A graph in ONNX Runtime, on the CPU. Its sessions take calls from several threads.

    Args:
        path: The graph's `.onnx` file.
        precision: Of the graph's weights.
        num_threads: All cores if None.
    """

    name = RuntimeName.ONNX.value
    is_on_cpu = True

    def __init__(self, path: Path, precision: Precision, num_threads: int | None = None) -> None:
        onnxruntime = import_onnxruntime()
        self.precision, self.reason = precision.value, ""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Float32 logits `(batch, num_labels)` and, on request, maps `(batch, num_labels, h, w)`, on the CPU.

        Raises:
            ValueError: If the images are not of the graph's size.
        """
        values = _checked(pixel_values, self._shape).numpy()
        outputs = self._session.run(list(OUTPUTS) if saliency else [_LOGITS], {INPUT: values})
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1]) if saliency else None

    def side_by_side(self) -> "Sequence[ONNXRuntime]":
        """This one alone."""
        return [self]


def _checked(pixel_values: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(pixel_values.shape[1:]) != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but the graph was made for (batch, {expected})."
        )
    return pixel_values.detach().to("cpu", torch.float32).contiguous()
