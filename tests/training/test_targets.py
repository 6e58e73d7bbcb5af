import numpy as np
import pytest
import torch

from chexpert_hf import CheXpertConfig
from chexpert_hf.training.batches import TrainingTargets, positive_weights

NAN = float("nan")
NAMES = ["Edema", "Pneumonia", "Fracture", "Atelectasis"]
RAW = torch.tensor([-1.0, -1, -1, -1])


def config(**policies: str) -> CheXpertConfig:
    return CheXpertConfig(id2label=dict(enumerate(NAMES)), uncertainty_policies=policies)


def test_smoothed_labels_are_drawn_from_their_ranges_once_for_each_row():
    targets = TrainingTargets(config(Edema="u-ones+lsr", Pneumonia="u-zeros+lsr", Fracture="u-ones"), seed=3)
    rows = np.stack([targets(RAW, index)["labels"] for index in range(2000)])
    # Pham et al. 2019: U(.55, .85) and U(0, .3)
    assert rows[:, 0].min() == pytest.approx(0.55, abs=0.01)
    assert rows[:, 0].max() == pytest.approx(0.85, abs=0.01)
    assert rows[:, 0].mean() == pytest.approx(0.7, abs=0.01)
    assert rows[:, 1].min() == pytest.approx(0, abs=0.01)
    assert rows[:, 1].max() == pytest.approx(0.3, abs=0.01)
    assert (rows[:, 2] == 1).all()
    assert (rows[:, 3] == -100).all()
    assert torch.equal(targets(RAW, 7)["labels"], targets(RAW, 7)["labels"])
    other_seed = TrainingTargets(targets.config, seed=4)
    assert not torch.equal(targets(RAW, 7)["labels"], other_seed(RAW, 7)["labels"])


def test_smoothing_touches_uncertain_labels_only():
    targets = TrainingTargets(config(Edema="u-ones+lsr", Pneumonia="u-zeros+lsr"))
    known = torch.tensor([1.0, 0.0, NAN, 1.0])
    assert torch.equal(targets(known, 0)["labels"], torch.tensor([1.0, 0, 0, 1]))


def test_a_teachers_probabilities_replace_uncertain_labels_and_never_0_or_1():
    soft = np.array([[0.2, NAN, NAN, NAN], [0.9, NAN, NAN, NAN]], dtype=np.float32)
    targets = TrainingTargets(config(Edema="u-self-trained"), soft_labels=soft)
    assert targets(RAW, 0)["labels"].tolist() == [pytest.approx(0.2), -100, -100, -100]
    assert targets(torch.tensor([0.0, 0, 0, 0]), 1)["labels"].tolist() == [0, 0, 0, 0]
    assert targets(torch.tensor([1.0, 0, 0, 0]), 1)["labels"].tolist() == [1, 0, 0, 0]


def test_positive_labels_are_weighted_by_the_odds_against_them():
    truth = np.array([[1, 0, 0, -100], [0, 0, 1, 1], [0, 0, 1, -100], [0, 0, -100, -100]], dtype=np.float32)
    weights = positive_weights(truth)
    assert weights.tolist() == [3, 1, 0.5, 1]
    given = TrainingTargets(config(), positive_weights=weights)(torch.tensor([1.0, 1, 0, NAN]), 0)
    assert given["loss_weights"].tolist() == [3, 1, 1, 1]


def test_without_weights_none_are_given():
    assert set(TrainingTargets(config())(RAW, 0)) == {"labels"}
