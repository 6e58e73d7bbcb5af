"""Exports a model as a graph into its folder, or into a copy of it, and refuses a graph that is not the model.

What is written is whole or not there: a graph is made and measured in a temporary folder on the same disk, then moved.
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
from chexpert_hf.files import sha256_of
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import (
    GRAPH_FILES,
    RECORD_FILE,
    GraphRecord,
    Precision,
    RuntimeName,
    files_of,
    fingerprint,
    hashes,
    read_records,
    versions_of,
    write_records,
)
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.model_files import renew_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.scoring.graphs.conversion import write_graph
from chexpert_hf.scoring.graphs.equalisation import equalise
from chexpert_hf.scoring.graphs.graph_cache import PACKAGES, SESSIONS
from chexpert_hf.scoring.graphs.parity import measure_parity
from chexpert_hf.scoring.graphs.quantisation import halve_graph, quantise_graph
from chexpert_hf.scoring.graphs.sample_images import phantoms, radiographs, reference_phantom

CALIBRATION_IMAGES = 200
"""The number of images that int8 is quantised on; half as many more are held out to compare on."""

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
        record: What `export.json` says of it.
    """

    folder: Path
    name: str
    record: GraphRecord

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {"folder": str(self.folder), "graph": self.name, **asdict(self.record)}


@dataclass(frozen=True)
class _Job:
    model: CheXpertForImageClassification
    source: Path
    runtime: RuntimeName
    precision: Precision
    input_size: tuple[int, int]

    @property
    def name(self) -> str:
        return GRAPH_FILES[self.runtime, self.precision]


@dataclass(frozen=True)
class _Samples:
    """Pixel values `(num_images, num_channels, height, width)` to compare on and to quantise on, and their origin."""

    reference: Tensor
    calibration: Tensor | None = None
    origin: str = ""

    @property
    def record(self) -> dict[str, Any] | None:
        return None if self.calibration is None else {"data": self.origin, "num_images": len(self.calibration)}


def export_model(
    model: str | Path,
    runtime: str,
    precision: str = Precision.FP32.value,
    *,
    output: Path | None = None,
    calibration: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> ExportedGraph:
    """Writes a graph of a model, and how far it is from the model to `export.json`.

    Args:
        model: Model folder, or id of a repository.
        runtime: "onnx" or "openvino".
        precision: "fp32", "fp16" or "int8".
        output: The model folder itself if None. Any other becomes a complete copy of it; one that is such a copy
            already gets the graph.
        calibration: A CheXpert folder, or any folder of radiographs, for int8 to be quantised on; phantoms if None.
        say: Gets a line at the start of each stage.

    Raises:
        InputError: If the model or the images cannot be read, the folder holds something else or cannot be written, a
            library is missing, or the graph is further from the model than `parity.BOUNDS` allow.
    """
    say = say or _say_nothing
    kind = _kind(runtime, precision)
    if calibration is not None and kind[1] is not Precision.INT8:
        raise InputError(f"Images to calibrate on are for int8; {precision} needs none.")
    source = model_folder(model, files=None)
    network = load_model(source, name=str(model)).float().eval()
    target = _target(model, source, output)
    processor = CheXpertImageProcessor.from_pretrained(source)
    job = _Job(network, source, *kind, _input_size(processor))
    with _staging(target) as staging:
        samples = _samples(job, processor, calibration, say)
        record = _make(job, staging / "graph", samples, say)
        _publish(staging, job, record, target)
    return ExportedGraph(target, job.name, record)


def _say_nothing(line: str) -> None:
    pass


def _kind(runtime: str, precision: str) -> tuple[RuntimeName, Precision]:
    for kind in GRAPH_FILES:
        if kind == (runtime, precision):
            return kind
    known = ", ".join(f"{name.value} in {number.value}" for name, number in GRAPH_FILES)
    raise InputError(f"There are no graphs for {runtime} in {precision}; expected one of: {known}.")


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


def _input_size(processor: CheXpertImageProcessor) -> tuple[int, int]:
    size = dict(processor.size)
    if not size.get("height") or not size.get("width"):
        raise InputError(f"The image processor's size is {size}; a graph needs a fixed height and width.")
    return size["height"], size["width"]


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


def _samples(
    job: _Job, processor: CheXpertImageProcessor, calibration: Path | None, say: Callable[[str], None]
) -> _Samples:
    def pixels(images: list[Image.Image]) -> Tensor:
        values: Tensor = processor(images, return_tensors="pt")["pixel_values"]
        return values

    if job.precision is not Precision.INT8:
        return _Samples(pixels(reference_phantom(job.source) + phantoms(_REFERENCE_PHANTOMS, seed=_REFERENCE_SEED)))
    count = CALIBRATION_IMAGES + CALIBRATION_IMAGES // 2
    if calibration is None:
        say(f"Drawing {count} phantoms to quantise on and to compare on")
        found, origin = phantoms(count, seed=_CALIBRATION_SEED), "phantoms"
    else:
        say(f"Reading radiographs of {calibration} to quantise on and to compare on")
        found, origin = radiographs(calibration, count, target_size=processor.longest_side), calibration.resolve().name
    held_out = len(found) // 3
    return _Samples(pixels(found[:held_out]), pixels(found[held_out:]), origin)


def _make(job: _Job, folder: Path, samples: _Samples, say: Callable[[str], None]) -> GraphRecord:
    """Writes the graph below a folder, and measures it."""
    say(f"Converting to {job.runtime.value}, {job.precision.value}")
    graph, plain = folder / job.name, folder.parent / "fp32" / GRAPH_FILES[job.runtime, Precision.FP32]
    source = job.model if samples.calibration is None else equalise(job.model, samples.calibration)
    write_graph(source, job.runtime, graph if job.precision is Precision.FP32 else plain, job.input_size)
    if job.precision is Precision.FP16:
        halve_graph(job.runtime, plain, graph)
    elif samples.calibration is not None:
        quantise_graph(job.runtime, plain, graph, samples.calibration.numpy())
    say(f"Comparing with PyTorch on {len(samples.reference)} images")
    parity = measure_parity(job.model, SESSIONS[job.runtime](graph, job.precision), samples.reference)
    if excess := parity.excess(job.precision):
        raise InputError(
            f"The {job.runtime.value} graph in {job.precision.value} is too far from the model and was not kept: a "
            f"{excess}.{_ADVICE.get(job.precision, '')}"
        )
    return GraphRecord(
        runtime=job.runtime.value,
        precision=job.precision.value,
        model=fingerprint(job.model),
        input_size=job.input_size,
        sha256=hashes(folder, files_of(job.name)),
        versions=versions_of(PACKAGES),
        weights_sha256=sha256_of(job.source / _WEIGHTS),
        calibration=samples.record,
        parity=asdict(parity),
    )


def _publish(staging: Path, job: _Job, record: GraphRecord, target: Path) -> None:
    """Moves the graph into the target; a target that is new is a copy of the source first."""
    if _holds_something(target):
        _add(staging / "graph", job.name, record, target)
        return
    copy = staging / "model"
    # Training's checkpoints and what starts with a dot, such as version control, are no part of a model.
    shutil.copytree(job.source, copy, ignore=shutil.ignore_patterns("checkpoints", ".*"))
    _add(staging / "graph", job.name, record, copy)
    if target.exists():
        target.rmdir()
    copy.rename(target)


def _add(made: Path, name: str, record: GraphRecord, folder: Path) -> None:
    records = read_records(folder)
    for file in files_of(name):
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(made / file, folder / file)
    # Last: a graph that its record does not describe is not used.
    write_records(folder, {**records, name: record})
    renew_checksums(folder, [*files_of(name), RECORD_FILE])
