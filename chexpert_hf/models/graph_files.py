"""Files of exported graphs in a model folder, and `export.json`, which records them.

A graph is a network in the file format of OpenVINO or ONNX Runtime. The files have the names that optimum-intel and
transformers.js look for. A graph is used only if it was made from the model's weights, for its input size, and its
files are unchanged.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from chexpert_hf.errors import InputError
from chexpert_hf.files import sha256_of, write_json
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

RECORD_FILE = "export.json"


class RuntimeName(str, Enum):
    """Library that computes the scores; with "auto", `open_runtime` chooses it."""

    AUTO = "auto"
    TORCH = "torch"
    ONNX = "onnx"
    OPENVINO = "openvino"


class Precision(str, Enum):
    """Number format in which the scores are computed; with "auto", `open_runtime` chooses it."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


GRAPH_FILES: Mapping[tuple[RuntimeName, Precision], str] = {
    (RuntimeName.OPENVINO, Precision.FP32): "openvino/openvino_model.xml",
    (RuntimeName.OPENVINO, Precision.FP16): "openvino/openvino_model_fp16.xml",
    (RuntimeName.OPENVINO, Precision.INT8): "openvino/openvino_model_int8.xml",
    (RuntimeName.ONNX, Precision.FP32): "onnx/model.onnx",
    (RuntimeName.ONNX, Precision.FP16): "onnx/model_fp16.onnx",
    (RuntimeName.ONNX, Precision.INT8): "onnx/model_quantized.onnx",
}


class GraphError(InputError):
    """A graph cannot be exported, found or used; the message gives the reason."""


@dataclass(frozen=True)
class GraphRecord:
    """The entry of one graph in `export.json`."""

    runtime: str
    precision: str
    model: str  # `fingerprint` of the exported model
    input_size: tuple[int, int]  # (height, width) in pixels
    sha256: Mapping[str, str | None]  # of each of the graph's files, by path in the model folder
    versions: Mapping[str, str] = field(default_factory=dict)  # of the libraries that exported the graph
    weights_sha256: str | None = None  # of the folder's `model.safetensors`, for use by other tools
    calibration: Mapping[str, Any] | None = None  # if int8: data set and number of the images it was calibrated on
    parity: Mapping[str, Any] | None = None  # from `measure_parity`: differences from the model at export


def fingerprint(model: CheXpertForImageClassification) -> str:
    """Return the SHA-256 of a model's weights and architecture; operating points and other records do not change it."""
    digest = hashlib.sha256(json.dumps(model.config.architecture, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # numpy has no bfloat16
    return digest.hexdigest()


def files_of(graph: str) -> tuple[str, ...]:
    """Return the files of a graph, given its path; OpenVINO stores the weights in a `.bin` file beside the `.xml`."""
    return (graph, f"{graph.removesuffix('.xml')}.bin") if graph.endswith(".xml") else (graph,)


def exported_files_for(runtime: str, precision: str) -> tuple[str, ...]:
    """Return the exported files, with `export.json`, that a runtime needs for fp16 or int8: paths in a model folder.

    With the runtime "auto", these are the files of both ONNX Runtime and OpenVINO. Empty for PyTorch and for other
    precisions, which need no exported files.
    """
    graphs = [
        name
        for (kind, number), name in GRAPH_FILES.items()
        if runtime in (RuntimeName.AUTO.value, kind.value)
        and number.value == precision
        and number is not Precision.FP32
    ]
    return (RECORD_FILE, *(file for graph in graphs for file in files_of(graph))) if graphs else ()


def find_graph(
    folder: Path, runtime: RuntimeName, precision: Precision, model: str, input_size: tuple[int, int]
) -> Path | None:
    """Return the path of a model's exported graph in a folder; None if there is no such file.

    `model` is the model's `fingerprint`, `input_size` is (height, width) in pixels.

    Raises:
        GraphError: If the graph belongs to other weights or another input size, is not in `export.json`, or was
            changed.
    """
    name = GRAPH_FILES[runtime, precision]
    if not (folder / name).exists():
        return None
    record = read_records(folder).get(name)
    if record is None:
        raise GraphError(f"{name} is not in {RECORD_FILE}, so its origin is unknown")
    if record.model != model:
        raise GraphError(f"{name} was made from other weights")
    if tuple(record.input_size) != tuple(input_size):
        made_for, wanted = (" x ".join(map(str, size)) for size in (record.input_size, input_size))
        raise GraphError(f"{name} is for {made_for} pixels and not for {wanted}")
    if hashes(folder, files_of(name)) != dict(record.sha256):
        raise GraphError(f"{name} is damaged: its files are not those that {RECORD_FILE} describes")
    return folder / name


def read_records(folder: Path) -> dict[str, GraphRecord]:
    """Return path of the graph -> its entry in a folder's `export.json`; {} without a file, GraphError if damaged."""
    try:
        text = (folder / RECORD_FILE).read_bytes()
    except OSError:
        return {}
    try:
        return {name: GraphRecord(**record) for name, record in json.loads(text)["graphs"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GraphError(f"{RECORD_FILE} is damaged") from error


def write_records(folder: Path, records: Mapping[str, GraphRecord]) -> None:
    """Write the entries, by the path of the graph, to a folder's `export.json`."""
    write_json(folder / RECORD_FILE, {"graphs": {name: asdict(record) for name, record in sorted(records.items())}})


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    """Return the SHA-256 of each named file of a folder; None for one that cannot be read."""
    return {name: sha256_of(folder / name) for name in names}


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed versions of some packages, without those that are not installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
