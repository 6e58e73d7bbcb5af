"""All metrics of one or more models on one data set, with 95 % confidence intervals, as a dictionary for JSON.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (studies, AUROC with DeLong intervals, AUPRC).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from chexpert_hf.evaluation import intervals
from chexpert_hf.evaluation.metrics import (
    MIN_STUDIES_PER_CLASS,
    NAN,
    FloatArray,
    WeightedMetrics,
    auroc,
    averaged_observations,
    judged_observations,
    per_study,
    plain,
)
from chexpert_hf.labels import CHEXPERT

SCHEMA = 1  # version of the keys in the result of `assess`; increase it if programs that read it would go wrong
DELONG, WILSON, BOOTSTRAP = "DeLong", "Wilson", "patient bootstrap"
_AUROC = WeightedMetrics.NAMES.index("auroc")

Groups = Mapping[str, Sequence[str | None]]  # column, such as "sex" -> group of each view; None: no group


@dataclass(frozen=True)
class ModelScores:
    """One model's probabilities for the views of a data set, and its operating points."""

    name: str  # shown in the report
    probabilities: FloatArray  # (num_views, num_labels), in [0, 1]
    operating_points: Mapping[str, float] = field(default_factory=dict)  # observation -> threshold in [0, 1]
    chosen_by: Mapping[str, str] = field(default_factory=dict)  # observation -> the rule, such as "sensitivity 0.9"


class _Group(NamedTuple):
    """The views of one subgroup, such as "F" of the column "sex", combined per study.

    Arrays are `(num_studies, num_labels)` over all studies of the data set; studies without such a view are NaN.
    """

    column: str
    name: str
    scores: FloatArray  # probabilities
    labels: FloatArray


class _ModelMetrics(NamedTuple):
    """A model's metrics on all studies, and on each bootstrap resample of them."""

    scores: FloatArray  # (num_studies, num_labels): probabilities
    values: FloatArray  # (num_labels, num_metrics), in the order of `WeightedMetrics.NAMES`
    replicates: FloatArray  # (num_labels, num_metrics, num_replicates)
    mean: tuple[float, FloatArray]  # mean AUROC, and its values (num_replicates,) on the resamples


def assess(
    models: Sequence[ModelScores],
    labels: FloatArray,
    studies: Sequence[str],
    patients: Sequence[str],
    observations: Sequence[str],
    subgroups: Groups | None = None,
    aggregation: str = "maximum",
    replicates: int = 1000,
    headline: Sequence[str] = CHEXPERT.headline,
) -> dict[str, Any]:
    """Compute all metrics of one or more models per study and observation, with 95 % intervals.

    Each model after the first is compared with the first. A subgroup is scored on its own views only, such as the
    frontal views of each study. The gap of a subgroup column is its highest minus its lowest AUROC; the gap's interval
    ignores that these two groups were chosen on the same data. All intervals account for patients with several studies,
    except for those of the metrics at operating points, which are Wilson's.

    Args:
        models: One or more, with different names.
        labels: `(num_views, num_labels)` in {0, 1}, NaN where unknown; see `evaluation_labels`.
        studies: The study of each view, unique across patients, such as "patient00001/study1".
        patients: The patient of each view.
        observations: The names of the `num_labels` columns.
        subgroups: Column -> group of each view, such as `{"sex": ["F", "M", None]}`; None for a view of no group.
        aggregation: How the views of a study are combined; one of `metrics.AGGREGATIONS`.
        replicates: Number of bootstrap resamples of patients.
        headline: The observations whose mean AUROC is computed; see `averaged_observations`.

    Returns:
        Plain types for JSON, None where undefined: `schema`, `data` (counts), `replicates`, `seed`, and the lists
        `models` and `comparisons`. An estimate is a dictionary of `value`, `low`, `high` and `method`; for a bootstrap
        also `left_out`, the number of resamples in which the value was undefined. A comparison is a dictionary of
        `models`, `observation`, `difference` (an estimate without `method`), `p_value` and `method`.

    Raises:
        ValueError: If lengths, shapes or names do not match, a value is out of range, or a study has two patients.
    """
    columns = subgroups or {}
    _check_models(models, labels, observations)
    bootstrap = intervals.PatientBootstrap(_study_patients(labels, studies, patients, columns), replicates)
    task = _Assessment(labels, studies, observations, aggregation, bootstrap, headline)
    results = [task.model_metrics(model) for model in models]
    result: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "data": {
                "views": len(labels),
                "studies": len(task.names),
                "patients": len(set(patients)),
                "aggregation": aggregation,
            },
            "replicates": replicates,
            "seed": bootstrap.seed,
            "models": [task.entry(*pair, columns) for pair in zip(models, results, strict=True)],
            "comparisons": [
                {"models": [model.name, models[0].name], **comparison}
                for model, other in zip(models[1:], results[1:], strict=True)
                for comparison in task.comparisons(other, results[0])
            ],
        }
    )
    return result


class _Assessment:
    """Holds the labels and patients of all studies, and computes the parts of the result of `assess`."""

    def __init__(
        self,
        labels: FloatArray,
        studies: Sequence[str],
        observations: Sequence[str],
        aggregation: str,
        bootstrap: intervals.PatientBootstrap,
        headline: Sequence[str],
    ) -> None:
        self.view_labels, self.studies, self.aggregation = labels, studies, aggregation
        self.labels, self.names = per_study(labels, studies)  # (num_studies, num_labels)
        self.observations, self.mean_over = observations, averaged_observations(self.labels, observations, headline)
        self.bootstrap = bootstrap
        self.patients = np.unique(bootstrap.patients, return_inverse=True)[1]  # numbers are sorted faster than names

    def model_metrics(self, model: ModelScores) -> _ModelMetrics:
        scores, _ = per_study(model.probabilities, self.studies, self.aggregation)
        weighted = [WeightedMetrics(*pair) for pair in zip(scores.T, self.labels.T, strict=True)]
        values = np.stack([metric(np.ones((len(scores), 1)))[:, 0] for metric in weighted])
        replicates = self.bootstrap.replicate(lambda weights: np.stack([metric(weights) for metric in weighted]))
        mean = NAN, np.full(replicates.shape[-1], np.nan)
        if columns := [self.observations.index(name) for name in self.mean_over]:
            mean = float(values[columns, _AUROC].mean()), replicates[columns, _AUROC].mean(axis=0)
        return _ModelMetrics(scores, values, replicates, mean)

    def entry(self, model: ModelScores, results: _ModelMetrics, columns: Groups) -> dict[str, Any]:
        """Return a model's entry in the list `models` that `assess` returns.

        `columns` maps the name of a column, such as "sex", to the group that each view belongs to; {} for no subgroups.
        """
        groups, numbers = self._groups(model, columns), range(len(self.observations))
        return {
            "name": model.name,
            "mean_over": self.mean_over,
            "mean_auroc": _entry(intervals.percentile_interval(*results.mean), BOOTSTRAP),
            "observations": [self._observation(column, model, results) for column in numbers],
            "subgroups": [self._subgroup(group, column) for group in groups for column in numbers],
            "gaps": self._gaps(groups),
        }

    def comparisons(self, model: _ModelMetrics, first: _ModelMetrics) -> Iterator[dict[str, Any]]:
        """Yield the difference of a model's AUROC from the first model's: for each observation, then for the mean."""
        for column, observation in enumerate(self.observations):
            scores = model.scores[:, column], first.scores[:, column]
            test = intervals.delong_test(*scores, self.labels[:, column], self.patients)
            yield {"observation": observation, **asdict(test), "method": DELONG}
        replicates = model.mean[1] - first.mean[1]
        yield {
            "observation": "mean",
            "difference": asdict(intervals.percentile_interval(model.mean[0] - first.mean[0], replicates)),
            "p_value": intervals.bootstrap_p_value(replicates),
            "method": BOOTSTRAP,
        }

    def _observation(self, column: int, model: ModelScores, results: _ModelMetrics) -> dict[str, Any]:
        observation, labels, scores = self.observations[column], self.labels[:, column], results.scores[:, column]
        counts = _counts(labels)
        num_known, undefined, point = sum(counts.values()), None, None
        if not num_known:
            undefined = "No study has a known label."
        elif min(counts.values()) == 0:
            word = "positive" if counts["num_positive"] else "negative"
            undefined = f"Each of the {num_known} studies with a known label is {word}."
        if observation in model.operating_points:
            threshold = float(model.operating_points[observation])
            point = {"threshold": threshold, "chosen_by": model.chosen_by.get(observation)}
            point |= _at_threshold(scores, labels, threshold)
        metrics = zip(WeightedMetrics.NAMES, results.values[column].tolist(), results.replicates[column], strict=True)
        bootstrapped = {
            name: _entry(intervals.percentile_interval(*item), BOOTSTRAP)
            for name, *item in metrics
            if name != "auroc"  # whose interval is DeLong's
        }
        return {
            "observation": observation,
            **counts,
            "num_unknown": len(labels) - num_known,
            "undefined": undefined,
            "auroc": _entry(intervals.delong_interval(scores, labels, self.patients), DELONG),
            "operating_point": point,
            **bootstrapped,
        }

    def _groups(self, model: ModelScores, columns: Groups) -> list[_Group]:
        row = {name: index for index, name in enumerate(self.names)}
        groups = []
        for column, values in columns.items():
            for name in sorted({value for value in values if value is not None}):
                views = [view for view, value in enumerate(values) if value == name]
                studies = [self.studies[view] for view in views]
                scores, names = per_study(model.probabilities[views], studies, self.aggregation)
                rows = [row[study] for study in names]
                group = _Group(column, name, *np.full((2, *self.labels.shape), np.nan))
                group.scores[rows], group.labels[rows] = scores, per_study(self.view_labels[views], studies)[0]
                groups.append(group)
        return groups

    def _subgroup(self, group: _Group, column: int) -> dict[str, Any]:
        scores, labels = group.scores[:, column], group.labels[:, column]
        counts = _counts(labels)
        estimate, too_small = None, None
        if min(counts.values()) >= MIN_STUDIES_PER_CLASS:
            estimate = _entry(intervals.delong_interval(scores, labels, self.patients), DELONG)
        else:
            counted = "{num_positive} positive and {num_negative} negative studies".format(**counts)
            too_small = f"{counted}; {MIN_STUDIES_PER_CLASS} of each are needed."
        names = {"column": group.column, "group": group.name, "observation": self.observations[column]}
        return {**names, **counts, "auroc": estimate, "too_small": too_small}

    def _gaps(self, groups: list[_Group]) -> list[dict[str, Any]]:
        """Return the highest minus the lowest AUROC of groups of studies, such as F and M, per observation.

        Groups of different columns, such as sex and view, are not compared. Groups with too few studies are left out.
        """
        judged = [(group, judged_observations(group.labels, self.observations)) for group in groups]
        pairs, results = [], []
        for name in dict.fromkeys(group.column for group in groups):
            for column, observation in enumerate(self.observations):
                scored = [group for group, enough in judged if group.column == name and observation in enough]
                if len(scored) > 1:
                    columns = [(group.scores[:, column], group.labels[:, column]) for group in scored]
                    lowest, *_, highest = np.argsort([auroc(*pair) for pair in columns], kind="stable").tolist()
                    pairs.append((observation, scored[highest], scored[lowest]))
                    results.append((WeightedMetrics(*columns[highest]), WeightedMetrics(*columns[lowest])))
        if not pairs:
            return []

        def differences(weights: FloatArray) -> FloatArray:
            return np.stack([highest.auroc(weights) - lowest.auroc(weights) for highest, lowest in results])

        values = differences(np.ones((len(self.names), 1)))[:, 0].tolist()
        rows = zip(pairs, values, self.bootstrap.replicate(differences), strict=True)
        return [
            {
                "column": highest.column,
                "observation": observation,
                "highest": highest.name,
                "lowest": lowest.name,
                "difference": _entry(intervals.percentile_interval(value, row), BOOTSTRAP),
            }
            for (observation, highest, lowest), value, row in rows
        ]


def _counts(labels: FloatArray) -> dict[str, int]:
    return {"num_positive": int((labels == 1).sum()), "num_negative": int((labels == 0).sum())}


def _at_threshold(scores: FloatArray, labels: FloatArray, threshold: float) -> dict[str, Any]:
    """Return confusion counts, sensitivity, specificity, PPV and NPV; a score of `threshold` or more is positive."""
    is_called = scores >= threshold
    true, missed = (int((where & (labels == 1)).sum()) for where in (is_called, ~is_called))
    false, rejected = (int((where & (labels == 0)).sum()) for where in (is_called, ~is_called))
    shares = {
        "sensitivity": (true, missed),
        "specificity": (rejected, false),
        "ppv": (true, false),
        "npv": (rejected, missed),
    }
    return {
        "true_positives": true,
        "false_positives": false,
        "true_negatives": rejected,
        "false_negatives": missed,
        **{name: _entry(intervals.wilson_interval(hit, hit + miss), WILSON) for name, (hit, miss) in shares.items()},
    }


def _entry(estimate: intervals.Estimate, method: str) -> dict[str, Any]:
    return {**asdict(estimate), "method": method}


def _check_models(models: Sequence[ModelScores], labels: FloatArray, observations: Sequence[str]) -> None:
    if not models:
        raise ValueError("Expected the scores of at least one model, got none.")
    if len({model.name for model in models}) < len(models):
        raise ValueError(f"Each model needs a name of its own, got: {', '.join(model.name for model in models)}.")
    if not (np.isnan(labels) | (labels == 0) | (labels == 1)).all():
        raise ValueError("Expected labels of 0, 1 and NaN (unknown); evaluation_labels makes them from cell values.")
    for model in models:
        name, values = model.name, model.probabilities
        if values.shape != labels.shape or values.shape[1:] != (len(observations),):
            raise ValueError(
                f"{name}: expected probabilities and labels of shape (views, {len(observations)}), got {values.shape} "
                f"and {labels.shape}."
            )
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: expected probabilities in [0, 1], got others or NaN; logits need a sigmoid.")
        if unknown := set(model.operating_points) - set(observations):
            raise ValueError(f"{name}: operating points for {', '.join(sorted(unknown))}, which is not observed here.")


def _study_patients(labels: FloatArray, studies: Sequence[str], patients: Sequence[str], columns: Groups) -> list[str]:
    """Return each study's patient, in the order of the studies' first views.

    The arguments have one entry per view. `columns` maps subgroup columns, such as "sex", to the group of each view.
    Raises ValueError if there is no view, if lengths differ, or if a study has several patients.
    """
    if not len(labels):
        raise ValueError("Expected at least one view, got none.")
    for name, values in {"study": studies, "patient": patients, **columns}.items():
        if len(values) != len(labels):
            raise ValueError(f"Expected one {name} per view, got {len(labels)} views and {len(values)} entries.")
    found: dict[str, str] = {}
    for study, patient in zip(studies, patients, strict=True):
        if found.setdefault(study, patient) != patient:
            raise ValueError(
                f"Study {study!r} belongs to patients {found[study]!r} and {patient!r}; name studies uniquely, such as "
                "'patient00001/study1'."
            )
    return list(found.values())
