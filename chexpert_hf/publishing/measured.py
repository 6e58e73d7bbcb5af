"""Metrics of a model's predictions for a split, as `evaluation.json` and the card hold them.

These are metrics that calibration does not change: it moves probabilities, but not their order.
"""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.metrics import Evaluation, split_labels
from chexpert_hf.evaluation.report.reporting import subgroup_columns


def assess_predictions(
    probabilities: NDArray[np.floating], dataset: datasets.Dataset, config: CheXpertConfig, replicates: int = 1000
) -> dict[str, Any]:
    """Metrics of predictions with 95 % intervals and by subgroups: the model's entry of `assess`, with `replicates`.

    The labels of the split are those of the model's observations, in its order.
    """
    labels = split_labels(dataset, config.blank_labels)
    result = assess(
        [ModelScores("model", np.asarray(probabilities, dtype=float), config.operating_points or {})],
        labels,
        dataset["study"][:],
        dataset["patient"][:],
        config.observations,
        subgroups=subgroup_columns(dataset, labels, config.observations),
        replicates=replicates,
    )
    return {**result["models"][0], "replicates": replicates}


def evaluation_record(
    evaluation: Evaluation,
    data: Mapping[str, Any],
    *,
    was_chosen_on_it: bool,
    assessment: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of `evaluation.json`: counts, AUROC and its intervals, subgroups.

    Args:
        evaluation: On the validation split.
        data: See `chexpert_hf.publishing.card.render_card`.
        was_chosen_on_it: Whether the checkpoint was chosen on this same split.
        assessment: From `assess_predictions`, for intervals and subgroups.
    """
    record = {
        "split": "valid",
        "data": dict(data),
        "was_chosen_on_it": was_chosen_on_it and bool(evaluation.mean_over),
        **evaluation.to_dict(),
    }
    if assessment is None:
        return record
    bounds = {entry["observation"]: _bounds("auroc", entry["auroc"]) for entry in assessment["observations"]}
    return record | {
        "intervals": f"95 %, by DeLong; that of the mean by {assessment['replicates']:,} resamples of patients",
        **_bounds("mean_auroc", assessment["mean_auroc"]),
        "observations": [entry | bounds[entry["observation"]] for entry in record["observations"]],
        "subgroups": [
            {
                **{name: entry[name] for name in ("column", "group", "observation", "num_positive", "num_negative")},
                "auroc": entry["auroc"] and entry["auroc"]["value"],
                **_bounds("auroc", entry["auroc"]),
            }
            for entry in assessment["subgroups"]
        ],
        "gaps": assessment["gaps"],
    }


def _bounds(name: str, estimate: Mapping[str, Any] | None) -> dict[str, float | None]:
    return {f"{name}_{end}": None if estimate is None else estimate[end] for end in ("low", "high")}
