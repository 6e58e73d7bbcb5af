from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chexpert_hf.training.losses import auc_margin_loss


def loss_of(scores, labels):
    logits = torch.logit(torch.as_tensor(scores, dtype=torch.float64)).requires_grad_(True)
    return auc_margin_loss(SimpleNamespace(logits=logits), torch.as_tensor(labels, dtype=torch.float32)), logits


def test_it_is_the_solution_of_the_min_max_problem():
    # Yuan et al. 2021: min over a, b and max over alpha >= 0 of
    # E+[(h - a)^2] + E-[(h - b)^2] + 2 alpha (m + E-[h] - E+[h]) - alpha^2, here solved on a grid.
    rng = np.random.default_rng(0)
    scores, labels = rng.uniform(0.05, 0.95, 30), rng.integers(0, 2, 30)
    positive, negative = scores[labels == 1], scores[labels == 0]
    grid = np.linspace(0, 2, 4001)
    variances = sum(np.min(((part[:, None] - grid) ** 2).mean(axis=0)) for part in (positive, negative))
    dual = np.max(2 * grid * (1 + negative.mean() - positive.mean()) - grid**2)
    loss, _ = loss_of(scores[:, None], labels[:, None])
    assert loss.item() == pytest.approx(variances + dual, abs=1e-5)


def test_scores_that_are_a_margin_apart_and_equal_within_their_class_have_loss_zero():
    loss, _ = loss_of([[1 - 1e-9], [1 - 1e-9], [1e-9]], [[1], [1], [0]])
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_unknown_labels_take_no_part():
    with_unknown, _ = loss_of([[0.9], [0.2], [0.5]], [[1], [0], [-100]])
    without, _ = loss_of([[0.9], [0.2]], [[1], [0]])
    assert with_unknown.item() == pytest.approx(without.item(), abs=1e-6)


def test_an_observation_of_one_class_adds_nothing_and_breaks_nothing():
    scores = [[0.9, 0.4], [0.2, 0.6]]
    both, logits = loss_of(scores, [[1, 0], [0, 0]])
    alone, _ = loss_of([[0.9], [0.2]], [[1], [0]])
    assert both.item() == pytest.approx(alone.item(), abs=1e-6)
    both.backward()
    assert logits.grad.isfinite().all()
    none, logits = loss_of(scores, [[0, 0], [0, 0]])
    none.backward()
    assert none.item() == 0
    assert logits.grad.isfinite().all()


def test_a_step_along_the_gradient_pulls_the_classes_apart():
    loss, logits = loss_of([[0.5], [0.5]], [[1], [0]])
    loss.backward()
    assert logits.grad[0].item() < 0 < logits.grad[1].item()
