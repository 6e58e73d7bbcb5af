"""Graphs that were converted on first use, kept in the user's cache: laid out there as in a model folder.

A graph gets into the cache only after it has given the model's scores. A cache that cannot be written is done without.
"""

import copy
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import (
    GRAPH_FILES,
    GraphError,
    GraphRecord,
    Precision,
    RuntimeName,
    files_of,
    find_graph,
    hashes,
    versions_of,
    write_records,
)
from chexpert_hf.scoring.graphs.cache_folder import cache_folder, keep_newest
from chexpert_hf.scoring.graphs.conversion import write_graph
from chexpert_hf.scoring.graphs.parity import measure_parity
from chexpert_hf.scoring.graphs.sessions import ONNXRuntime, OpenVINORuntime

SESSIONS: Mapping[RuntimeName, type[OpenVINORuntime] | type[ONNXRuntime]] = {
    RuntimeName.OPENVINO: OpenVINORuntime,
    RuntimeName.ONNX: ONNXRuntime,
}

PACKAGES = ("chexpert-hf", "torch", "transformers", "openvino", "nncf", "onnx", "onnxscript", "onnxruntime")
"""What a graph may depend on; their versions are part of a cache entry's name and of `export.json`."""

KEPT = 24
"""Graphs, those used last; one takes as much room as the model's weights in float32."""

_CHECKED_IMAGES = 2


@contextmanager
def converted_graph(
    model: CheXpertForImageClassification, runtime: RuntimeName, key: str, input_size: tuple[int, int]
) -> Iterator[tuple[Path, str]]:
    """A float32 graph of a model, from the cache or converted now; it is there until the context ends.

    Args:
        model: Stays as it is.
        runtime: ONNX or OPENVINO.
        key: The model's fingerprint.
        input_size: (height, width) in pixels.

    Yields:
        The graph, and where it comes from, for a user.

    Raises:
        GraphError: If the graph does not give the model's scores, or a library that converting takes is not installed.
    """
    entry = cache_folder() / "graphs" / _entry_name(runtime, key, input_size)
    if found := _find(entry, runtime, key, input_size):
        _mark_as_used(entry)
        yield found, "a graph converted earlier"
        return
    origin = "a graph converted just now"
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        staging = TemporaryDirectory(dir=entry.parent, prefix=".", ignore_cleanup_errors=True)
    except OSError as error:
        origin += f", which is not kept ({cache_folder()} cannot be written: {error.strerror})"
        staging = TemporaryDirectory(ignore_cleanup_errors=True)
    # Cleaning up may fail on Windows, where a runtime still maps the file.
    with staging as name:
        folder = Path(name) / "graph"
        _convert(model, runtime, key, input_size, folder)
        if Path(name).parent == entry.parent and _move(folder, entry):
            folder = entry
            keep_newest(entry.parent, "*-*", KEPT)
        yield folder / GRAPH_FILES[runtime, Precision.FP32], origin


def _entry_name(runtime: RuntimeName, key: str, input_size: tuple[int, int]) -> str:
    made_from = [runtime.value, key, *map(str, input_size), str(versions_of(PACKAGES))]
    return f"{runtime.value}-{sha256(' '.join(made_from).encode()).hexdigest()[:32]}"


def _find(entry: Path, runtime: RuntimeName, key: str, input_size: tuple[int, int]) -> Path | None:
    try:
        return find_graph(entry, runtime, Precision.FP32, key, input_size)
    except GraphError:  # damaged: it is converted again
        shutil.rmtree(entry, ignore_errors=True)
        return None


def _convert(
    model: CheXpertForImageClassification, runtime: RuntimeName, key: str, input_size: tuple[int, int], folder: Path
) -> None:
    name = GRAPH_FILES[runtime, Precision.FP32]
    write_graph(model, runtime, folder / name, input_size)
    reference = copy.deepcopy(model).cpu().float().eval()
    noise = torch.randn(
        _CHECKED_IMAGES, model.config.num_channels, *input_size, generator=torch.Generator().manual_seed(0)
    )
    parity = measure_parity(reference, SESSIONS[runtime](folder / name, Precision.FP32), noise)
    if excess := parity.excess(Precision.FP32):
        raise GraphError(f"the converted graph is not the model: {excess}")
    record = GraphRecord(runtime.value, Precision.FP32.value, key, input_size, hashes(folder, files_of(name)))
    write_records(folder, {name: record})


def _mark_as_used(entry: Path) -> None:
    with suppress(OSError):  # somebody else's cache
        os.utime(entry)


def _move(folder: Path, entry: Path) -> bool:
    """Whether the folder was moved into its place; it is not if another process was faster."""
    try:
        folder.rename(entry)
    except OSError:
        return False
    return True
