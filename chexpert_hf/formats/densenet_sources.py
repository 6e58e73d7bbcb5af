"""Others' DenseNet121 with torchvision's names: ImageNet's, Stanford's checkpoints, the original student project's.

Sources: torchvision's DenseNet121_Weights; Irvin et al. 2019, arXiv:1901.07031, and the code that its authors published
with their 30 checkpoints, as it is in torchxrayvision 1.5.7 (`baseline_models.chexpert`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chexpert_hf.formats.foreign_model import ForeignModel, Outputs, num_outputs, outputs_named
from chexpert_hf.formats.weight_files import WeightFile
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import COMPETITION_OBSERVATIONS, OBSERVATIONS, UncertaintyPolicy, check_observations
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import CHEXPERT_CITATION, ImportedFrom

IMAGENET_SIDE = 224
_STANFORD_SIDE = 320
_NUM_FEATURES = 1024  # of DenseNet121's last layer
_STUDENT_OUTPUTS = ("Atelectasis", "Cardiomegaly", "Edema", "Consolidation", "Pleural Effusion")
_STUDENT_DROPOUT = 0.5
_UNTRAINED = "The head is new: until it is trained, every score is .5 and every map is empty. It judges nothing."


def square(side: int) -> CheXpertImageProcessor:
    """Resizes to a square without keeping the aspect ratio; ImageNet's statistics."""
    return CheXpertImageProcessor(size={"height": side, "width": side})


def untrained(
    tensors: Mapping[str, Tensor],
    processor: CheXpertImageProcessor,
    labels: Sequence[str] | None,
    *,
    source: str,
    licence: str,
) -> ForeignModel:
    """A backbone trained on ImageNet with a new head for `labels`, or all 14 observations if None.

    Raises:
        WeightsError: If a label is none of CheXpert's.
    """
    try:
        observations = check_observations(OBSERVATIONS if labels is None else labels)
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
    return Outputs(observations, tuple(range(size))).model(tensors, head, processor, origin, _UNTRAINED)


def from_torchvision(tensors: Mapping[str, Tensor], labels: Sequence[str] | None) -> ForeignModel:
    """Torchvision's DenseNet121, trained on ImageNet, with a new head."""
    return untrained(
        tensors,
        square(IMAGENET_SIDE),
        labels,
        source="torchvision's DenseNet121_Weights.IMAGENET1K_V1, "
        "https://pytorch.org/vision/stable/models/generated/torchvision.models.densenet121.html",
        licence="torchvision, which published the weights, is BSD-3-Clause. ImageNet's images are for research and "
        "teaching that is not commercial.",
    )


def from_stanford(file: WeightFile, labels: Sequence[str] | None, source: str) -> ForeignModel:
    """One of the 30 checkpoints of the CheXpert paper's authors.

    The outputs are one per observation, or three: uncertain, negative, positive, in this order. Here the positive class
    of all observations comes first, then the negative and the uncertain ones.

    Args:
        file: The checkpoint.
        labels: The names of its observations, where it does not say them.
        source: Name of the file, for the card.

    Raises:
        WeightsError: If it is another network, or does not name its outputs.
    """
    tensors, total = file.tensors, num_outputs(file.tensors)
    names = _task_names(file.beside.get("task_sequence"))
    outputs = outputs_named(names, total, source, labels=labels, classes=(1, 3))
    is_multiclass = outputs.classes == 3
    layer = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
    if is_multiclass:
        head = {name: _our_class_order(tensor, outputs.rows) for name, tensor in layer.items()}
    else:
        head = outputs.layer_of(layer)
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
    return outputs.model(tensors, head, square(_STANFORD_SIDE), origin, uncertainty_policies=policies)


def _task_names(tasks: Any) -> list[str] | None:
    """Names in the order of the outputs, from a list or a mapping of names to places."""
    if isinstance(tasks, Mapping) and all(isinstance(place, int) for place in tasks.values()):
        is_complete = sorted(tasks.values()) == list(range(len(tasks)))
        return [str(name) for name in sorted(tasks, key=lambda name: int(tasks[name]))] if is_complete else None
    if isinstance(tasks, (list, tuple)) and tasks and all(isinstance(name, str) for name in tasks):
        return list(tasks)
    return None


def _our_class_order(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """`(3 * n, ...)` with (uncertain, negative, positive) side by side to all positive, all negative, all uncertain."""
    uncertain, negative, positive = tensor.unflatten(0, (-1, 3))[list(rows)].unbind(dim=1)
    return torch.cat([positive, negative, uncertain])


def from_student(file: WeightFile, labels: Sequence[str] | None, source: str) -> ForeignModel:
    """The original student project's network: five outputs behind a hidden layer; see `from_stanford`."""
    tensors = file.tensors
    hidden, total = num_outputs(tensors, "classifier.0"), num_outputs(tensors, "classifier.3")
    outputs = outputs_named(_STUDENT_OUTPUTS, total, source, labels=labels)
    is_of_the_competition = set(outputs.observations) == set(COMPETITION_OBSERVATIONS)
    few = f"It knows only {len(COMPETITION_OBSERVATIONS)} of CheXpert's 14 observations."
    origin = ImportedFrom(
        source=f"the original student project's network (the file {source})",
        data="CheXpert, which the file does not say itself",
        conversion="three equal channels with ImageNet's statistics, 224 pixels without keeping the aspect ratio; the "
        "sigmoid at its end is taken by whoever reads the logits",
        licence="The file names no licence; ask its authors. CheXpert's research use agreement holds as well.",
        license_name="unknown-and-chexpert-research-use-agreement",
        limits=(few,) if is_of_the_competition else (),
        citations=(CHEXPERT_CITATION,),
    )
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("classifier.")}
    head |= outputs.layer_of(tensors, "classifier.3")
    fields = {"head_hidden_size": hidden, "head_dropout": _STUDENT_DROPOUT}
    return outputs.model(tensors, head, square(IMAGENET_SIDE), origin, **fields)
