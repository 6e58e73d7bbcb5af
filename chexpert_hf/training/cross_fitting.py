"""Calibration by cross-validation: each fold of the training patients is scored by a model trained without it.

The calibration is fitted to the logits of these models and applied to a model trained on all patients. That model may
be a little more confident, so the calibration is approximate. Source: Platt 1999, section 2.1; CalibratedClassifierCV
of scikit-learn with `ensemble=False`.
"""

from collections.abc import Callable
from datetime import date
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from chexpert_hf.evaluation.calibration.calibrate import CalibratedModel, Origin, calibrate_model, dataset_logits
from chexpert_hf.evaluation.calibration.calibration import Criterion, OperatingRule
from chexpert_hf.evaluation.metrics import split_labels
from chexpert_hf.labels import BlankPolicy
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import Recipe, RecipeError


def fold_of_images(train: datasets.Dataset, folds: int) -> NDArray[np.int_]:
    """Return the fold of each image, `(num_images,)` from 0 to `folds` - 1; equal data give equal folds.

    All images of a patient are in one fold; folds are stratified by the rarest positive observation of each image.
    Raise RecipeError if there are fewer patients than folds.
    """
    patients = np.asarray(train["patient"][:])
    if len(set(patients)) < folds:
        raise RecipeError(f"calibration_folds is {folds}, but there are only {len(set(patients))} training patients.")
    is_positive = split_labels(train, BlankPolicy.NEGATIVE) == 1  # (num_images, num_labels)
    by_frequency = np.argsort(is_positive.sum(axis=0), kind="stable")
    rarest = np.where(is_positive.any(axis=1), is_positive[:, by_frequency].argmax(axis=1), -1)
    parts = np.empty(len(patients), dtype=np.int_)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for fold, (_, held_out) in enumerate(splitter.split(patients, rarest, groups=patients)):
        parts[held_out] = fold
    return parts


def hold_out_fold(train: datasets.Dataset, recipe: Recipe) -> datasets.DatasetDict:
    """Divide the training images: the fold `recipe.held_out_fold` becomes `valid`, the others become `train`."""
    is_held = fold_of_images(train, recipe.calibration_folds) == recipe.held_out_fold
    splits = {"train": ~is_held, "valid": is_held}
    return datasets.DatasetDict({name: train.select(np.flatnonzero(rows)) for name, rows in splits.items()})


def calibrate_by_folds(
    model: CheXpertForImageClassification,
    train: datasets.Dataset,
    recipe: Recipe,
    data_name: str,
    train_without: Callable[[int], Path],
) -> CalibratedModel:
    """Calibrate a model in place and choose its operating points, using out-of-fold logits of the images in `train`.

    `train_without(fold)` returns the folder of a model trained without that fold, counted from 0; this model computes
    the fold's logits. `data_name` is recorded in the config of the calibrated model.
    """
    folds = recipe.calibration_folds
    part = fold_of_images(train, folds)
    logits = np.empty((len(train), len(recipe.observations)))
    for fold in range(folds):
        held_out = np.flatnonzero(part == fold)
        classifier = CheXpertClassifier.from_pretrained(train_without(fold))
        logits[held_out] = dataset_logits(classifier, train.select(held_out))
    origin = Origin(data_name, f"train, cross-validation with {folds} folds of patients", date.today().isoformat())
    return calibrate_model(model, logits, train, origin, rule=OperatingRule(Criterion.YOUDEN))
