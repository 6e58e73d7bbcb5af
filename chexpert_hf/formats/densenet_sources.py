"""Others' DenseNet121 with torchvision's names: torchvision's, timm's, Stanford's and the original student project's.

Sources: torchvision's DenseNet121_Weights; timm 1.0.31, `data.transforms_factory` and `data.config`; transformers 5.23,
`models.timm_wrapper`; Irvin et al. 2019, arXiv:1901.07031, and the code that its authors published with their 30
checkpoints, as it is in torchxrayvision 1.5.7 (`baseline_models.chexpert`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import PILImageResampling

from chexpert_hf.formats.foreign_model import ForeignModel, Outputs, num_outputs, outputs_named
from chexpert_hf.formats.weight_files import WeightFile, read_weight_file
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import COMPETITION_OBSERVATIONS, OBSERVATIONS, UncertaintyPolicy, check_observations
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import CHEXPERT_CITATION, ImportedFrom

TIMM_ARCHITECTURE = "densenet121"
TIMM_RESAMPLING = {
    "bilinear": PILImageResampling.BILINEAR,
    "bicubic": PILImageResampling.BICUBIC,
    "nearest": PILImageResampling.NEAREST,
}
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
_NUM_IMAGENET_CLASSES = 1000
_IMAGENET_SIDE = 224
_STANFORD_SIDE = 320
_NUM_FEATURES = 1024  # of DenseNet121's last layer
_STUDENT_OUTPUTS = ("Atelectasis", "Cardiomegaly", "Edema", "Consolidation", "Pleural Effusion")
_STUDENT_DROPOUT = 0.5
_UNTRAINED = "The head is new: until it is trained, every score is .5 and every map is empty. It judges nothing."


def _square(side: int) -> CheXpertImageProcessor:
    """Resizes to a square without keeping the aspect ratio; ImageNet's statistics."""
    return CheXpertImageProcessor(size={"height": side, "width": side})


def _untrained(
    tensors: Mapping[str, Tensor],
    processor: CheXpertImageProcessor,
    labels: Sequence[str] | None,
    *,
    source: str,
    licence: str,
) -> ForeignModel:
    """A backbone trained on ImageNet with a new head for `labels`, or all 14 observations if None."""
    try:
        observations = check_observations(OBSERVATIONS if labels is None else labels, OBSERVATIONS)
    except ValueError as error:
        raise WeightsError(f"--labels: {error}") from error
    origin = ImportedFrom(
        source=source,
        data="ImageNet: photographs, no radiographs",
        conversion="the head for ImageNet's classes was replaced by one of zeros, which is to be trained",
        licence=licence,
        limits=(_UNTRAINED,),
        citations=("russakovsky2015imagenet", CHEXPERT_CITATION),
    )
    size = len(observations)
    head = {"classifier.weight": torch.zeros(size, _NUM_FEATURES), "classifier.bias": torch.zeros(size)}
    return Outputs(observations, tuple(range(size))).model(tensors, processor, origin, _UNTRAINED, head=head)


def from_torchvision(tensors: Mapping[str, Tensor], labels: Sequence[str] | None) -> ForeignModel:
    """Torchvision's DenseNet121, trained on ImageNet, with a new head."""
    return _untrained(
        tensors,
        _square(_IMAGENET_SIDE),
        labels,
        source="torchvision's DenseNet121_Weights.IMAGENET1K_V1, "
        "https://pytorch.org/vision/stable/models/generated/torchvision.models.densenet121.html",
        licence="torchvision, which published the weights, is BSD-3-Clause. ImageNet's images are for research and "
        "teaching that is not commercial.",
    )


def from_timm(path: Path, labels: Sequence[str] | None) -> ForeignModel:
    """A state_dict, or a folder with config.json and weights; ImageNet's 1,000 classes get a new head."""
    config = _timm_config(path) if path.is_dir() else {}
    files = [path / name for name in _TIMM_FILES if (path / name).is_file()] if path.is_dir() else [path]
    if not files:
        raise WeightsError(f"{path} has no weights; expected {' or '.join(_TIMM_FILES)}.")
    tensors = read_weight_file(files[0]).tensors
    first = tensors.get("features.conv0.weight")
    channels = 1 if first is not None and first.ndim == 4 and first.shape[1] == 1 else 3
    if channels == 1 and not config:
        raise WeightsError(
            f"{path.name} takes one channel and does not say how it is normalised; expected a timm folder."
        )
    processor = _timm_processor(config["pretrained_cfg"], channels) if config else _square(_IMAGENET_SIDE)
    total, source = num_outputs(tensors), f"the {'folder' if config else 'file'} {path.name}"
    named = (config.get("pretrained_cfg") or {}).get("license") or config.get("license")
    licence = (
        f"The source gives the licence {named}; the data that it was trained on may have terms of their own."
        if named
        else "The source names no licence; ask its authors before you use or pass on the weights."
    )
    if total == _NUM_IMAGENET_CLASSES and (labels is None or len(labels) < total):
        source = f"timm's {TIMM_ARCHITECTURE} ({source})"
        return _untrained(tensors, processor, labels, source=source, licence=licence)
    outputs = outputs_named(config.get("label_names"), total, path.name, labels=labels)
    prepared = "as its config.json says" if config else "assumed to be 224 pixels with ImageNet's statistics"
    origin = ImportedFrom(
        source=f"a {TIMM_ARCHITECTURE} of timm ({source})",
        data="data that the source does not name",
        conversion=f"the preparation of images is {prepared}",
        licence=licence,
    )
    assumed = "The file does not say how images are prepared; assumed: 224 pixels, ImageNet's statistics."
    remarks = () if config else (assumed,)
    return outputs.model(tensors, processor, origin, *remarks)


def _timm_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = config["architecture"]
        config["pretrained_cfg"] = dict(config["pretrained_cfg"])
        if config.get("label_names") is not None:
            config["label_names"] = [str(name) for name in config["label_names"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder} has no config.json of timm; expected one with architecture and pretrained_cfg."
        ) from error
    if architecture != TIMM_ARCHITECTURE:
        raise WeightsError(f"{folder} holds timm's {architecture}, expected {TIMM_ARCHITECTURE}.")
    return dict(config)


def _timm_processor(values: Mapping[str, Any], channels: int) -> CheXpertImageProcessor:
    """The processor that does the same as timm's evaluation transform."""
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
    size = {"height": height, "width": width}
    sizes: dict[str, Any]
    if mode == "squash" and pct == 1:
        sizes = {"size": size}
    elif mode == "center" and height == width:
        sizes = {"size": {"shortest_edge": math.floor(height / pct)}, "do_center_crop": True, "crop_size": size}
    else:
        raise WeightsError(
            f"timm's crop_mode {mode!r} with crop_pct {pct} and {height} x {width} pixels cannot be expressed."
        )
    return CheXpertImageProcessor(image_mean=mean, image_std=std, resample=resample, **sizes)


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """As many values as channels; timm takes the mean of three for one channel."""
    numbers = [float(value) for value in values]
    if len(numbers) == channels:
        return numbers
    if len(numbers) == 1 or channels == 1:
        return [sum(numbers) / len(numbers)] * channels
    raise ValueError(f"{len(numbers)} values for {channels} channels")


def from_stanford(file: WeightFile, labels: Sequence[str] | None, source: str) -> ForeignModel:
    """One of the 30 checkpoints of the CheXpert paper's authors.

    The outputs are one per observation, or three: uncertain, negative, positive, in this order. Here the positive class
    of all observations comes first, then the negative and the uncertain ones. `labels` are the names of the
    observations where the file does not say them; `source` is the name of the file.
    """
    tensors, total = file.tensors, num_outputs(file.tensors)
    names = _task_names(file.beside.get("task_sequence"))
    outputs = outputs_named(names, total, source, labels=labels, classes=(1, 3))
    is_multiclass = outputs.classes == 3
    layer = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
    head = outputs.layer_of(layer)
    for name, tensor in layer.items() if is_multiclass else ():
        uncertain, negative, positive = tensor.unflatten(0, (-1, 3))[list(outputs.rows)].unbind(dim=1)
        head[name] = torch.cat([positive, negative, uncertain])  # (3 * n, ...)
    policy = UncertaintyPolicy.U_MULTICLASS if is_multiclass else UncertaintyPolicy.U_IGNORE
    order = "; three classes per observation, brought into another order" if is_multiclass else ""
    origin = ImportedFrom(
        source=f"one of the 30 checkpoints of the authors of the CheXpert paper (the file {source}), "
        "https://stanfordmlgroup.github.io/competitions/chexpert/",
        data="CheXpert",
        conversion=f"three equal channels, ImageNet's statistics, 320 pixels without keeping the aspect ratio{order}",
        licence="The file names no licence. CheXpert's research use agreement (Stanford University School of Medicine) "
        "forbids commercial and clinical use; who uses the weights should have accepted it.",
        license_name="chexpert-research-use-agreement",
        limits=(
            "The checkpoint does not say how gray levels were normalised; ImageNet's statistics are assumed.",
            "The paper's figures are of an ensemble of 30 checkpoints, and this is one of them.",
        ),
        citations=(CHEXPERT_CITATION,),
    )
    policies = dict.fromkeys(outputs.observations, policy.value)
    return outputs.model(tensors, _square(_STANFORD_SIDE), origin, head=head, uncertainty_policies=policies)


def _task_names(tasks: Any) -> list[str] | None:
    """Names in the order of the outputs, from a list or a mapping of names to places."""
    if isinstance(tasks, Mapping) and all(isinstance(place, int) for place in tasks.values()):
        is_complete = sorted(tasks.values()) == list(range(len(tasks)))
        return [str(name) for name in sorted(tasks, key=lambda name: int(tasks[name]))] if is_complete else None
    if isinstance(tasks, (list, tuple)) and tasks and all(isinstance(name, str) for name in tasks):
        return list(tasks)
    return None


def from_student(file: WeightFile, labels: Sequence[str] | None, source: str) -> ForeignModel:
    """The original student project's network: five outputs behind a hidden layer; see `from_stanford`."""
    tensors = file.tensors
    hidden, total = num_outputs(tensors, "classifier.0"), num_outputs(tensors, "classifier.3")
    outputs = outputs_named(_STUDENT_OUTPUTS, total, source, labels=labels)
    few = f"It knows only {len(COMPETITION_OBSERVATIONS)} of CheXpert's 14 observations."
    origin = ImportedFrom(
        source=f"the original student project's network (the file {source})",
        data="CheXpert, which the file does not say itself",
        conversion="three equal channels with ImageNet's statistics, 224 pixels without keeping the aspect ratio; the "
        "sigmoid at its end is taken by whoever reads the logits",
        licence="The file names no licence; ask its authors. CheXpert's research use agreement holds as well.",
        license_name="unknown-and-chexpert-research-use-agreement",
        limits=(few,) if set(outputs.observations) == set(COMPETITION_OBSERVATIONS) else (),
        citations=(CHEXPERT_CITATION,),
    )
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
    head |= outputs.layer_of(tensors, "classifier.3")
    fields = {"head_hidden_size": hidden, "head_dropout": _STUDENT_DROPOUT}
    return outputs.model(tensors, _square(_IMAGENET_SIDE), origin, head=head, **fields)
