"""The plots of a report: ROC, precision-recall, reliability, score histograms, subgroups. For print, with intervals.

Colours are Okabe and Ito's, which are told apart with any colour vision; models also differ by line style.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from chexpert_hf.evaluation.published import PAPER, RADIOLOGISTS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
_COLUMNS = 4
_BINS = 10
_BAND_REPLICATES = 200
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class StudyScores:
    """One model's study-level scores.

    Attributes:
        name: Of the model.
        probabilities: `(num_studies, num_labels)`.
    """

    name: str
    probabilities: NDArray[np.floating]


def roc_figure(
    scores: Sequence[StudyScores],
    truth: NDArray[np.floating],
    observations: Sequence[str],
    shown: Sequence[str],
    aurocs: Mapping[tuple[str, str], str],
) -> Figure:
    """ROC curves with pointwise 95 % bands, and the paper's radiologists where it has some.

    Args:
        scores: One entry per model.
        truth: `(num_studies, num_labels)` in {0, 1, NaN}.
        observations: The columns.
        shown: Those that get a panel.
        aurocs: (model, observation) -> AUROC with its interval, as text.
    """
    figure, panels = _grid(shown, "False positive rate", "True positive rate")
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
        for number, model in enumerate(scores):
            values, labels = _known(model, truth, observations.index(name))
            fpr, tpr, _ = roc_curve(labels, values)
            color = COLORS[number % len(COLORS)]
            low, high = _band(values, labels, lambda v, y: np.interp(_GRID, *roc_curve(y, v)[:2]))
            axes.fill_between(_GRID, low, high, color=color, alpha=0.15, linewidth=0)
            label = aurocs.get((model.name, name), "")
            axes.plot(fpr, tpr, color=color, linestyle=_STYLES[number % len(_STYLES)], label=label, linewidth=1.4)
        points = RADIOLOGISTS.get(name, {})
        for who, (x, y) in points.items():
            axes.plot(x, y, marker="^" if who == "majority" else "o", color="0.25", markersize=4, linestyle="none")
        axes.legend(loc="lower right", fontsize=7, frameon=False, handlelength=1.6)
    _name_models(figure, scores)
    if set(shown) & RADIOLOGISTS.keys():
        figure.supxlabel(
            f"Grey: radiologists (circles) and their majority (triangle) on CheXpert's test set, {PAPER}: other data.",
            fontsize=8,
            color="0.35",
        )
    return figure


def precision_recall_figure(
    scores: Sequence[StudyScores], truth: NDArray[np.floating], observations: Sequence[str], shown: Sequence[str]
) -> Figure:
    """Precision-recall curves with pointwise 95 % bands; the line across is the prevalence."""
    figure, panels = _grid(shown, "Recall (sensitivity)", "Precision (PPV)")
    for name, axes in panels.items():
        for number, model in enumerate(scores):
            values, labels = _known(model, truth, observations.index(name))
            if number == 0:
                axes.axhline(labels.mean(), color="0.8", linewidth=0.8)
            precision, recall, _ = precision_recall_curve(labels, values)
            color = COLORS[number % len(COLORS)]
            low, high = _band(values, labels, _precision_on_grid)
            axes.fill_between(_GRID, low, high, color=color, alpha=0.15, linewidth=0)
            axes.step(
                recall, precision, where="post", color=color, linestyle=_STYLES[number % len(_STYLES)], linewidth=1.4
            )
    _name_models(figure, scores)
    return figure


def reliability_figure(
    scores: Sequence[StudyScores], truth: NDArray[np.floating], observations: Sequence[str], shown: Sequence[str]
) -> Figure:
    """Observed frequency by mean probability in ten equally filled bins, with Wilson 95 % intervals."""
    figure, panels = _grid(shown, "Mean probability", "Observed frequency")
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
        for number, model in enumerate(scores):
            values, labels = _known(model, truth, observations.index(name))
            order = np.argsort(values, kind="stable")
            groups = [group for group in np.array_split(order, min(_BINS, max(1, len(order) // 5))) if len(group)]
            x = np.array([values[group].mean() for group in groups])
            y = np.array([labels[group].mean() for group in groups])
            low, high = zip(*(_wilson(labels[group].sum(), len(group)) for group in groups), strict=True)
            color = COLORS[number % len(COLORS)]
            axes.errorbar(
                x, y, yerr=[y - low, np.asarray(high) - y], color=color, marker="o", markersize=3, linewidth=1,
                elinewidth=0.8, linestyle=_STYLES[number % len(_STYLES)],
            )  # fmt: skip
    _name_models(figure, scores)
    return figure


def histogram_figure(
    model: StudyScores,
    truth: NDArray[np.floating],
    observations: Sequence[str],
    shown: Sequence[str],
    thresholds: Mapping[str, float],
) -> Figure:
    """How one model's scores are spread over positive and negative studies, with its operating points."""
    figure, panels = _grid(shown, "Probability", "Share of the class")
    edges = np.linspace(0, 1, 21).tolist()
    for name, axes in panels.items():
        values, labels = _known(model, truth, observations.index(name))
        for value, color, label in ((0, COLORS[0], "negative"), (1, COLORS[1], "positive")):
            part = values[labels == value]
            axes.hist(part, edges, weights=np.full(len(part), 1 / len(part)), color=color, alpha=0.55, label=label)
        axes.axvline(thresholds[name], color="0.2", linewidth=1, linestyle=":")
        axes.legend(fontsize=7, frameon=False)
        axes.autoscale(axis="y")
        axes.set_ylim(bottom=0)
    return figure


def forest_figure(subgroups: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], shown: Sequence[str]) -> Figure:
    """AUROC by subgroup with its interval; a panel for each observation, the dotted line is everybody's.

    Args:
        subgroups: Entries of a model's `subgroups` in metrics.json.
        overall: Observation -> AUROC.
        shown: Those that get a panel.
    """
    groups = list(dict.fromkeys((item["column"], item["group"]) for item in subgroups))
    figure = Figure(figsize=(2.3 * len(shown) + 1.6, 0.28 * len(groups) + 1.3), dpi=150, layout="constrained")
    first: Axes | None = None
    for number, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1, sharey=first)
        first = first or axes
        for place, (column, group) in enumerate(groups):
            item = next(
                (i for i in subgroups if (i["column"], i["group"], i["observation"]) == (column, group, name)), None
            )
            estimate = item["auroc"] if item else None
            if estimate is None or estimate["value"] is None:
                axes.text(0.5, place, "too few", fontsize=6, color="0.5", va="center", ha="center")
                continue
            value = estimate["value"]
            bars = [[value - estimate["low"]], [estimate["high"] - value]]
            axes.errorbar(value, place, xerr=bars, fmt="o", color=COLORS[0], markersize=4, elinewidth=1)
        if overall.get(name) is not None:
            axes.axvline(overall[name], color="0.4", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_xlim(0, 1.02)
        _plain(axes)
        axes.tick_params(labelleft=number == 0)
    if first is not None:
        first.set_yticks(range(len(groups)), [f"{column}: {group}" for column, group in groups])
        first.invert_yaxis()
    figure.supxlabel("AUROC with 95 % interval", fontsize=9)
    return figure


def _name_models(figure: Figure, scores: Sequence[StudyScores]) -> None:
    """A line above the panels that says which curve is whose, where there are several models."""
    if len(scores) < 2:
        return
    lines = [
        Line2D([], [], color=COLORS[number % len(COLORS)], linestyle=_STYLES[number % len(_STYLES)], label=model.name)
        for number, model in enumerate(scores)
    ]
    figure.legend(handles=lines, loc="outside upper left", ncols=len(lines), fontsize=8, frameon=False)


def _grid(shown: Sequence[str], x_label: str, y_label: str) -> tuple[Figure, dict[str, Axes]]:
    columns = min(_COLUMNS, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(2.7 * columns, 2.7 * rows + 0.3), dpi=150, layout="constrained")
    panels = {}
    for number, name in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(name, fontsize=9)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        if number % columns == 0:
            axes.set_ylabel(y_label, fontsize=8)
        if number + columns >= len(shown):
            axes.set_xlabel(x_label, fontsize=8)
        _plain(axes)
        panels[name] = axes
    return figure, panels


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _known(
    model: StudyScores, truth: NDArray[np.floating], column: int
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    is_known = ~np.isnan(truth[:, column])
    return model.probabilities[is_known, column], truth[is_known, column]


def _band(values: NDArray[np.floating], labels: NDArray[np.floating], curve: Any) -> NDArray[np.floating]:
    """Pointwise 2.5 and 97.5 % quantiles `(2, 101)` of a curve over resampled studies."""
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(_BAND_REPLICATES):
        rows = rng.integers(0, len(values), len(values))
        if 0 < labels[rows].sum() < len(rows):
            curves.append(curve(values[rows], labels[rows]))
    return np.quantile(curves, [0.025, 0.975], axis=0)


def _precision_on_grid(values: NDArray[np.floating], labels: NDArray[np.floating]) -> NDArray[np.floating]:
    precision, recall, _ = precision_recall_curve(labels, values)
    return np.interp(_GRID, recall[::-1], precision[::-1])


def _wilson(successes: float, trials: int) -> tuple[float, float]:
    from chexpert_hf.evaluation.intervals import wilson_interval

    estimate = wilson_interval(int(successes), trials)
    return estimate.low, estimate.high
