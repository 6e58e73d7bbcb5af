"""torchxrayvision's seven DenseNet121: their URLs and outputs, and their conversion to models of this package.

torchxrayvision rescales outputs so that each operating point is .5. Here scores are plain probabilities, and the
operating points are kept as thresholds.

Source: torchxrayvision 1.5.7, `models.model_urls` and `utils.get_cache_dir` (Apache-2.0); Cohen et al. 2022,
arXiv:2111.00595; Cohen et al. 2020, arXiv:2002.02497.
"""

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from chexpert_hf.files import data_beside, first_line
from chexpert_hf.formats.foreign_model import ForeignModel, num_outputs, outputs_named
from chexpert_hf.formats.origins import origin_of
from chexpert_hf.image_processing_chexpert import SCIKIT_IMAGE, CheXpertImageProcessor
from chexpert_hf.models.weights import WeightsError

PREFIX = "densenet121-res224-"
SIDE = 224
_THRESHOLDS = "op_threshs"  # the buffer with the operating points of the outputs


class PublishedModel(NamedTuple):
    """A DenseNet121 that torchxrayvision's authors published."""

    url: str
    data: str  # its training data, as a phrase
    thresholds: Mapping[str, float]  # operating point of each output that was trained


_DATA = data_beside(__file__)
TARGETS = tuple(_DATA["points"])
"""The 18 outputs of each model, in their order."""

MODELS: Mapping[str, PublishedModel] = {
    name: PublishedModel(
        "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
        f"{file}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        data,
        {target: point for target, points in _DATA["points"].items() if (point := points[column]) is not None},
    )
    for column, (name, (file, data)) in enumerate(_DATA["models"].items())
}


def published_model(name: str) -> PublishedModel:
    """Return a model by its name, such as "chex" or "densenet121-res224-chex"; raise WeightsError if there is none."""
    if model := MODELS.get(name.removeprefix(PREFIX)):
        return model
    known = ", ".join(PREFIX + each for each in MODELS)
    raise WeightsError(f"torchxrayvision has no model {name!r} that can be imported; expected one of: {known}.")


def fetch_weights(model: PublishedModel) -> Path:
    """Download a model's weights to torchxrayvision's cache, if missing; return their path, or raise WeightsError."""
    path = Path.home() / ".torchxrayvision" / "models_data" / Path(model.url).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(model.url, str(path))  # atomic: writes a temporary file first
    except (OSError, RuntimeError) as error:
        advice = f"put that file at {path}, or name it with --file"
        raise WeightsError(f"{model.url} could not be downloaded ({first_line(error)}); {advice}.") from error
    return path


def from_torchxrayvision(model: PublishedModel, tensors: Mapping[str, Tensor], source: str) -> ForeignModel:
    """Convert a model with the weights `tensors`; outputs that were never trained are dropped.

    Operating points are read from the weights (`op_threshs`) or, if missing there, from `model`. `source` is the
    model's name in the card, such as "chex".
    """
    own_points = _own_thresholds(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name != _THRESHOLDS}
    trained = [name if name in model.thresholds else "" for name in TARGETS]
    outputs = outputs_named(trained, num_outputs(tensors), "The source")
    thresholds = model.thresholds if own_points is None else own_points
    points = {name: thresholds.get(TARGETS[row]) for name, row in zip(outputs.observations, outputs.rows, strict=True)}
    further = ["torchxrayvision_chexpert"] if "CheXpert" in model.data else []
    further += ["torchxrayvision_rsna"] if model.data.startswith("the radiographs of the RSNA") else []
    origin = origin_of("torchxrayvision", *further, source=source, url=model.url, data=model.data)
    return outputs.model(
        tensors,
        processor(),
        origin,
        operating_points={name: point for name, point in points.items() if point is not None},
        operating_points_source={
            "method": "their op_threshs, as probabilities",
            "wanted": None,
            "data": "torchxrayvision" if own_points is None else "the file of the weights",
            "left_out": {name: "op_threshs in the file is NaN" for name, point in points.items() if point is None},
        },
    )


def _own_thresholds(tensors: Mapping[str, Tensor]) -> dict[str, float] | None:
    """Return output -> operating point from the buffer `op_threshs`; None if there is no such buffer.

    Outputs whose operating point is NaN are left out. Raises WeightsError if the buffer does not have one value per
    output, or has a value outside of [0, 1].
    """
    values = tensors.get(_THRESHOLDS)
    if values is None:
        return None
    if values.shape != (len(TARGETS),):
        raise WeightsError(f"{_THRESHOLDS} in the weights is {tuple(values.shape)}, expected ({len(TARGETS)},).")
    points = {name: value for name, value in zip(TARGETS, values.tolist(), strict=True) if not isnan(value)}
    if wrong := [f"{name}: {value:g}" for name, value in points.items() if not 0 <= value <= 1]:
        raise WeightsError(f"{_THRESHOLDS} in the weights holds {wrong[0]}; expected probabilities in [0, 1].")
    return points


def processor() -> CheXpertImageProcessor:
    """Return a processor that does what torchxrayvision's `normalize`, `XRayCenterCrop` and `XRayResizer(224)` do."""
    return CheXpertImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_square_crop=True,
        resize_like=SCIKIT_IMAGE,
        image_mean=[0.5],
        image_std=[0.5 / 1024],  # gray levels are in [-1024, 1024]
    )
