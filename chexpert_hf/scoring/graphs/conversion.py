"""A model as a graph for OpenVINO or ONNX Runtime: one input `pixel_values`, two outputs `logits` and `saliency`.

Both start from the same `torch.export` program. The batch is dynamic; height and width are fixed, which lets the
runtimes plan memory and choose kernels once, and which the image processor fixes anyway.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import GraphError, RuntimeName
from chexpert_hf.scoring.graphs.optional_libraries import import_openvino

if TYPE_CHECKING:
    import onnx

INPUT = "pixel_values"
OUTPUTS = ("logits", "saliency")


class _TwoTensors(nn.Module):
    """The model as graphs know it: tensors in, tensors out."""

    def __init__(self, model: CheXpertForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, output_saliency=True)
        return output.logits, output.saliency


def write_graph(
    model: CheXpertForImageClassification, runtime: RuntimeName, path: Path, input_size: tuple[int, int]
) -> None:
    """Converts a model to a float32 graph.

    Args:
        model: Stays as it is.
        runtime: ONNX or OPENVINO.
        path: Of the `.onnx` or `.xml` file; its folder is made.
        input_size: (height, width) in pixels.

    Raises:
        GraphError: If a library that converting takes is not installed.
    """
    shape = (model.config.num_channels, *input_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _without_warnings():
        program = _trace(model, shape)
        if runtime is RuntimeName.OPENVINO:
            _write_openvino(program, path, shape)
        else:
            _write_onnx(program, path)


def save_onnx(graph: "onnx.ModelProto", path: Path) -> None:
    """Writes a valid ONNX graph.

    Args:
        graph: Loses what the exporter noted of its origin.
        path: Of the `.onnx` file.

    Raises:
        GraphError: If onnx's checker finds a fault in the graph.
    """
    import onnx

    _remove_origin(graph)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        line = str(error).strip().splitlines()[0]
        raise GraphError(f"The ONNX graph is not valid: {line}; expected one that onnx.checker accepts") from error
    onnx.save(graph, path)


def _remove_origin(graph: "onnx.ModelProto") -> None:
    """Removes what the exporter notes of its origin: torch's stack traces name the files of this machine."""
    for node in graph.graph.node:
        node.ClearField("doc_string")
    graph.ClearField("doc_string")
    graph.graph.ClearField("doc_string")
    nested = (graph.graph.node, graph.graph.initializer, graph.graph.value_info, graph.graph.input, graph.graph.output)
    for item in (graph, graph.graph, *(item for items in nested for item in items)):
        del item.metadata_props[:]


def _trace(model: CheXpertForImageClassification, shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    module = _TwoTensors(copy.deepcopy(model).cpu().float()).eval()
    # Of 2, since a batch of 1 is taken for a constant.
    example = torch.zeros(2, *shape)
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _write_openvino(program: torch.export.ExportedProgram, path: Path, shape: tuple[int, int, int]) -> None:
    openvino = import_openvino()
    graph = openvino.convert_model(program)
    graph.reshape({0: openvino.PartialShape([-1, *shape])})
    graph.inputs[0].set_names({INPUT})
    for output, name in zip(graph.outputs, OUTPUTS, strict=True):
        output.set_names({name})
    openvino.save_model(graph, path, compress_to_fp16=False)


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so only after a while
    except ImportError as error:
        raise GraphError('Converting to ONNX needs onnx and onnxscript: pip install "chexpert-hf[onnx]"') from error
    exported: Any = torch.onnx.export(
        program, input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, external_data=False, verbose=False
    )
    graph = exported.model_proto
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    save_onnx(graph, path)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The exporters warn about themselves and not about the model; what comes out is checked by its numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
