import evaluate
import numpy as np
import pytest

from chexpert_hf.evaluation.hf_metrics import CheXpertAUPRC, CheXpertAUROC, CheXpertBrier, CheXpertECE
from chexpert_hf.evaluation.metrics import auprc, auroc, brier_score, expected_calibration_error
from chexpert_hf.labels import OBSERVATIONS

NAN = float("nan")
NAMES = ("Edema", "Fracture", "Atelectasis")
METRICS = {
    "auroc": (CheXpertAUROC, auroc),
    "auprc": (CheXpertAUPRC, auprc),
    "brier": (CheXpertBrier, brier_score),
    "ece": (CheXpertECE, expected_calibration_error),
}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 3)).astype(float)
    labels[:6, 1] = NAN
    return {"predictions": (rng.random((40, 3)) + labels[:, [0, 0, 2]]) / 2, "references": labels}


@pytest.mark.parametrize("key", METRICS)
def test_a_metric_gives_the_figure_of_each_observation_and_the_competitions_mean(key, data, tmp_path):
    metric, figure = METRICS[key]
    result = metric(NAMES, cache_dir=str(tmp_path)).compute(**data)
    expected = {
        f"{key}/{name}": figure(data["predictions"][:, column], data["references"][:, column])
        for column, name in enumerate(NAMES)
    }
    assert result == pytest.approx(
        {**expected, f"{key}/mean": (expected[f"{key}/Edema"] + expected[f"{key}/Atelectasis"]) / 2}, abs=1e-12
    )


def test_two_batches_give_what_one_call_gives(data, tmp_path):
    metric = CheXpertAUROC(NAMES, cache_dir=str(tmp_path))
    for part in (slice(0, 15), slice(15, 40)):
        metric.add_batch(predictions=data["predictions"][part], references=data["references"][part])
    assert metric.compute() == CheXpertAUROC(NAMES, cache_dir=str(tmp_path)).compute(**data)


def test_the_metrics_combine(data, tmp_path):
    modules = [metric(NAMES, cache_dir=str(tmp_path)) for metric, _ in METRICS.values()]
    combined = evaluate.combine(modules)
    combined.add_batch(**data)
    result = combined.compute()
    assert set(result) == {f"{key}/{name}" for key in METRICS for name in (*NAMES, "mean")}
    assert result["brier/Edema"] == pytest.approx(brier_score(data["predictions"][:, 0], data["references"][:, 0]))


def test_the_columns_are_chexperts_unless_named(tmp_path):
    rng = np.random.default_rng(0)
    result = CheXpertECE(cache_dir=str(tmp_path)).compute(
        predictions=rng.random((4, 14)), references=rng.integers(0, 2, (4, 14)).astype(float)
    )
    assert list(result) == [*(f"ece/{name}" for name in OBSERVATIONS), "ece/mean"]
    assert np.isnan(result["ece/mean"])  # four studies can judge nothing


def test_rows_of_another_length_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"Expected 14 values per study, got 3; name the columns with CheXpertAUROC"):
        CheXpertAUROC(cache_dir=str(tmp_path)).compute(**data)
