"""How well maps point at findings, as text, Markdown, JSON and CSV."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.evaluation.localization.localization import PRIORS, Localization
from chexpert_hf.evaluation.localization.localize import LocalizationResult, ObservationLocalization, Thresholds
from chexpert_hf.evaluation.localization.pointing import BASELINES, MODEL
from chexpert_hf.evaluation.report.report import aligned, as_estimate

_POINTERS = (MODEL, *BASELINES)


def as_dictionary(result: LocalizationResult) -> dict[str, Any]:
    """Everything but the single images, for programs; what is undefined is None."""
    return {
        "ground_truth": result.source,
        "threshold": _plain_threshold(result.thresholds),
        "num_images": result.num_images,
        "num_findings": len(result.located),
        "replicates": result.replicates,
        "observations": {item.observation: _observation(item) for item in result.observations},
    }


def as_text(result: LocalizationResult) -> str:
    """Two plain tables, hit rate and mIoU, one line for each observation."""
    blocks = []
    for title, figure in (("Hit rate", _hit_rate), ("mIoU", _miou)):
        blocks.append(f"{title} (95 % interval)\n{aligned(_cells(result, figure))}")
    return "\n\n".join([*blocks, *_remarks(result)])


def as_markdown(result: LocalizationResult, title: str, warnings: Sequence[str] = ()) -> str:
    """The same with the gains over the baselines, and how to read it."""
    parts = [f"# {title}: do the maps point at the findings?", *(f"**{line}**" for line in warnings)]
    for heading, figure in (("Hit rate", _hit_rate), ("mIoU", _miou)):
        parts += [f"## {heading}", _markdown(_cells(result, figure))]
    parts += ["## Hit rate of the model minus that of each baseline", _markdown(_gain_cells(result))]
    if any(item.full_set_miou for item in result.observations):
        parts += ["## mIoU over all images", _markdown(_full_set_cells(result)), _FULL_SET]
    return "\n\n".join([*parts, *_remarks(result), _METHODS.format(replicates=result.replicates)]) + "\n"


def write_localization(folder: Path, result: LocalizationResult, title: str, warnings: Sequence[str] = ()) -> None:
    """Writes localization.json, localization.csv (a row for each finding of each image) and localization.md.

    Args:
        folder: Made if it is not there; files of an earlier run are replaced.
        result: What came out.
        title: Of the data and split.
        warnings: What a reader must know before anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"title": title, "warnings": list(warnings), **as_dictionary(result)}
    (folder / "localization.json").write_text(json.dumps(figures, indent=1, allow_nan=False), encoding="utf-8")
    (folder / "localization.md").write_text(as_markdown(result, title, warnings), encoding="utf-8")
    with (folder / "localization.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        scores = [f"{pointer.replace(' ', '_')}_{name}" for pointer in _POINTERS for name in ("hit", "iou", "x", "y")]
        writer.writerow(["path", "patient", "observation", "probability", "width", "height", *scores])
        for item in result.located:
            row: list[object] = [item.path, item.patient, item.observation, f"{item.probability:.6f}"]
            row += [item.shape[1], item.shape[0]]
            for pointer in _POINTERS:
                score = item.scores[pointer]
                y, x = score.peak or ("", "")
                row += [int(score.hit), "" if isnan(score.iou) else f"{score.iou:.6f}", x, y]
            writer.writerow(row)


def _observation(item: ObservationLocalization) -> dict[str, Any]:
    return {
        "num_images": item.pointers[MODEL].num_images,
        "num_patients": item.pointers[MODEL].num_patients,
        "full_set_miou": None if item.full_set_miou is None else _plain(item.full_set_miou),
        "pointers": {
            name: {
                "num_empty": pointer.num_empty,
                "hit_rate": _plain(pointer.hit_rate) | {"interval": pointer.hit_interval},
                "miou": _plain(pointer.miou) | {"interval": "bootstrap"},
            }
            for name, pointer in item.pointers.items()
        },
        "hit_rate_minus": {name: _plain(gain) for name, gain in item.gains.items()},
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {name: None if isnan(value) else value for name, value in asdict(estimate).items()}


def _hit_rate(item: Localization) -> Estimate:
    return item.hit_rate


def _miou(item: Localization) -> Estimate:
    return item.miou


def _cells(result: LocalizationResult, figure: Callable[[Localization], Estimate]) -> list[list[str]]:
    rows = [["observation", "images", "empty", *_POINTERS]]
    for item in result.observations:
        model = item.pointers[MODEL]
        values = [as_estimate(_plain(figure(item.pointers[name]))) for name in _POINTERS]
        rows.append([item.observation, f"{model.num_images:,}", f"{model.num_empty:,}", *values])
    if len(result.observations) > 1:
        rows.append(["mean", "", "", *(_mean(result, name, figure) for name in _POINTERS)])
    return rows


def _mean(result: LocalizationResult, pointer: str, figure: Callable[[Localization], Estimate]) -> str:
    """Over the observations where the figure of every pointer is defined, so that the means compare."""
    rows = [{name: figure(item.pointers[name]).value for name in _POINTERS} for item in result.observations]
    values = [row[pointer] for row in rows if not any(map(isnan, row.values()))]
    return as_estimate({"value": float(np.mean(values)), "low": None} if values else None)


def _gain_cells(result: LocalizationResult) -> list[list[str]]:
    rows = [["observation", *(f"minus {name}" for name in BASELINES)]]
    return rows + [
        [item.observation, *(as_estimate(_plain(item.gains[name])) for name in BASELINES)]
        for item in result.observations
    ]


def _full_set_cells(result: LocalizationResult) -> list[list[str]]:
    known = [(item.observation, item.full_set_miou) for item in result.observations if item.full_set_miou]
    return [["observation", "mIoU"], *([name, as_estimate(_plain(value))] for name, value in known)]


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def _remarks(result: LocalizationResult) -> list[str]:
    lines = [
        f"Ground truth: {result.source}; {len(result.located):,} findings in "
        f"{len({item.path for item in result.located}):,} images of "
        f"{len({item.patient for item in result.located}):,} patients. Masks by {_threshold_words(result.thresholds)}."
    ]
    empty = sum(item.pointers[MODEL].num_empty for item in result.observations)
    if empty:
        lines.append(f"{empty:,} of the model's maps are empty: misses for the hit rate, left out of the mIoU.")
    return lines


def _plain_threshold(thresholds: Thresholds) -> str | float | dict[str, float]:
    if thresholds is None:
        return "otsu"
    return dict(thresholds) if isinstance(thresholds, Mapping) else thresholds


def _threshold_words(thresholds: Thresholds) -> str:
    if thresholds is None:
        return "Otsu's threshold"
    return "tuned thresholds" if isinstance(thresholds, Mapping) else f"the threshold {thresholds:g}"


_FULL_SET = (
    "Images without the finding count 0 where the model calls it and its map marks something; the map of an "
    "observation below the model's operating point counts as empty."
)
_METHODS = (
    "Hit: the map's maximum lies in the ground truth. mIoU: mean over the images where both masks are non-empty. At "
    "the ground truth's size, maps resized bilinearly, their positive part only (Saporta et al. 2022). Intervals: "
    "Wilson where each patient has one image, else percentiles of {replicates:,} bootstraps of patients; mIoU and "
    "differences always the latter. Baselines that see no image or have learned nothing: "
    + "; ".join(
        f"*{name}*, always {prior.x:.0%} from the left and {prior.y:.0%} from the top" for name, prior in PRIORS.items()
    )
    + "; *untrained*, this architecture with random weights."
)
