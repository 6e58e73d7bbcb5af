"""All metrics of one or more models on a data set, with intervals, as plain data for a report.

Source: Irvin et al. 2019, arXiv:1901.07031, section 4 (studies, AUROC with DeLong intervals, AUPRC).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chexpert_hf.evaluation.delong import delong_interval, delong_test
from chexpert_hf.evaluation.intervals import (
    Estimate,
    PatientBootstrap,
    WeightedFigures,
    bootstrap_p_value,
    percentile_interval,
    wilson_interval,
)
from chexpert_hf.evaluation.metrics import (
    MIN_STUDIES_PER_CLASS,
    NAN,
    FloatArray,
    auroc,
    averaged_observations,
    judged_observations,
    per_study,
    plain,
)

SCHEMA = 1
"""Version of the layout that `assess` returns; raised when a reader of the old one would go wrong."""

DELONG, WILSON, BOOTSTRAP = "DeLong", "Wilson", "patient bootstrap"
_AUROC = WeightedFigures.NAMES.index("auroc")


@dataclass(frozen=True)
class ModelScores:
    """The scores of a model on a data set.

    Attributes:
        name: What the report calls it.
        probabilities: `(num_views, num_labels)`, in [0, 1].
        operating_points: The threshold of each observation that has one.
        chosen_by: On what data and by which rule the thresholds were chosen, in words, of each observation for which
            one was.
    """

    name: str
    probabilities: FloatArray
    operating_points: Mapping[str, float] = field(default_factory=dict)
    chosen_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Data:
    """The truth per study, and the views behind it."""

    labels: FloatArray  # (num_studies, num_labels)
    view_labels: FloatArray  # (num_views, num_labels)
    studies: Sequence[str]  # (num_views,)
    names: list[str]  # (num_studies,)
    observations: tuple[str, ...]
    patients: NDArray[np.int_]  # (num_studies,): a number for each
    aggregation: str
    bootstrap: PatientBootstrap
    mean_over: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """A group of views: scores and labels of the studies that have such views, NaN for the other studies."""

    column: str
    name: str
    scores: FloatArray  # (num_studies, num_labels)
    labels: FloatArray


@dataclass(frozen=True)
class _Figures:
    """The metrics of a model on the data and on each resample."""

    values: FloatArray  # (num_labels, num_metrics)
    replicates: FloatArray  # (num_labels, num_metrics, num_replicates)

    def mean_auroc(self, data: _Data) -> tuple[float, FloatArray]:
        columns = [data.observations.index(name) for name in data.mean_over]
        if not columns:
            return NAN, np.full(self.replicates.shape[-1], np.nan)
        return float(self.values[columns, _AUROC].mean()), self.replicates[columns, _AUROC].mean(axis=0)


def assess(
    models: Sequence[ModelScores],
    labels: FloatArray,
    studies: Sequence[str],
    patients: Sequence[str],
    observations: Sequence[str],
    subgroups: Mapping[str, Sequence[str | None]] | None = None,
    aggregation: str = "maximum",
    replicates: int = 1000,
) -> dict[str, Any]:
    """Computes every metric of an evaluation, per study and observation, with 95 % intervals.

    A subgroup is scored on its own views, which may be some of a study's (frontal, lateral). A gap lies between the
    groups that are the highest and the lowest of their column on these data; that choice is not part of its interval,
    so that some gap is to be expected where there is none. Every model is compared with the first: the difference is
    the model's metric minus the first one's. A patient's studies may depend on each other, in DeLong's intervals and
    tests as in the bootstrap; Wilson's intervals take studies as independent.

    Args:
        models: At least one; their names differ.
        labels: `(num_views, num_labels)` in {0, 1}, NaN where unknown; see `metrics.evaluation_labels`.
        studies: The study of each view, named so that no two patients share a name.
        patients: The patient of each view.
        observations: The names of the columns.
        subgroups: The group of each view by column, such as `{"sex": ["F", "M", None]}`; None belongs to no group.
        aggregation: How the views of a study become one probability: one of `metrics.AGGREGATIONS`.
        replicates: Resamples of patients.

    Returns:
        Plain types for JSON, None where undefined: `schema`, `data`, `replicates`, `seed`, `models`, `comparisons`.
        An estimate is `value`, `low`, `high`, `method`, and of the bootstrap also `left_out`: the resamples in which
        it was undefined.

    Raises:
        ValueError: If shapes or lengths do not fit, a probability or label is out of range, names repeat, a study
            belongs to two patients or an operating point to no observation.
    """
    columns = subgroups or {}
    _check_models(models, labels, observations)
    _check_views(labels, {"study": studies, "patient": patients, **columns})
    patient_of = _patients_of_studies(studies, patients)
    truth, names = per_study(labels, studies)
    bootstrap = PatientBootstrap(list(patient_of.values()), replicates)
    data = _Data(
        labels=truth,
        view_labels=labels,
        studies=studies,
        names=names,
        observations=tuple(observations),
        patients=np.unique(list(patient_of.values()), return_inverse=True)[1],
        aggregation=aggregation,
        bootstrap=bootstrap,
        mean_over=averaged_observations(truth, observations),
    )
    scores = [per_study(model.probabilities, studies, aggregation)[0] for model in models]
    figures = [_figures_of(values, data) for values in scores]
    result: dict[str, Any] = plain(
        {
            "schema": SCHEMA,
            "data": {
                "views": len(labels),
                "studies": len(names),
                "patients": len(set(patients)),
                "aggregation": aggregation,
            },
            "replicates": replicates,
            "seed": bootstrap.seed,
            "models": [
                _model_entry(model, values, figure, _groups(model, columns, data), data)
                for model, values, figure in zip(models, scores, figures, strict=True)
            ],
            "comparisons": [
                comparison
                for index in range(1, len(models))
                for comparison in _comparisons(models, scores, figures, index, data)
            ],
        }
    )
    return result


def _figures_of(scores: FloatArray, data: _Data) -> _Figures:
    figures = [WeightedFigures(*pair) for pair in zip(scores.T, data.labels.T, strict=True)]
    once = np.ones((len(scores), 1))
    return _Figures(
        np.stack([figure(once)[:, 0] for figure in figures]),
        data.bootstrap.replicate(lambda weights: np.stack([figure(weights) for figure in figures])),
    )


def _groups(model: ModelScores, columns: Mapping[str, Sequence[str | None]], data: _Data) -> list[_Group]:
    row = {name: index for index, name in enumerate(data.names)}
    groups = []
    for column, values in columns.items():
        for name in sorted({value for value in values if value is not None}):
            views = [view for view, value in enumerate(values) if value == name]
            studies = [data.studies[view] for view in views]
            scores, names = per_study(model.probabilities[views], studies, data.aggregation)
            rows = [row[study] for study in names]
            group = _Group(column, name, *np.full((2, *data.labels.shape), np.nan))
            group.scores[rows], group.labels[rows] = scores, per_study(data.view_labels[views], studies)[0]
            groups.append(group)
    return groups


def _model_entry(
    model: ModelScores, scores: FloatArray, figures: _Figures, groups: list[_Group], data: _Data
) -> dict[str, Any]:
    return {
        "name": model.name,
        "mean_over": data.mean_over,
        "mean_auroc": _entry(percentile_interval(*figures.mean_auroc(data)), BOOTSTRAP),
        "observations": [
            _observation_entry(observation, model, scores[:, column], data.labels[:, column], data.patients)
            | {
                name: _entry(percentile_interval(float(value), replicates), BOOTSTRAP)
                for name, value, replicates in zip(
                    WeightedFigures.NAMES, figures.values[column], figures.replicates[column], strict=True
                )
                if name != "auroc"
            }
            for column, observation in enumerate(data.observations)
        ],
        "subgroups": [
            _subgroup_entry(group, column, observation, data.patients)
            for group in groups
            for column, observation in enumerate(data.observations)
        ],
        "gaps": _gaps(groups, data),
    }


def _observation_entry(
    observation: str, model: ModelScores, scores: FloatArray, labels: FloatArray, patients: NDArray[np.int_]
) -> dict[str, Any]:
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    undefined = None
    if not positive + negative:
        undefined = "No study has a known label."
    elif not positive or not negative:
        word = "positive" if positive else "negative"
        undefined = f"Each of the {positive + negative} studies with a known label is {word}."
    point = None
    if observation in model.operating_points:
        point = {"threshold": float(model.operating_points[observation]), "chosen_by": model.chosen_by.get(observation)}
        point |= _at_threshold(scores, labels, model.operating_points[observation])
    return {
        "observation": observation,
        "num_positive": positive,
        "num_negative": negative,
        "num_unknown": int(np.isnan(labels).sum()),
        "undefined": undefined,
        "auroc": _entry(delong_interval(scores, labels, patients), DELONG),
        "operating_point": point,
    }


def _at_threshold(scores: FloatArray, labels: FloatArray, threshold: float) -> dict[str, Any]:
    """Counts and shares where a score of at least the threshold is positive."""
    is_called = scores >= threshold
    true, false = int((is_called & (labels == 1)).sum()), int((is_called & (labels == 0)).sum())
    rejected, missed = int((~is_called & (labels == 0)).sum()), int((~is_called & (labels == 1)).sum())
    shares = {
        "sensitivity": (true, true + missed),
        "specificity": (rejected, rejected + false),
        "ppv": (true, true + false),
        "npv": (rejected, rejected + missed),
    }
    return {
        "true_positives": true,
        "false_positives": false,
        "true_negatives": rejected,
        "false_negatives": missed,
        **{name: _entry(wilson_interval(*share), WILSON) for name, share in shares.items()},
    }


def _subgroup_entry(group: _Group, column: int, observation: str, patients: NDArray[np.int_]) -> dict[str, Any]:
    labels = group.labels[:, column]
    positive, negative = int((labels == 1).sum()), int((labels == 0).sum())
    is_judged = min(positive, negative) >= MIN_STUDIES_PER_CLASS
    return {
        "column": group.column,
        "group": group.name,
        "observation": observation,
        "num_positive": positive,
        "num_negative": negative,
        "auroc": _entry(delong_interval(group.scores[:, column], labels, patients), DELONG) if is_judged else None,
        "too_small": None
        if is_judged
        else f"{positive} positive and {negative} negative studies; {MIN_STUDIES_PER_CLASS} of each are needed.",
    }


def _gaps(groups: list[_Group], data: _Data) -> list[dict[str, Any]]:
    """Between the groups of highest and lowest AUROC of each column and observation that has two to compare."""
    pairs = list(_extremes(groups, data))
    if not pairs:
        return []
    figures = [
        [WeightedFigures(group.scores[:, column], group.labels[:, column]) for group in pair] for column, *pair in pairs
    ]

    def differences(weights: FloatArray) -> FloatArray:
        return np.stack([highest.auroc(weights) - lowest.auroc(weights) for highest, lowest in figures])

    values = differences(np.ones((len(data.names), 1)))[:, 0]
    replicates = data.bootstrap.replicate(differences)
    return [
        {
            "column": highest.column,
            "observation": data.observations[column],
            "highest": highest.name,
            "lowest": lowest.name,
            "difference": _entry(percentile_interval(float(value), row), BOOTSTRAP),
        }
        for (column, highest, lowest), value, row in zip(pairs, values, replicates, strict=True)
    ]


def _extremes(groups: list[_Group], data: _Data) -> Iterator[tuple[int, _Group, _Group]]:
    judged = [(group, judged_observations(group.labels, data.observations)) for group in groups]
    for name in dict.fromkeys(group.column for group in groups):
        for column, observation in enumerate(data.observations):
            scored = [group for group, enough in judged if group.column == name and observation in enough]
            if len(scored) > 1:
                scored.sort(key=lambda group: auroc(group.scores[:, column], group.labels[:, column]))
                yield column, scored[-1], scored[0]


def _comparisons(
    models: Sequence[ModelScores], scores: list[FloatArray], figures: list[_Figures], index: int, data: _Data
) -> Iterator[dict[str, Any]]:
    """The model at `index` minus the first one."""
    names = {"models": [models[index].name, models[0].name]}
    for column, observation in enumerate(data.observations):
        test = delong_test(scores[index][:, column], scores[0][:, column], data.labels[:, column], data.patients)
        yield {**names, "observation": observation, **asdict(test), "method": DELONG}
    (value, replicates), (first_value, first_replicates) = figures[index].mean_auroc(data), figures[0].mean_auroc(data)
    replicates = replicates - first_replicates
    difference = asdict(percentile_interval(value - first_value, replicates))
    p_value = bootstrap_p_value(replicates)
    yield {**names, "observation": "mean", "difference": difference, "p_value": p_value, "method": BOOTSTRAP}


def _entry(estimate: Estimate, method: str) -> dict[str, Any]:
    return {**asdict(estimate), "method": method}


def _check_models(models: Sequence[ModelScores], labels: FloatArray, observations: Sequence[str]) -> None:
    if not models:
        raise ValueError("Expected the scores of at least one model, got none.")
    if len({model.name for model in models}) < len(models):
        raise ValueError(f"Each model needs a name of its own, got: {', '.join(model.name for model in models)}.")
    if not (np.isnan(labels) | (labels == 0) | (labels == 1)).all():
        raise ValueError("Expected labels of 0, 1 and NaN (unknown); evaluation_labels makes them from cell values.")
    for name, values, points in ((model.name, model.probabilities, model.operating_points) for model in models):
        if values.shape != labels.shape or values.shape[1:] != (len(observations),):
            raise ValueError(
                f"{name}: expected probabilities and labels of shape (views, {len(observations)}), got {values.shape} "
                f"and {labels.shape}."
            )
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: expected probabilities in [0, 1], got others or NaN; logits need a sigmoid.")
        if unknown := set(points) - set(observations):
            raise ValueError(f"{name}: operating points for {', '.join(sorted(unknown))}, which is not observed here.")


def _check_views(labels: FloatArray, columns: Mapping[str, Sequence[str | None]]) -> None:
    if not len(labels):
        raise ValueError("Expected at least one view, got none.")
    for name, values in columns.items():
        if len(values) != len(labels):
            raise ValueError(f"Expected one {name} per view, got {len(labels)} views and {len(values)} entries.")


def _patients_of_studies(studies: Sequence[str], patients: Sequence[str]) -> dict[str, str]:
    """In the order of the studies' first views."""
    found: dict[str, str] = {}
    for study, patient in zip(studies, patients, strict=True):
        if found.setdefault(study, patient) != patient:
            raise ValueError(
                f"Study {study!r} belongs to patients {found[study]!r} and {patient!r}; name studies uniquely, such as "
                "'patient00001/study1'."
            )
    return found
