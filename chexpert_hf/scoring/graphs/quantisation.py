"""Smaller graphs from float32 ones: fp16 weights, or int8 by post-training quantisation on images.

Everything behind the last feature maps (pooling, head, maps) stays in float32: it costs next to nothing, and the scores
and the label hierarchy's quotients of probabilities need it. So do the first convolution and the first dense layer:
every later layer computes with their rounding errors, and they are a twentieth of the arithmetic.
"""

import copy
import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import RuntimeName
from chexpert_hf.scoring.graphs.conversion import INPUT, save_onnx
from chexpert_hf.scoring.graphs.optional_libraries import import_library

if TYPE_CHECKING:
    import onnx

Images = NDArray[np.float32]

# The first convolution, and the two of the first dense layer.
_FLOAT_CONVOLUTIONS = 3

# Global average pooling as the exporters write it; it comes once, right behind the last feature maps.
_POOLING = ("ReduceMean", "GlobalAveragePool")

_EQUALISED_BATCH = 8
_SMALLEST = 0.01  # of the largest range; a channel silent on these images may be active on others
_TINY = 1e-6


@torch.no_grad()
def equalise(model: CheXpertForImageClassification, pixel_values: Tensor) -> CheXpertForImageClassification:
    """Returns a model with the same outputs, up to rounding, and channels of similar ranges, which int8 rounds less.

    All channels of an activation share one scale in int8, so a channel of small values gets few levels. Between a
    BatchNorm and the convolution behind its ReLU, each channel can be multiplied by a positive factor on one side and
    divided by it on the other: `relu(s * x) = s * relu(x)`. Channels are measured on `pixel_values`, `(num_images,
    num_channels, height, width)`.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1, with ranges of activations measured on images.
    """
    equal = copy.deepcopy(model)
    layers = [layer for layer in equal.features.modules() if isinstance(layer, (nn.BatchNorm2d, nn.Conv2d))]
    pairs = [
        pair for pair in pairwise(layers) if isinstance(pair[0], nn.BatchNorm2d) and isinstance(pair[1], nn.Conv2d)
    ]
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
    return ranges.clamp(min=max(ranges.max().item() * _SMALLEST, _TINY))


def halve_graph(runtime: RuntimeName, source: Path, target: Path) -> None:
    """Writes a float32 graph for ONNX or OPENVINO with fp16 weights.

    Raises:
        GraphError: If a library for that is not installed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quietly():
        if runtime is RuntimeName.OPENVINO:
            openvino = import_library("openvino")
            openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=True)
        else:
            _halve_onnx(source, target)


def quantise_graph(runtime: RuntimeName, source: Path, target: Path, images: Images) -> None:
    """Writes a float32 graph for ONNX or OPENVINO with convolutions in int8.

    The ranges of the activations are measured on `images`, `(num_images, num_channels, height, width)`.

    Raises:
        GraphError: If a library for that is not installed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quietly():
        (_quantise_openvino if runtime is RuntimeName.OPENVINO else _quantise_onnx)(source, target, images)


@contextmanager
def _quietly() -> Iterator[None]:
    """Hides NNCF's progress bars on standard output, and ONNX Runtime's advice on the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _quantise_openvino(source: Path, target: Path, images: Images) -> None:
    openvino, nncf = import_library("openvino"), import_library("nncf")
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    graph = openvino.Core().read_model(source)
    quantised = nncf.quantize(
        graph,
        nncf.Dataset(images, lambda image: image[None]),
        # Asymmetric activations: after a ReLU there is nothing below 0, after a BatchNorm there is.
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        # Not validated, since names of shape arithmetic are not in NNCF's view of the graph.
        ignored_scope=nncf.IgnoredScope(names=[*_openvino_start(graph), *_openvino_head(graph)], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            # By default a range is the mean over images of their extremes, which cuts off every image's peaks.
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            # The fix halves the weights of the first quantised layer, for processors without VNNI.
            overflow_fix=nncf.OverflowFix.DISABLE,
        ),
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)


def _halve_onnx(source: Path, target: Path) -> None:
    import_library("onnxruntime")
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = onnx.load(source)
    halved = convert_float_to_float16(graph, keep_io_types=True, node_block_list=_onnx_head(graph))
    # The conversion appends its casts behind the nodes that need them, and declares some of their types wrongly.
    del halved.graph.value_info[:]
    OnnxModel(halved).topological_sort()
    save_onnx(halved, target)


def _quantise_onnx(source: Path, target: Path, images: Images) -> None:
    import_library("onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Images] | None:
            image = next(self.images, None)
            return None if image is None else {INPUT: image[None]}

    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "quantised.onnx"
        quantize_static(
            source,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            # A ReLU behind a convolution becomes part of it: half the range of the convolution's output, which is
            # negative, needs no levels then. BatchNorm, its ReLU and Concat in int8 cost accuracy and time.
            op_types_to_quantize=["Conv", "Relu"],
            nodes_to_exclude=_onnx_float_nodes(onnx.load(source)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        save_onnx(onnx.load(quantised), target)


def _openvino_start(graph: Any) -> list[str]:
    """Names of the first convolutions, and of the BatchNorms of the first dense block, whose input NNCF quantises."""
    nodes = graph.get_ordered_ops()
    convolutions = [node for node in nodes if node.get_type_name() == "Convolution"][:_FLOAT_CONVOLUTIONS]
    first_block = takewhile(lambda node: node.get_type_name() != "AvgPool", nodes)
    scales = [node for node in first_block if node.get_type_name() in ("Multiply", "Add")]
    return [node.get_friendly_name() for node in (*convolutions, *scales)]


def _openvino_head(graph: Any) -> list[str]:
    """Names of the operations behind the last feature maps."""
    nodes = graph.get_ordered_ops()
    pooling = [node for node in nodes if node.get_type_name() in _POOLING][-1]
    behind, names = {pooling.input_value(0).get_node().get_friendly_name()}, []
    for node in nodes:
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        if behind & sources and node.get_type_name() != "Result":
            behind.add(node.get_friendly_name())
            names.append(node.get_friendly_name())
    return names


def _onnx_float_nodes(graph: "onnx.ModelProto") -> list[str]:
    """Names of the convolutions and ReLUs that stay in float32."""
    nodes = graph.graph.node  # in the order of computation
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    kept = [*convolutions[:_FLOAT_CONVOLUTIONS], *_onnx_head(graph)]
    quantised = {node.output[0] for node in nodes if node.op_type == "Conv" and node.name not in kept}
    return kept + [node.name for node in nodes if node.op_type == "Relu" and node.input[0] not in quantised]


def _onnx_head(graph: "onnx.ModelProto") -> list[str]:
    """Names of the nodes behind the last feature maps."""
    pooling = [node for node in graph.graph.node if node.op_type in _POOLING][-1]
    behind, names = {pooling.input[0]}, []
    for node in graph.graph.node:  # in the order of computation
        if behind.intersection(node.input):
            behind.update(node.output)
            names.append(node.name)
    return names
