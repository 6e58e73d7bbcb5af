"""Graphs that were converted on first use, kept in the user's cache: laid out there as in a model folder.

A graph gets into the cache only if it gives the model's scores. Without a writable cache, graphs are temporary.
"""

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models import graph_files
from chexpert_hf.models.graph_files import GraphError, Precision, RuntimeName
from chexpert_hf.scoring.graphs.conversion import measure_parity, write_graph
from chexpert_hf.scoring.graphs.sessions import SESSIONS

PACKAGES = ("chexpert-hf", "torch", "transformers", "openvino", "nncf", "onnx", "onnxscript", "onnxruntime")
"""Libraries that a graph may depend on; their versions are part of a cache entry's name and of `export.json`."""

KEPT = 24
"""Graphs, the most recently used ones; one takes as much space as the model's weights in float32."""

_CHECKED_IMAGES = 2


def cache_folder() -> Path:
    """`$CHEXPERT_HF_CACHE`, else `chexpert-hf` in `$XDG_CACHE_HOME` or `~/.cache`. It may be deleted at any time."""
    if folder := os.environ.get("CHEXPERT_HF_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chexpert-hf"


@contextmanager
def converted_graph(
    model: CheXpertForImageClassification, runtime: RuntimeName, key: str, input_size: tuple[int, int]
) -> Iterator[tuple[Path, str]]:
    """A float32 graph of a model with the fingerprint `key`, from the cache or converted now, and its origin in words.

    The graph exists until the context ends.

    Raises:
        GraphError: If the graph does not give the model's scores, or a library for the conversion is not installed.
    """
    made_from = [runtime.value, key, *map(str, input_size), str(graph_files.versions_of(PACKAGES))]
    name = f"{runtime.value}-{sha256(' '.join(made_from).encode()).hexdigest()[:32]}"
    entry = cache_folder() / "graphs" / name
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
        _convert(model, runtime, key, input_size, folder)
        if is_kept:
            with suppress(OSError):  # another process was faster
                folder = folder.rename(entry)
            _delete_oldest(entry.parent)
        yield folder / graph_files.GRAPH_FILES[runtime, Precision.FP32], origin


def _convert(
    model: CheXpertForImageClassification, runtime: RuntimeName, key: str, input_size: tuple[int, int], folder: Path
) -> None:
    name = graph_files.GRAPH_FILES[runtime, Precision.FP32]
    write_graph(model, runtime, folder / name, input_size)
    reference = copy.deepcopy(model).cpu().float().eval()
    shape = (_CHECKED_IMAGES, model.config.num_channels, *input_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    parity = measure_parity(reference, SESSIONS[runtime](folder / name, Precision.FP32), noise)
    if excess := parity.excess(Precision.FP32):
        raise GraphError(f"the converted graph is not the model: {excess}")
    record = graph_files.GraphRecord(
        runtime.value, Precision.FP32.value, key, input_size, graph_files.hashes(folder, graph_files.files_of(name))
    )
    graph_files.write_records(folder, {name: record})


def _delete_oldest(folder: Path) -> None:
    """Deletes all entries of the cache but the most recently used ones."""
    ages = {}
    for entry in folder.glob("*-*"):
        with suppress(OSError):  # another process deleted it
            ages[entry] = entry.stat().st_mtime_ns
    for entry in sorted(ages, key=ages.__getitem__, reverse=True)[KEPT:]:
        shutil.rmtree(entry, ignore_errors=True)
