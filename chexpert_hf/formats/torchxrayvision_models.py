"""torchxrayvision's seven DenseNet121: where they are published, what their outputs are, how they become ours.

Their outputs are bent so that each operating point comes to lie at .5; here scores stay plain probabilities and the
operating points stay operating points.

Source: torchxrayvision 1.5.7, `models.model_urls` and `utils.get_cache_dir` (Apache-2.0); Cohen et al. 2022,
arXiv:2111.00595; Cohen et al. 2020, arXiv:2002.02497.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from chexpert_hf.formats.foreign_model import ForeignModel, backbone, config_for, num_outputs, outputs_named
from chexpert_hf.image_processing_chexpert import SCIKIT_IMAGE, CheXpertImageProcessor
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import LABELS_CITATION, ImportedFrom

PREFIX = "densenet121-res224-"
SIDE = 224
LARGEST = 1024
"""Gray levels are in [-1024, 1024]."""

_THRESHOLDS = "op_threshs"
"""The buffer with the operating points of the outputs."""

_OF_CHEST_XRAY14 = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
)
_OTHERS = ("Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum")
TARGETS = (*_OF_CHEST_XRAY14, *_OTHERS)
"""The 18 outputs of each model, in their order."""

_ADDRESS = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
_FILE = "{}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
_CITATIONS = (
    """@inproceedings{cohen2022xrv,
  title     = {TorchXRayVision: A library of chest X-ray datasets and models},
  author    = {Cohen, Joseph Paul and Viviano, Joseph D. and Bertin, Paul and Morrison, Paul and Torabian, Parsa and
               Guarrera, Matteo and Lungren, Matthew P. and Chaudhari, Akshay and Brooks, Rupert and
               Hashir, Mohammad and Bertrand, Hadrien},
  booktitle = {Medical Imaging with Deep Learning},
  year      = {2022},
  url       = {https://arxiv.org/abs/2111.00595}
}""",
    """@inproceedings{cohen2020limits,
  title     = {On the limits of cross-domain generalization in automated X-ray prediction},
  author    = {Cohen, Joseph Paul and Hashir, Mohammad and Brooks, Rupert and Bertrand, Hadrien},
  booktitle = {Medical Imaging with Deep Learning},
  year      = {2020},
  url       = {https://arxiv.org/abs/2002.02497}
}""",
)


@dataclass(frozen=True)
class PublishedModel:
    """One of the models.

    Attributes:
        file: Its name where it is published, and in torchxrayvision's cache.
        data: What it was trained on.
        thresholds: The operating point of each output that was trained.
    """

    file: str
    data: str
    thresholds: Mapping[str, float]

    @property
    def url(self) -> str:
        """Where it is published."""
        return _ADDRESS + self.file

    @property
    def targets(self) -> tuple[str, ...]:
        """The 18 outputs; empty where nothing was trained."""
        return tuple(name if name in self.thresholds else "" for name in TARGETS)


_SEVEN = ("Atelectasis", "Consolidation", "Pneumothorax", "Edema", "Effusion", "Pneumonia", "Cardiomegaly")
_CHEXPERT_LIKE = (*_SEVEN, *_OTHERS)


def _in_order(names: tuple[str, ...], *points: float) -> dict[str, float]:
    return dict(zip(names, points, strict=True))


# fmt: off
MODELS: Mapping[str, PublishedModel] = {
    "all": PublishedModel(
        _FILE.format("nih-pc-chex-mimic_ch-google-openi-kaggle"),
        "ChestX-ray14 (NIH), PadChest, CheXpert, MIMIC-CXR, Google's labels of ChestX-ray14, OpenI, RSNA Pneumonia",
        _in_order(
            TARGETS, 0.07422872, 0.038290843, 0.09814756, 0.0098118475, 0.023601074, 0.0022490358, 0.010060724,
            0.103246614, 0.056810737, 0.026791653, 0.050318155, 0.023985857, 0.01939503, 0.042889766, 0.053369623,
            0.035975814, 0.20204692, 0.05015312,
        ),
    ),
    "nih": PublishedModel(
        _FILE.format("nih"),
        "ChestX-ray14 of the NIH Clinical Center",
        _in_order(
            _OF_CHEST_XRAY14, 0.039117552, 0.0034529066, 0.11396341, 0.0057298196, 0.00045666535, 0.0018880932,
            0.012037827, 0.038744126, 0.0037213727, 0.014730946, 0.016149804, 0.054241467, 0.037198864, 0.0004403434,
        ),
    ),
    "pc": PublishedModel(
        _FILE.format("pc"),
        "PadChest",
        _in_order(
            (*_OF_CHEST_XRAY14, "Fracture"), 0.031012505, 0.013347598, 0.081435576, 0.001262615, 0.002587246,
            0.0035944257, 0.0023071, 0.055412333, 0.044385884, 0.042766232, 0.043258056, 0.037629247, 0.005658899,
            0.0091741895, 0.026507627,
        ),
    ),
    "chex": PublishedModel(
        _FILE.format("chex"),
        "CheXpert",
        _in_order(
            _CHEXPERT_LIKE, 0.1988969, 0.05710573, 0.0531293, 0.1435217, 0.27212676, 0.07749717, 0.19712369, 0.09932402,
            0.09273402, 0.3270967, 0.10888247,
        ),
    ),
    "rsna": PublishedModel(
        _FILE.format("kaggle"),
        "the radiographs of the RSNA Pneumonia Detection Challenge",
        {"Pneumonia": 0.13486601, "Lung Opacity": 0.13511065},
    ),
    "mimic_nb": PublishedModel(
        _FILE.format("mimic_nb"),
        "MIMIC-CXR with labels by NegBio",
        _in_order(
            _CHEXPERT_LIKE, 0.08558747, 0.011884617, 0.0040595434, 0.010733786, 0.118761964, 0.022924708, 0.06358637,
            0.022143636, 0.017476924, 0.1258702, 0.014020768,
        ),
    ),
    "mimic_ch": PublishedModel(
        _FILE.format("mimic_ch"),
        "MIMIC-CXR with labels by CheXpert's labeler",
        _in_order(
            _CHEXPERT_LIKE, 0.09121389, 0.010573786, 0.005023008, 0.003698257, 0.08001232, 0.037242252, 0.05006329,
            0.019866971, 0.03823637, 0.11303808, 0.0069147074,
        ),
    ),
}
# fmt: on


def published_model(name: str) -> PublishedModel:
    """One of the models by its name, with or without `densenet121-res224-`.

    Raises:
        WeightsError: If there is none of this name.
    """
    try:
        return MODELS[name.removeprefix(PREFIX)]
    except KeyError:
        known = ", ".join(PREFIX + each for each in MODELS)
        raise WeightsError(
            f"torchxrayvision has no model {name!r} that can be imported; expected one of: {known}."
        ) from None


def fetched_file(model: PublishedModel) -> Path:
    """The file in torchxrayvision's cache, where it is downloaded to if it is not there.

    Raises:
        WeightsError: If it cannot be downloaded.
    """
    path = Path.home() / ".torchxrayvision" / "models_data" / model.file
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(model.url, str(path))  # beside it first, so that none is half there
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"{model.url} could not be downloaded ({str(error).splitlines()[0]}); put that file at {path}, or name it "
            "with --file."
        ) from error
    return path


def to_ours(model: PublishedModel, tensors: Mapping[str, Tensor], source: str) -> ForeignModel:
    """The outputs that were trained and have one of CheXpert's names, with their operating points.

    The operating points are those in the weights (`op_threshs`); the published ones where the weights have none.

    Args:
        model: Which one.
        tensors: Its weights.
        source: The file, as the card is to name it.

    Raises:
        WeightsError: If the head is another, or the operating points in the weights are not probabilities.
    """
    own_points = _own_thresholds(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name != _THRESHOLDS}
    if num_outputs(tensors) != len(TARGETS):
        raise WeightsError(f"The source has {num_outputs(tensors)} outputs, expected torchxrayvision's {len(TARGETS)}.")
    outputs = outputs_named(model.targets)
    thresholds = model.thresholds if own_points is None else own_points
    targets = dict(zip(outputs.observations, (TARGETS[row] for row in outputs.rows), strict=True))
    points = {name: thresholds[target] for name, target in targets.items() if target in thresholds}
    config = config_for(
        outputs.observations,
        num_channels=1,
        operating_points=points,
        operating_points_source={
            "method": "their op_threshs, as probabilities",
            "wanted": None,
            "data": "torchxrayvision" if own_points is None else "the file of the weights",
            "left_out": {name: "op_threshs in the file is NaN" for name in targets if name not in points},
        },
    )
    left = (
        f"outputs that CheXpert has no name for are dropped ({', '.join(outputs.dropped)})" if outputs.dropped else ""
    )
    origin = ImportedFrom(
        source=f"torchxrayvision's {source}, published at {model.url}",
        data=model.data,
        conversion="; ".join(
            part
            for part in (
                "one channel in [-1024, 1024], the square in the middle, resized to 224 pixels as scikit-image does",
                "outputs that were never trained are dropped",
                left,
                "scores are the sigmoid of the logits, not bent so that the operating point lies at .5",
            )
            if part
        ),
        licence=(
            "torchxrayvision, which published the weights, is Apache-2.0. The data that they were trained on "
            f"({model.data}) have terms of their own; read them before you use or pass on the weights."
        ),
        license_name="apache-2.0-and-terms-of-the-training-data",
        limits=("Its operating points lie far below .5: judge by them, or calibrate it.",),
        citations=(*_CITATIONS, *((LABELS_CITATION,) if "CheXpert" in model.data else ())),
    )
    remarks = (
        [f"Dropped, for CheXpert has no such observations: {', '.join(outputs.dropped)}."] if outputs.dropped else []
    )
    return ForeignModel(config, processor(), {**backbone(tensors), **outputs.of(tensors)}, origin, tuple(remarks))


def _own_thresholds(tensors: Mapping[str, Tensor]) -> dict[str, float] | None:
    """The operating points in the weights by output, without those that are NaN; None if the weights have none."""
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
    """What gives the pixel values of torchxrayvision's `normalize`, `XRayCenterCrop` and `XRayResizer(224)`."""
    return CheXpertImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_square_crop=True,
        resize_like=SCIKIT_IMAGE,
        image_mean=[0.5],
        image_std=[0.5 / LARGEST],
    )
