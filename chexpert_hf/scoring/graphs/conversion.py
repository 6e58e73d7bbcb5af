"""Convert models to OpenVINO or ONNX graphs, compare a graph with its model, and keep converted graphs in a cache.

A graph is the network in the runtime's own file format. It has one input `pixel_values` and two outputs `logits` and
`saliency`. The batch size is free. Height and width are fixed: the image processor always gives the same, and runtimes
can plan memory and choose kernels once.
"""

import copy
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chexpert_hf.files import first_line
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models import graph_files
from chexpert_hf.models.graph_files import GRAPH_FILES, GraphError, GraphRecord, Precision, RuntimeName
from chexpert_hf.scoring.graphs.sessions import INPUT, OUTPUTS, SESSIONS, import_library

if TYPE_CHECKING:
    import onnx

BOUNDS: Mapping[Precision, float] = {Precision.FP32: 1e-4, Precision.FP16: 0.01, Precision.INT8: 0.03}
"""Largest accepted difference of a graph from its model: of any logit for fp32, of any probability for fp16 and int8.
Our choice."""

PACKAGES = ("chexpert-hf", "torch", "transformers", "openvino", "nncf", "onnx", "onnxscript", "onnxruntime")
"""Libraries that a graph may depend on; their versions are part of a cache entry's name and of `export.json`."""

MAX_CACHED = 24
"""Number of graphs that the cache keeps, the most recently used; each takes as much space as the weights in float32."""

_COMPARED_BATCH = 8
_CHECKED_IMAGES = 2


class _TwoTensors(nn.Module):
    """The model with the tuple `(logits, saliency)` as its output, which exporters need."""

    def __init__(self, model: CheXpertForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values, output_saliency=True)
        return output.logits, output.saliency


def write_graph(
    model: CheXpertForImageClassification, runtime: RuntimeName, path: Path, input_size: tuple[int, int]
) -> None:
    """Convert a copy of a model to a float32 graph, and write it to a file.

    Args:
        model: The model, which is not changed.
        runtime: ONNX or OPENVINO.
        path: Path of the `.onnx` or `.xml` file; its folder is created. OpenVINO also writes a `.bin` file beside it.
        input_size: (height, width) in pixels.

    Raises:
        GraphError: If a library for the conversion is not installed, or the ONNX graph is not valid.
    """
    shape = (model.config.num_channels, *input_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    module = _TwoTensors(copy.deepcopy(model).cpu().float()).eval()
    # Two images, since the exporter would take a batch size of 1 for a constant.
    example, dynamic = (torch.zeros(2, *shape),), ({0: torch.export.Dim("batch")},)
    # The exporters' warnings are not about the model, and callers compare the graph with it.
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
    for library in ("onnx", "onnxscript"):  # torch's exporter needs both, and would fail late without them
        import_library(library)
    exported: Any = torch.onnx.export(
        program, input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, external_data=False, verbose=False
    )
    graph = exported.model_proto
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    save_onnx(graph, path)


def save_onnx(graph: "onnx.ModelProto", path: Path) -> None:
    """Write an ONNX graph without the exporter's stack traces, which name files of this machine.

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


@torch.inference_mode()
def measure_parity(
    model: CheXpertForImageClassification, runtime: Callable[..., tuple[Tensor, Tensor | None]], pixel_values: Tensor
) -> dict[str, float]:
    """Compare the outputs of a runtime with those of its model.

    Args:
        model: In float32 on the CPU, in evaluation mode.
        runtime: The same model opened in a runtime.
        pixel_values: `(num_images, num_channels, height, width)`.

    Returns:
        `num_images`; the largest differences `max_abs_logit_difference`, `max_abs_probability_difference` and
        `max_relative_saliency_difference` (as a fraction of the largest absolute value in the model's maps); and
        `p99_abs_probability_difference`, the 99th percentile over images of each image's largest difference.
    """
    batches = pixel_values.split(_COMPARED_BATCH)
    expected = [model(batch, output_saliency=True) for batch in batches]
    wanted, wanted_maps = (torch.cat([output[name] for output in expected]) for name in ("logits", "saliency"))
    outputs = [runtime(batch, saliency=True) for batch in batches]
    got = torch.cat([logits for logits, _ in outputs])
    got_maps = torch.cat([maps for _, maps in outputs if maps is not None])
    largest = wanted_maps.abs().max().clamp(min=torch.finfo(wanted_maps.dtype).tiny)
    of_images = (got.sigmoid() - wanted.sigmoid()).abs().amax(dim=1)
    return {
        "num_images": len(pixel_values),
        "max_abs_probability_difference": of_images.max().item(),
        "p99_abs_probability_difference": of_images.quantile(0.99).item(),
        "max_abs_logit_difference": (got - wanted).abs().max().item(),
        "max_relative_saliency_difference": ((got_maps - wanted_maps) / largest).abs().max().item(),
    }


def excess(parity: Mapping[str, float], precision: Precision) -> str | None:
    """Return a text if a graph's scores differ too much from its model's; None if they do not.

    `parity` are the differences, from `measure_parity`; none may be infinite or NaN. `BOUNDS` has the largest accepted
    one for the precision: of logits in fp32, else of probabilities.
    """
    if not all(map(math.isfinite, parity.values())):
        return f"difference that is not finite, on {parity['num_images']} images"
    name = "logit" if precision is Precision.FP32 else "probability"
    measured, bound = parity[f"max_abs_{name}_difference"], BOUNDS[precision]
    if measured <= bound:
        return None
    return f"max abs {name} difference of {measured:.2g} on {parity['num_images']} images, at most {bound:g} is allowed"


def cache_folder() -> Path:
    """Return `$CHEXPERT_HF_CACHE`, else `chexpert-hf` in `$XDG_CACHE_HOME` or `~/.cache`. Deleting it is safe."""
    if folder := os.environ.get("CHEXPERT_HF_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chexpert-hf"


@contextmanager
def converted_graph(
    model: CheXpertForImageClassification, runtime: RuntimeName, key: str, input_size: tuple[int, int]
) -> Iterator[tuple[Path, str]]:
    """Context manager: give the path of a model's float32 graph, and a text that says where the graph comes from.

    The graph is from the user's cache, or it is converted now, compared with the model and put into the cache. If the
    cache cannot be written, the graph is deleted when the context ends. `key` is the model's `fingerprint`.

    Raises:
        GraphError: If the graph does not give the model's scores, or a library for the conversion is not installed.
    """
    made_from = [runtime.value, key, *map(str, input_size), str(graph_files.versions_of(PACKAGES))]
    entry = cache_folder() / "graphs" / f"{runtime.value}-{sha256(' '.join(made_from).encode()).hexdigest()[:32]}"
    try:
        found = graph_files.find_graph(entry, runtime, Precision.FP32, key, input_size)
    except GraphError:  # damaged: it is converted again
        shutil.rmtree(entry, ignore_errors=True)
        found = None
    if found:
        with suppress(OSError):  # somebody else's cache
            os.utime(entry)
        yield found, "a graph converted earlier"
        return
    origin, is_kept = "a graph converted just now", True
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        staging = TemporaryDirectory(dir=entry.parent, prefix=".", ignore_cleanup_errors=True)
    except OSError as error:
        origin, is_kept = f"{origin}, which is not kept ({cache_folder()} cannot be written: {error.strerror})", False
        staging = TemporaryDirectory(ignore_cleanup_errors=True)
    # Cleaning up may fail on Windows, where a runtime still maps the file.
    with staging as place:
        folder = Path(place) / "graph"
        name = GRAPH_FILES[runtime, Precision.FP32]
        write_graph(model, runtime, folder / name, input_size)
        reference = copy.deepcopy(model).cpu().float().eval()
        shape = (_CHECKED_IMAGES, model.config.num_channels, *input_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        parity = measure_parity(reference, SESSIONS[runtime](folder / name, Precision.FP32), noise)
        if difference := excess(parity, Precision.FP32):
            raise GraphError(f"the converted graph is not the model: {difference}")
        hashes = graph_files.hashes(folder, graph_files.files_of(name))
        record = GraphRecord(runtime.value, Precision.FP32.value, key, input_size, hashes)
        graph_files.write_records(folder, {name: record})
        if is_kept:
            with suppress(OSError):  # another process was faster
                folder = folder.rename(entry)
            _delete_oldest(entry.parent)
        yield folder / name, origin


def _delete_oldest(folder: Path) -> None:
    """Delete all graphs in the cache's folder of graphs except the `MAX_CACHED` most recently used."""
    ages = {}
    for entry in folder.glob("*-*"):
        with suppress(OSError):  # another process deleted it
            ages[entry] = entry.stat().st_mtime_ns
    for entry in sorted(ages, key=ages.__getitem__, reverse=True)[MAX_CACHED:]:
        shutil.rmtree(entry, ignore_errors=True)
