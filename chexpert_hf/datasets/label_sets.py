"""Built-in label sets, label sets from files, and the matching of names that mean the same in different sets."""

from collections.abc import Iterable, Mapping, Sequence
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

SCORE_COLUMNS = ("path", "study", "views", "gate", "gate_reason", "note", "error")
"""The columns of tables of scores besides those of observations."""

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
"""Name -> the name that stands for all with the same meaning; both in lower case, as `concept` returns them."""


def concept(name: str) -> str:
    """Return the name that stands for all names of the same meaning: "pleural effusion" for "Effusion"."""
    plain = " ".join(name.replace("_", " ").casefold().split())
    return _SAME.get(plain, plain)


def same_label(name: str, names: Iterable[str]) -> str | None:
    """Return `name` if it is among `names`, else the first of them that means the same; None if there is none."""
    names = list(names)
    return name if name in names else next((each for each in names if concept(each) == concept(name)), None)


def is_known(name: str) -> bool:
    """Return whether a name means the same as one in a built-in label set."""
    return any(same_label(name, labels.names) for labels in LABEL_SETS.values())


def union(sets: Iterable[LabelSet]) -> LabelSet:
    """Return the union of label sets: of names that mean the same in different sets, only the first is kept.

    Names within one set are all kept, even if they mean the same.
    """
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
    """Return a label set from the name of a built-in one ("nih"), a YAML file, or names separated by commas.

    The file has `names` and, optionally, the other attributes of `LabelSet`. With names separated by commas, those of
    CheXpert keep their parents and other properties.

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


def refuse_duplicate_columns(observations: Sequence[str], calls: Sequence[str]) -> None:
    """Raise InputError if two columns of a table of scores would have the same name.

    The columns are `SCORE_COLUMNS`, the observations, and the `calls`, such as "Edema positive".
    """
    columns = [*SCORE_COLUMNS, *observations, *calls]
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise InputError(
            f"{twice!r} is an observation of the model and another column of the table; rename it in config.json."
        )
