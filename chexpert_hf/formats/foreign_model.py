"""A model that others trained, in this package's terms, and how their outputs become observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import OBSERVATIONS, check_observations
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import ImportedFrom

_OTHER_NAMES = {
    "Airspace Opacity": "Lung Opacity",  # cheXlocalize, and Stanford's code
    "Effusion": "Pleural Effusion",  # torchxrayvision
}
_SHOWN = 5
POLICIES_UNKNOWN = "not recorded in the weights that were imported"


@dataclass(frozen=True)
class ForeignModel:
    """What an import gives.

    Attributes:
        config: Of the model.
        processor: Prepares images as the model's authors do.
        tensors: Its weights, by this package's names.
        origin: Where it comes from, for the card.
        remarks: Sentences for whoever imports it.
    """

    config: CheXpertConfig
    processor: CheXpertImageProcessor
    tensors: Mapping[str, Tensor]
    origin: ImportedFrom
    remarks: tuple[str, ...] = ()

    def build(self) -> CheXpertForImageClassification:
        """The model with its weights.

        Raises:
            WeightsError: If weights are missing, left over, or of another size.
        """
        model = CheXpertForImageClassification(self.config)
        expected, given = model.state_dict(), self.tensors
        missing = [name for name in expected if name not in given]
        unknown = [name for name in given if name not in expected]
        sizes = [
            f"{name} is {_size(given[name])}, expected {_size(expected[name])}"
            for name in expected
            if name in given and given[name].shape != expected[name].shape
        ]
        for what, names in (("misses", missing), ("has the unknown", unknown), ("has other sizes:", sizes)):
            if names:
                raise WeightsError(
                    f"The source {what} {len(names)} weight{'s' if len(names) > 1 else ''} {_shown(names)}; expected a "
                    "DenseNet121 with torchvision's names."
                )
        model.load_state_dict(dict(given))
        return model.eval()


@dataclass(frozen=True)
class Outputs:
    """Which outputs of a head are observations.

    Attributes:
        observations: By CheXpert's names.
        rows: The place of each among the outputs.
        dropped: Names of the outputs that are none of CheXpert's.
    """

    observations: tuple[str, ...]
    rows: tuple[int, ...]
    dropped: tuple[str, ...]

    def of(self, tensors: Mapping[str, Tensor], layer: str = "classifier") -> dict[str, Tensor]:
        """The weight and bias of a linear layer for these outputs."""
        names = (f"{layer}.weight", f"{layer}.bias")
        return {name: tensors[name][list(self.rows)] for name in names if name in tensors}


def observation_named(name: str) -> str | None:
    """CheXpert's name of what others call so; None if it has none."""
    plain = name.strip().replace("_", " ")
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in OBSERVATIONS else None


def outputs_named(names: Sequence[str], labels: Sequence[str] | None = None) -> Outputs:
    """Which outputs are kept: those with one of CheXpert's names; an output without a name was never trained.

    Args:
        names: Of all outputs, as the source has them.
        labels: What the user says they are instead.

    Raises:
        WeightsError: If the numbers differ, a name is unknown or given twice, or none is known.
    """
    if labels is not None:
        if len(labels) != len(names):
            raise WeightsError(f"--labels names {len(labels)} outputs, but the source has {len(names)}; name each.")
        try:
            check_observations(observation_named(label) or label for label in labels if label)
        except ValueError as error:
            raise WeightsError(f"--labels: {error}") from error
        names = labels
    found = [(row, observation_named(name)) for row, name in enumerate(names)]
    kept = [(row, name) for row, name in found if name is not None]
    observations = [name for _, name in kept]
    if not kept:
        raise WeightsError(
            f"None of the source's outputs has one of CheXpert's names ({_shown(list(names))}); say what they are with "
            "--labels."
        )
    if len(set(observations)) < len(observations):
        raise WeightsError(f"Two of the source's outputs have one name ({_shown(observations)}); say --labels.")
    dropped = [name for row, name in enumerate(names) if name and found[row][1] is None]
    return Outputs(tuple(observations), tuple(row for row, _ in kept), tuple(dropped))


def num_outputs(tensors: Mapping[str, Tensor], layer: str = "classifier") -> int:
    """Outputs of a linear layer.

    Raises:
        WeightsError: If it is not there.
    """
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.ndim != 2:
        heads = sorted(name for name in tensors if name.startswith("classifier"))
        raise WeightsError(
            f"The source has no linear layer {layer}; its head is {_shown(heads) if heads else 'missing'}."
        )
    return weight.shape[0]


def backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the head."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}


def untrained_head(observations: Sequence[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A linear head of zeros: every score is .5 until it is trained.

    Raises:
        WeightsError: If the backbone is not there.
    """
    norm = tensors.get("features.norm5.weight")
    if norm is None:
        raise WeightsError("The source misses features.norm5.weight; expected a DenseNet121 with torchvision's names.")
    return {
        "classifier.weight": torch.zeros(len(observations), norm.shape[0]),
        "classifier.bias": torch.zeros(len(observations)),
    }


def num_channels(tensors: Mapping[str, Tensor]) -> int:
    """Channels that the first convolution takes.

    Raises:
        WeightsError: If it is not there, or takes neither 1 nor 3.
    """
    weight = tensors.get("features.conv0.weight")
    if weight is None or weight.ndim != 4 or weight.shape[1] not in (1, 3):
        size = "missing" if weight is None else _size(weight)
        raise WeightsError(
            f"The source's features.conv0.weight is {size}, expected (64, 3, 7, 7) or (64, 1, 7, 7): a DenseNet121."
        )
    return weight.shape[1]


def config_for(observations: Sequence[str], **values: Any) -> CheXpertConfig:
    """The configuration of an imported DenseNet121."""
    return CheXpertConfig(id2label=dict(enumerate(observations)), policies_source=POLICIES_UNKNOWN, **values)


def _size(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
