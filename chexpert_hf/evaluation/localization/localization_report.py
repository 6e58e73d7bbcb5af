"""The result of `localize_dataset` as text, Markdown, JSON and CSV."""

import csv
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from chexpert_hf.evaluation.intervals import Estimate
from chexpert_hf.evaluation.localization.localization import PRIORS, PointerMetrics
from chexpert_hf.evaluation.localization.localize import BASELINES, MODEL, POINTERS, LocalizationResult
from chexpert_hf.evaluation.metrics import plain
from chexpert_hf.evaluation.tables import aligned, as_estimate, number, render
from chexpert_hf.files import result_folder, write_json, write_text


def as_dictionary(result: LocalizationResult) -> dict[str, Any]:
    """Return the result as plain types for JSON, without the scores of single images; None where undefined."""
    return {
        "ground_truth": result.source,
        "threshold": "otsu" if result.threshold is None else result.threshold,
        "num_images": result.num_images,
        "num_findings": len(result.findings),
        "replicates": result.replicates,
        "observations": {
            item.observation: {
                "num_images": item.pointers[MODEL].num_images,
                "num_patients": item.pointers[MODEL].num_patients,
                "full_set_miou": plain(item.full_set_miou),
                "pointers": {
                    name: {
                        "num_empty": pointer.num_empty,
                        "hit_rate": plain(pointer.hit_rate) | {"interval": pointer.hit_interval},
                        "miou": plain(pointer.miou) | {"interval": "bootstrap"},
                    }
                    for name, pointer in item.pointers.items()
                },
                "hit_rate_minus": plain(item.gains),
            }
            for item in result.observations
        },
    }


def as_text(result: LocalizationResult) -> str:
    """Format two plain-text tables, of hit rate and of mIoU, each with a line per observation."""
    blocks = [f"{title} (95 % interval)\n{aligned(cells)}" for title, cells in _tables(result).items()]
    return "\n\n".join([*blocks, *_remarks(result)])


def as_markdown(result: LocalizationResult, title: str, warnings: Sequence[str] = ()) -> str:
    """Format a Markdown report: tables and explanations, with `warnings` at the top.

    The tables show hit rate, mIoU, and the hit rate of the model minus that of each baseline.
    """
    tables, remarks = _tables(result), _remarks(result)
    content = {"result": result, "tables": tables, "remarks": remarks, "baselines": BASELINES, "priors": PRIORS}
    return render("localization.md", title=title, warnings=warnings, **content) + "\n"


def write_localization(folder: Path, result: LocalizationResult, title: str, warnings: Sequence[str] = ()) -> None:
    """Write localization.json, .md and .csv (a row for each finding of each image) to a folder, made if needed."""
    result_folder(folder)
    figures = {"title": title, "warnings": list(warnings), **as_dictionary(result)}
    write_json(folder / "localization.json", figures)
    write_text(folder / "localization.md", as_markdown(result, title, warnings))
    with (folder / "localization.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        scores = [f"{pointer.replace(' ', '_')}_{name}" for pointer in POINTERS for name in ("hit", "iou", "x", "y")]
        writer.writerow(["path", "patient", "observation", "probability", "width", "height", *scores])
        for item in result.findings:
            row: list[object] = [item.path, item.patient, item.observation, f"{item.probability:.6f}"]
            row += [item.shape[1], item.shape[0]]
            for pointer in POINTERS:
                score = item.scores[pointer]
                y, x = score.peak or ("", "")
                row += [int(score.hit), "" if isnan(score.iou) else f"{score.iou:.6f}", x, y]
            writer.writerow(row)


def _tables(result: LocalizationResult) -> dict[str, list[list[str]]]:
    return {"Hit rate": _cells(result, lambda item: item.hit_rate), "mIoU": _cells(result, lambda item: item.miou)}


def _cells(result: LocalizationResult, metric: Callable[[PointerMetrics], Estimate]) -> list[list[str]]:
    """Return the cells of a table of one `metric`: observations as rows, pointers as columns.

    With several observations, a last row has the means over those observations for which all pointers have a value.
    """
    rows = [["observation", "images", "empty", *POINTERS]]
    values = []
    for item in result.observations:
        model = item.pointers[MODEL]
        estimates = [metric(item.pointers[name]) for name in POINTERS]
        values.append([estimate.value for estimate in estimates])
        rows.append([item.observation, f"{model.num_images:,}", f"{model.num_empty:,}", *map(as_estimate, estimates)])
    if len(values) > 1:
        defined = np.array([row for row in values if not np.isnan(row).any()]).reshape(-1, len(POINTERS))
        means = defined.mean(axis=0).tolist() if len(defined) else [None] * len(POINTERS)
        rows.append(["mean", "", "", *map(number, means)])
    return rows


def _remarks(result: LocalizationResult) -> list[str]:
    method = "Otsu's threshold" if result.threshold is None else f"the threshold {result.threshold:g}"
    lines = [
        f"Ground truth: {result.source}; {len(result.findings):,} findings in "
        f"{len({item.path for item in result.findings}):,} images of "
        f"{len({item.patient for item in result.findings}):,} patients. Masks by {method}."
    ]
    empty = sum(item.pointers[MODEL].num_empty for item in result.observations)
    if empty:
        lines.append(f"{empty:,} of the model's maps are empty: misses for the hit rate, left out of the mIoU.")
    return lines
