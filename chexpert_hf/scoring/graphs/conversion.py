"""A model as a graph for OpenVINO or ONNX Runtime: one input `pixel_values`, two outputs `logits` and `saliency`.

Both start from the same `torch.export` program. The batch is dynamic; height and width are fixed, which lets the
runtimes plan memory and choose kernels once, and which the image processor fixes anyway.
"""

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chexpert_hf.files import first_line
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import GraphError, RuntimeName
from chexpert_hf.scoring.graphs.optional_libraries import import_library

if TYPE_CHECKING:
    import onnx

INPUT = "pixel_values"
OUTPUTS = ("logits", "saliency")


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
