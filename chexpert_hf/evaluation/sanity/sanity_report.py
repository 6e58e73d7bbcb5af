"""The result of `check_sanity` as text, tables, JSON and a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.integrate import trapezoid

from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.evaluation.metrics import FloatArray, plain
from chexpert_hf.evaluation.plots import COLORS, simplify
from chexpert_hf.evaluation.sanity.sanity import FRAME, MAX_SIMILARITY, RemovalCheck, SanityChecks, Verdict, WeightCheck
from chexpert_hf.evaluation.tables import DASH, aligned, as_estimate, number
from chexpert_hf.files import data_beside, result_folder, write_json

_GREY = "0.45"


@dataclass(frozen=True)
class SanityTable:
    """One check as a table: the claim that it tests, its metrics, and how to read them."""

    claim: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # the last cell is the verdict
    note: str

    @property
    def verdict(self) -> str:
        """The worst verdict of the rows that can be judged; "nothing to judge" if there is no such row."""
        worst_first = (Verdict.FAILED, Verdict.UNCLEAR, Verdict.PASSED, Verdict.NOT_JUDGED)
        return next(verdict.value for verdict in worst_first if verdict.value in {row[-1] for row in self.rows})


def sanity_tables(checks: SanityChecks) -> list[SanityTable]:
    """Return three tables, one for each of the checks of weights, regions and removal."""
    removal = checks.removal
    rows: dict[str, Sequence[Sequence[str]]] = {
        "weights": [_weight_row(check) for check in checks.weights],
        "regions": [
            (item.region, f"{item.num_images:,}", number(item.mass), number(item.area), as_estimate(item.ratio, 2),
             item.verdict.value)
            for item in checks.regions
        ],
        "removal": [
            _removal_row(removal, "deletion", removal.deletion, removal.deletion_gain),
            _removal_row(removal, "insertion", removal.insertion, removal.insertion_gain),
        ],
    }  # fmt: skip
    alike = {"weights": "".join(_unchanged(checks.observations, check) for check in checks.weights)}
    height, width = checks.map_size
    gaps = {"height": height, "width": width, "bound": number(MAX_SIMILARITY, 2), "frame": FRAME}
    return [
        SanityTable(text["claim"], text["header"], rows[name], text["note"].format(**gaps) + alike.get(name, ""))
        for name, text in data_beside(__file__).items()
    ]


def as_text(checks: SanityChecks) -> str:
    """Format all tables as plain text with their verdicts."""
    blocks = [f"{checks.num_images:,} radiographs, maps of {checks.map_size[0]} x {checks.map_size[1]}."]
    for table in sanity_tables(checks):
        content = indent(f"{aligned([table.header, *table.rows])}\n{table.note}", "  ")
        blocks.append(f"{table.claim}: {table.verdict}\n{content}")
    return "\n\n".join(blocks)


def as_dictionary(checks: SanityChecks) -> dict[str, Any]:
    """Return all results as plain types for JSON, with verdicts; None where undefined."""
    values: dict[str, Any] = plain(checks)
    for entry, weight in zip(values["weights"], checks.weights, strict=True):
        entry |= {"verdict": weight.verdict.name.lower(), "bound": MAX_SIMILARITY}
    for entry, region in zip(values["regions"], checks.regions, strict=True):
        entry["verdict"] = region.verdict.name.lower()
    for name, verdict in checks.removal.verdicts.items():
        values["removal"][f"{name}_gain"]["verdict"] = verdict.name.lower()
    return values


def write_sanity(folder: Path, checks: SanityChecks) -> None:
    """Write sanity.json and sanity.png to a folder, which is made if needed; the files are replaced."""
    result_folder(folder)
    write_json(folder / "sanity.json", as_dictionary(checks))
    sanity_figure(checks).savefig(folder / "sanity.png")


def sanity_figure(checks: SanityChecks) -> Figure:
    """Draw three plots: similarities of maps for each observation, mean deletion curves, and mean insertion curves.

    The similarities compare the model's maps with those of the same network with randomised weights.
    """
    figure = Figure(figsize=(9.6, 3.4), dpi=150, layout="constrained")
    similarity, *curves = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
    _draw_similarity(similarity, checks)
    removal = checks.removal
    deletion = "Deletion", "blurred away", removal.deletion, removal.random, COLORS[1]
    insertion = "Insertion", "put in", removal.insertion, removal.random[:, ::-1], COLORS[0]
    for axes, (title, label, ordered, random, color) in zip(curves, (deletion, insertion), strict=True):
        drawn = ((ordered, "-", color, "order of the map"), (random, "--", _GREY, "random order"))
        for values, style, shade, name in drawn if removal.observations else ():
            low, high = np.quantile(values, [0.25, 0.75], axis=0)
            axes.fill_between(removal.fractions, low, high, color=shade, alpha=0.18, linewidth=0)
            axes.plot(removal.fractions, values.mean(axis=0), style, color=shade, linewidth=1.6, label=name)
        if removal.observations:
            axes.legend(fontsize=7, frameon=False, loc="best", title="mean, and middle half", title_fontsize=7)
        axes.set_title(f"{title} ({len(removal.observations)} maps)", fontsize=9)
        axes.set_xlabel(f"Share of the map's cells {label}", fontsize=8)
        axes.set_ylabel("Probability", fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.02, 1.02)
    for axes in (similarity, *curves):
        simplify(axes)
    return figure


def _draw_similarity(axes: Axes, checks: SanityChecks) -> None:
    rows = np.arange(len(checks.observations))
    for check, color, marker in zip(checks.weights, COLORS, "os", strict=False):
        axes.plot(check.by_observation, rows, marker, color=color, markersize=4.5, label=f"random: {check.redrawn}")
        label = "other radiograph" if marker == "o" else None
        axes.plot(check.other_image, rows, "|", color=color, markersize=8, label=label)
    axes.axvline(MAX_SIMILARITY, color=_GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(rows, checks.observations)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("Maps after randomising weights", fontsize=9)
    axes.set_xlabel("Mean |rank correlation|", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.3, -0.16), ncols=3, columnspacing=1.2)


def _weight_row(check: WeightCheck) -> Sequence[str]:
    means = (check.signed, check.other_image, check.by_chance)
    texts = (DASH if np.isnan(item).all() else number(float(np.nanmean(item)), 2) for item in means)
    return (check.redrawn, as_estimate(check.similarity, 2), *texts, check.verdict.value)


def _removal_row(removal: RemovalCheck, name: str, curves: FloatArray, gain: Estimate) -> Sequence[str]:
    areas = [DASH, DASH]
    if removal.observations:
        areas = [number(trapezoid(item, removal.fractions).mean(), 2) for item in (curves, removal.random)]
    verdict = removal.verdicts[name].value
    return (name, f"{len(removal.observations):,}", *areas, as_estimate(gain, 2), verdict)


def _unchanged(observations: Sequence[str], check: WeightCheck) -> str:
    """Return a sentence that names the observations with a similarity of `MAX_SIMILARITY` or more; "" without any.

    The mean over all observations may hide such observations.
    """
    pairs = zip(observations, check.by_observation, strict=True)
    names = [f"{name} {number(value, 2)}" for name, value in pairs if value >= MAX_SIMILARITY]
    return f" At or over the bound ({check.redrawn}): {', '.join(names)}." if names else ""
