"""Published results on CheXpert, for comparison, from `published.yaml`."""

from collections.abc import Collection, Mapping, Sequence

from chexpert_hf.files import data_beside

PAPER = "Irvin et al. 2019"

_RESULTS = data_beside(__file__)
TEST_AUROC: Mapping[str, float] = _RESULTS["test_auroc"]
VALID_AUROC: Mapping[str, float] = _RESULTS["valid_auroc"]
RADIOLOGISTS: Mapping[str, Mapping[str, Sequence[float]]] = _RESULTS["radiologists"]
"""Observation -> radiologist -> (false positive rate, true positive rate)."""


def is_chexpert_valid(patients: Collection[str], num_views: int) -> bool:
    """Whether these are CheXpert's validation set: 234 views of the patients patient64541 to patient64740."""
    return num_views == 234 and set(patients) == {f"patient{number}" for number in range(64541, 64741)}
