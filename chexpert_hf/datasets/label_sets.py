"""Label sets by name, from files and from columns; how the names of one correspond to those of another.

Sources: the data sets' own papers and pages: Wang et al. 2017, CVPR (NIH ChestX-ray14); Bustos et al. 2020,
arXiv:1901.07441 (PadChest); Nguyen et al. 2022, Scientific Data 9, 429 (VinDr-CXR); Johnson et al. 2019,
arXiv:1901.07042 (MIMIC-CXR-JPG).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line
from chexpert_hf.labels import CHEXPERT, LabelSet, check_observations

NIH = LabelSet(
    (
        "Atelectasis",
        "Cardiomegaly",
        "Effusion",
        "Infiltration",
        "Mass",
        "Nodule",
        "Pneumonia",
        "Pneumothorax",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Fibrosis",
        "Pleural_Thickening",
        "Hernia",
    ),
    definitions={
        "Effusion": "Fluid between the lung and the chest wall.",
        "Infiltration": "Part of a lung is whiter than it should be, without a clear border.",
        "Mass": "A round shadow in a lung of more than 3 cm.",
        "Nodule": "A round shadow in a lung of up to 3 cm.",
        "Emphysema": "Air spaces of the lung are enlarged and their walls destroyed.",
        "Fibrosis": "Scars in the tissue of the lung.",
        "Pleural_Thickening": "The pleura is thickened or scarred.",
        "Hernia": "Part of the stomach or bowel has moved into the chest.",
    },
)
"""The 14 findings of ChestX-ray14, in the order of its authors. "No Finding" is a further value of its tables."""

VINDR = LabelSet(
    (
        "Aortic enlargement",
        "Atelectasis",
        "Calcification",
        "Cardiomegaly",
        "Clavicle fracture",
        "Consolidation",
        "Edema",
        "Emphysema",
        "Enlarged PA",
        "ILD",
        "Infiltration",
        "Lung Opacity",
        "Lung cavity",
        "Lung cyst",
        "Mediastinal shift",
        "Nodule/Mass",
        "Pleural effusion",
        "Pleural thickening",
        "Pneumothorax",
        "Pulmonary fibrosis",
        "Rib fracture",
        "Other lesion",
        "COPD",
        "Lung tumor",
        "Pneumonia",
        "Tuberculosis",
        "Other disease",
        "No finding",
    ),
    none_of_these="No finding",
    definitions={"Enlarged PA": "The pulmonary artery is enlarged.", "ILD": "Interstitial lung disease."},
)
"""VinDr-CXR's 22 local and 6 global labels, in the order of its tables."""

PADCHEST = LabelSet(
    (
        "normal",
        "COPD signs",
        "cardiomegaly",
        "aortic elongation",
        "pleural effusion",
        "scoliosis",
        "pneumonia",
        "interstitial pattern",
        "infiltrates",
        "costophrenic angle blunting",
        "air trapping",
        "alveolar pattern",
        "NSG tube",
        "kyphosis",
        "laminar atelectasis",
        "vertebral degenerative changes",
        "vascular hilar enlargement",
        "nodule",
        "fibrotic band",
        "apical pleural thickening",
        "pacemaker",
        "calcified granuloma",
        "atelectasis",
        "bronchiectasis",
        "consolidation",
        "hemidiaphragm elevation",
        "heart insufficiency",
        "endotracheal tube",
        "hiatal hernia",
        "emphysema",
        "pulmonary edema",
        "pulmonary fibrosis",
        "pleural thickening",
        "pulmonary mass",
        "rib fracture",
        "pneumothorax",
    ),
    none_of_these="normal",
)
"""PadChest's most frequent findings in descending order, and pneumothorax; none about the report ("unchanged")."""

LABEL_SETS: Mapping[str, LabelSet] = {
    "chexpert": CHEXPERT,
    "mimic": CHEXPERT,
    "nih": NIH,
    "padchest": PADCHEST,
    "vindr": VINDR,
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
    "normal": "no finding",
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
