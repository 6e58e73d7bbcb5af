"""An imported model before it is built: its weights under this package's names, and its outputs as observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.datasets.label_sets import is_known, same_label
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import OBSERVATIONS, check_observations
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.data_terms import ImportedFrom


@dataclass(frozen=True)
class ForeignModel:
    """A model that others trained, as read from its source, with all that a model folder needs."""

    config: CheXpertConfig
    processor: CheXpertImageProcessor
    tensors: Mapping[str, Tensor]  # the weights, under this package's names
    origin: ImportedFrom
    remarks: tuple[str, ...] = ()  # for the user

    def build(self) -> CheXpertForImageClassification:
        """Build the model, in evaluation mode; WeightsError if weights are missing, unknown, or of another size."""
        model = CheXpertForImageClassification(self.config)
        given = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        odd = [name for name in expected if name in given and given[name] != expected[name]]
        problems = {
            "misses": [name for name in expected if name not in given],
            "has the unknown": [name for name in given if name not in expected],
            "has other sizes:": [f"{name} is {given[name]}, expected {expected[name]}" for name in odd],
        }
        for problem, names in problems.items():
            if names:
                weights = f"{len(names)} weight{'s' if len(names) > 1 else ''} {_shown(names)}"
                title = self.config.network_title
                raise WeightsError(f"The source {problem} {weights}; expected a {title} with torchvision's names.")
        model.load_state_dict(dict(self.tensors))
        return model.eval()


@dataclass(frozen=True)
class Outputs:
    """The outputs that become observations, out of all outputs of an imported model's head."""

    observations: tuple[str, ...]
    rows: tuple[int, ...]  # index of each observation among the names of the source's outputs
    classes: int = 1  # outputs per observation: 1, or 3 under U-MultiClass

    def layer_of(self, tensors: Mapping[str, Tensor], layer: str = "classifier") -> dict[str, Tensor]:
        """Return the weight and bias of the linear layer named `layer`, with only the rows whose indices are in `rows`.

        These are the rows of the observations if each has one output. With three outputs each (U-MultiClass), the
        caller chooses the rows. The keys are those in `tensors`, such as "classifier.weight". A tensor that is missing
        there is skipped.
        """
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
        """Return an imported model: the backbone in `tensors`, and a head for those outputs that become observations.

        `head` maps weight names, such as "classifier.weight", to tensors; if None, it is the classifier in `tensors`,
        cut to these outputs. `remarks` are lines for the user; `config` has further fields of the model's config.
        """
        full_config = CheXpertConfig(
            id2label=dict(enumerate(self.observations)),
            num_channels=processor.num_channels,
            policies_source="not recorded in the weights that were imported",
            **config,
        )
        backbone = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
        head = self.layer_of(tensors) if head is None else head
        return ForeignModel(full_config, processor, {**backbone, **head}, origin, remarks)


def outputs_named(
    names: Sequence[str] | None,
    total: int,
    source: str,
    *,
    labels: Sequence[str] | None = None,
    classes: Sequence[int] = (1,),
) -> Outputs:
    """Match a source's outputs to observations; outputs that are not among CheXpert's 14 keep their own names.

    Args:
        names: Names of all outputs in the source, None if it has none. An output with an empty name, which was never
            trained, is dropped.
        total: Number of outputs.
        source: Name of the source for messages.
        labels: Names given by the user, which replace `names`.
        classes: Possible numbers of outputs per name, such as `(1, 3)`.

    Raises:
        WeightsError: If there are no names, if they are invalid or too few or too many, or if none of `names` is a
            known finding.
    """
    names = names if labels is None else labels
    if names is None:
        raise WeightsError(f"{source} does not say what its {total} outputs are; name them with --labels.")
    expected = [number * len(names) for number in classes]
    if total not in expected:
        numbers = f"{total} outputs, expected {' or '.join(map(str, expected))}"
        raise WeightsError(f"{source} has {numbers}, for the names {_shown(names)}; name each output with --labels.")
    known = [same_label(name.strip(), OBSERVATIONS) or name.strip() for name in names]
    observations = tuple(name for name in known if name)
    if labels is None and not any(is_known(name) for name in observations):
        given = f"None of the source's outputs has the name of a finding that is known ({_shown(names)})"
        raise WeightsError(f"{given}; name each output with --labels.")
    try:
        check_observations(observations)
    except ValueError as error:
        raise WeightsError(f"--labels: {error}" if labels is not None else f"The source's outputs: {error}") from error
    rows = tuple(row for row, name in enumerate(known) if name)
    return Outputs(observations, rows, classes=total // len(names))


def num_outputs(tensors: Mapping[str, Tensor], layer: str = "classifier") -> int:
    """Return the number of outputs of a linear layer; raise WeightsError if there is no such layer."""
    weight = tensors.get(f"{layer}.weight")
    if weight is None or weight.ndim != 2:
        head = _shown(sorted(name for name in tensors if name.startswith("classifier"))) or "missing"
        raise WeightsError(f"The source has no linear layer {layer}; its head is {head}.")
    return weight.shape[0]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
