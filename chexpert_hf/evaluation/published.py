"""Published results on CheXpert, for comparison.

Source: Irvin et al. 2019, arXiv:1901.07031: table 3 (AUROC on the 200 studies of the validation set, by policy), figure
3 (the ensemble on the 500 studies of the test set, and three radiologists' operating points there).
"""

from collections.abc import Collection

from chexpert_hf.labels import COMPETITION_OBSERVATIONS

PAPER = "Irvin et al. 2019"

TEST_AUROC = dict(zip(COMPETITION_OBSERVATIONS, (0.85, 0.90, 0.90, 0.92, 0.97), strict=True))
"""The paper's ensemble on the hidden test set."""

VALID_AUROC = dict(zip(COMPETITION_OBSERVATIONS, (0.858, 0.854, 0.939, 0.941, 0.936), strict=True))
"""The best policy of each observation on the validation set, on which it was also chosen."""

RADIOLOGISTS: dict[str, dict[str, tuple[float, float]]] = {
    "Atelectasis": {"1": (0.21, 0.80), "2": (0.18, 0.71), "3": (0.31, 0.92), "majority": (0.22, 0.89)},
    "Cardiomegaly": {"1": (0.05, 0.48), "2": (0.23, 0.85), "3": (0.11, 0.70), "majority": (0.08, 0.75)},
    "Consolidation": {"1": (0.11, 0.66), "2": (0.09, 0.48), "3": (0.03, 0.45), "majority": (0.05, 0.52)},
    "Edema": {"1": (0.09, 0.63), "2": (0.19, 0.79), "3": (0.07, 0.58), "majority": (0.08, 0.68)},
    "Pleural Effusion": {"1": (0.05, 0.82), "2": (0.17, 0.83), "3": (0.14, 0.89), "majority": (0.10, 0.89)},
}
"""Observation -> radiologist -> (false positive rate, true positive rate) on the test set."""


def is_chexpert_valid(patients: Collection[str], num_views: int) -> bool:
    """Whether these are CheXpert's validation set: 234 views of the patients 64541 to 64740, one study each."""
    return num_views == 234 and set(patients) == {f"patient{number}" for number in range(64541, 64741)}
