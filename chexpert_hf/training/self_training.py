"""U-SelfTrained: a teacher's probabilities for the uncertain labels, as a file that can be inspected and reused.

Source: Irvin et al. 2019, arXiv:1901.07031, section 3.1: a model trained with U-Ignore relabels the uncertain labels
with its probabilities; labels that are 0 or 1 are never touched.
"""

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chexpert_hf.files import first_line, replacing
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.labels import UNCERTAIN
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import Recipe, RecipeError


def write_soft_labels(path: Path, dataset: datasets.Dataset, recipe: Recipe, teacher: CheXpertClassifier) -> None:
    """Writes a teacher's probabilities of the uncertain cells as CSV: `path` and the observations, blank elsewhere.

    Raises:
        RecipeError: If the teacher does not judge one of the observations under U-SelfTrained.
    """
    observations = list(recipe.self_trained_observations)
    missing = [name for name in observations if name not in teacher.observations]
    if missing:
        raise RecipeError(
            f"The teacher does not judge {', '.join(missing)}; it judges {', '.join(teacher.observations)}."
        )
    is_uncertain = _uncertain_cells(dataset, recipe)
    rows = np.flatnonzero(is_uncertain.any(axis=1))
    subset = dataset.select(rows)
    judged = [teacher.observations.index(name) for name in observations]
    probabilities = predict_dataset(teacher, subset)[:, judged] if len(rows) else np.empty((0, len(observations)))
    table = pd.DataFrame(np.where(is_uncertain[rows], probabilities, np.nan), columns=observations)
    table.insert(0, "path", subset["path"][:])
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format="%.9g")  # nine digits hold a float32 exactly


def read_soft_labels(path: Path, dataset: datasets.Dataset, recipe: Recipe) -> NDArray[np.float32]:
    """Reads soft labels `(num_rows, num_labels)` in the order of the training data, NaN where there is none.

    Raises:
        RecipeError: If the file cannot be read, holds something else than probabilities, or lacks an uncertain cell.
    """
    observations = list(recipe.self_trained_observations)
    try:
        table = pd.read_csv(path, dtype={"path": str}).set_index("path")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"No soft labels could be read from {path}: {first_line(error)}") from error
    missing = [name for name in observations if name not in table.columns]
    if missing:
        raise RecipeError(f"{path} has no column {', '.join(missing)}; expected soft labels of U-SelfTrained ones.")
    found = table[observations].reindex(dataset["path"][:])
    if ((found < 0) | (found > 1)).any(axis=None):
        raise RecipeError(f"{path} holds values outside [0, 1]; expected probabilities.")
    is_uncertain = _uncertain_cells(dataset, recipe)
    lacking = int((is_uncertain & found.isna().to_numpy()).sum())
    if lacking:
        raise RecipeError(f"{path} lacks {lacking:,} uncertain labels of the training data; it is of other data.")
    return found.where(is_uncertain).reindex(columns=list(recipe.observations)).to_numpy(np.float32)


def _uncertain_cells(dataset: datasets.Dataset, recipe: Recipe) -> NDArray[np.bool_]:
    """Mask of the uncertain labels of the observations under U-SelfTrained `(num_rows, num_self_trained)`."""
    columns = [recipe.observations.index(name) for name in recipe.self_trained_observations]
    return np.asarray(dataset["labels"][:], dtype=np.float32)[:, columns] == UNCERTAIN
