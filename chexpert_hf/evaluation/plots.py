"""The plots of an evaluation report, for print: ROC, precision-recall, reliability, histograms, subgroups.

Colours are Okabe and Ito's, which people with any colour vision can tell apart; models also differ by line style.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import precision_recall_curve, roc_curve

from chexpert_hf.evaluation.intervals import wilson_interval
from chexpert_hf.evaluation.metrics import FloatArray
from chexpert_hf.evaluation.published import PAPER, RADIOLOGISTS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLES = ("-", "--", "-.", ":")
_COLUMNS = 4
_BINS = 10
_BAND_REPLICATES = 200
_GRID = np.linspace(0, 1, 101)

Curve = Callable[[FloatArray, FloatArray], FloatArray]  # maps scores and labels `(n,)` to the curve's values at `_GRID`


@dataclass(frozen=True)
class StudyScores:
    """The data of the plots: the probabilities of all models, and the labels, per study."""

    probabilities: Mapping[str, FloatArray]  # model -> (num_studies, num_labels)
    truth: FloatArray  # (num_studies, num_labels) in {0, 1, NaN}
    observations: Sequence[str]  # names of the columns
    shown: Sequence[str]  # the observations that get a panel

    def known(self, model: str, observation: str) -> tuple[FloatArray, FloatArray]:
        """Return a model's scores of an observation and the labels, `(n,)` for the n studies with a known label."""
        column = self.observations.index(observation)
        is_known = ~np.isnan(self.truth[:, column])
        return self.probabilities[model][is_known, column], self.truth[is_known, column]


def roc_figure(scores: StudyScores, aurocs: Mapping[tuple[str, str], str]) -> Figure:
    """Draw ROC curves with 95 % bands, labelled by `aurocs[model, observation]`; points are CheXpert's radiologists."""
    figure, panels = _grid(scores, "False positive rate", "True positive rate")
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
        for model, values, labels, style in _models(scores, name):
            fpr, tpr, _ = roc_curve(labels, values)
            _draw_band(axes, values, labels, lambda v, y: np.interp(_GRID, *roc_curve(y, v)[:2]), style)
            axes.plot(fpr, tpr, label=aurocs.get((model, name), ""), linewidth=1.4, **style)
        for who, (x, y) in RADIOLOGISTS.get(name, {}).items():
            axes.plot(x, y, marker="^" if who == "majority" else "o", color="0.25", markersize=4, linestyle="none")
        axes.legend(loc="lower right", fontsize=7, frameon=False, handlelength=1.6)
    if set(scores.shown) & RADIOLOGISTS.keys():
        figure.supxlabel(
            f"Grey: radiologists (circles) and their majority (triangle) on CheXpert's test set, {PAPER}: other data.",
            fontsize=8,
            color="0.35",
        )
    return figure


def precision_recall_figure(scores: StudyScores) -> Figure:
    """Draw precision-recall curves with pointwise 95 % bands; a horizontal line marks the prevalence."""

    def on_grid(values: FloatArray, labels: FloatArray) -> FloatArray:
        precision, recall, _ = precision_recall_curve(labels, values)
        return np.interp(_GRID, recall[::-1], precision[::-1])

    figure, panels = _grid(scores, "Recall (sensitivity)", "Precision (PPV)")
    for name, axes in panels.items():
        axes.axhline(scores.known(next(iter(scores.probabilities)), name)[1].mean(), color="0.8", linewidth=0.8)
        for _, values, labels, style in _models(scores, name):
            precision, recall, _ = precision_recall_curve(labels, values)
            _draw_band(axes, values, labels, on_grid, style)
            axes.step(recall, precision, where="post", linewidth=1.4, **style)
    return figure


def reliability_figure(scores: StudyScores) -> Figure:
    """Draw observed frequency by mean probability in up to ten equally filled bins, with Wilson's 95 % intervals."""
    figure, panels = _grid(scores, "Mean probability", "Observed frequency")
    for name, axes in panels.items():
        axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.8)
        for _, values, labels, style in _models(scores, name):
            # Equal scores are in one bin; otherwise the order of the rows would change the frequencies.
            shares = np.linspace(0, 1, min(_BINS, max(1, len(values) // 5)) + 1)[1:-1]
            bins = np.digitize(values, np.unique(np.quantile(values, shares)))
            groups = [np.flatnonzero(bins == number) for number in np.unique(bins)]
            x = [values[group].mean() for group in groups]
            found = [wilson_interval(int(labels[group].sum()), len(group)) for group in groups]
            ends = np.array([[share.value - share.low, share.high - share.value] for share in found]).T
            y = [share.value for share in found]
            axes.errorbar(x, y, yerr=ends, marker="o", markersize=3, linewidth=1, elinewidth=0.8, **style)
    return figure


def histogram_figure(scores: StudyScores, thresholds: Mapping[str, float]) -> Figure:
    """Draw histograms of the first model's scores of positive and negative studies; lines mark `thresholds`."""
    first = next(iter(scores.probabilities))
    figure, panels = _grid(scores, "Probability", "Share of the class", legend=False)
    edges = np.linspace(0, 1, 21).tolist()
    for name, axes in panels.items():
        values, labels = scores.known(first, name)
        for value, color, label in ((0, COLORS[0], "negative"), (1, COLORS[1], "positive")):
            part = values[labels == value]
            axes.hist(part, edges, weights=np.full(len(part), 1 / len(part)), color=color, alpha=0.55, label=label)
        axes.axvline(thresholds[name], color="0.2", linewidth=1, linestyle=":")
        axes.autoscale(axis="y")
        axes.set_ylim(bottom=0)
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper left", ncols=2, fontsize=8, frameon=False)  # not over the bars
    return figure


def forest_figure(subgroups: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], shown: Sequence[str]) -> Figure:
    """Draw the AUROC of each subgroup with its interval, a panel for each observation in `shown`.

    `subgroups` are as in metrics.json. `overall` is the AUROC of all studies by observation, drawn as a dotted line.
    """
    groups = list(dict.fromkeys((item["column"], item["group"]) for item in subgroups))
    estimates = {(item["column"], item["group"], item["observation"]): item["auroc"] for item in subgroups}
    figure = Figure(figsize=(2.3 * len(shown) + 1.6, 0.28 * len(groups) + 1.3), dpi=150, layout="constrained")
    first: Axes | None = None
    for number, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1, sharey=first)
        first = first or axes
        for place, group in enumerate(groups):
            if estimate := estimates.get((*group, name)):
                value, low, high = (estimate[end] for end in ("value", "low", "high"))
                bars = [[value - low], [high - value]]
                axes.errorbar(value, place, xerr=bars, fmt="o", color=COLORS[0], markersize=4, elinewidth=1)
            else:
                axes.text(0.5, place, "too few", fontsize=6, color="0.5", va="center", ha="center")
        if overall.get(name) is not None:
            axes.axvline(overall[name], color="0.4", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_xlim(0, 1.02)
        simplify(axes)
        axes.tick_params(labelleft=number == 0)
    if first is not None:
        first.set_yticks(range(len(groups)), [f"{column}: {group}" for column, group in groups])
        first.invert_yaxis()
    figure.supxlabel("AUROC with 95 % interval", fontsize=9)
    return figure


def simplify(axes: Axes) -> None:
    """Remove the upper and right line of the frame, and make the tick labels small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "linestyle": _STYLES[number % len(_STYLES)]}


def _models(scores: StudyScores, observation: str) -> Iterator[tuple[str, FloatArray, FloatArray, dict[str, Any]]]:
    """Yield (name, scores, labels, line style) of each model, over the studies whose label is known."""
    for number, model in enumerate(scores.probabilities):
        yield model, *scores.known(model, observation), _style(number)


def _grid(scores: StudyScores, x_label: str, y_label: str, *, legend: bool = True) -> tuple[Figure, dict[str, Axes]]:
    """Make a figure with a panel for each shown observation, and a legend above if there are several models."""
    shown = scores.shown
    columns = min(_COLUMNS, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(2.7 * columns, 2.7 * rows + 0.3), dpi=150, layout="constrained")
    panels = {}
    for number, name in enumerate(shown):
        axes = panels[name] = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(name, fontsize=9)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        if number % columns == 0:
            axes.set_ylabel(y_label, fontsize=8)
        if number + columns >= len(shown):
            axes.set_xlabel(x_label, fontsize=8)
        simplify(axes)
    if legend and len(scores.probabilities) > 1:
        lines = [Line2D([], [], label=model, **_style(number)) for number, model in enumerate(scores.probabilities)]
        figure.legend(handles=lines, loc="outside upper left", ncols=len(lines), fontsize=8, frameon=False)
    return figure, panels


def _draw_band(axes: Axes, values: FloatArray, labels: FloatArray, curve: Curve, style: Mapping[str, Any]) -> None:
    """Shade the band between the 2.5 and the 97.5 % quantiles of a curve over resamples of the studies.

    `values` are the scores `(n,)` of the n studies; `curve` computes a curve from scores and labels.
    """
    rng = np.random.default_rng(0)
    curves = []
    for _ in range(_BAND_REPLICATES):
        rows = rng.integers(0, len(values), len(values))
        if 0 < labels[rows].sum() < len(rows):
            curves.append(curve(values[rows], labels[rows]))
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    axes.fill_between(_GRID, low, high, color=style["color"], alpha=0.15, linewidth=0)
