"""Models against a second reference standard, beside the labels of the data set on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from chexpert_hf.datasets.reference import Reference
from chexpert_hf.evaluation.assessment import ModelScores, assess
from chexpert_hf.evaluation.metrics import FloatArray

OWN_LABELS = "labels of the data set"
SECOND_STANDARD = "second_reference_standard"
"""Key of the result of `assess_reference` in metrics.json."""


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
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates scores against a reference standard, with the same figures and intervals as `assessment.assess`.

    Only the images that are in the reference are scored; of a study that has others too, only these count. Patients'
    images may depend on each other.

    Args:
        models: Probabilities `(num_views, num_labels)` of each model, which may be cross-fitted ones.
        paths: Of the views, from the split's name on ("train/patient00001/study1/view1_frontal.jpg").
        patients: The patient of each view.
        observations: The names of the columns of the probabilities.
        reference: From `read_reference` with the same observations.
        labels: `(num_views, num_labels)` in {0, 1}, NaN where unknown: the data set's own, evaluated on these images.
        labels_name: Who set these, in words, such as "text-mined labels".
        aggregation: How the views of a study become one probability: one of `metrics.AGGREGATIONS`.
        replicates: Resamples of patients.
        seed: Of the resampling.

    Returns:
        Plain types for JSON: `reference`, `file`, the number of `images`, `studies` and `patients` in both,
        `images_only_in_split`, `images_only_in_reference`, and `figures`: for each model and finding `model`,
        `reference`, `target`, `against` (None: all others are negative), `observation` (whose score it is), `num` (of
        studies), and what an observation has in `assess`. The figures on the data set's labels follow those on the
        reference, for each observation.

    Raises:
        ReferenceFileError: If no image is in both.
        ValueError: As `assess`.
    """
    rows = reference.rows_of(paths)
    column = {name: number for number, name in enumerate(observations)}
    found = [_Finding(reference.name, target.name, target.against, target.observation) for target in reference.targets]
    truth: FloatArray = reference.labels([paths[row] for row in rows])
    if labels is not None:
        judged = list(dict.fromkeys(finding.observation for finding in found))
        found += [_Finding(labels_name, name, None, name) for name in judged]
        truth = np.hstack([truth, labels[np.ix_(rows, [column[name] for name in judged])]])
    order = sorted(range(len(found)), key=lambda number: column[found[number].observation])
    found = [found[number] for number in order]
    result = assess(
        [_scores_of(model, rows, found, column) for model in models],
        truth[:, order],
        [paths[row].rpartition("/")[0] for row in rows],
        [patients[row] for row in rows],
        _keys(found),
        aggregation=aggregation,
        replicates=replicates,
        seed=seed,
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
            {
                "model": model["name"],
                **entry,
                **asdict(finding),
                "num": entry["num_positive"] + entry["num_negative"],
            }
            for model in result["models"]
            for finding, entry in zip(found, model["observations"], strict=True)
        ],
    }


@dataclass(frozen=True)
class _Finding:
    """What a score is compared with."""

    reference: str
    target: str
    against: str | None
    observation: str


def _keys(found: Sequence[_Finding]) -> list[str]:
    """A name for each column; one score may be compared with several findings."""
    return [str(number) for number in range(len(found))]


def _scores_of(
    model: ModelScores, rows: Sequence[int], found: Sequence[_Finding], column: Mapping[str, int]
) -> ModelScores:
    names = dict(zip(_keys(found), (finding.observation for finding in found), strict=True))
    return ModelScores(
        model.name,
        model.probabilities[np.ix_(rows, [column[name] for name in names.values()])],
        {key: model.operating_points[name] for key, name in names.items() if name in model.operating_points},
        {key: model.chosen_by[name] for key, name in names.items() if name in model.chosen_by},
    )
