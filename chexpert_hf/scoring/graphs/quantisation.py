"""Convert float32 graphs to fp16 weights, or to int8 by post-training quantisation on images.

Everything after the last feature maps (pooling, head, maps) is computed in float32: it costs next to nothing, and the
scores need it, most of all where a label hierarchy multiplies probabilities. In int8 graphs for ONNX Runtime the first
convolutions stay in float32, too: their rounding errors reach every later layer.
"""

import copy
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import takewhile
from pathlib import Path
from threading import RLock, get_ident
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import RuntimeName
from chexpert_hf.scoring.graphs.conversion import save_onnx
from chexpert_hf.scoring.graphs.sessions import INPUT, import_library

if TYPE_CHECKING:
    import onnx

Images = NDArray[np.float32]

# First convolutions that stay in float32: DenseNet's first one and its first dense layer. OpenVINO is about a fifth
# faster with these in int8, too, for slightly larger differences from PyTorch.
_FLOAT_CONVOLUTIONS = {RuntimeName.ONNX: 3, RuntimeName.OPENVINO: 0}
_POOLING = ("ReduceMean", "GlobalAveragePool")  # the exporters' global average pooling, once in a graph
_EQUALISED_BATCH = 8
_MIN_RANGE = 0.01  # fraction of the largest range; a channel silent on these images may be active on others
_TINY = 1e-6

_quiet_lock = RLock()


@torch.no_grad()
def equalise(model: CheXpertForImageClassification, pixel_values: Tensor) -> CheXpertForImageClassification:
    """Return a copy of a model that suits int8 better: its outputs are the same, its channels have similar ranges.

    In int8, all channels of a feature map share one scale, so a channel of small values gets few levels. Here such a
    channel is multiplied by a factor s in a BatchNorm, and divided by s in the next convolution. The ReLU between the
    two allows this, since `relu(s * x) = s * relu(x)` for s > 0. The outputs change by rounding errors only.

    Ranges are measured on `pixel_values`, `(num_images, num_channels, height, width)`. A model whose backbone never has
    a BatchNorm, a ReLU and a convolution in this order is copied unchanged.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1, with ranges of activations measured on images.
    """
    equal = copy.deepcopy(model)
    pairs = equal.features.norms_before_convolutions()
    peaks: dict[nn.Module, Tensor] = {}

    def measure(convolution: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        peak = inputs[0].amax(dim=(0, 2, 3))  # (in_channels,)
        peaks[convolution] = torch.maximum(peaks.get(convolution, peak), peak)

    hooks = [convolution.register_forward_pre_hook(measure) for _, convolution in pairs]
    for batch in pixel_values.split(_EQUALISED_BATCH):
        equal(batch)
    for hook in hooks:
        hook.remove()
    for norm, convolution in pairs:
        weights = _floored(convolution.weight.abs().amax(dim=(0, 2, 3)))  # (in_channels,)
        factors = (weights / _floored(peaks[convolution])).sqrt()
        for parameter in norm.parameters():  # weight and bias
            parameter.mul_(factors)
        convolution.weight.div_(factors[:, None, None])
    return equal


def _floored(ranges: Tensor) -> Tensor:
    return ranges.clamp(min=max(ranges.max().item() * _MIN_RANGE, _TINY))


@contextmanager
def _quietly() -> Iterator[None]:
    """Context manager: hide standard output (NNCF's progress bars) and this thread's warnings by NNCF and ONNX Runtime.

    Standard output is redirected for the whole process, so one thread at a time may be inside.
    """
    thread, loggers = get_ident(), [logging.getLogger(), logging.getLogger("nncf")]

    def is_kept(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.WARNING

    with _quiet_lock, redirect_stdout(io.StringIO()):
        for logger in loggers:
            logger.addFilter(is_kept)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(is_kept)


@_quietly()
def halve_graph(runtime: RuntimeName, source: Path, target: Path) -> None:
    """Read a float32 graph from the file `source`, convert its weights to fp16, and write it to the file `target`.

    `runtime`, ONNX or OPENVINO, tells the format of both files.

    Raises:
        GraphError: If a library for the conversion is not installed.
    """
    if runtime is RuntimeName.OPENVINO:
        openvino = import_library("openvino")
        openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=True)
        return
    import_library("onnxruntime")
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = onnx.load(source)
    halved = convert_float_to_float16(graph, keep_io_types=True, node_block_list=_head(_onnx_nodes(graph)))
    # The conversion appends its casts behind the nodes that need them, and declares some of their types wrongly.
    del halved.graph.value_info[:]
    OnnxModel(halved).topological_sort()
    save_onnx(halved, target)


@_quietly()
def quantise_graph(runtime: RuntimeName, source: Path, target: Path, images: Images) -> None:
    """Read a float32 graph from the file `source`, convert its convolutions to int8, and write it to the file `target`.

    `runtime`, ONNX or OPENVINO, tells the format of both files. The ranges of the activations are measured on `images`,
    `(num_images, num_channels, height, width)`.

    Raises:
        GraphError: If a library for the conversion is not installed.
    """
    (_quantise_openvino if runtime is RuntimeName.OPENVINO else _quantise_onnx)(source, target, images)


def _quantise_openvino(source: Path, target: Path, images: Images) -> None:
    openvino, nncf = import_library("openvino"), import_library("nncf")
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    graph = openvino.Core().read_model(source)
    nodes = [
        _Node(
            node.get_friendly_name(),
            node.get_type_name(),
            [value.get_node().get_friendly_name() for value in node.input_values()],
            [node.get_friendly_name()],
        )
        for node in graph.get_ordered_ops()
    ]
    # NNCF quantises the inputs of BatchNorms, too; those of the first dense layer cost the most accuracy.
    first_layer = takewhile(lambda node: node.kind != "Concat", nodes)
    scales = [node.name for node in first_layer if node.kind in ("Multiply", "Add")]
    quantised = nncf.quantize(
        graph,
        nncf.Dataset(images, lambda image: image[None]),
        # Asymmetric activations: after a ReLU there is nothing below 0, after a BatchNorm there is.
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        # Not validated, since names of shape arithmetic are not in NNCF's view of the graph.
        ignored_scope=nncf.IgnoredScope(
            names=[*_float_convolutions(RuntimeName.OPENVINO, nodes), *scales, *_head(nodes)], validate=False
        ),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # By default a range is the mean over images of their extremes, which cuts off every image's peaks.
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            # The fix halves the weights of the first quantised layer, for processors without VNNI.
            overflow_fix=nncf.OverflowFix.DISABLE,
        ),
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)


def _quantise_onnx(source: Path, target: Path, images: Images) -> None:
    import_library("onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    feeds = ({INPUT: image[None]} for image in images)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Images] | None:
            return next(feeds, None)

    nodes = _onnx_nodes(onnx.load(source))
    kept = [*_float_convolutions(RuntimeName.ONNX, nodes), *_head(nodes)]
    quantised_outputs = {node.outputs[0] for node in nodes if node.kind == "Conv" and node.name not in kept}
    kept += [node.name for node in nodes if node.kind == "Relu" and node.inputs[0] not in quantised_outputs]
    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "quantised.onnx"
        quantize_static(
            source,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            # A ReLU behind a convolution becomes part of it, so that the negative half of the convolution's output
            # needs no levels. BatchNorm, its ReLU and Concat in int8 cost accuracy and time.
            op_types_to_quantize=["Conv", "Relu"],
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        save_onnx(onnx.load(quantised), target)


class _Node(NamedTuple):
    """An operation of type `kind` in a graph; `inputs` and `outputs` name tensors in ONNX, operations in OpenVINO."""

    name: str
    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]


def _onnx_nodes(graph: "onnx.ModelProto") -> list[_Node]:
    return [_Node(node.name, node.op_type, node.input, node.output) for node in graph.graph.node]


def _float_convolutions(runtime: RuntimeName, nodes: list[_Node]) -> list[str]:
    return [node.name for node in nodes if node.kind in ("Conv", "Convolution")][: _FLOAT_CONVOLUTIONS[runtime]]


def _head(nodes: list[_Node]) -> list[str]:
    """Return the names of all operations after the last feature maps; `nodes` must be in the order of computation."""
    pooling = [node for node in nodes if node.kind in _POOLING][-1]
    behind, names = {pooling.inputs[0]}, []
    for node in nodes:
        if behind.intersection(node.inputs) and node.kind != "Result":
            behind.update(node.outputs)
            names.append(node.name)
    return names
