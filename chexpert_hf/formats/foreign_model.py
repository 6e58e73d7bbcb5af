"""A model that others trained, in this package's terms, and the mapping of its outputs to observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class ForeignModel:
    """An imported model before it is written: its weights by this package's names, and sentences for the user."""

    config: CheXpertConfig
    processor: CheXpertImageProcessor
    tensors: Mapping[str, Tensor]
    origin: ImportedFrom
    remarks: tuple[str, ...] = ()

    def build(self) -> CheXpertForImageClassification:
        """The model; raises WeightsError if weights are missing, left over, or of another size."""
        model = CheXpertForImageClassification(self.config)
        expected, given = model.state_dict(), self.tensors
        problems = {
            "misses": [name for name in expected if name not in given],
            "has the unknown": [name for name in given if name not in expected],
            "has other sizes:": [
                f"{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
                for name, tensor in expected.items()
                if name in given and given[name].shape != tensor.shape
            ],
        }
        for problem, names in problems.items():
            if names:
                raise WeightsError(
                    f"The source {problem} {len(names)} weight{'s' if len(names) > 1 else ''} {_shown(names)}; "
                    "expected a DenseNet121 with torchvision's names."
                )
        model.load_state_dict(dict(given))
        return model.eval()


@dataclass(frozen=True)
class Outputs:
    """The outputs of a head that are observations, by CheXpert's names.

    Attributes:
        observations: The names.
        rows: The place of each among the outputs.
        dropped: Names of the outputs that CheXpert has no name for.
        classes: Number of outputs per name.
    """

    observations: tuple[str, ...]
    rows: tuple[int, ...]
    dropped: tuple[str, ...] = ()
    classes: int = 1

    def layer_of(self, tensors: Mapping[str, Tensor], layer: str = "classifier") -> dict[str, Tensor]:
        """The weight and bias of a linear layer for these outputs."""
        names = (f"{layer}.weight", f"{layer}.bias")
        return {name: tensors[name][list(self.rows)] for name in names if name in tensors}

    def model(
        self,
        tensors: Mapping[str, Tensor],
        processor: CheXpertImageProcessor,
        origin: ImportedFrom,
        *remarks: str,
        head: Mapping[str, Tensor] | None = None,
        **config: Any,
    ) -> ForeignModel:
        """The model of all weights of a source, or of its backbone and another head, with more fields of the config."""
        head = self.layer_of(tensors) if head is None else head
        dropped = f"Dropped, for CheXpert has no such observations: {', '.join(self.dropped)}."
        backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
        full_config = CheXpertConfig(
            id2label=dict(enumerate(self.observations)),
            num_channels=processor.num_channels,
            policies_source="not recorded in the weights that were imported",
            **config,
        )
        all_remarks = (dropped, *remarks) if self.dropped else remarks
        return ForeignModel(full_config, processor, backbone | dict(head), origin, all_remarks)


def outputs_named(
    names: Sequence[str] | None,
    total: int,
    source: str,
    *,
    labels: Sequence[str] | None = None,
    classes: Sequence[int] = (1,),
) -> Outputs:
    """The outputs that have one of CheXpert's names.

    Args:
        names: Of all outputs, as the source has them; empty for an output that was never trained.
        total: Number of outputs.
        source: The source, for messages.
        labels: The user's names instead.
        classes: Possible numbers of outputs per name.
    """
    names = names if labels is None else labels
    if names is None:
        raise WeightsError(f"{source} does not say what its {total} outputs are; name them with --labels.")
    expected = [number * len(names) for number in classes]
    if total not in expected:
        raise WeightsError(
            f"{source} has {total} outputs, expected {' or '.join(map(str, expected))}, for the names {_shown(names)}; "
            "name each output with --labels."
        )
    known = [_observation_named(name) for name in names]
    if labels is not None:
        try:
            check_observations(
                [name or label for name, label in zip(known, labels, strict=True) if label], OBSERVATIONS
            )
        except ValueError as error:
            raise WeightsError(f"--labels: {error}") from error
    observations = tuple(name for name in known if name)
    if not observations:
        raise WeightsError(
            f"None of the source's outputs has one of CheXpert's names ({_shown(names)}); say what they are with "
            "--labels."
        )
    if len(set(observations)) < len(observations):
        raise WeightsError(f"Two of the source's outputs have one name ({_shown(observations)}); say --labels.")
    return Outputs(
        observations,
        rows=tuple(row for row, name in enumerate(known) if name),
        dropped=tuple(name for name, ours in zip(names, known, strict=True) if name and not ours),
        classes=total // len(names),
    )


def _observation_named(name: str) -> str | None:
    plain = name.strip().replace("_", " ")
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in OBSERVATIONS else None


def num_outputs(tensors: Mapping[str, Tensor], layer: str = "classifier") -> int:
    """The number of outputs of a linear layer; raises WeightsError if it is not there."""
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.ndim != 2:
        heads = sorted(name for name in tensors if name.startswith("classifier"))
        raise WeightsError(
            f"The source has no linear layer {layer}; its head is {_shown(heads) if heads else 'missing'}."
        )
    return weight.shape[0]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
