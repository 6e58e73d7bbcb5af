"""A model as a graph for OpenVINO or ONNX Runtime, and the graph's differences from the model.

A graph has one input `pixel_values` and two outputs `logits` and `saliency`. The batch is dynamic; height and width are
fixed, which lets the runtimes plan memory and choose kernels once, and which the image processor fixes anyway.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chexpert_hf.files import first_line
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import GraphError, Precision, RuntimeName
from chexpert_hf.scoring.graphs.optional_libraries import import_library

if TYPE_CHECKING:
    import onnx

INPUT = "pixel_values"
OUTPUTS = ("logits", "saliency")

BOUNDS: Mapping[Precision, tuple[str, float]] = {
    Precision.FP32: ("max_abs_logit_difference", 1e-4),
    Precision.BF16: ("max_abs_probability_difference", 0.01),
    Precision.FP16: ("max_abs_probability_difference", 0.01),
    Precision.INT8: ("max_abs_probability_difference", 0.03),
}
"""The field of `Parity` by which each precision is judged, and its bound, our choice: a float32 graph does the same
arithmetic in another order; .01 changes no reading, and .03 is for those who ask for int8."""

_COMPARED_BATCH = 8


class _TwoTensors(nn.Module):
    """The model with a tuple of tensors as output."""

    def __init__(self, model: CheXpertForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, output_saliency=True)
        return output.logits, output.saliency


def write_graph(
    model: CheXpertForImageClassification, runtime: RuntimeName, path: Path, input_size: tuple[int, int]
) -> None:
    """Converts a model, which stays as it is, to a float32 graph for ONNX or OPENVINO.

    Args:
        model: The model.
        runtime: ONNX or OPENVINO.
        path: Of the `.onnx` or `.xml` file; its folder is made.
        input_size: (height, width) in pixels.

    Raises:
        GraphError: If a library for the conversion is not installed.
    """
    shape = (model.config.num_channels, *input_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    module = _TwoTensors(copy.deepcopy(model).cpu().float()).eval()
    # Two images, since a batch of one is taken for a constant.
    example, dynamic = (torch.zeros(2, *shape),), ({0: torch.export.Dim("batch")},)
    # The exporters warn about themselves and not about the model; the result is checked by its numbers.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            program = torch.export.export(module, example, dynamic_shapes=dynamic)
        if runtime is RuntimeName.OPENVINO:
            _write_openvino(program, path, shape)
        else:
            _write_onnx(program, path)


def _write_openvino(program: torch.export.ExportedProgram, path: Path, shape: tuple[int, int, int]) -> None:
    openvino = import_library("openvino")
    graph = openvino.convert_model(program)
    graph.reshape({0: openvino.PartialShape([-1, *shape])})
    graph.inputs[0].set_names({INPUT})
    for output, name in zip(graph.outputs, OUTPUTS, strict=True):
        output.set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    for library in ("onnx", "onnxscript"):  # torch's exporter needs them, and says so only after a while
        import_library(library)
    exported: Any = torch.onnx.export(
        program, input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, external_data=False, verbose=False
    )
    graph = exported.model_proto
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    save_onnx(graph, path)


def save_onnx(graph: "onnx.ModelProto", path: Path) -> None:
    """Writes an ONNX graph without the exporter's stack traces, which name files of this machine.

    Raises:
        GraphError: If onnx's checker finds a fault in the graph.
    """
    import onnx

    for item in (graph, graph.graph, *graph.graph.node):
        item.ClearField("doc_string")
    nested = (graph.graph.node, graph.graph.initializer, graph.graph.value_info, graph.graph.input, graph.graph.output)
    for item in (graph, graph.graph, *(item for items in nested for item in items)):
        item.ClearField("metadata_props")
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError(
            f"The ONNX graph is not valid: {first_line(error)}; expected one that onnx.checker accepts"
        ) from error
    onnx.save(graph, path)


@dataclass(frozen=True)
class Parity:
    """Largest differences from the model in float32 on the CPU, over all observations.

    Attributes:
        num_images: The number of images compared.
        max_abs_probability_difference: In [0, 1].
        p99_abs_probability_difference: Within this are 99 % of the images, in [0, 1].
        max_abs_logit_difference: In logits.
        max_relative_saliency_difference: Of the maps, as a share of the largest value of any map.
    """

    num_images: int
    max_abs_probability_difference: float
    p99_abs_probability_difference: float
    max_abs_logit_difference: float
    max_relative_saliency_difference: float

    def excess(self, precision: Precision) -> str | None:
        """The difference beyond the precision's bound, in words; None if there is none."""
        name, bound = BOUNDS[precision]
        measured: float = getattr(self, name)
        if not all(math.isfinite(value) for value in vars(self).values()):
            return "difference that is not finite"
        if measured <= bound:
            return None
        return f"{name.replace('_', ' ')} of {measured:.2g} on {self.num_images} images, at most {bound:g} is allowed"


@torch.inference_mode()
def measure_parity(
    model: CheXpertForImageClassification,
    runtime: Callable[..., tuple[Tensor, Tensor | None]],
    pixel_values: Tensor,
) -> Parity:
    """Compares a runtime with its model, which is in float32 on the CPU and in evaluation mode, on `pixel_values`."""
    batches = pixel_values.split(_COMPARED_BATCH)
    expected = [model(batch, output_saliency=True) for batch in batches]
    wanted, wanted_maps = (torch.cat([output[name] for output in expected]) for name in ("logits", "saliency"))
    outputs = [runtime(batch, saliency=True) for batch in batches]
    got = torch.cat([logits for logits, _ in outputs])
    got_maps = torch.cat([maps for _, maps in outputs if maps is not None])
    largest = wanted_maps.abs().max().clamp(min=torch.finfo(wanted_maps.dtype).tiny)
    of_images = (got.sigmoid() - wanted.sigmoid()).abs().amax(dim=1)
    return Parity(
        num_images=len(pixel_values),
        max_abs_probability_difference=of_images.max().item(),
        p99_abs_probability_difference=of_images.quantile(0.99).item(),
        max_abs_logit_difference=(got - wanted).abs().max().item(),
        max_relative_saliency_difference=((got_maps - wanted_maps) / largest).abs().max().item(),
    )
