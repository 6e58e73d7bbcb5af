"""Terms of known data sets, how they are cited, and who set their labels, for cards and reports.

Only the name of the data's folder is known where a card is written, so that a card says which data it takes it for.
Sources: the data sets' own pages and papers, as cited.
"""

from dataclasses import dataclass

from chexpert_hf.evaluation.reference_standard import OWN_LABELS

_CHEXPERT = """@inproceedings{irvin2019chexpert,
  title     = {CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison},
  author    = {Irvin, Jeremy and Rajpurkar, Pranav and Ko, Michael and others},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2019}
}"""

DENSENET_CITATION = """@inproceedings{huang2017densely,
  title     = {Densely Connected Convolutional Networks},
  author    = {Huang, Gao and Liu, Zhuang and van der Maaten, Laurens and Weinberger, Kilian Q.},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017}
}"""

LABELS_CITATION = _CHEXPERT
"""Where the observations and the policies for uncertain labels come from, whatever the data."""

_NIH = """@inproceedings{wang2017chestxray8,
  title     = {ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on Weakly-Supervised Classification and
               Localization of Common Thorax Diseases},
  author    = {Wang, Xiaosong and Peng, Yifan and Lu, Le and Lu, Zhiyong and Bagheri, Mohammadhadi and
               Summers, Ronald M.},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017}
}"""


@dataclass(frozen=True)
class DataTerms:
    """What follows from the data for a model that was trained on it.

    Attributes:
        licence: Sentences on the use of the weights.
        license_id: For the card's front matter, in the Hub's vocabulary.
        license_name: For `license_id` "other".
        limits: What these data in particular do not show.
        citations: BibTeX entries of the data.
    """

    licence: str
    license_id: str = "other"
    license_name: str | None = "terms-of-the-training-data"
    limits: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()


_KNOWN = {
    ("chexpert",): DataTerms(
        "The weights were trained on CheXpert, by the folder's name. Its research use agreement (Stanford University "
        "School of Medicine) forbids passing the radiographs on and any commercial or clinical use; who uses the "
        "weights should have accepted it.",
        license_name="chexpert-research-use-agreement",
        limits=("All radiographs are of one hospital, Stanford Hospital, 2002 to 2017.",),
        citations=(_CHEXPERT,),
    ),
    ("nih", "chestx-ray", "chestxray"): DataTerms(
        "The weights were trained on ChestX-ray14 of the NIH Clinical Center, by the folder's name. It may be used "
        "without restriction if the NIH Clinical Center is named as its source and its paper is cited.",
        license_name="nih-chestx-ray14",
        limits=(
            "All radiographs are of one hospital, the NIH Clinical Center, whose patients take part in studies.",
            "Its labels were mined from reports with an accuracy that its authors estimate at above 90 %, and "
            "findings that a report does not mention count as absent.",
        ),
        citations=(_NIH,),
    ),
    ("phantom",): DataTerms(
        "The weights were trained on synthetic radiographs that chexpert-hf draws, by the folder's name; they are "
        "Apache-2.0.",
        license_id="apache-2.0",
        license_name=None,
        limits=("It was trained on drawings: its scores of real radiographs mean nothing.",),
    ),
}


_TEXT_MINED = "text-mined labels"
_LABELS = {"chexpert": _TEXT_MINED, "nih": _TEXT_MINED, "chestx-ray": _TEXT_MINED, "chestxray": _TEXT_MINED}
_RADIOLOGISTS = {("valid", 200), ("test", 500)}
"""Splits of CheXpert, by their number of patients, whose labels are the majority of radiologists."""


def labels_name(data_name: str, split: str, num_patients: int) -> str:
    """The reference standard that a data set's own labels are, by the name of its folder.

    Args:
        data_name: Of the folder.
        split: "train", "valid" or "test".
        num_patients: Of the split, by which CheXpert's is told from patients held out of `train.csv`.
    """
    starts = next((starts for starts in _LABELS if data_name.lower().startswith(starts)), None)
    if starts is None:
        return OWN_LABELS
    is_read = starts == "chexpert" and (split, num_patients) in _RADIOLOGISTS
    return "majority of radiologists" if is_read else _LABELS[starts]


def terms_of(data_name: str) -> DataTerms:
    """The terms of the data that a folder's name stands for; of an unknown name that its provider be asked."""
    for starts, terms in _KNOWN.items():
        if data_name.lower().startswith(starts):
            return terms
    return DataTerms(
        f"The weights were trained on the data in a folder called {data_name}. Use of the weights is subject to the "
        "terms of whoever provided these data; ask them before you pass the weights on."
    )
