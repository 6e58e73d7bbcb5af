"""The figures of `metrics` as `evaluate.Metric`s, for `evaluate.combine`, `add_batch` and what else speaks it.

They work offline. A row is a study; what has several views per study is aggregated before. Importing `evaluate` takes
seconds, which is why nothing else of the package imports this module.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as SequenceFeature

from chexpert_hf.evaluation.metrics import (
    FloatArray,
    auprc,
    auroc,
    averaged_observations,
    brier_score,
    expected_calibration_error,
)
from chexpert_hf.labels import OBSERVATIONS

CITATION = "Irvin et al. 2019, CheXpert, arXiv:1901.07031"


class CheXpertMetric(evaluate.Metric):
    """One figure per observation and its mean; a subclass says which figure.

    `compute` takes `predictions`, probabilities in [0, 1], and `references`, labels in {0, 1} and NaN where unknown,
    both `(num_studies, num_labels)`. It returns `{"auroc/Edema": ..., "auroc/mean": ...}`, NaN where undefined. The
    mean is over the competition observations that the labels can judge, or over all such if there is none of those.
    """

    key: ClassVar[str]

    @staticmethod
    def figure(probabilities: FloatArray, labels: FloatArray) -> float:
        """The figure of one observation, from probabilities and labels `(num_studies,)`."""
        raise NotImplementedError

    def __init__(self, observations: Sequence[str] = OBSERVATIONS, **options: Any) -> None:
        """Prepares a metric.

        Args:
            observations: The names of the columns.
            options: Of `evaluate.Metric`, such as `keep_in_memory` or `cache_dir`.
        """
        self.observations = tuple(observations)
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        row = SequenceFeature(Value("float64"))
        return evaluate.MetricInfo(
            description=f"{self.key} of each CheXpert observation and its mean",
            citation=CITATION,
            inputs_description=CheXpertMetric.__doc__,
            features=Features({"predictions": row, "references": row}),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        for rows in (predictions, references):
            if wrong := {len(row) for row in rows} - {len(self.observations)}:
                raise ValueError(
                    f"Expected {len(self.observations)} values per study, got {min(wrong)}; name the columns with "
                    f"{type(self).__name__}(observations=...)."
                )
        probabilities, labels = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        values = {
            name: self.figure(probabilities[:, column], labels[:, column])
            for column, name in enumerate(self.observations)
        }
        mean_over = averaged_observations(labels, self.observations)
        mean = float(np.mean([values[name] for name in mean_over])) if mean_over else float("nan")
        return {f"{self.key}/{name}": value for name, value in {**values, "mean": mean}.items()}


class CheXpertAUROC(CheXpertMetric):
    """Area under the receiver operating characteristic; see `metrics.auroc`."""

    key = "auroc"
    figure = staticmethod(auroc)


class CheXpertAUPRC(CheXpertMetric):
    """Area under the precision-recall curve; see `metrics.auprc`."""

    key = "auprc"
    figure = staticmethod(auprc)


class CheXpertBrier(CheXpertMetric):
    """Brier score; see `metrics.brier_score`."""

    key = "brier"
    figure = staticmethod(brier_score)


class CheXpertECE(CheXpertMetric):
    """Expected calibration error; see `metrics.expected_calibration_error`."""

    key = "ece"
    figure = staticmethod(expected_calibration_error)
