"""A model behind one call, computed by torch, ONNX Runtime or OpenVINO: pixel values in, logits and maps out."""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import Precision, RuntimeName
from chexpert_hf.scoring.graphs.conversion import INPUT, OUTPUTS
from chexpert_hf.scoring.graphs.optional_libraries import import_library

_LOGITS, _SALIENCY = OUTPUTS
_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}

MOST_SIDE_BY_SIDE = 8
"""Calls at once: each has tensors of its own."""

_ERRORS_ONLY = 3

# By the names of `torch.cpu.get_capabilities`: instructions that multiply bf16, not those that emulate it.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def torch_has_bf16() -> bool:
    """Whether this CPU multiplies bf16, as far as torch can tell."""
    # Only torch 2.9 and newer report this.
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def openvino_has_bf16() -> bool:
    """Whether OpenVINO can compute in bf16 on this CPU."""
    return "BF16" in import_library("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Runtime(ABC):
    """A model that is ready to compute; several threads may call it at the same time.

    Attributes:
        name: "torch", "onnx" or "openvino".
        precision: "fp32", "bf16", "fp16" or "int8".
        reason: Which runtime was chosen and why, in a line for a user.
        is_on_cpu: Whether it computes on the CPU's cores.
    """

    name: str
    is_on_cpu = True

    def __init__(self, precision: Precision) -> None:
        self.precision, self.reason = precision.value, ""

    @abstractmethod
    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Scores a batch.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, from the image processor.
            saliency: Whether to return maps.

        Returns:
            Float32 logits `(batch, num_labels)` and maps `(batch, num_labels, h, w)` or None; on the CPU, or on the GPU
            if it computed them.

        Raises:
            ValueError: If a graph was made for images of another size.
        """

    def side_by_side(self) -> "Sequence[Runtime]":
        """Runtimes of the same model, one for each of several threads, that compute at the same time.

        Together they are faster than this one, whose threads wait for each other at every layer; a single call takes
        longer. This one alone where the library has no such mode.
        """
        return [self]


class TorchRuntime(Runtime):
    """PyTorch, on any of its devices; bf16 and fp16 by autocast.

    The model is moved to the device, put into evaluation mode and laid out channels last, which convolutions prefer.
    `num_threads`, if given, is that of all of torch in this process.
    """

    name = RuntimeName.TORCH.value

    def __init__(
        self,
        model: CheXpertForImageClassification,
        precision: Precision,
        device: torch.device,
        num_threads: int | None = None,
    ) -> None:
        super().__init__(precision)
        self.is_on_cpu = device.type == "cpu"
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._dtype = _AUTOCAST.get(precision)
        self._device = device
        self._model = model.to(device).eval()
        self._model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """See `Runtime`."""
        values = pixel_values.to(self._device, self._model.dtype, memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            output = self._model(values, output_saliency=saliency)
        return output.logits.float(), output.saliency.float() if saliency else None


class OpenVINORuntime(Runtime):
    """A graph, an `.xml` file, in OpenVINO on the CPU; all threads work on one call.

    The precision is FP32 or BF16 for a graph of float32 weights; FP16 or INT8 for one that was exported in it.
    """

    name = RuntimeName.OPENVINO.value

    def __init__(self, path: Path, precision: Precision, num_threads: int | None = None) -> None:
        super().__init__(precision)
        self._core = import_library("openvino").Core()
        self._graph = self._core.read_model(path)
        # Always set, since by default OpenVINO takes bf16 wherever the processor has it. Graphs of fp16 and int8
        # weights compute the rest in float32, so that the differences measured at export hold on every processor.
        self._options = {"INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32"}
        if num_threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = str(num_threads)
        self._shape = tuple(side.get_length() for side in list(self._graph.input(INPUT).partial_shape)[1:])
        self._request = self._compiled("LATENCY").create_infer_request()
        # A request holds the tensors of one call.
        self._lock = threading.Lock()
        self._streams: list[OpenVINORuntime] = []

    def _compiled(self, hint: str) -> Any:
        # Without OpenVINO's cache of compiled graphs: it is not checked (a flipped bit silently gives other scores),
        # sets the locale of the whole process while it writes, and saves little.
        options = {**self._options, "PERFORMANCE_HINT": hint, "PERFORMANCE_HINT_NUM_REQUESTS": str(MOST_SIDE_BY_SIDE)}
        return self._core.compile_model(self._graph, "CPU", options)

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """See `Runtime`."""
        values = _checked(pixel_values, self._shape).numpy()
        with self._lock:
            outputs = self._request.infer({INPUT: values}, share_inputs=True)  # the outputs are copies
        maps = torch.from_numpy(outputs[_SALIENCY]) if saliency else None
        return torch.from_numpy(outputs[_LOGITS]), maps

    def side_by_side(self) -> "Sequence[OpenVINORuntime]":
        """See `Runtime`; OpenVINO's streams, compiled on first use."""
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


class ONNXRuntime(Runtime):
    """A graph, an `.onnx` file, in ONNX Runtime on the CPU; the precision is that of its weights."""

    name = RuntimeName.ONNX.value

    def __init__(self, path: Path, precision: Precision, num_threads: int | None = None) -> None:
        super().__init__(precision)
        onnxruntime = import_library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """See `Runtime`."""
        values = _checked(pixel_values, self._shape).numpy()
        outputs = self._session.run(list(OUTPUTS) if saliency else [_LOGITS], {INPUT: values})
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1]) if saliency else None


def _checked(pixel_values: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(pixel_values.shape[1:]) != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but the graph was made for (batch, {expected})."
        )
    return pixel_values.detach().to("cpu", torch.float32).contiguous()


SESSIONS: Mapping[RuntimeName, type[OpenVINORuntime] | type[ONNXRuntime]] = {
    RuntimeName.OPENVINO: OpenVINORuntime,
    RuntimeName.ONNX: ONNXRuntime,
}
"""The runtimes of graphs."""
