"""CheXpert's own train.csv, 223,414 rows of labels, where torchxrayvision is installed, which carries it."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from chexpert_hf import CheXpertConfig
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.labels import OBSERVATIONS, UncertaintyPolicy
from chexpert_hf.modeling_chexpert import resolve_labels
from chexpert_hf.training.batches import TrainingTargets

# Positive and uncertain studies. Source: Irvin et al. 2019, arXiv:1901.07031, table 1 (187,641 studies).
TABLE_1 = {
    "No Finding": (16_627, 0),
    "Enlarged Cardiomediastinum": (9_020, 10_148),
    "Cardiomegaly": (23_002, 6_597),
    "Lung Lesion": (6_856, 1_071),
    "Lung Opacity": (92_669, 4_341),
    "Edema": (48_905, 11_571),
    "Consolidation": (12_730, 23_976),
    "Pneumonia": (4_576, 15_658),
    "Atelectasis": (29_333, 29_377),
    "Pneumothorax": (17_313, 2_663),
    "Pleural Effusion": (75_696, 9_419),
    "Pleural Other": (2_441, 1_771),
    "Fracture": (7_270, 484),
    "Support Devices": (105_831, 898),
}


@pytest.fixture(scope="module")
def table() -> Path:
    package = importlib.util.find_spec("torchxrayvision")  # not imported: only a file of it is wanted
    if package is None or not package.submodule_search_locations:
        pytest.skip("torchxrayvision, which carries CheXpert's train.csv, is not installed")
    return Path(package.submodule_search_locations[0], "data", "chexpert_train.csv.gz")


@pytest.fixture(scope="module")
def train(table, tmp_path_factory):
    root = tmp_path_factory.mktemp("chexpert")
    (root / "train.csv.gz").symlink_to(table)
    return load_dataset(root, splits=["train"], check_files=False, valid_fraction=0)["train"]


@pytest.fixture(scope="module")
def labels(train) -> np.ndarray:
    return train.remove_columns("image").with_format("numpy")["labels"][:]


def test_it_loads_in_full_with_labels_as_they_stand(table, train, labels):
    own = pd.read_csv(table)
    assert len(train) == len(own) == 223_414
    np.testing.assert_array_equal(labels, own[list(OBSERVATIONS)].astype(np.float32))
    assert len(set(train["patient"][:])) == 64_540


def test_counts_of_studies_are_those_of_the_papers_table_1(train, labels):
    frame = pd.DataFrame(labels, columns=OBSERVATIONS).assign(study=train["study"][:])
    by_study = frame.groupby("study")
    assert by_study.nunique(dropna=False).max().max() == 1  # the views of a study have one label
    studies = by_study.first()
    assert len(studies) == 187_641
    for name, (positive, uncertain) in TABLE_1.items():
        assert ((studies[name] == 1).sum(), (studies[name] == -1).sum()) == (positive, uncertain), name


@pytest.mark.parametrize("policy", list(UncertaintyPolicy))
@pytest.mark.parametrize("blank_labels", ["negative", "unknown"])
def test_counts_after_each_policy_add_up(labels, policy, blank_labels):
    config = CheXpertConfig(uncertainty_policies=dict.fromkeys(OBSERVATIONS, policy.value), blank_labels=blank_labels)
    targets = resolve_labels(torch.from_numpy(labels), config).numpy()
    positive, negative, uncertain, blank = (
        (labels == 1).sum(axis=0),
        (labels == 0).sum(axis=0),
        (labels == -1).sum(axis=0),
        np.isnan(labels).sum(axis=0),
    )
    is_negative, nothing = blank_labels == "negative", np.zeros(14, dtype=int)
    where = {
        UncertaintyPolicy.U_ONES: 1.0,
        UncertaintyPolicy.U_ZEROS: 0.0,
        UncertaintyPolicy.U_MULTICLASS: -1.0,
        UncertaintyPolicy.U_ONES_LSR: np.float32(0.7),
        UncertaintyPolicy.U_ZEROS_LSR: np.float32(0.15),
    }.get(policy, -100.0)
    expected = {
        1.0: positive,
        0.0: negative + (blank if is_negative else nothing),
        -1.0: nothing,
        np.float32(0.7): nothing,
        np.float32(0.15): nothing,
        -100.0: nothing if is_negative else blank,
    }
    expected[where] = expected[where] + uncertain
    for value, count in expected.items():
        np.testing.assert_array_equal(np.isclose(targets, value, rtol=0, atol=1e-6).sum(axis=0), count)
    assert sum(count.sum() for count in expected.values()) == labels.size


def test_smoothed_labels_of_a_sample_of_rows_lie_in_their_range(labels):
    config = CheXpertConfig(uncertainty_policies=dict.fromkeys(OBSERVATIONS, "u-ones+lsr"))
    targets = TrainingTargets(config, seed=0)
    rows = np.flatnonzero((labels == -1).any(axis=1))[:2000]
    smoothed = np.stack([targets(torch.from_numpy(labels[row]), int(row))["labels"].numpy() for row in rows])
    drawn = smoothed[labels[rows] == -1]
    assert drawn.min() >= 0.55
    assert drawn.max() <= 0.85
    assert len(np.unique(drawn)) > 1000
