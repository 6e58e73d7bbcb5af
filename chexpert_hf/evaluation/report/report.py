"""An evaluation as text, and as a folder that a reviewer can be handed: tables, plots, figures for programs.

The folder holds `metrics.json` (see `chexpert_hf.evaluation.assessment` for its schema), `report.md` and `report.html`
(one file, nothing loaded from elsewhere), the plots as PNG, and the predictions per view and per study as CSV.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from numpy.typing import NDArray

from chexpert_hf.evaluation import plots
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS, Evaluation
from chexpert_hf.evaluation.plots import StudyScores
from chexpert_hf.evaluation.published import PAPER, TEST_AUROC, VALID_AUROC
from chexpert_hf.evaluation.reference_standard import OWN_LABELS, SECOND_STANDARD
from chexpert_hf.evaluation.sanity.sanity import SanityChecks
from chexpert_hf.evaluation.sanity.sanity_report import sanity_figure, sanity_tables

MAX_PANELS = 4
"""Observations in the plot of the subgroups: as many as fit beside each other."""


def as_table(evaluation: Evaluation) -> str:
    """One line per observation with its numbers of studies and AUROC, and the mean with what it covers."""
    width = max(len(item.observation) for item in evaluation.observations)
    lines = [f"{'observation':<{width}}  positive  negative  AUROC"]
    for item in evaluation.observations:
        few = " (too few to tell)" if min(item.num_positive, item.num_negative) < MIN_STUDIES_PER_CLASS else ""
        value = "not judged: one class only" if isnan(item.auroc) else f"{item.auroc:5.3f}{few}"
        lines.append(f"{item.observation:<{width}}  {item.num_positive:>8,}  {item.num_negative:>8,}  {value}")
    if evaluation.mean_over:
        lines.append(f"Mean AUROC {evaluation.mean_auroc:.3f} over {', '.join(evaluation.mean_over)}")
    lines.append(f"{evaluation.num_studies:,} studies, maximum over the views of each.")
    return "\n".join(lines)


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A table as plain text, its columns aligned."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def reference_table(result: Mapping[str, Any]) -> str:
    """Figures of `assess_reference` as plain text: AUROC and what it was measured against."""
    return aligned([row[:7] for row in _reference_cells(result)]) + "\n" + _reference_note(result)


def _reference_cells(result: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        ["model", "score", "reference standard", "finding", "positive", "negative", "AUROC", "AUPRC", "sensitivity",
         "specificity"]
    ]  # fmt: skip
    for item in result["figures"]:
        point = item["operating_point"] or dict.fromkeys(("sensitivity", "specificity"))
        figures = (item["auprc"], point["sensitivity"], point["specificity"])
        against = f", against {item['against']}" if item["against"] else ""
        rows.append(
            [
                *(item[name] for name in ("model", "observation", "reference")),
                f"{item['target']}{against}",
                f"{item['num_positive']:,}",
                f"{item['num_negative']:,}",
                item["undefined"] or as_estimate(item["auroc"]),
                *map(as_estimate, figures),
            ]
        )
    return rows


def _reference_note(result: Mapping[str, Any]) -> str:
    missing = f" Not judged by the model: {', '.join(result['not_judged'])}." if result["not_judged"] else ""
    return (
        f"On the {result['images']:,} images of this split that are in {result['file']} ({result['studies']:,} studies "
        f"of {result['patients']:,} patients). {result['images_only_in_split']:,} other images of the split are not in "
        f"the file, and {result['images_only_in_reference']:,} other images of the file are not in the split.{missing}"
    )


@dataclass(frozen=True)
class ReportData:
    """What a report is made from.

    Attributes:
        metrics: Of `chexpert_hf.evaluation.assessment.assess`, with whatever the caller adds.
        title: Of the data and split.
        observations: The columns of all arrays.
        truth: `(num_studies, num_labels)` in {0, 1, NaN}.
        scores: Each model's study-level scores.
        studies: The study of each row.
        views: Path of each view, and each model's probabilities `(num_views, num_labels)`, for the CSV files.
        warnings: What a reader must know before anything else.
        is_chexpert_valid: Whether the data are CheXpert's validation set, so that published figures compare.
        thumbnails: Pictures of the worst errors: caption and PNG.
        sanity: Model -> the sanity checks of its maps, where they were asked for.
    """

    metrics: Mapping[str, Any]
    title: str
    observations: Sequence[str]
    truth: NDArray[np.floating]
    scores: Sequence[StudyScores]
    studies: Sequence[str]
    views: tuple[Sequence[str], Mapping[str, NDArray[np.floating]]]
    warnings: Sequence[str] = ()
    is_chexpert_valid: bool = False
    thumbnails: Sequence[tuple[str, bytes]] = field(default_factory=tuple)
    sanity: Mapping[str, SanityChecks] = field(default_factory=dict)


def write_report(folder: Path, data: ReportData) -> None:
    """Writes the whole folder.

    Args:
        folder: Made if it is not there; files of an earlier report are replaced.
        data: What it is made from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {**data.metrics, "title": data.title, "warnings": list(data.warnings)}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False), encoding="utf-8")
    _write_predictions(folder, data)
    pictures = {}
    for name, (caption, figure) in _figures(data).items():
        figure.savefig(folder / f"{name}.png")
        pictures[f"{name}.png"] = (caption, (folder / f"{name}.png").read_bytes())
    context = _context(data)
    (folder / "report.md").write_text(
        _template("report.md.jinja").render(**context, pictures=pictures), encoding="utf-8"
    )
    encoded = [(caption, base64.b64encode(png).decode()) for caption, png in pictures.values()]
    thumbnails = [(caption, base64.b64encode(png).decode()) for caption, png in data.thumbnails]
    html = _template("report.html.jinja").render(**context, pictures=encoded, thumbnails=thumbnails)
    (folder / "report.html").write_text(html, encoding="utf-8")


def _template(name: str) -> Any:
    environment = Environment(
        loader=PackageLoader("chexpert_hf.evaluation", "templates"),
        autoescape=select_autoescape(["html", "html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["estimate"] = as_estimate
    environment.filters["short"] = _short
    environment.filters["p"] = lambda value: "" if value is None else "< .001" if value < 0.001 else f"{value:.3f}"
    return environment.get_template(name)


def as_estimate(estimate: Mapping[str, Any] | None) -> str:
    """`.892 (.831 to .953)`, or a dash where there is none."""
    if estimate is None or estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return _short(estimate["value"])
    return f"{_short(estimate['value'])} ({_short(estimate['low'])} to {_short(estimate['high'])})"


def _short(value: float) -> str:
    """Three places, without the zero in front of the point."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def _context(data: ReportData) -> dict[str, Any]:
    published = VALID_AUROC if data.is_chexpert_valid else TEST_AUROC
    where = "CheXpert's validation set" if data.is_chexpert_valid else "other data: CheXpert's test set"
    return {
        "title": data.title,
        "warnings": data.warnings,
        "data": data.metrics["data"],
        "models": [model | {"subgroups": _subgroups(model)} for model in data.metrics["models"]],
        "comparisons": data.metrics["comparisons"],
        "reference_standard": data.metrics.get("reference_standard", OWN_LABELS),
        "second_standard": _second_standard(data.metrics.get(SECOND_STANDARD)),
        "replicates": data.metrics["replicates"],
        "published": {name: value for name, value in published.items() if name in data.observations},
        "published_mean": sum(published.values()) / len(published),
        "published_source": f"{PAPER}, {where}",
        "min_studies": MIN_STUDIES_PER_CLASS,
        "sanity": [(name, checks, sanity_tables(checks)) for name, checks in data.sanity.items()],
    }


def _second_standard(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    header, *rows = _reference_cells(result)
    return {"name": result["reference"], "header": header, "rows": rows, "note": _reference_note(result)}


def _subgroups(model: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are scored, and a line for each of the others.

    Returns:
        `scored`, entries of metrics.json; `too_small`, lines such as "Male: Edema (2 positive, 30 negative)"; `single`,
        lines for columns in which everybody is of one group.
    """
    groups: dict[str, list[str]] = {}
    for item in model["subgroups"]:
        groups.setdefault(item["column"], [])
        if item["group"] not in groups[item["column"]]:
            groups[item["column"]].append(item["group"])
    compared = [item for item in model["subgroups"] if len(groups[item["column"]]) > 1]
    too_small: dict[str, list[str]] = {}
    for item in compared:
        if item["too_small"]:
            counts = f"{item['observation']} ({item['num_positive']} : {item['num_negative']})"
            too_small.setdefault(f"{item['column']} {item['group']}", []).append(counts)
    return {
        "scored": [item for item in compared if not item["too_small"]],
        "too_small": {group: ", ".join(items) for group, items in too_small.items()},
        "single": [f"{column}: all {names[0]}" for column, names in groups.items() if len(names) == 1],
    }


def _panels(model: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    """The observations with the most subgroups that can be judged, at most `MAX_PANELS`, in their own order."""
    counts = dict.fromkeys(shown, 0)
    for item in model["subgroups"]:
        if item["observation"] in counts and not item["too_small"]:
            counts[item["observation"]] += 1
    most = sorted(counts, key=lambda name: -counts[name])[:MAX_PANELS]
    return [name for name in shown if name in most]


def _judged(data: ReportData) -> list[str]:
    items = data.metrics["models"][0]["observations"]
    enough = [min(item["num_positive"], item["num_negative"]) >= MIN_STUDIES_PER_CLASS for item in items]
    return [item["observation"] for item, is_enough in zip(items, enough, strict=True) if is_enough]


def _figures(data: ReportData) -> dict[str, tuple[str, Figure]]:
    """File name -> caption and picture; of the scores none if nothing can be judged."""
    sanity = {
        "sanity" if number == 1 else f"sanity_{number}": (
            f"Maps of {name}: alike after a re-draw of weights (ticks: with another radiograph; dotted: the bound), "
            "and deletion and insertion curves beside random order.",
            sanity_figure(checks),
        )
        for number, (name, checks) in enumerate(data.sanity.items(), start=1)
    }
    shown = _judged(data)
    if not shown:
        return sanity
    items = {
        (model["name"], item["observation"]): item for model in data.metrics["models"] for item in model["observations"]
    }
    aurocs = {key: as_estimate(item["auroc"]) for key, item in items.items()}
    first = data.metrics["models"][0]
    thresholds = {item["observation"]: item["operating_point"]["threshold"] for item in first["observations"]}
    arguments = (data.scores, data.truth, data.observations, shown)
    pictures = {
        "roc": ("Receiver operating characteristics with pointwise 95 % bands.", plots.roc_figure(*arguments, aurocs)),
        "precision_recall": (
            "Precision and recall with pointwise 95 % bands; the line across is the prevalence.",
            plots.precision_recall_figure(*arguments),
        ),
        "reliability": (
            "Reliability: observed frequency by mean probability in equally filled bins, with Wilson 95 % intervals.",
            plots.reliability_figure(*arguments),
        ),
        "histograms": (
            f"Scores of {first['name']} over positive and negative studies; dotted: its operating points.",
            plots.histogram_figure(data.scores[0], data.truth, data.observations, shown, thresholds),
        ),
    }
    if first["subgroups"]:
        overall = {name: items[first["name"], name]["auroc"]["value"] for name in shown}
        pictures["subgroups"] = (
            f"AUROC of {first['name']} by subgroup; dotted: everybody.",
            plots.forest_figure(first["subgroups"], overall, _panels(first, shown)),
        )
    return pictures | sanity


def _write_predictions(folder: Path, data: ReportData) -> None:
    paths, probabilities = data.views
    views = {"path": list(paths)}
    studies: dict[str, Any] = {"study": list(data.studies)}
    for column, name in enumerate(data.observations):
        studies[f"truth/{name}"] = data.truth[:, column]
    for model in data.scores:
        for column, name in enumerate(data.observations):
            views[f"{model.name}/{name}"] = probabilities[model.name][:, column].tolist()
            studies[f"{model.name}/{name}"] = model.probabilities[:, column]
    pd.DataFrame(views).to_csv(folder / "predictions_views.csv", index=False, float_format="%.6f")
    pd.DataFrame(studies).to_csv(folder / "predictions_studies.csv", index=False, float_format="%.6f")
