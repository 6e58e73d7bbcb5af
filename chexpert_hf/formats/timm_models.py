"""timm's DenseNet121: a state_dict, or a folder as on the Hub, with its preparation of images.

Source: timm 1.0.31, `data.transforms_factory` and `data.config`; transformers 5.23, `models.timm_wrapper`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.image_utils import PILImageResampling

from chexpert_hf.formats.densenet_sources import IMAGENET_SIDE, square, untrained
from chexpert_hf.formats.foreign_model import ForeignModel, num_outputs, outputs_named
from chexpert_hf.formats.weight_files import WeightFile, read_weight_file
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import ImportedFrom

ARCHITECTURE = "densenet121"
RESAMPLING = {
    "bilinear": PILImageResampling.BILINEAR,
    "bicubic": PILImageResampling.BICUBIC,
    "nearest": PILImageResampling.NEAREST,
}
_NUM_IMAGENET_CLASSES = 1000
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def from_timm(path: Path, labels: Sequence[str] | None) -> ForeignModel:
    """A state_dict, or a folder with config.json and weights.

    ImageNet's 1,000 classes without other names make a backbone with a new head.

    Raises:
        WeightsError: If it is another network, or cannot be expressed.
    """
    config = _read_config(path) if path.is_dir() else {}
    file = _read_weights(path) if path.is_dir() else read_weight_file(path)
    first = file.tensors.get("features.conv0.weight")
    channels = 1 if first is not None and first.ndim == 4 and first.shape[1] == 1 else 3
    if channels == 1 and not config:
        raise WeightsError(
            f"{path.name} takes one channel and does not say how it is normalised; expected a timm folder."
        )
    processor = _processor(config["pretrained_cfg"], channels) if config else square(IMAGENET_SIDE)
    total, source = num_outputs(file.tensors), f"the {'folder' if config else 'file'} {path.name}"
    named = (config.get("pretrained_cfg") or {}).get("license") or config.get("license")
    licence = (
        f"The source gives the licence {named}; the data that it was trained on may have terms of their own."
        if named
        else "The source names no licence; ask its authors before you use or pass on the weights."
    )
    if total == _NUM_IMAGENET_CLASSES and (labels is None or len(labels) < total):
        source = f"timm's {ARCHITECTURE} ({source})"
        return untrained(file.tensors, processor, labels, source=source, licence=licence)
    outputs = outputs_named(config.get("label_names"), total, path.name, labels=labels)
    prepared = "as its config.json says" if config else "assumed to be 224 pixels with ImageNet's statistics"
    origin = ImportedFrom(
        source=f"a {ARCHITECTURE} of timm ({source})",
        data="data that the source does not name",
        conversion=f"the preparation of images is {prepared}",
        licence=licence,
    )
    assumed = "The file does not say how images are prepared; assumed: 224 pixels, ImageNet's statistics."
    remarks = () if config else (assumed,)
    return outputs.model(file.tensors, outputs.layer_of(file.tensors), processor, origin, *remarks)


def _read_config(folder: Path) -> dict[str, Any]:
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
    if architecture != ARCHITECTURE:
        raise WeightsError(f"{folder} holds timm's {architecture}, expected {ARCHITECTURE}.")
    return dict(config)


def _read_weights(folder: Path) -> WeightFile:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return read_weight_file(folder / name)
    raise WeightsError(f"{folder} has no weights; expected {' or '.join(_WEIGHT_FILES)}.")


def _processor(values: Mapping[str, Any], channels: int) -> CheXpertImageProcessor:
    """The processor that does the same as timm's evaluation transform."""
    try:
        _, height, width = values["input_size"]
        mean, std = _per_channel(values["mean"], channels), _per_channel(values["std"], channels)
        pct, mode = float(values.get("crop_pct") or 1), values.get("crop_mode") or "center"
        resample = RESAMPLING[values.get("interpolation") or "bilinear"]
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
