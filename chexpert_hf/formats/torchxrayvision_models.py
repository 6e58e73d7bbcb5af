"""torchxrayvision's seven DenseNet121: their addresses and outputs, and their conversion to model folders.

torchxrayvision rescales outputs so that each operating point is .5; here scores are plain probabilities, and operating
points are kept as such.

Source: torchxrayvision 1.5.7, `models.model_urls` and `utils.get_cache_dir` (Apache-2.0); Cohen et al. 2022,
arXiv:2111.00595; Cohen et al. 2020, arXiv:2002.02497.
"""

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from chexpert_hf.files import first_line
from chexpert_hf.formats.foreign_model import ForeignModel, num_outputs, outputs_named
from chexpert_hf.image_processing_chexpert import SCIKIT_IMAGE, CheXpertImageProcessor
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import CHEXPERT_CITATION, ImportedFrom

PREFIX = "densenet121-res224-"
SIDE = 224
_THRESHOLDS = "op_threshs"  # the buffer with the operating points of the outputs


class PublishedModel(NamedTuple):
    """One of the models: its address, its training data, and the operating point of each output that was trained."""

    url: str
    data: str
    thresholds: Mapping[str, float]


_FILES_AND_DATA = {
    "all": (
        "nih-pc-chex-mimic_ch-google-openi-kaggle",
        "ChestX-ray14 (NIH), PadChest, CheXpert, MIMIC-CXR, Google's labels of ChestX-ray14, OpenI, RSNA Pneumonia",
    ),
    "nih": ("nih", "ChestX-ray14 of the NIH Clinical Center"),
    "pc": ("pc", "PadChest"),
    "chex": ("chex", "CheXpert"),
    "rsna": ("kaggle", "the radiographs of the RSNA Pneumonia Detection Challenge"),
    "mimic_nb": ("mimic_nb", "MIMIC-CXR with labels by NegBio"),
    "mimic_ch": ("mimic_ch", "MIMIC-CXR with labels by CheXpert's labeler"),
}
# Output -> its operating point in each of these models; None where it was not trained.
_POINTS = {
    "Atelectasis": (0.07422872, 0.039117552, 0.031012505, 0.1988969, None, 0.08558747, 0.09121389),
    "Consolidation": (0.038290843, 0.0034529066, 0.013347598, 0.05710573, None, 0.011884617, 0.010573786),
    "Infiltration": (0.09814756, 0.11396341, 0.081435576, None, None, None, None),
    "Pneumothorax": (0.0098118475, 0.0057298196, 0.001262615, 0.0531293, None, 0.0040595434, 0.005023008),
    "Edema": (0.023601074, 0.00045666535, 0.002587246, 0.1435217, None, 0.010733786, 0.003698257),
    "Emphysema": (0.0022490358, 0.0018880932, 0.0035944257, None, None, None, None),
    "Fibrosis": (0.010060724, 0.012037827, 0.0023071, None, None, None, None),
    "Effusion": (0.103246614, 0.038744126, 0.055412333, 0.27212676, None, 0.118761964, 0.08001232),
    "Pneumonia": (0.056810737, 0.0037213727, 0.044385884, 0.07749717, 0.13486601, 0.022924708, 0.037242252),
    "Pleural_Thickening": (0.026791653, 0.014730946, 0.042766232, None, None, None, None),
    "Cardiomegaly": (0.050318155, 0.016149804, 0.043258056, 0.19712369, None, 0.06358637, 0.05006329),
    "Nodule": (0.023985857, 0.054241467, 0.037629247, None, None, None, None),
    "Mass": (0.01939503, 0.037198864, 0.005658899, None, None, None, None),
    "Hernia": (0.042889766, 0.0004403434, 0.0091741895, None, None, None, None),
    "Lung Lesion": (0.053369623, None, None, 0.09932402, None, 0.022143636, 0.019866971),
    "Fracture": (0.035975814, None, 0.026507627, 0.09273402, None, 0.017476924, 0.03823637),
    "Lung Opacity": (0.20204692, None, None, 0.3270967, 0.13511065, 0.1258702, 0.11303808),
    "Enlarged Cardiomediastinum": (0.05015312, None, None, 0.10888247, None, 0.014020768, 0.0069147074),
}
TARGETS = tuple(_POINTS)
"""The 18 outputs of each model, in their order."""

MODELS: Mapping[str, PublishedModel] = {
    name: PublishedModel(
        "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
        f"{file}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        data,
        {target: point for target, points in _POINTS.items() if (point := points[column]) is not None},
    )
    for column, (name, (file, data)) in enumerate(_FILES_AND_DATA.items())
}


def published_model(name: str) -> PublishedModel:
    """A model by its name, with or without `densenet121-res224-`; raises WeightsError if there is none."""
    if model := MODELS.get(name.removeprefix(PREFIX)):
        return model
    known = ", ".join(PREFIX + each for each in MODELS)
    raise WeightsError(f"torchxrayvision has no model {name!r} that can be imported; expected one of: {known}.")


def fetched_file(model: PublishedModel) -> Path:
    """The file in torchxrayvision's cache, downloaded if it is missing; raises WeightsError if that fails."""
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


def to_ours(model: PublishedModel, tensors: Mapping[str, Tensor], source: str) -> ForeignModel:
    """The model of the trained outputs; `source` is its name for the card.

    Operating points are those in the weights (`op_threshs`), or else the published ones.
    """
    own_points = _own_thresholds(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name != _THRESHOLDS}
    trained = [name if name in model.thresholds else "" for name in TARGETS]
    outputs = outputs_named(trained, num_outputs(tensors), "The source")
    thresholds = model.thresholds if own_points is None else own_points
    points = {name: thresholds.get(TARGETS[row]) for name, row in zip(outputs.observations, outputs.rows, strict=True)}
    origin = ImportedFrom(
        source=f"torchxrayvision's {source}, published at {model.url}",
        data=model.data,
        conversion="one channel in [-1024, 1024], the square in the middle, resized to 224 pixels as scikit-image "
        "does; outputs that were never trained are dropped; scores are the sigmoid of the logits, not bent so that "
        "the operating point lies at .5",
        licence="torchxrayvision, which published the weights, is Apache-2.0. The data that they were trained on "
        f"({model.data}) have terms of their own; read them before you use or pass on the weights.",
        license_name="apache-2.0-and-terms-of-the-training-data",
        limits=("Its operating points are far below .5: use them as thresholds, or calibrate the model.",),
        citations=("cohen2022xrv", "cohen2020limits", *((CHEXPERT_CITATION,) if "CheXpert" in model.data else ())),
    )
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
    """The operating point of each output in the weights, except NaN; None if the weights have none."""
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
    """The processor with the pixel values of torchxrayvision's `normalize`, `XRayCenterCrop` and `XRayResizer(224)`."""
    return CheXpertImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_square_crop=True,
        resize_like=SCIKIT_IMAGE,
        image_mean=[0.5],
        image_std=[0.5 / 1024],  # gray levels are in [-1024, 1024]
    )
