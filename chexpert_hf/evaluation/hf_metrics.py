"""This package's metrics for the `evaluate` library: `evaluate.load(hf_metrics.__file__, "auroc")`.

They work offline and with `add_batch` and `evaluate.combine`. Importing `evaluate` takes seconds, which is why nothing
else of the package imports this module.
"""

from collections.abc import Sequence

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as SequenceFeature

from chexpert_hf.evaluation.metrics import WeightedMetrics, averaged_observations, observation_metrics
from chexpert_hf.labels import OBSERVATIONS


class CheXpertMetric(evaluate.Metric):
    """One metric for each observation, and its mean; `config_name` is the metric, one of `WeightedMetrics.NAMES`.

    `compute` takes `predictions`, probabilities in [0, 1], and `references`, labels in {0, 1} and NaN where unknown,
    both `(num_studies, num_labels)`, and the names of the columns as `observations`. It returns `{"auroc/Edema": ...,
    "auroc/mean": ...}`, NaN where undefined. The mean is over `averaged_observations`.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in WeightedMetrics.NAMES:
            expected = ", ".join(WeightedMetrics.NAMES)
            raise ValueError(f"Expected a metric of {expected}, got {self.config_name!r}.")
        row = SequenceFeature(Value("float64"))
        return evaluate.MetricInfo(
            description=f"{self.config_name} of each CheXpert observation and its mean",
            citation="Irvin et al. 2019, CheXpert, arXiv:1901.07031",
            inputs_description=CheXpertMetric.__doc__,
            features=Features({"predictions": row, "references": row}),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        observations: Sequence[str] = OBSERVATIONS,
    ) -> dict[str, float]:
        if wrong := {len(row) for row in (*predictions, *references)} - {len(observations)}:
            raise ValueError(
                f"Expected {len(observations)} values per study, got {min(wrong)}; name the columns with "
                "compute(observations=...)."
            )
        probabilities, labels = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
        columns = zip(observations, probabilities.T, labels.T, strict=True)
        values = {name: observation_metrics(score, truth)[self.config_name] for name, score, truth in columns}
        mean_over = averaged_observations(labels, observations)
        values["mean"] = float(np.mean([values[name] for name in mean_over])) if mean_over else float("nan")
        return {f"{self.config_name}/{name}": value for name, value in values.items()}
