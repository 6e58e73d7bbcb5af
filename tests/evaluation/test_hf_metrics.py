import evaluate
import numpy as np
import pytest

from chexpert_hf.evaluation import hf_metrics
from chexpert_hf.evaluation.hf_metrics import CheXpertMetric
from chexpert_hf.labels import OBSERVATIONS
from tests.evaluation.figures import FIGURES

NAN = float("nan")
NAMES = ("Edema", "Fracture", "Atelectasis")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 3)).astype(float)
    labels[:6, 1] = NAN
    return {"predictions": (rng.random((40, 3)) + labels[:, [0, 0, 2]]) / 2, "references": labels}


def load(name, folder):
    """As a user does; the module is a script for `evaluate`."""
    return evaluate.load(hf_metrics.__file__, name, cache_dir=str(folder))


@pytest.mark.parametrize("key", FIGURES)
def test_a_metric_gives_the_figure_of_each_observation_and_the_competitions_mean(key, data, tmp_path):
    result = load(key, tmp_path).compute(**data, observations=NAMES)
    expected = {
        f"{key}/{name}": FIGURES[key](data["predictions"][:, column], data["references"][:, column])
        for column, name in enumerate(NAMES)
    }
    assert result == pytest.approx(
        {**expected, f"{key}/mean": (expected[f"{key}/Edema"] + expected[f"{key}/Atelectasis"]) / 2}, abs=1e-12
    )


def test_two_batches_give_what_one_call_gives(data, tmp_path):
    metric = load("auroc", tmp_path)
    for part in (slice(0, 15), slice(15, 40)):
        metric.add_batch(predictions=data["predictions"][part], references=data["references"][part])
    once = load("auroc", tmp_path).compute(**data, observations=NAMES)
    assert metric.compute(observations=NAMES) == once


def test_the_metrics_combine(data, tmp_path):
    combined = evaluate.combine([load(name, tmp_path) for name in FIGURES])
    combined.add_batch(**data)
    result = combined.compute(observations=NAMES)
    assert set(result) == {f"{key}/{name}" for key in FIGURES for name in (*NAMES, "mean")}
    assert result["brier/Edema"] == pytest.approx(FIGURES["brier"](data["predictions"][:, 0], data["references"][:, 0]))


def test_the_columns_are_chexperts_unless_named(tmp_path):
    rng = np.random.default_rng(0)
    result = CheXpertMetric("ece", cache_dir=str(tmp_path)).compute(
        predictions=rng.random((4, 14)), references=rng.integers(0, 2, (4, 14)).astype(float)
    )
    assert list(result) == [*(f"ece/{name}" for name in OBSERVATIONS), "ece/mean"]
    assert np.isnan(result["ece/mean"])  # four studies can judge nothing


def test_rows_of_another_length_and_other_metrics_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"Expected 14 values per study, got 3; name the columns with compute\(obs"):
        load("auroc", tmp_path).compute(**data)
    with pytest.raises(ValueError, match="Expected a metric of auroc, auprc, brier, scaled_brier, ece, got 'f1'"):
        load("f1", tmp_path)
