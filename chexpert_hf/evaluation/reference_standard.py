"""Evaluation against a second reference standard, such as radiologists' readings, beside the data set's own labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chexpert_hf.datasets.reference import Reference
from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.metrics import FloatArray, evaluation_labels, without_uncertain
from chexpert_hf.labels import UNCERTAIN, BlankPolicy

OWN_LABELS = "labels of the data set"
SECOND_STANDARD = "second_reference_standard"  # key of the result of `assess_reference` in metrics.json


def assess_reference(
    models: Sequence[ModelScores],
    paths: Sequence[str],
    studies: Sequence[str],
    patients: Sequence[str],
    observations: Sequence[str],
    reference: Reference,
    *,
    labels: FloatArray | None = None,
    labels_name: str = OWN_LABELS,
    aggregation: str = "maximum",
    replicates: int = 1000,
) -> dict[str, Any]:
    """Evaluate scores against a second reference standard and, if given, the data set's own labels on the same images.

    Arguments that are not listed are those of `assess`. Only images in the reference are scored, even if their study
    has other images.

    Args:
        paths: Paths of the views as in `load_dataset`, such as "train/patient00001/study1/view1_frontal.jpg".
        reference: From `read_reference` with the same `observations`, and with `paths` as its `images`.
        labels: `(num_views, num_labels)`: the data set's own labels.
        labels_name: Who set the data set's own labels, such as "text-mined labels".

    Returns:
        Plain types for JSON: numbers of images, studies and patients, and the list `figures`. For each model, it has an
        entry for each finding of the reference. If `labels` are given, it also has an entry for each observation that a
        finding is compared with, evaluated on `labels`. The entries of a model are sorted by observation; for each
        observation, those on the reference come first.

        An entry has all keys of an observation's entry in `assess`, and these: `model`; `reference` (who set the
        labels); `target` (the finding); `against` (condition on the negatives, such as "Class=Normal"; None: all
        negatives); `observation` (the one whose score is evaluated); `num` (number of studies).

    Raises:
        ReferenceFileError: If no image of the split is in the reference.
    """
    rows = reference.rows_of(paths)
    column = {name: number for number, name in enumerate(observations)}
    found: list[dict[str, Any]] = [
        {"reference": reference.name, "target": item.name, "against": item.against, "observation": item.observation}
        for item in reference.targets
    ]
    raw = reference.labels([paths[row] for row in rows])
    known = evaluation_labels(raw, BlankPolicy.UNKNOWN)
    truth = without_uncertain(known, raw == UNCERTAIN, [studies[row] for row in rows])
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
        [studies[row] for row in rows],
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
