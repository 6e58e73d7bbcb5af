"""An evaluation as text, and as a report folder for reviewers: tables, plots, and machine-readable metrics.

The folder holds `metrics.json` (see `chexpert_hf.evaluation.assessment` for its schema), `report.md` and `report.html`
(one file, nothing loaded from elsewhere), the plots as PNG, and the predictions per view and per study as CSV.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from chexpert_hf.evaluation import plots
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS, Evaluation, FloatArray, judged_observations
from chexpert_hf.evaluation.published import PAPER, TEST_AUROC, VALID_AUROC
from chexpert_hf.evaluation.reference_standard import OWN_LABELS, SECOND_STANDARD
from chexpert_hf.evaluation.sanity.sanity import SanityChecks
from chexpert_hf.evaluation.sanity.sanity_report import sanity_figure, sanity_tables
from chexpert_hf.evaluation.tables import aligned, as_estimate, number, render
from chexpert_hf.files import result_folder, write_json

_FEW = f"not judged: fewer than {MIN_STUDIES_PER_CLASS} studies of a class"
_HARDLY_ANY = 0.1  # sensitivity at an operating point that finds hardly any positive study

LABELS_PREFIX = "truth"
"""Prefix of the columns of labels in predictions_studies.csv; that of scores is the model's name."""

MAX_PANELS = 4  # observations in the plot of subgroups: those with the most groups


def as_table(evaluation: Evaluation, aggregation: str = "maximum") -> str:
    """Format a line per observation with its numbers of studies and AUROC, then the mean and the observations in it."""
    cells = [["observation", "positive", "negative", "AUROC"]]
    for item in evaluation.observations:
        is_few = min(item.num_positive, item.num_negative) < MIN_STUDIES_PER_CLASS
        why = "one class only" if item.num_positive or item.num_negative else "no known label"
        value = f"not judged: {why}" if isnan(item.auroc) else _FEW if is_few else f"{item.auroc:5.3f}"
        cells.append([item.observation, f"{item.num_positive:,}", f"{item.num_negative:,}", value])
    lines = [aligned(cells, right=(1, 2))]
    if evaluation.mean_over:
        lines.append(f"Mean AUROC {evaluation.mean_auroc:.3f} over {', '.join(evaluation.mean_over)}")
    return "\n".join([*lines, f"{evaluation.num_studies:,} studies, {aggregation} over the views of each."])


def reference_table(result: Mapping[str, Any]) -> str:
    """Format the result of `assess_reference` as a plain table: each AUROC with its reference standard."""
    return aligned([row[:7] for row in _reference_cells(result)]) + "\n" + _reference_note(result)


def _reference_cells(result: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        ["model", "score", "reference standard", "finding", "positive", "negative", "AUROC", "AUPRC", "sensitivity",
         "specificity"]
    ]  # fmt: skip
    for item in result["figures"]:
        point = item["operating_point"] or {}
        rows.append(
            [
                *(item[name] for name in ("model", "observation", "reference")),
                item["target"] + (f", against {item['against']}" if item["against"] else ""),
                f"{item['num_positive']:,}",
                f"{item['num_negative']:,}",
                _not_judged(item) or as_estimate(item["auroc"]),
                *(
                    "" if _not_judged(item) else as_estimate(value)
                    for value in (item["auprc"], point.get("sensitivity"), point.get("specificity"))
                ),
            ]
        )
    return rows


def _not_judged(item: Mapping[str, Any]) -> str | None:
    """Return why the report shows no AUROC for `item`, an observation's entry in metrics.json; None if it shows one."""
    is_few = min(item["num_positive"], item["num_negative"]) < MIN_STUDIES_PER_CLASS
    return item["undefined"] or (_FEW if is_few else None)


def _summary(observations: Sequence[Mapping[str, Any]]) -> str:
    """Return sentences on the best and the worst AUROC, and on observations whose sensitivity is very low."""
    judged = sorted((item for item in observations if not item["undefined"]), key=lambda item: item["auroc"]["value"])
    if not judged:
        return ""
    (worst, *_), best = judged, judged[-1]
    text = f"Best separated: {best['observation']} (AUROC {number(best['auroc']['value'])})"
    text += f"; worst: {worst['observation']} ({number(worst['auroc']['value'])})." if len(judged) > 1 else "."
    points = ((item["observation"], item["operating_point"]) for item in judged)
    missed = [name for name, point in points if point and point["sensitivity"]["value"] < _HARDLY_ANY]
    if missed:
        text += (
            f" Fewer than one in ten positive studies reach the operating points of {', '.join(missed)}; "
            "chexpert-hf calibrate with --operating-points chooses others."
        )
    return text


def _reference_note(result: Mapping[str, Any]) -> str:
    missing = f" Not judged by the model: {', '.join(result['not_judged'])}." if result["not_judged"] else ""
    return (
        f"On the {result['images']:,} images of this split that are in {result['file']} ({result['studies']:,} studies "
        f"of {result['patients']:,} patients). {result['images_only_in_split']:,} other images of the split are not in "
        f"the file, and {result['images_only_in_reference']:,} other images of the file are not in the split.{missing}"
    )


@dataclass(frozen=True)
class ReportData:
    """The content of a report, for `write_report`."""

    metrics: Mapping[str, Any]  # from `assess`, possibly with further entries
    title: str  # names the data and the split
    observations: Sequence[str]  # names of the columns of all arrays
    truth: FloatArray  # (num_studies, num_labels) in {0, 1, NaN}
    scores: Mapping[str, FloatArray]  # model -> probabilities (num_studies, num_labels)
    studies: Sequence[str]  # names of the rows of `truth` and `scores`
    paths: Sequence[str]  # of the views, the rows of `view_scores`
    view_scores: Mapping[str, FloatArray]  # model -> probabilities (num_views, num_labels)
    warnings: Sequence[str] = ()  # shown at the top
    is_chexpert_valid: bool = False  # whether the data are CheXpert's validation set
    thumbnails: Sequence[tuple[str, bytes]] = ()  # caption and PNG of the worst errors
    sanity: Mapping[str, SanityChecks] = field(default_factory=dict)  # model -> checks of its maps


def write_report(folder: Path, data: ReportData) -> None:
    """Write all files of the report to a folder, which is made if needed; those of an earlier report are replaced."""
    result_folder(folder)
    _delete_pictures(folder)
    metrics = {**data.metrics, "title": data.title, "warnings": list(data.warnings)}
    write_json(folder / "metrics.json", metrics)
    views, studies = pd.DataFrame({"path": data.paths}), pd.DataFrame({"study": data.studies})
    tables = ((views, data.view_scores), (studies, {LABELS_PREFIX: data.truth, **data.scores}))
    for (table, arrays), name in zip(tables, ("views", "studies"), strict=True):
        scores = [pd.DataFrame(item, columns=data.observations).add_prefix(f"{key}/") for key, item in arrays.items()]
        table = pd.concat([table, *scores], axis=1)
        # Nine digits hold a float32 exactly. With fewer, probabilities near 0 and 1 would tie and change the AUROC.
        table.to_csv(folder / f"predictions_{name}.csv", index=False, float_format="%.9g")
    pictures = {}
    for name, (caption, figure) in _figures(data).items():
        figure.savefig(folder / f"{name}.png")
        pictures[f"{name}.png"] = (caption, (folder / f"{name}.png").read_bytes())
    published = VALID_AUROC if data.is_chexpert_valid else TEST_AUROC
    where = "CheXpert's validation set" if data.is_chexpert_valid else "other data: CheXpert's test set"
    second = metrics.get(SECOND_STANDARD)
    context = {
        "reference_standard": OWN_LABELS,
        **metrics,
        "models": [_shown(model) for model in metrics["models"]],
        "second_standard": second
        and {"name": second["reference"], "cells": _reference_cells(second), "note": _reference_note(second)},
        "published": {name: value for name, value in published.items() if name in data.observations},
        "published_mean": sum(published.values()) / len(published),
        "published_source": f"{PAPER}, {where}",
        "min_studies": MIN_STUDIES_PER_CLASS,
        "sanity": [(name, checks, sanity_tables(checks)) for name, checks in data.sanity.items()],
        "pictures": pictures,
        "thumbnails": data.thumbnails,
    }
    for name in ("report.md", "report.html"):
        (folder / name).write_text(render(name, **context), encoding="utf-8")


def _delete_pictures(folder: Path) -> None:
    """Delete the plots of an earlier report in this folder, since the new one may not replace all of them."""
    report = folder / "report.md"
    text = report.read_text(encoding="utf-8", errors="replace") if report.is_file() else ""
    for name in re.findall(
        r"\]\(((?:roc|precision_recall|reliability|histograms|subgroups|sanity(?:_\d+)?)\.png)\)", text
    ):
        (folder / name).unlink(missing_ok=True)


def _shown(model: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare a model's entry in metrics.json for the templates: add a summary, and divide the subgroups."""
    observations = [item | {"undefined": _not_judged(item)} for item in model["observations"]]
    shown = {"observations": observations, "summary": _summary(observations), "subgroups": _subgroups(model)}
    return {**model, **shown}


def _subgroups(model: Mapping[str, Any]) -> dict[str, Any]:
    """Sort a model's subgroup entries in metrics.json into four keys for the templates.

    `compared`: the entries of columns with several groups. `scored`: those of `compared` that have an AUROC.
    `too_small`: group, such as "sex F" -> its observations with too few studies for an AUROC, as a text such as
    "Edema (3 : 40)" (positives : negatives). `single`: the columns with only one group, as texts such as "sex: all F".
    """
    groups: dict[str, dict[str, None]] = {}  # column -> its groups, in their order
    for item in model["subgroups"]:
        groups.setdefault(item["column"], {})[item["group"]] = None
    compared = [item for item in model["subgroups"] if len(groups[item["column"]]) > 1]
    too_small: dict[str, list[str]] = {}
    for item in compared:
        if item["too_small"]:
            counts = f"{item['observation']} ({item['num_positive']} : {item['num_negative']})"
            too_small.setdefault(f"{item['column']} {item['group']}", []).append(counts)
    return {
        "compared": compared,
        "scored": [item for item in compared if not item["too_small"]],
        "too_small": {group: ", ".join(items) for group, items in too_small.items()},
        "single": [f"{column}: all {next(iter(names))}" for column, names in groups.items() if len(names) == 1],
    }


def _figures(data: ReportData) -> dict[str, tuple[str, Figure]]:
    """Return file name -> (caption, plot). If no observation has enough studies, only sanity checks are plotted."""
    sanity = {
        "sanity" if number == 1 else f"sanity_{number}": (
            f"Maps of {name}: alike with randomised weights (ticks: with another radiograph; dotted: the bound), "
            "and deletion and insertion curves beside random order.",
            sanity_figure(checks),
        )
        for number, (name, checks) in enumerate(data.sanity.items(), start=1)
    }
    first = data.metrics["models"][0]
    shown = judged_observations(data.truth, data.observations)
    if not shown:
        return sanity
    aurocs = {
        (model["name"], item["observation"]): item["auroc"]
        for model in data.metrics["models"]
        for item in model["observations"]
    }
    thresholds = {item["observation"]: item["operating_point"]["threshold"] for item in first["observations"]}
    scores = plots.StudyScores(data.scores, data.truth, data.observations, shown)
    pictures = {
        "roc": (
            "Receiver operating characteristics with pointwise 95 % bands.",
            plots.roc_figure(scores, {key: as_estimate(auroc) for key, auroc in aurocs.items()}),
        ),
        "precision_recall": (
            "Precision and recall with pointwise 95 % bands; the line across is the prevalence.",
            plots.precision_recall_figure(scores),
        ),
        "reliability": (
            "Reliability: observed frequency by mean probability in equally filled bins, with Wilson 95 % intervals.",
            plots.reliability_figure(scores),
        ),
        "histograms": (
            f"Scores of {first['name']} over positive and negative studies; dotted: its operating points.",
            plots.histogram_figure(scores, thresholds),
        ),
    }
    groups = _subgroups(first)
    if groups["scored"]:
        overall = {name: aurocs[first["name"], name]["value"] for name in shown}
        judged = [item["observation"] for item in groups["scored"]]
        most = sorted(shown, key=lambda name: -judged.count(name))[:MAX_PANELS]
        pictures["subgroups"] = (
            f"AUROC of {first['name']} by subgroup; dotted: everybody.",
            plots.forest_figure(groups["compared"], overall, [name for name in shown if name in most]),
        )
    return pictures | sanity
