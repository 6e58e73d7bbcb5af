"""Label sets by name, from files and from columns; how the names of one correspond to those of another."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from chexpert_hf.errors import InputError
from chexpert_hf.files import data_beside, first_line
from chexpert_hf.labels import CHEXPERT, LabelSet, check_observations

LABEL_SETS: Mapping[str, LabelSet] = {
    **dict.fromkeys(("chexpert", "mimic"), CHEXPERT),
    **{name: LabelSet.from_dict(values.pop("names"), values) for name, values in data_beside(__file__).items()},
}
"""The built-in label sets by name."""

_SAME = {
    "effusion": "pleural effusion",
    "airspace opacity": "lung opacity",
    "infiltrate": "infiltration",
    "infiltrates": "infiltration",
    "nodule/mass": "lung lesion",
    "nodule or mass": "lung lesion",
    "pulmonary mass": "mass",
    "pulmonary edema": "edema",
    "pulmonary fibrosis": "fibrosis",
    "hiatal hernia": "hernia",
    **dict.fromkeys(("healthy", "no abnormality", "no findings", "normal"), "no finding"),
}
"""Other names of a concept, and the one that stands for it; both as `concept` writes them."""


def concept(name: str) -> str:
    """The concept behind a label's name: labels of two sets mean the same if theirs are equal."""
    plain = " ".join(name.replace("_", " ").casefold().split())
    return _SAME.get(plain, plain)


def same_label(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that means the same as a name; None if there is none."""
    names = list(names)
    return name if name in names else next((each for each in names if concept(each) == concept(name)), None)


def is_known(name: str) -> bool:
    """Whether a built-in label set has the concept of a name."""
    return any(same_label(name, labels.names) for labels in LABEL_SETS.values())


def union(sets: Iterable[LabelSet]) -> LabelSet:
    """The label set of several: each concept once, by its first name; a set may have several names for one."""
    seen: set[str] = set()
    names: list[str] = []
    headline: list[str] = []
    parents: dict[str, str] = {}
    definitions: dict[str, str] = {}
    none_of_these: str | None = None
    for labels in sets:
        new = [name for name in labels.names if concept(name) not in seen]
        names += new
        seen |= {concept(name) for name in new}
        headline += [name for name in labels.headline if name in new]
        parents |= {child: parent for child, parent in labels.parents.items() if child in new and parent in new}
        definitions |= {name: text for name, text in labels.definitions.items() if name in new}
        none_of_these = none_of_these or (labels.none_of_these if labels.none_of_these in new else None)
    return LabelSet(tuple(names), tuple(headline), parents, none_of_these, definitions)


def read_label_set(text: str) -> LabelSet:
    """A label set by its name ("nih"), from a YAML file, or from its names, separated by commas.

    The file has `names` and, if wanted, the other attributes of `LabelSet`.

    Raises:
        InputError: If the file cannot be read or is no label set.
    """
    if text in LABEL_SETS:
        return LABEL_SETS[text]
    try:
        if not text.endswith((".yaml", ".yml")):
            return CHEXPERT.among(check_observations(name.strip() for name in text.split(",") if name.strip()))
        values = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
        if not (isinstance(values, dict) and isinstance(values.get("names"), list)):
            raise InputError(f"{text}: expected a mapping with a list of `names`.")
        names = check_observations(str(name) for name in values.pop("names"))
        return LabelSet.from_dict(names, values)
    except (OSError, ValueError, yaml.YAMLError) as error:
        known = ", ".join(LABEL_SETS)
        raise InputError(
            f"--labels {text!r:.90}: {first_line(error)} Expected one of {known}, a YAML file, or names."
        ) from None
