from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chexpert_hf.training.losses import MAP_SHARPNESS, auc_margin_loss, map_loss


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


def map_loss_of(maps, targets, bias=0.5, **options):
    saliency = torch.as_tensor(maps, dtype=torch.float64).requires_grad_()
    outputs = SimpleNamespace(saliency=saliency, logits=saliency.mean(dim=(2, 3)) + bias)
    return map_loss(outputs, torch.as_tensor(targets, dtype=torch.float32), **options), saliency


def test_the_loss_of_maps_is_the_cross_entropy_of_their_log_mean_exp():
    rng = np.random.default_rng(0)
    maps, targets = rng.normal(0, 2, (3, 2, 4, 5)), np.array([[1, 0], [0.3, 1], [-100, -1]])
    strongest = np.log(np.exp(MAP_SHARPNESS * maps).mean(axis=(2, 3))) / MAP_SHARPNESS
    p = 1 / (1 + np.exp(-(strongest + 0.5)))
    losses = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))[:2]  # the last row is unknown and uncertain
    assert map_loss_of(maps, targets)[0].item() == pytest.approx(losses.mean(), rel=1e-5)
    weights = torch.tensor([[2.0, 1.0], [1.0, 3.0], [9.0, 9.0]])
    weighted, _ = map_loss_of(maps, targets, weights=weights, num_items_in_batch=8)
    assert weighted.item() == pytest.approx((losses * weights[:2].numpy()).sum() / 8, rel=1e-5)


def test_evidence_in_one_place_satisfies_the_loss_of_maps_and_a_little_everywhere_does_not():
    spread, peak = np.full((1, 1, 16, 16), 1.0), np.zeros((1, 1, 16, 16))
    peak[0, 0, 3, 4] = 256  # the same mean, and so the same logit
    assert map_loss_of(peak, [[1]])[0] < 1e-6 < 0.1 < map_loss_of(spread, [[1]])[0]
    loss, saliency = map_loss_of(peak, [[0]])
    loss.backward()
    assert saliency.grad[0, 0, 3, 4] == pytest.approx(1, abs=1e-3)  # that place alone must go
    assert saliency.grad.sum() == pytest.approx(1, abs=1e-3)


def test_the_loss_of_maps_of_unknown_labels_is_zero_and_breaks_nothing():
    loss, saliency = map_loss_of(np.ones((2, 1, 3, 3)), [[-100], [-1]])
    loss.backward()
    assert loss.item() == 0
    assert (saliency.grad == 0).all()
