import numpy as np
import pandas as pd
import pytest

from chexpert_hf.evaluation.metrics import auroc as reference_auroc
from train.uncertainty_study import (
    MIDDLE_CLASS,
    MOSTLY_NEGATIVE,
    MOSTLY_POSITIVE,
    OBSERVATIONS,
    POLICIES,
    as_markdown,
    auroc,
    hidden_truth,
    noisy_labels,
    plot,
    summarize,
)


@pytest.fixture
def planted():
    rng = np.random.default_rng(0)
    names = [f"unseen/valid/patient{i:05d}/study1/view1_frontal.jpg" for i in range(3000)]
    columns = {name: rng.random(3000) < 0.2 for name in (*OBSERVATIONS, "Lung Opacity")}
    columns["Lung Opacity"] |= columns["Consolidation"]
    return pd.DataFrame(columns, index=names).astype(int)


@pytest.fixture
def sizes(planted):
    rng = np.random.default_rng(1)
    return {name: planted[name] * rng.uniform(0.01, 0.2, len(planted)) for name in (MOSTLY_POSITIVE, MIDDLE_CLASS)}


@pytest.fixture
def hidden(planted, sizes):
    return hidden_truth(planted, sizes, counts_from=0.1)


def test_uncertain_means_what_the_study_says(planted, sizes, hidden):
    noisy = noisy_labels(hidden, planted, sizes, np.random.default_rng(2))
    shares = {name: hidden.loc[noisy[name] == -1, name].mean() for name in OBSERVATIONS}
    assert shares[MOSTLY_POSITIVE] > 0.9
    assert shares[MOSTLY_NEGATIVE] < 0.15
    assert 0.35 < shares[MIDDLE_CLASS] < 0.65
    for name in OBSERVATIONS:
        assert (noisy[name] == -1).sum() > 100
        certain = noisy[name] != -1
        assert (noisy.loc[certain, name] == hidden.loc[certain, name]).all()


def test_a_middle_class_lies_between_the_others_in_size(planted, sizes, hidden):
    noisy = noisy_labels(hidden, planted, sizes, np.random.default_rng(2))[MIDDLE_CLASS]
    size = sizes[MIDDLE_CLASS]
    assert size[noisy == 0].max() <= size[noisy == -1].min()
    assert size[noisy == -1].max() <= size[noisy == 1].min()


def test_auroc_of_columns_equals_the_packages():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((80, 3)), rng.integers(0, 2, (80, 3)).astype(float)
    expected = [reference_auroc(scores[:, column], labels[:, column]) for column in range(3)]
    np.testing.assert_allclose(auroc(scores, labels), expected, atol=1e-12)


def test_a_better_policy_is_named_with_its_paired_difference(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (300, 3)).astype(float)
    noise = rng.random((300, 3))
    scores = {policy: [truth * (0.2 + 0.1 * place) + noise] for place, policy in enumerate(POLICIES)}
    figures = summarize(scores, truth, [f"patient{i}" for i in range(300)])
    one = figures[MOSTLY_POSITIVE]["u-ones"]
    assert one["low"] < one["auroc"] < one["high"]
    assert one["minus u-ignore"] > 0
    assert one["minus u-ones"] == 0
    table = as_markdown(figures, seeds=1)
    assert f"**{figures[MIDDLE_CLASS][POLICIES[-1]]['auroc']:.3f}**" in table
    assert "u-ones minus u-zeros +" in table
    plot(figures, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
