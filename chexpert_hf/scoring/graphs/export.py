"""Export a model as a graph to the model folder or a copy of it; refuse a graph that differs too much from the model.

A graph is made and compared in a temporary folder on the same disk, then moved, so that it is written whole or not at
all. Graph and model are compared on phantoms (synthetic radiographs). For int8, some of the images serve to quantise
the graph and the others to compare; a folder's radiographs can take the place of the phantoms.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.layout import SPLITS
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.datasets.sources import has_dataset
from chexpert_hf.default_model import DEFAULT_NAME
from chexpert_hf.errors import InputError
from chexpert_hf.files import new_folder, sha256_of
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models import graph_files
from chexpert_hf.models.graph_files import GRAPH_FILES, RECORD_FILE, GraphRecord, Precision, RuntimeName, files_of
from chexpert_hf.models.loading import load_model, load_processor
from chexpert_hf.models.model_files import renew_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.phantoms import PROJECTIONS, render_phantom
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from chexpert_hf.scoring.graphs.conversion import PACKAGES, excess, measure_parity, write_graph
from chexpert_hf.scoring.graphs.quantisation import equalise, halve_graph, quantise_graph
from chexpert_hf.scoring.graphs.sessions import SESSIONS

CALIBRATION_IMAGES = 200
"""Number of images for quantisation to int8; half as many others are used for the comparison."""

_MIN_IMAGES = 10  # calibration images; ranges of activations from fewer are unreliable
_REFERENCE_PHANTOMS = 16
_REFERENCE_SEED, _CALIBRATION_SEED = 7_000, 8_000
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ExportedGraph:
    """A graph that `export_model` wrote.

    Attributes:
        folder: The model folder that it is in.
        name: Its path in the folder, such as `onnx/model.onnx`.
        record: Its entry in `export.json`.
    """

    folder: Path
    name: str
    record: GraphRecord

    def to_dict(self) -> dict[str, Any]:
        """Return folder, path and record in plain types for JSON."""
        return {"folder": str(self.folder), "graph": self.name, **asdict(self.record)}


def export_model(
    model: str | Path,
    runtime: str,
    precision: str = Precision.FP32.value,
    *,
    output: Path | None = None,
    calibration: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ExportedGraph:
    """Write a graph of a model to a model folder; record in `export.json` how much its outputs differ from the model's.

    Args:
        model: Model folder, or id of a repository.
        runtime: "onnx" or "openvino".
        precision: "fp32", "fp16" or "int8".
        output: Folder for the graph; the model folder itself if None (not for a repository or "nih"). A new or empty
            folder becomes a copy of the model folder, without checkpoints; a copy made earlier only gets the graph.
        calibration: For int8 only: a data set, or any folder of radiographs, to quantise and compare on;
            phantoms if None.
        say: Called with a line at the start of each stage.

    Raises:
        InputError: If the model or the images cannot be read, `output` is None for a repository, holds no copy of
            the model or cannot be written, a library is missing, `calibration` is given without int8, or the graph
            differs from the model by more than `conversion.BOUNDS` allow.
    """
    kind = next((kind for kind in GRAPH_FILES if kind == (runtime, precision)), None)
    if kind is None:
        known = ", ".join(f"{name.value} in {number.value}" for name, number in GRAPH_FILES)
        raise InputError(f"There are no graphs for {runtime} in {precision}; expected one of: {known}.")
    is_int8 = kind[1] is Precision.INT8
    if calibration is not None and not is_int8:
        raise InputError(f"Images to calibrate on are for int8; {precision} needs none.")
    source = model_folder(model, files=None)
    network = load_model(source, name=str(model)).float().eval()
    target = _target(model, source, output)
    processor = load_processor(source, name=str(model))
    input_size = processor.output_size
    with _staging(target) as staging:
        images, data = _images_to_export_with(source, is_int8, processor, calibration, say)
        values: Tensor = processor(images, return_tensors="pt")["pixel_values"]
        count = len(images) // 3 if is_int8 else len(images)
        made, name = staging / "graph", GRAPH_FILES[kind]
        parity = _write_and_compare(network, kind, input_size, values[:count], values[count:], made, say)
        record = GraphRecord(
            runtime=runtime,
            precision=precision,
            model=graph_files.fingerprint(network),
            input_size=input_size,
            sha256=graph_files.hashes(made, files_of(name)),
            versions=graph_files.versions_of(PACKAGES),
            weights_sha256=sha256_of(source / _WEIGHTS),
            calibration={"data": data, "num_images": len(images) - count} if is_int8 else None,
            parity=parity,
        )
        if _holds_something(target):
            _move_graph(made, name, record, target)
        else:
            with new_folder(target) as copy:
                # Training's checkpoints and hidden files, such as version control, are no part of a model.
                ignored = shutil.ignore_patterns("checkpoints", ".*")
                shutil.copytree(source, copy, ignore=ignored, dirs_exist_ok=True)
                _move_graph(made, name, record, copy)
    return ExportedGraph(target, name, record)


def _target(model: str | Path, source: Path, output: Path | None) -> Path:
    if output is None:
        if not Path(model).is_dir():
            kind = "the bundled model" if str(model) == DEFAULT_NAME else "not a folder"
            raise InputError(f"{model} is {kind}: name a folder with --output for a copy of it with the graph.")
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
    """Context manager: a temporary folder on the target's disk; InputError if it cannot be created."""
    place = target if _holds_something(target) else target.absolute().parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=place, prefix=".export-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror}; name another folder for a copy.") from error
    with folder as name:
        yield Path(name)


def _write_and_compare(
    model: CheXpertForImageClassification,
    kind: tuple[RuntimeName, Precision],
    input_size: tuple[int, int],
    compared: Tensor,
    calibration: Tensor,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Write a graph of a runtime and precision (`kind`) to `folder`, and compare it with the model.

    `compared` are the pixel values of the images to compare on. `calibration` are those of the images to quantise on,
    used for int8 only. Returns the differences from `measure_parity`; raises InputError if they are too large.
    """
    runtime, precision = kind
    say(f"Converting to {runtime.value}, {precision.value}")
    graph, plain = folder / GRAPH_FILES[kind], folder.parent / "fp32" / GRAPH_FILES[runtime, Precision.FP32]
    source = equalise(model, calibration) if precision is Precision.INT8 else model
    write_graph(source, runtime, graph if precision is Precision.FP32 else plain, input_size)
    graph.parent.mkdir(parents=True, exist_ok=True)
    if precision is Precision.FP16:
        halve_graph(runtime, plain, graph)
    elif precision is Precision.INT8:
        quantise_graph(runtime, plain, graph, calibration.numpy())
    say(f"Comparing with PyTorch on {len(compared)} images")
    parity = measure_parity(model, SESSIONS[runtime](graph, precision), compared)
    if difference := excess(parity, precision):
        advice = " Quantise on radiographs like those to be scored (--calibration FOLDER), or take --precision fp16."
        raise InputError(
            f"The {runtime.value} graph in {precision.value} is too far from the model and was not kept: "
            f"a {difference}.{advice if precision is Precision.INT8 else ''}"
        )
    return parity


def _move_graph(made: Path, name: str, record: GraphRecord, folder: Path) -> None:
    """Move the graph `name` from the folder `made` to the model folder `folder`, and add its record and checksums.

    The record is written after the graph, since a graph without a record is not used.
    """
    records = graph_files.read_records(folder)
    for file in files_of(name):
        (folder / file).parent.mkdir(exist_ok=True)
        os.replace(made / file, folder / file)
    graph_files.write_records(folder, {**records, name: record})
    renew_checksums(folder, [*files_of(name), RECORD_FILE])


def _images_to_export_with(
    source: Path, is_int8: bool, processor: CheXpertImageProcessor, calibration: Path | None, say: Callable[[str], None]
) -> tuple[list[Image.Image], str]:
    """Return the images for an export, and the name of the data that they are from.

    For int8, the images are radiographs from the folder `calibration`, or phantoms if that is None. The first third is
    for comparing the graph with its model, the rest for quantising.

    Without int8, the images are phantoms, all of them for comparing. If the model folder `source` has a
    `reference.json`, the phantom that this file describes comes first.

    `processor` tells the size that the images will be resized to.
    """
    if not is_int8:
        return reference_phantom(source) + phantoms(_REFERENCE_PHANTOMS, seed=_REFERENCE_SEED), "phantoms"
    count = CALIBRATION_IMAGES + CALIBRATION_IMAGES // 2
    if calibration is None:
        say(f"Drawing {count} phantoms to quantise on and to compare on")
        return phantoms(count, seed=_CALIBRATION_SEED), "phantoms"
    say(f"Reading radiographs of {calibration} to quantise on and to compare on")
    return _radiographs(calibration, count, target_size=processor.longest_side), calibration.resolve().name


def phantoms(count: int, *, seed: int) -> list[Image.Image]:
    """Draw `count` phantoms with one observation each; phantom i has the seed `seed + i`.

    Phantom i shows the i-th observation in the i-th projection; each of these two lists starts again at its end.
    """
    drawn = (
        render_phantom(seed + number, [OBSERVATIONS[number % len(OBSERVATIONS)]], projection=PROJECTIONS[number % 3])
        for number in range(count)
    )
    return [Image.fromarray(phantom.image) for phantom in drawn]


def reference_phantom(folder: Path) -> list[Image.Image]:
    """Return, as a list, the phantom of a model folder's reference scores (`reference.json`); empty without that file.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / "reference.json"
    if not path.exists():
        return []
    try:
        phantom = render_phantom(**json.loads(path.read_text(encoding="utf-8"))["phantom"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged; expected the values of a phantom under 'phantom'.") from error
    return [Image.fromarray(phantom.image)]


def _radiographs(folder: Path, count: int, *, target_size: int) -> list[Image.Image]:
    """Read at most `count` radiographs of a folder, a random sample with a fixed seed.

    If the folder is a data set, its train split is used, or the first split that it has. `target_size` is the side in
    pixels that the images will be resized to. Raises InputError if the folder has fewer than `_MIN_IMAGES`
    radiographs, or one of the sample cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a data set or a folder with radiographs.")
    split = next((split for split in SPLITS if has_dataset(folder, [split])), None)
    if split is None:
        paths = sorted(map(str, find_radiographs([folder]).files))
    else:  # without the check of all 223,414 files: only a few hundred of them are read
        paths = image_files(load_dataset(folder, splits=[split], check_files=False, valid_fraction=0)[split])
    if len(paths) < _MIN_IMAGES:
        raise InputError(f"{folder} holds {len(paths)} radiographs; expected at least {_MIN_IMAGES}.")
    images = []
    for index in np.random.default_rng(0).permutation(len(paths))[:count]:
        try:
            images.append(read_radiograph(paths[index], target_size=target_size))
        except RadiographError as error:
            raise InputError(f"{paths[index]}: {error}") from error
    return images
