"""Evaluation against a second reference standard, beside the labels of the data set on the same images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chexpert_hf.datasets.reference import Reference
from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.metrics import FloatArray

OWN_LABELS = "labels of the data set"
SECOND_STANDARD = "second_reference_standard"  # key of the result of `assess_reference` in metrics.json


def assess_reference(
    models: Sequence[ModelScores],
    paths: Sequence[str],
    patients: Sequence[str],
    observations: Sequence[str],
    reference: Reference,
    *,
    labels: FloatArray | None = None,
    labels_name: str = OWN_LABELS,
    aggregation: str = "maximum",
    replicates: int = 1000,
) -> dict[str, Any]:
    """Evaluates scores against a reference standard, with the same metrics, intervals and arguments as `assess`.

    Only images in the reference are scored, also where their study has others.

    Args:
        paths: Paths of the views, from the split's name on ("train/patient00001/study1/view1_frontal.jpg").
        reference: From `read_reference` with the same observations.
        labels: `(num_views, num_labels)`: the data set's own, evaluated on these images.
        labels_name: Who set these, such as "text-mined labels".

    Returns:
        Plain types for JSON: numbers of images, studies and patients, and `figures`: for each model and finding
        `reference`, `target`, `against` (None: all others are negative), `observation` (whose score it is), `num` (of
        studies), and the entries of an observation in `assess`. For each observation, the figures on the data set's
        labels follow those on the reference.

    Raises:
        ReferenceFileError: If no image is in both.
    """
    rows = reference.rows_of(paths)
    column = {name: number for number, name in enumerate(observations)}
    found: list[dict[str, Any]] = [
        {"reference": reference.name, "target": item.name, "against": item.against, "observation": item.observation}
        for item in reference.targets
    ]
    truth: FloatArray = reference.labels([paths[row] for row in rows])
    if labels is not None:
        judged = list(dict.fromkeys(finding["observation"] for finding in found))
        found += [{"reference": labels_name, "target": name, "against": None, "observation": name} for name in judged]
        truth = np.hstack([truth, labels[np.ix_(rows, [column[name] for name in judged])]])
    order = sorted(range(len(found)), key=lambda number: column[found[number]["observation"]])
    found = [found[number] for number in order]
    # One score may be compared with several findings, so columns are named by their numbers.
    names = {str(number): finding["observation"] for number, finding in enumerate(found)}
    scores = [
        ModelScores(
            model.name,
            model.probabilities[np.ix_(rows, [column[name] for name in names.values()])],
            {key: model.operating_points[name] for key, name in names.items() if name in model.operating_points},
            {key: model.chosen_by[name] for key, name in names.items() if name in model.chosen_by},
        )
        for model in models
    ]
    result = assess(
        scores,
        truth[:, order],
        [paths[row].rpartition("/")[0] for row in rows],
        [patients[row] for row in rows],
        list(names),
        aggregation=aggregation,
        replicates=replicates,
    )
    return {
        "reference": reference.name,
        "file": reference.file,
        "images": len(rows),
        "studies": result["data"]["studies"],
        "patients": result["data"]["patients"],
        "images_only_in_split": len(paths) - len(rows),
        "images_only_in_reference": len(reference.paths) - len(rows),
        "not_judged": list(reference.skipped),
        "figures": [
            {"model": model["name"], **entry, **finding, "num": entry["num_positive"] + entry["num_negative"]}
            for model in result["models"]
            for finding, entry in zip(found, model["observations"], strict=True)
        ],
    }
