"""Terms, citations and reference standards of known data sets, recognised by the name of their folder.

Sources: the data sets' own pages and papers, as cited.
"""

from dataclasses import dataclass

from chexpert_hf.evaluation.reference_standard import OWN_LABELS

DENSENET_CITATION = "huang2017densely"
CHEXPERT_CITATION = "irvin2019chexpert"
"""Source of the observations and of the policies for uncertain labels, too."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The licence of a model's weights, and the limits and citations of its data.

    Attributes:
        licence: Sentences on the use of the weights.
        license_id: In the Hub's vocabulary, such as "apache-2.0", or "other".
        license_name: For `license_id` "other": a short name with hyphens.
        limits: Sentences on known shortcomings.
        citations: Keys of `citations.bib`, or BibTeX entries.
    """

    licence: str
    license_id: str = "other"
    license_name: str | None = "terms-of-the-training-data"
    limits: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImportedFrom(Terms):
    """The source of a model that others trained: which weights, their training data, and changes made by the import.

    These three are phrases without a full stop.
    """

    source: str
    data: str
    conversion: str
    license_name: str | None = "terms-of-the-source"


_KNOWN = {
    ("chexpert",): Terms(
        licence="The weights were trained on CheXpert, by the folder's name. Its research use agreement (Stanford "
        "University School of Medicine) forbids passing the radiographs on and any commercial or clinical use; who "
        "uses the weights should have accepted it.",
        license_name="chexpert-research-use-agreement",
        limits=("All radiographs are of one hospital, Stanford Hospital, 2002 to 2017.",),
        citations=(CHEXPERT_CITATION,),
    ),
    ("nih", "chestx-ray", "chestxray"): Terms(
        licence="The weights were trained on ChestX-ray14 of the NIH Clinical Center, by the folder's name. It may be "
        "used without restriction if the NIH Clinical Center is named as its source and its paper is cited.",
        license_name="nih-chestx-ray14",
        limits=(
            "All radiographs are of one hospital, the NIH Clinical Center, whose patients take part in studies.",
            "Its labels were mined from reports with an accuracy that its authors estimate at above 90 %, and "
            "findings that a report does not mention count as absent.",
        ),
        citations=("wang2017chestxray8",),
    ),
    ("phantom",): Terms(
        licence="The weights were trained on synthetic radiographs that chexpert-hf draws, by the folder's name; they "
        "are Apache-2.0.",
        license_id="apache-2.0",
        license_name=None,
        limits=("It was trained on drawings: its scores of real radiographs mean nothing.",),
    ),
}
_TEXT_MINED = ("chexpert", "nih", "chestx-ray", "chestxray")
_RADIOLOGISTS = {("valid", 200), ("test", 500)}
"""Splits of CheXpert, by their number of patients, whose labels are the majority of radiologists."""


def labels_name(data_name: str, split: str, num_patients: int) -> str:
    """The reference standard of a data set's own labels, by the name of its folder.

    The number of patients distinguishes CheXpert's own splits from patients held out of `train.csv`.
    """
    folder = data_name.lower()
    if folder.startswith("chexpert") and (split, num_patients) in _RADIOLOGISTS:
        return "majority of radiologists"
    return "text-mined labels" if folder.startswith(_TEXT_MINED) else OWN_LABELS


def terms_of(data_name: str) -> Terms:
    """The terms of the data that a folder's name stands for; an unknown name refers to the data's provider."""
    for starts, terms in _KNOWN.items():
        if data_name.lower().startswith(starts):
            return terms
    return Terms(
        licence=f"The weights were trained on the data in a folder called {data_name}. Use of the weights is subject "
        "to the terms of whoever provided these data; ask them before you pass the weights on."
    )
