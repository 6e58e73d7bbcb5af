"""Label sets such as CheXpert's, the uncertainty policies, and the meaning of cells in label files.

This module imports only the standard library, and every other module takes these names from here. The file is copied
into saved models.

Source: Irvin et al. 2019, "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison",
arXiv:1901.07031, sections 2 and 3.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any

OBSERVATIONS: tuple[str, ...] = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 observations in the column order of CheXpert's `train.csv` and `valid.csv`."""

COMPETITION_OBSERVATIONS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
)
"""The five observations whose mean AUROC is CheXpert's headline figure."""

POSITIVE = 1.0
NEGATIVE = 0.0
UNCERTAIN = -1.0
"""Cell values of the CSV files; a blank cell (NaN once read) means that the report does not mention the observation."""

IGNORED = -100.0
"""Target of a label that takes no part in the loss, by the convention of the Hugging Face Trainer."""


class UncertaintyPolicy(str, Enum):
    """Treatment of an uncertain label (-1) in training, with the names of Irvin et al. 2019, section 3.1.

    The two with label smoothing (LSR) are from Pham et al. 2019, "Interpreting chest X-rays via CNNs that exploit
    hierarchical disease dependencies and uncertainty labels", arXiv:1911.06475.
    """

    U_IGNORE = "u-ignore"
    """The label takes no part in the loss."""
    U_ZEROS = "u-zeros"
    """The label becomes 0."""
    U_ONES = "u-ones"
    """The label becomes 1."""
    U_SELF_TRAINED = "u-self-trained"
    """The label becomes the probability given by a model that was trained with U-Ignore."""
    U_MULTICLASS = "u-multiclass"
    """Uncertain is a third class beside negative and positive."""
    U_ZEROS_LSR = "u-zeros+lsr"
    """The label becomes a random number near 0, drawn once for each sample."""
    U_ONES_LSR = "u-ones+lsr"
    """The label becomes a random number near 1, drawn once for each sample."""


SMOOTHING_RANGES: dict[UncertaintyPolicy, tuple[float, float]] = {
    UncertaintyPolicy.U_ZEROS_LSR: (0.0, 0.3),
    UncertaintyPolicy.U_ONES_LSR: (0.55, 0.85),
}
"""Ranges from which smoothed uncertain labels are drawn, uniformly. Source: Pham et al. 2019, arXiv:1911.06475."""

PAPER_PRESET = "paper"
PAPER_POLICIES: dict[str, UncertaintyPolicy] = {
    "Atelectasis": UncertaintyPolicy.U_ONES,
    "Cardiomegaly": UncertaintyPolicy.U_MULTICLASS,
    "Consolidation": UncertaintyPolicy.U_SELF_TRAINED,
    "Edema": UncertaintyPolicy.U_ONES,
    "Pleural Effusion": UncertaintyPolicy.U_MULTICLASS,
}
"""The best policy of each competition observation on the validation set. Source: Irvin et al. 2019, table 3."""

PARENTS: dict[str, str] = {
    "Cardiomegaly": "Enlarged Cardiomediastinum",
    "Lung Lesion": "Lung Opacity",
    "Edema": "Lung Opacity",
    "Consolidation": "Lung Opacity",
    "Pneumonia": "Consolidation",
    "Atelectasis": "Lung Opacity",
}
"""Child -> parent: a child that is positive makes its parent positive. Source: Pham et al. 2019, arXiv:1911.06475."""


@dataclass(frozen=True)
class LabelSet:
    """The observations of a data set or a model, with their hierarchy and definitions.

    Attributes:
        names: The observations, in the order of the table's columns or the model's outputs.
        headline: The observations whose mean AUROC is the headline metric; empty for all.
        parents: Child -> parent: a child that is positive makes its parent positive.
        none_of_these: The observation that says that all others are absent, such as No Finding; no place in the image
            shows it.
        definitions: Observation -> meaning, in one line.
    """

    names: tuple[str, ...]
    headline: tuple[str, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict)
    none_of_these: str | None = None
    definitions: Mapping[str, str] = field(default_factory=dict)

    def among(self, names: Iterable[str]) -> "LabelSet":
        """Return the label set for `names`, in their order; names that this set lacks get no parent or definition."""
        names = tuple(names)
        return LabelSet(
            names,
            tuple(name for name in self.headline if name in names),
            parents_among(names, self.parents),
            self.none_of_these if self.none_of_these in names else None,
            {name: text for name, text in self.definitions.items() if name in names},
        )

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return `names` in the order of this set; names that this set lacks come last, in the order given."""
        given = list(names)
        return [name for name in self.names if name in given] + [name for name in given if name not in self.names]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes that are not empty, except `names`, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "names" and value}

    @classmethod
    def from_dict(cls, names: Iterable[str], values: Mapping[str, Any]) -> "LabelSet":
        """Make a label set from its names and the result of `to_dict`.

        Raises:
            ValueError: If `values` has an unknown key, a value of another type than that attribute, or an observation
                that is not among `names`.
        """
        names, known = tuple(names), {each.name for each in fields(cls)} - {"names"}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"A label set has no {unknown[0]!r}; expected some of: {', '.join(sorted(known))}.")
        types = {"headline": (list, tuple), "none_of_these": str}
        for name, value in values.items():
            if not isinstance(value, types.get(name, dict)):  # type: ignore[arg-type]
                raise ValueError(f"Expected lists, mappings and a name in a label set, got {name}: {value!r}.")
        labels = cls(names, **{**values, "headline": tuple(values.get("headline", ()))})
        named = {*labels.headline, *labels.parents, *labels.parents.values(), *labels.definitions, labels.none_of_these}
        if strange := sorted(named - {*names, None}, key=str):
            raise ValueError(f"The label set names {strange[0]!r}, expected one of: {', '.join(names)}.")
        return labels


CHEXPERT = LabelSet(
    OBSERVATIONS,
    COMPETITION_OBSERVATIONS,
    PARENTS,
    none_of_these="No Finding",
    definitions={
        "No Finding": "None of the other findings is seen; support devices may be there.",
        "Enlarged Cardiomediastinum": "The outline of the heart and mediastinum together is widened.",
        "Cardiomegaly": "The heart is enlarged; on a PA view, wider than half of the chest.",
        "Lung Opacity": "Part of a lung is whiter than it should be, whatever the reason.",
        "Lung Lesion": "A nodule or mass in a lung.",
        "Edema": "Too much fluid in the tissue or air spaces of the lungs, often from heart failure.",
        "Consolidation": (
            "Air spaces filled with fluid, pus or cells, so that the lung is evenly white and hides its vessels."
        ),
        "Pneumonia": "Infection of the lung, which an image alone can suggest but not prove.",
        "Atelectasis": "Part of a lung has lost volume, up to collapse.",
        "Pneumothorax": "Air between the lung and the chest wall.",
        "Pleural Effusion": "Fluid between the lung and the chest wall.",
        "Pleural Other": "A change of the pleura other than fluid or air, such as thickening or scarring.",
        "Fracture": "A broken bone, such as a rib, a clavicle or a vertebra, fresh or healed.",
        "Support Devices": "Something placed in or on the body, such as a tube, a line, a pacemaker or a valve.",
    },
)
"""CheXpert's labels. Definitions follow the Fleischner Society's glossary (Hansell et al. 2008, Radiology 246(3)) where
it has the term, and the labeler of Irvin et al. 2019, section 2, for what CheXpert counts under a name."""


class BlankPolicy(str, Enum):
    """Meaning of a blank cell: negative, as in the paper, or unknown and left out of loss and metrics."""

    NEGATIVE = "negative"
    UNKNOWN = "unknown"


def check_observations(names: Iterable[str], known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names as a tuple, if they are valid.

    Raises:
        ValueError: If there is no name, or one occurs twice or is not in `known` (if None, any name is valid).
    """
    names = tuple(names)
    if not names:
        raise ValueError("Expected at least one observation, got none.")
    for name in names:
        if known is not None and name not in known:
            raise ValueError(f"{name!r} is not a known observation; expected one of: {', '.join(known)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"Each observation may be named once, got: {', '.join(names)}.")
    return names


def parse_policies(text: str | Mapping[str, str], observations: Iterable[str]) -> dict[str, str]:
    """Return the uncertainty policy of each observation, given a user's choice.

    Args:
        text: One policy for all (`"u-ones"`), a comma-separated list (`"Edema=u-ones,Consolidation=u-zeros"`), the
            same as a mapping (`{"Edema": "u-ones"}`), or `"paper"` for each observation's best policy in the paper.
            Observations that a list, a mapping or the paper does not mention get U-Ignore.
        observations: The observations that the model is trained on.

    Returns:
        Observation -> value of `UncertaintyPolicy`, in the order of `observations`.

    Raises:
        ValueError: If a policy or an observation is unknown.
    """
    observations = tuple(observations)
    if isinstance(text, str) and text.strip().lower() == PAPER_PRESET:
        return {name: PAPER_POLICIES.get(name, UncertaintyPolicy.U_IGNORE).value for name in observations}
    if isinstance(text, str) and "=" not in text:
        policy = _policy(text)
        return dict.fromkeys(observations, policy.value)
    choices: dict[str, str] = {}
    for name, choice in _pairs(text) if isinstance(text, str) else text.items():
        if name in choices:
            raise ValueError(f"Two policies are given for {name!r}; expected one.")
        choices[name] = choice
    for name in choices:
        if name not in observations:
            raise ValueError(
                f"A policy is given for {name!r}, which is not trained; expected one of: {', '.join(observations)}."
            )
    return {name: _policy(choices.get(name, UncertaintyPolicy.U_IGNORE.value)).value for name in observations}


def ancestors(name: str, parents: Mapping[str, str] = PARENTS) -> list[str]:
    """Return an observation's parent, its parent's parent and so on; `name` itself is among them only in a cycle."""
    found: list[str] = []
    while name in parents and parents[name] not in found:
        name = parents[name]
        found.append(name)
    return found


def parents_among(observations: Iterable[str], parents: Mapping[str, str] = PARENTS) -> dict[str, str]:
    """Return the hierarchy within some observations: child -> the nearest ancestor that is one of them."""
    observations = tuple(observations)
    nearest = {
        name: next((each for each in ancestors(name, parents) if each in observations), None) for name in observations
    }
    return {name: parent for name, parent in nearest.items() if parent is not None}


def _policy(text: str) -> UncertaintyPolicy:
    try:
        return UncertaintyPolicy(text.strip().lower())
    except ValueError:
        known = ", ".join(policy.value for policy in UncertaintyPolicy)
        raise ValueError(f"Unknown uncertainty policy {text.strip()!r}; expected one of: {known}.") from None


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    for item in text.split(","):
        name, equals, policy = item.partition("=")
        if not equals:
            raise ValueError(f"Expected 'Observation=policy' in the list of policies, got {item.strip()!r}.")
        yield name.strip(), policy
