"""Runtimes: a model opened in PyTorch, ONNX Runtime or OpenVINO, which turns pixel values into logits and maps.

Optional libraries are imported here without their telemetry. As soon as they are imported, and without asking, OpenVINO
and NNCF report to Google Analytics and ONNX Runtime 1.32 to Microsoft, which no medical software may do.
"""

import copy
import importlib
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import GraphError, Precision, RuntimeName

INPUT = "pixel_values"
OUTPUTS = ("logits", "saliency")

_AUTOCAST = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
_ERRORS_ONLY = 3

MAX_PARALLEL = 8
"""Largest number of simultaneous calls of OpenVINO; each needs memory for its own tensors."""

# Images in one call of OpenVINO: the feature maps of more leave the processor's cache before the next layer reads them.
_OPENVINO_BATCH = 2
_OPENVINO_INT8_BATCH = 8

# Instructions that multiply bf16, not those that emulate it, by the names of `torch.cpu.get_capabilities`.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")

_LIBRARIES = {
    "openvino": ("OpenVINO", "openvino"),
    "nncf": ("NNCF", "openvino"),
    "onnxruntime": ("ONNX Runtime", "onnx"),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
}
"""For each module, the library's name and the extra of this package that installs it."""


def import_library(module: str) -> Any:
    """Import an optional library, such as "openvino", without its telemetry.

    `ORT_DISABLE_TELEMETRY=0` in the environment leaves ONNX Runtime's telemetry on. If the process has already imported
    OpenVINO by other means, OpenVINO's telemetry stays on.

    Raises:
        GraphError: If the library is not installed.
    """
    # This makes the import of that module fail; OpenVINO and NNCF go on without it.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # this is how an import is blocked
    # The function disable_telemetry_events comes too late: by then there is a device id in the user's cache folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    name, extra = _LIBRARIES[module]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GraphError(f'{name} is not installed: pip install "chexpert-hf[{extra}]"') from error


def torch_has_bf16(device: torch.device) -> bool:
    """Return whether a device is a CUDA GPU (Ampere or later) or a CPU with instructions that multiply bf16.

    For a CPU always False before torch 2.9, which cannot tell.
    """
    if device.type == "cuda":  # not by `torch.cuda.is_bf16_supported`, which counts emulation
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)


def openvino_has_bf16() -> bool:
    """Return whether OpenVINO can compute in bf16 on this CPU; GraphError if OpenVINO is not installed."""
    return "BF16" in import_library("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Runtime(ABC):
    """A model opened in PyTorch, ONNX Runtime or OpenVINO; calling it scores a batch, and any thread may call it.

    Attributes:
        name: "torch", "onnx" or "openvino".
        precision: "fp32", "bf16", "fp16" or "int8".
        reason: A line for the user: which runtime was chosen, and why.
        device: The device that computes; pixel values that are on it already are not copied.
        is_on_cpu: Whether this device is the CPU.
    """

    name: str
    device = torch.device("cpu")
    is_on_cpu = True

    def __init__(self, precision: Precision) -> None:
        self.precision, self.reason = precision.value, ""

    @abstractmethod
    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        """Score a batch.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, from the image processor.
            saliency: Whether to return maps.

        Returns:
            Float32 logits `(batch, num_labels)` and maps `(batch, num_labels, h, w)` or None, on the device that
            computed them.

        Raises:
            ValueError: If the runtime holds a graph for another number of channels, height or width.
        """

    def side_by_side(self) -> "Sequence[Runtime]":
        """Return runtimes of the same model to use at the same time, each in its own thread; by default only this one.

        Together they score more images per second than this one, whose threads wait for each other at every layer. A
        single call to one of them takes longer.
        """
        return [self]

    def compiled(self) -> "Runtime":
        """Return a runtime of the same model that is compiled on its first call, or this one if that gains nothing."""
        return self


@contextmanager
def _evaluation_mode(network: torch.nn.Module) -> Iterator[None]:
    """Context manager: put a network into evaluation mode; at the end, put it back as it was."""
    if not network.training:
        yield
        return
    trained = [module for module in network.modules() if module.training]  # others may be in evaluation mode on purpose
    network.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


class TorchRuntime(Runtime):
    """PyTorch, on any of its devices; bf16 and fp16 use autocast, or on a CUDA GPU a copy of the model in that type.

    The model is moved to the device and laid out channels last, which speeds up convolutions. It is put into evaluation
    mode, now and for each batch, in case it is trained in between.
    """

    name = RuntimeName.TORCH.value

    def __init__(self, model: CheXpertForImageClassification, precision: Precision, device: torch.device) -> None:
        super().__init__(precision)
        self.is_on_cpu = device.type == "cpu"
        self._dtype = _AUTOCAST.get(precision)
        self.device = device
        self._model: Any = model.to(device).eval()
        if device.type == "cuda" and self._dtype is not None:  # autocast would convert around every BatchNorm
            self._model, self._dtype = copy.deepcopy(model).to(self._dtype), None
        self._model.to(memory_format=torch.channels_last)
        self._weights, self._network = self._model.dtype, self._model

    @torch.inference_mode()
    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        values = pixel_values.to(self.device, self._weights, memory_format=torch.channels_last)
        with (
            torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None),
            _evaluation_mode(self._network),
        ):
            output = self._model(values, output_saliency=saliency)
        return output.logits.float(), output.saliency.float() if saliency else None

    def compiled(self) -> "TorchRuntime":
        """Return a runtime that uses `torch.compile`, to save memory traffic; this one if it is not on a CUDA GPU."""
        if self.device.type != "cuda":
            return self
        faster = copy.copy(self)
        faster._model = torch.compile(self._model)
        return faster


class OpenVINORuntime(Runtime):
    """A graph, an `.xml` file, in OpenVINO on the CPU. All of OpenVINO's threads work on one call; other calls wait.

    `precision` must fit the graph's weights: FP32 or BF16 for float32, FP16 for fp16, INT8 for int8.
    """

    name = RuntimeName.OPENVINO.value

    def __init__(self, path: Path, precision: Precision) -> None:
        super().__init__(precision)
        self._core = import_library("openvino").Core()
        self._graph = self._core.read_model(path)
        # Always set, since by default OpenVINO uses bf16 wherever the processor has it. Graphs with fp16 and int8
        # weights compute the rest in float32, so that the differences measured at export hold on every processor.
        self._hint = "bf16" if precision is Precision.BF16 else "f32"
        self._batch = _OPENVINO_INT8_BATCH if precision is Precision.INT8 else _OPENVINO_BATCH
        self._shape = tuple(side.get_length() for side in list(self._graph.input(INPUT).partial_shape)[1:])
        self._request = self._compiled("LATENCY").create_infer_request()
        # A request holds the tensors of one call.
        self._lock = threading.Lock()
        self._streams: list[OpenVINORuntime] = []

    def _compiled(self, hint: str) -> Any:
        # Without OpenVINO's cache of compiled graphs: it is not checked (a flipped bit silently gives other scores),
        # sets the locale of the whole process while it writes, and saves little.
        options = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "PERFORMANCE_HINT": hint,
            "PERFORMANCE_HINT_NUM_REQUESTS": str(MAX_PARALLEL),
        }
        return self._core.compile_model(self._graph, "CPU", options)

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        parts = _checked(pixel_values, self._shape).split(self._batch)
        with self._lock:  # the outputs are copies
            outputs = [self._request.infer({INPUT: part.numpy()}, share_inputs=True) for part in parts]
        logits, maps = (torch.cat([torch.from_numpy(output[name]) for output in outputs]) for name in OUTPUTS)
        return logits, maps if saliency else None

    def side_by_side(self) -> "Sequence[OpenVINORuntime]":
        """Return as many runtimes as OpenVINO advises, at most `MAX_PARALLEL`; they share one compiled graph."""
        with self._lock:
            if not self._streams:
                compiled = self._compiled("THROUGHPUT")
                count = min(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"), MAX_PARALLEL)
                self._streams = [copy.copy(self) for _ in range(count)]
                for stream in self._streams:
                    stream._request, stream._lock = compiled.create_infer_request(), threading.Lock()
                    stream._streams = [stream]
            return self._streams if len(self._streams) > 1 else [self]


class ONNXRuntime(Runtime):
    """A graph, an `.onnx` file, in ONNX Runtime on the CPU; `precision` is that of the graph's weights."""

    name = RuntimeName.ONNX.value

    def __init__(self, path: Path, precision: Precision) -> None:
        super().__init__(precision)
        onnxruntime = import_library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])

    def __call__(self, pixel_values: Tensor, *, saliency: bool = False) -> tuple[Tensor, Tensor | None]:
        values = _checked(pixel_values, self._shape).numpy()
        outputs = self._session.run(OUTPUTS if saliency else OUTPUTS[:1], {INPUT: values})
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1]) if saliency else None


def to_device(images: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack images of one shape into a batch on a device; a copy to a CUDA GPU runs while this thread goes on."""
    is_cuda = device.type == "cuda"
    batch = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, pin_memory=is_cuda)
    return torch.stack(list(images), out=batch).to(device, non_blocking=is_cuda)


def to_host(outputs: Sequence[tuple[Tensor, Tensor | None]]) -> Callable[[], list[tuple[Tensor, Tensor | None]]]:
    """Start copying outputs of runtimes to the CPU; return a function that waits for the copies and returns them."""

    def start(output: Tensor) -> Tensor:
        return output.to("cpu", non_blocking=output.is_cuda)

    copies = [(start(logits), None if maps is None else start(maps)) for logits, maps in outputs]
    devices = {logits.device for logits, _ in outputs if logits.is_cuda}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def wait() -> list[tuple[Tensor, Tensor | None]]:
        for event in events:
            event.synchronize()
        return copies

    return wait


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
"""The runtime class for each kind of graph."""
