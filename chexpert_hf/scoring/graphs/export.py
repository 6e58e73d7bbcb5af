"""Exports a model as a graph into its folder, or into a copy of it, and refuses a graph that differs from the model.

A graph is made and measured in a temporary folder on the same disk, then moved, so that it is written whole or not at
all.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image
from torch import Tensor

from chexpert_hf.errors import InputError
from chexpert_hf.files import new_folder, sha256_of
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models import graph_files
from chexpert_hf.models.graph_files import GRAPH_FILES, RECORD_FILE, GraphRecord, Precision, RuntimeName, files_of
from chexpert_hf.models.loading import load_model, load_processor
from chexpert_hf.models.model_files import renew_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.scoring.graphs.conversion import Parity, measure_parity, write_graph
from chexpert_hf.scoring.graphs.graph_cache import PACKAGES
from chexpert_hf.scoring.graphs.quantisation import equalise, halve_graph, quantise_graph
from chexpert_hf.scoring.graphs.sample_images import phantoms, radiographs, reference_phantom
from chexpert_hf.scoring.graphs.sessions import SESSIONS

CALIBRATION_IMAGES = 200
"""The number of images for quantisation to int8; half as many more are held out for the comparison."""

_REFERENCE_PHANTOMS = 16
_REFERENCE_SEED, _CALIBRATION_SEED = 7_000, 8_000
_WEIGHTS = "model.safetensors"

_ADVICE = {
    Precision.INT8: " Quantise on radiographs like those to be scored (--calibration FOLDER), or take --precision fp16."
}


@dataclass(frozen=True)
class ExportedGraph:
    """A graph that was written.

    Attributes:
        folder: The model folder that it is in.
        name: Its path in the folder.
        record: Its entry in `export.json`.
    """

    folder: Path
    name: str
    record: GraphRecord

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"folder": str(self.folder), "graph": self.name, **asdict(self.record)}


@dataclass(frozen=True)
class _Job:
    """The graph to make, and pixel values `(num_images, num_channels, height, width)` for comparing and quantising."""

    model: CheXpertForImageClassification
    runtime: RuntimeName
    precision: Precision
    input_size: tuple[int, int]
    reference: Tensor
    calibration: Tensor | None


def export_model(
    model: str | Path,
    runtime: str,
    precision: str = Precision.FP32.value,
    *,
    output: Path | None = None,
    calibration: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ExportedGraph:
    """Writes a graph of a model, and its differences from the model to `export.json`.

    Args:
        model: Model folder, or id of a repository.
        runtime: "onnx" or "openvino".
        precision: "fp32", "fp16" or "int8".
        output: The model folder itself if None. Any other becomes a complete copy of it; one that is such a copy
            already gets the graph.
        calibration: A CheXpert folder, or any folder of radiographs, for quantisation to int8; phantoms if None.
        say: Gets a line at the start of each stage.

    Raises:
        InputError: If the model or the images cannot be read, the folder holds something else or cannot be written, a
            library is missing, or the graph differs from the model by more than `conversion.BOUNDS` allow.
    """
    kind = next((kind for kind in GRAPH_FILES if kind == (runtime, precision)), None)
    if kind is None:
        known = ", ".join(f"{name.value} in {number.value}" for name, number in GRAPH_FILES)
        raise InputError(f"There are no graphs for {runtime} in {precision}; expected one of: {known}.")
    if calibration is not None and kind[1] is not Precision.INT8:
        raise InputError(f"Images to calibrate on are for int8; {precision} needs none.")
    source = model_folder(model, files=None)
    network = load_model(source, name=str(model)).float().eval()
    target = _target(model, source, output)
    processor = load_processor(source, name=str(model))
    size = dict(processor.size)
    if not size.get("height") or not size.get("width"):
        raise InputError(f"The image processor's size is {size}; a graph needs a fixed height and width.")
    with _staging(target) as staging:
        images, data = _images(source, kind[1], processor, calibration, say)
        values: Tensor = processor(images, return_tensors="pt")["pixel_values"]
        count = len(images) // 3 if data else len(images)
        job = _Job(network, *kind, (size["height"], size["width"]), values[:count], values[count:] if data else None)
        parity = _make(job, staging / "graph", say)
        name = GRAPH_FILES[kind]
        record = GraphRecord(
            runtime=runtime,
            precision=precision,
            model=graph_files.fingerprint(network),
            input_size=job.input_size,
            sha256=graph_files.hashes(staging / "graph", files_of(name)),
            versions=graph_files.versions_of(PACKAGES),
            weights_sha256=sha256_of(source / _WEIGHTS),
            calibration={"data": data, "num_images": len(images) - count} if data else None,
            parity=asdict(parity),
        )
        if _holds_something(target):
            _add(staging / "graph", name, record, target)
        else:
            with new_folder(target) as copy:
                # Training's checkpoints and hidden files, such as version control, are no part of a model.
                ignored = shutil.ignore_patterns("checkpoints", ".*")
                shutil.copytree(source, copy, ignore=ignored, dirs_exist_ok=True)
                _add(staging / "graph", name, record, copy)
    return ExportedGraph(target, name, record)


def _target(model: str | Path, source: Path, output: Path | None) -> Path:
    if output is None:
        if not Path(model).is_dir():
            raise InputError(f"{model} is not a folder; name one for the copy of the repository with the graph.")
        return source
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; expected a folder for the copy of the model.")
    if _holds_something(output) and sha256_of(output / _WEIGHTS) != sha256_of(source / _WEIGHTS):
        raise InputError(f"{output} holds something else than a copy of {model}; expected a new folder.")
    return output


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's disk."""
    place = target if _holds_something(target) else target.absolute().parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=place, prefix=".export-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror}; name another folder for a copy.") from error
    with folder as name:
        yield Path(name)


def _images(
    source: Path,
    precision: Precision,
    processor: CheXpertImageProcessor,
    calibration: Path | None,
    say: Callable[[str], None],
) -> tuple[list[Image.Image], str | None]:
    """Images to compare on; for int8 three times as many, two thirds of them to quantise on, and their origin."""
    if precision is not Precision.INT8:
        return reference_phantom(source) + phantoms(_REFERENCE_PHANTOMS, seed=_REFERENCE_SEED), None
    count = CALIBRATION_IMAGES + CALIBRATION_IMAGES // 2
    if calibration is None:
        say(f"Drawing {count} phantoms to quantise on and to compare on")
        return phantoms(count, seed=_CALIBRATION_SEED), "phantoms"
    say(f"Reading radiographs of {calibration} to quantise on and to compare on")
    return radiographs(calibration, count, target_size=processor.longest_side), calibration.resolve().name


def _make(job: _Job, folder: Path, say: Callable[[str], None]) -> Parity:
    """Writes the graph below a folder, and measures its differences from the model."""
    say(f"Converting to {job.runtime.value}, {job.precision.value}")
    graph = folder / GRAPH_FILES[job.runtime, job.precision]
    plain = folder.parent / "fp32" / GRAPH_FILES[job.runtime, Precision.FP32]
    source = job.model if job.calibration is None else equalise(job.model, job.calibration)
    write_graph(source, job.runtime, graph if job.precision is Precision.FP32 else plain, job.input_size)
    if job.precision is Precision.FP16:
        halve_graph(job.runtime, plain, graph)
    elif job.calibration is not None:
        quantise_graph(job.runtime, plain, graph, job.calibration.numpy())
    say(f"Comparing with PyTorch on {len(job.reference)} images")
    parity = measure_parity(job.model, SESSIONS[job.runtime](graph, job.precision), job.reference)
    if excess := parity.excess(job.precision):
        raise InputError(
            f"The {job.runtime.value} graph in {job.precision.value} is too far from the model and was not kept: a "
            f"{excess}.{_ADVICE.get(job.precision, '')}"
        )
    return parity


def _add(made: Path, name: str, record: GraphRecord, folder: Path) -> None:
    """Moves a graph into a model folder; its record comes last, since a graph without one is not used."""
    records = graph_files.read_records(folder)
    for file in files_of(name):
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(made / file, folder / file)
    graph_files.write_records(folder, {**records, name: record})
    renew_checksums(folder, [*files_of(name), RECORD_FILE])
