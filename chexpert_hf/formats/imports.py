"""Imports weights that others trained: makes complete model folders of them.

Sources: torchvision's weights of its networks; timm 1.0.31, `data.transforms_factory` and `data.config`; transformers
5.23, `models.timm_wrapper`; Irvin et al. 2019, arXiv:1901.07031, and the code that its authors published with their 30
checkpoints, as it is in torchxrayvision 1.5.7 (`baseline_models.chexpert`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights
from transformers.image_utils import PILImageResampling

from chexpert_hf.configuration_chexpert import NETWORKS, fields_of
from chexpert_hf.files import new_folder, require_empty
from chexpert_hf.formats.foreign_model import ForeignModel, Outputs, num_outputs, outputs_named
from chexpert_hf.formats.origins import origin_of
from chexpert_hf.formats.torchvision_networks import HEAD, Recognised, recognise
from chexpert_hf.formats.torchxrayvision_models import fetch_weights, from_torchxrayvision, published_model
from chexpert_hf.formats.weight_files import WeightFile, read_weight_file
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import COMPETITION_OBSERVATIONS, OBSERVATIONS, UncertaintyPolicy, check_observations
from chexpert_hf.models.weights import WeightsError, imagenet_state_dict
from chexpert_hf.publishing.data_terms import ImportedFrom
from chexpert_hf.publishing.model_folder import save_imported_folder

Labels = Sequence[str] | None

SOURCES = "torchvision:NAME_OR_FILE, torchxrayvision:NAME, stanford:FILE, student:FILE, timm:FILE_OR_FOLDER"
TIMM_ARCHITECTURES = ("densenet121", "densenet169", "densenet201", "resnet50")
"""The networks whose weights have the same names in timm as in torchvision."""
TIMM_RESAMPLING = {name: PILImageResampling[name.upper()] for name in ("bilinear", "bicubic", "nearest")}
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
_NUM_IMAGENET_CLASSES = 1000
_STUDENT_OUTPUTS = ("Atelectasis", "Cardiomegaly", "Edema", "Consolidation", "Pleural Effusion")
_JFHEALTHCARE = (
    "jfhealthcare's network pools by average and maximum behind an attention block, with a BatchNorm for each "
    "observation, which a DenseNet with one head cannot express; torchxrayvision.baseline_models.jfhealthcare runs it."
)


def import_model(source: str, output: Path, *, file: Path | None = None, labels: Labels = None) -> ForeignModel:
    """Write a complete model folder from weights that others trained.

    Args:
        source: One of `SOURCES`, such as "torchxrayvision:chex" or "timm:FOLDER".
        output: A new or empty folder; it is written whole or not at all.
        file: File of the weights, if `source` does not name it: `source` is then "stanford" instead of "stanford:FILE".
            With a source whose weights are downloaded, such as "torchxrayvision:chex", this file is read instead.
        labels: Names of the outputs, in place of the source's if it has any ("" drops an output), or the observations
            of a new head.

    Raises:
        WeightsError: If the source is unknown, cannot be read or fetched, or does not fit.
        FolderError: If `output` is not new or empty, or cannot be written.
    """
    require_empty(output)
    foreign = read_source(source, file=file, labels=labels)
    model = foreign.build()
    with new_folder(output) as folder:
        save_imported_folder(folder, model, foreign.processor, foreign.origin, output)
    return foreign


def read_source(source: str, *, file: Path | None = None, labels: Labels = None) -> ForeignModel:
    """Read an imported model from its source, such as "torchxrayvision:chex"; no folder is written.

    `file` holds the weights if `source` does not name a file, or is read instead of a download. `labels` are names of
    the outputs, in place of the source's if it has any ("" drops an output), or the observations of a new head;
    torchxrayvision takes none. Raises WeightsError if the source is unknown, unreadable or unfit, or can't be fetched.
    """
    kind, _, rest = source.partition(":")
    if kind == "torchvision" and not file and (not rest or rest in NETWORKS):
        return from_torchvision(rest or "densenet121", labels)
    if kind == "torchxrayvision" and rest:
        if labels is not None:
            raise WeightsError("torchxrayvision's outputs have names; leave out --labels.")
        published = published_model(rest)
        return from_torchxrayvision(published, read_weight_file(file or fetch_weights(published)).tensors, rest)
    if kind == "jfhealthcare":
        raise WeightsError(_JFHEALTHCARE)
    if kind not in ("stanford", "student", "timm", "torchvision"):
        raise WeightsError(f"Unknown source {source!r}; expected one of: {SOURCES}.")
    if bool(rest) == bool(file):
        raise WeightsError(f"Expected {kind}:FILE, or --file FILE, and not both.")
    path = file or Path(rest)
    if kind in ("timm", "torchvision"):
        return from_library(path, labels, kind)
    read = from_stanford if kind == "stanford" else from_student
    return read(read_weight_file(path), labels, path.name)


def _square(side: int = 224) -> CheXpertImageProcessor:
    """Return a processor that resizes to a square without keeping the aspect ratio, and normalises as for ImageNet."""
    return CheXpertImageProcessor(size={"height": side, "width": side})


def _with_new_head(
    recognised: Recognised, processor: CheXpertImageProcessor, labels: Labels, origin: ImportedFrom
) -> ForeignModel:
    """Return a model of an ImageNet backbone and a new head of zeros for `labels`, by default CheXpert's 14."""
    try:
        observations = check_observations(OBSERVATIONS if labels is None else labels)
    except ValueError as error:
        raise WeightsError(f"--labels: {error}") from error
    size = len(observations)
    head = {f"{HEAD}.weight": torch.zeros(size, recognised.num_features), f"{HEAD}.bias": torch.zeros(size)}
    outputs, fields = Outputs(observations, tuple(range(size))), fields_of(recognised.network)
    return outputs.model(recognised.tensors, processor, origin, *origin.limits, head=head, **fields)


def from_torchvision(network: str, labels: Labels) -> ForeignModel:
    """Return torchvision's `network`, e.g. "resnet50", with ImageNet weights and a new head.

    `labels` are the observations of the head, by default CheXpert's 14.
    """
    weights = str(get_model_weights(network).DEFAULT)
    origin = origin_of("imagenet", "torchvision", network=network, weights=weights)
    return _with_new_head(recognise(imagenet_state_dict(network)), _square(), labels, origin)


def from_library(path: Path, labels: Labels, library: str) -> ForeignModel:
    """Read a state dict with torchvision's names, or a timm folder with config.json and weights.

    `library` is "timm" or "torchvision". A head for ImageNet's 1,000 classes is replaced by a new one for `labels`; the
    outputs of any other head are named by `labels`, or else by config.json. Raises WeightsError if `path` does not fit.
    """
    config, files = {}, [path]
    if path.is_dir() and library == "timm":
        config, files = _timm_config(path), [path / name for name in _TIMM_FILES if (path / name).is_file()]
        if not files:
            raise WeightsError(f"{path} has no weights; expected {' or '.join(_TIMM_FILES)}.")
    recognised = recognise(read_weight_file(files[0]).tensors)
    network, tensors, channels, _ = recognised
    if channels == 1 and not config:
        raise WeightsError(f"{path.name} has one channel, normalised in an unknown way; expected a timm folder.")
    settings = config.get("pretrained_cfg", {})
    processor = _timm_processor(settings, channels) if config else _square()
    total, source = num_outputs(tensors), f"the {'folder' if config else 'file'} {path.name}"
    named = settings.get("license") or config.get("license")
    prepared = "as its config.json says" if config else "assumed to be 224 pixels with ImageNet's statistics"
    entries = ("library", "library_with_licence") if named else ("library",)
    gaps = {"source": source, "prepared": prepared, "named": str(named), "network": network, "library": library}
    if total == _NUM_IMAGENET_CLASSES and (labels is None or len(labels) < total):
        origin = origin_of(*entries, "imagenet", "library_imagenet", **gaps)
        return _with_new_head(recognised, processor, labels, origin)
    outputs = outputs_named(config.get("label_names"), total, path.name, labels=labels)
    assumed = "The file does not say how images are prepared; assumed: 224 pixels, ImageNet's statistics."
    remarks = () if config else (assumed,)
    return outputs.model(tensors, processor, origin_of(*entries, **gaps), *remarks, **fields_of(network))


def _timm_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = config["architecture"]
        config["pretrained_cfg"] = dict(config["pretrained_cfg"])
        if config.get("label_names") is not None:
            config["label_names"] = [str(name) for name in config["label_names"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "expected one with architecture and pretrained_cfg"
        raise WeightsError(f"{folder} has no config.json of timm; {expected}.") from error
    if architecture not in TIMM_ARCHITECTURES:
        raise WeightsError(f"{folder} holds timm's {architecture}, expected {' or '.join(TIMM_ARCHITECTURES)}.")
    return dict(config)


def _timm_processor(values: Mapping[str, Any], channels: int) -> CheXpertImageProcessor:
    """Return the processor equivalent to timm's evaluation transform, from the fields of `pretrained_cfg`."""
    try:
        _, height, width = values["input_size"]
        mean, std = _per_channel(values["mean"], channels), _per_channel(values["std"], channels)
        pct, mode = float(values.get("crop_pct") or 1), values.get("crop_mode") or "center"
        resample = TIMM_RESAMPLING[values.get("interpolation") or "bilinear"]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"pretrained_cfg in timm's config.json cannot be used ({type(error).__name__}: {error}); expected "
            "input_size, mean, std, and a bilinear, bicubic or nearest interpolation."
        ) from error
    sizes: dict[str, Any] = {"size": {"height": height, "width": width}}
    if mode == "center" and height == width:
        edge = {"shortest_edge": math.floor(height / pct)}
        sizes = {"size": edge, "do_center_crop": True, "crop_size": sizes["size"]}
    elif mode != "squash" or pct != 1:
        pixels = f"{height} x {width} pixels"
        raise WeightsError(f"timm's crop_mode {mode!r} with crop_pct {pct} and {pixels} cannot be expressed.")
    return CheXpertImageProcessor(image_mean=mean, image_std=std, resample=resample, **sizes)


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """Return one value per channel.

    If there is one channel, several values are averaged; if there is one value, every channel gets it. Raises
    ValueError if there is no value, or if the values do not fit the channels, such as 2 values for 3 channels.
    """
    numbers = [float(value) for value in values]
    if not numbers or (len(numbers) != channels and 1 not in (len(numbers), channels)):
        raise ValueError(f"{len(numbers)} values for {channels} channels")
    return numbers if len(numbers) == channels else [sum(numbers) / len(numbers)] * channels


def from_stanford(file: WeightFile, labels: Labels, source: str) -> ForeignModel:
    """Read one of the 30 checkpoints of the CheXpert paper's authors; `source` is the name of the file.

    In the file, each observation has one output, or three: uncertain, negative, positive (U-MultiClass). Three are
    reordered as this package expects: first all positive outputs, then all negative ones, then all uncertain ones.
    `labels`, if given, replace the names of the observations in the file.
    """
    tensors, total = file.tensors, num_outputs(file.tensors)
    names = _task_names(file.rest.get("task_sequence"))
    outputs = outputs_named(names, total, source, labels=labels, classes=(1, 3))
    is_multiclass, head = outputs.classes == 3, outputs.layer_of(tensors)
    for name in head if is_multiclass else ():
        uncertain, negative, positive = tensors[name].unflatten(0, (-1, 3))[list(outputs.rows)].unbind(dim=1)
        head[name] = torch.cat([positive, negative, uncertain])  # (3 * n, ...)
    policy = UncertaintyPolicy.U_MULTICLASS if is_multiclass else UncertaintyPolicy.U_IGNORE
    order = "; three classes per observation, brought into another order" if is_multiclass else ""
    origin = origin_of("stanford", source=source, order=order)
    policies = dict.fromkeys(outputs.observations, policy.value)
    return outputs.model(tensors, _square(320), origin, head=head, uncertainty_policies=policies)


def _task_names(tasks: Any) -> list[str] | None:
    """Return outputs' names in order, from a list or a mapping name -> position; None if `tasks` is neither."""
    if isinstance(tasks, Mapping) and all(isinstance(place, int) for place in tasks.values()):
        by_place = {place: str(name) for name, place in tasks.items()}
        return [by_place[place] for place in range(len(tasks))] if by_place.keys() == set(range(len(tasks))) else None
    is_list = isinstance(tasks, (list, tuple)) and tasks and all(isinstance(name, str) for name in tasks)
    return list(tasks) if is_list else None


def from_student(file: WeightFile, labels: Labels, source: str) -> ForeignModel:
    """Read the network of the student project that came before this package: five outputs behind a hidden layer.

    `labels`, if given, replace the project's names of the outputs; `source` is the name of the file.
    """
    tensors = file.tensors
    hidden, total = num_outputs(tensors, "classifier.0"), num_outputs(tensors, "classifier.3")
    outputs = outputs_named(_STUDENT_OUTPUTS, total, source, labels=labels)
    knows_five = set(outputs.observations) == set(COMPETITION_OBSERVATIONS)
    origin = origin_of("student", *(("student_of_five",) if knows_five else ()), source=source)
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
    head |= outputs.layer_of(tensors, "classifier.3")
    return outputs.model(tensors, _square(), origin, head=head, head_hidden_size=hidden, head_dropout=0.5)
