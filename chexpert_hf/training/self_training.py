"""U-SelfTrained: a teacher's probabilities for the uncertain labels, as a file that can be inspected and reused.

Source: Irvin et al. 2019, arXiv:1901.07031, section 3.1: a model trained with U-Ignore relabels the uncertain labels
with its probabilities; labels that are 0 or 1 are never touched.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.labels import UNCERTAIN
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import RecipeError


def write_soft_labels(
    teacher: CheXpertClassifier,
    dataset: datasets.Dataset,
    trained: Sequence[str],
    observations: Sequence[str],
    path: Path,
) -> None:
    """Writes the teacher's probabilities of the uncertain cells: `path` and the observations, blank elsewhere.

    Args:
        teacher: Judges the observations, among others perhaps.
        dataset: The training data, whose `labels` are those of `trained`.
        trained: The observations of `labels`, in its order.
        observations: Those under U-SelfTrained.
        path: The CSV file; it is there as a whole or not at all.

    Raises:
        RecipeError: If the teacher does not judge one of the observations.
    """
    missing = [name for name in observations if name not in teacher.observations]
    if missing:
        raise RecipeError(
            f"The teacher does not judge {', '.join(missing)}; it judges {', '.join(teacher.observations)}."
        )
    columns = [list(trained).index(name) for name in observations]
    is_uncertain = np.asarray(dataset["labels"][:], dtype=np.float32)[:, columns] == UNCERTAIN
    rows = np.flatnonzero(is_uncertain.any(axis=1))
    subset = dataset.select(rows)
    judged = [teacher.observations.index(name) for name in observations]
    probabilities = predict_dataset(teacher, subset)[:, judged] if len(rows) else np.empty((0, len(observations)))
    table = pd.DataFrame(np.where(is_uncertain[rows], probabilities, np.nan), columns=list(observations))
    table.insert(0, "path", subset["path"][:])
    unfinished = path.with_suffix(".part")
    table.to_csv(unfinished, index=False, float_format="%.9g")  # nine digits hold a float32 exactly
    os.replace(unfinished, path)


def read_soft_labels(
    path: Path, dataset: datasets.Dataset, trained: Sequence[str], observations: Sequence[str]
) -> NDArray[np.float32]:
    """Reads `(num_rows, num_labels)` soft labels in the order of the training data, NaN where there is none.

    Raises:
        RecipeError: If the file cannot be read, holds something else than probabilities, or lacks an uncertain cell.
    """
    try:
        table = pd.read_csv(path, dtype={"path": str}).set_index("path")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"No soft labels could be read from {path}: {str(error).splitlines()[0]}") from error
    missing = [name for name in observations if name not in table.columns]
    if missing:
        raise RecipeError(f"{path} has no column {', '.join(missing)}; expected soft labels of U-SelfTrained ones.")
    found = table[list(observations)].reindex(dataset["path"][:]).to_numpy(np.float32)
    if ((found < 0) | (found > 1)).any():
        raise RecipeError(f"{path} holds values outside [0, 1]; expected probabilities.")
    columns = [list(trained).index(name) for name in observations]
    is_uncertain = np.asarray(dataset["labels"][:], dtype=np.float32)[:, columns] == UNCERTAIN
    lacking = int((is_uncertain & np.isnan(found)).sum())
    if lacking:
        raise RecipeError(f"{path} lacks {lacking:,} uncertain labels of the training data; it is of other data.")
    soft = np.full((len(dataset), len(trained)), np.nan, dtype=np.float32)
    soft[:, columns] = np.where(is_uncertain, found, np.nan)
    return soft
