"""Trains the auxiliary models of a training run, each in a subfolder of the run.

They are teachers, a first stage that learns a child label only where its parent label is positive, and, for
calibration, models that are each trained without one fold of the patients.

Under U-SelfTrained, a teacher trained with U-Ignore scores the images with uncertain labels. Its probabilities replace
these labels; labels that are 0 or 1 never change. The probabilities are kept in a file that can be inspected and
reused. Source: Irvin et al. 2019, arXiv:1901.07031, section 3.1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from accelerate import PartialState
from numpy.typing import NDArray

from chexpert_hf.files import first_line, replacing
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import UNCERTAIN, UncertaintyPolicy
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.loading import load_model, load_processor
from chexpert_hf.models.model_files import CURVE_FILE, RECIPE_FILE, read_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.publishing.card import MODEL_FIELDS
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.initial_model import build_processor
from chexpert_hf.training.recipe import Recipe, RecipeError


@dataclass(frozen=True)
class Stages:
    """Trains the auxiliary models ("stages") of a training run, such as teachers.

    `recipe` and `output` are the recipe and the folder of the whole run; a stage gets a subfolder. The function
    `run(recipe, output=..., resume=...)` trains one model. `say` is called with lines for the user.
    """

    recipe: Recipe
    output: Path
    run: Callable[..., Any]
    say: Callable[[str], None]

    def trained(self, recipe: Recipe, name: str) -> Path:
        """Train an auxiliary model, such as a teacher, in the run's subfolder `name`; return the path of this folder.

        An interrupted training is resumed. A model that is already complete is not trained again.
        """
        folder = self.output / name
        resume = (folder / RECIPE_FILE).exists()
        is_complete = resume and CURVE_FILE in (read_checksums(folder) or {})  # written last before the checksums
        PartialState().wait_for_everyone()  # all processes have looked before the first one writes
        if is_complete:
            expect_same_recipe(recipe, folder)
        else:
            self.run(recipe, output=folder, resume=resume)
        return folder

    def after_first_stage(self) -> Recipe:
        """Return the recipe of the main training; if the run has a conditional first stage, train that stage now.

        In the first stage, the label of a child in the label hierarchy is used only where its parent is positive. The
        returned recipe has the first stage's model as `init`. Without a first stage, the recipe is returned unchanged.
        """
        recipe = self.recipe
        if not recipe.conditional_epochs:
            return recipe
        self.say("First stage: children in the label hierarchy are learned where their parent is positive.")
        other: dict[str, Any] = {"conditional_epochs": 0, "unconditional": True, "freeze_backbone": False}
        first = _without_self_training(recipe, epochs=recipe.conditional_epochs, teacher=None, **other)
        folder = self.trained(first, "conditional")
        self.say("Second stage." if recipe.unconditional else "Second stage: every label, whatever its parent.")
        return recipe.override(init=str(folder), architecture={}, conditional_epochs=0)

    def soft_labels(self, recipe: Recipe, dataset: datasets.Dataset) -> NDArray[np.float32] | None:
        """Return a teacher's probabilities of uncertain labels `(num_rows, num_labels)`, NaN for other labels.

        If `recipe.teacher` is a CSV file, they are read from it, else from `soft_labels.csv` in the run's folder. If
        `soft_labels.csv` is missing, a teacher scores the images first, and the file is written. The teacher is the
        model that `recipe.teacher` names; if that is None, a teacher is trained now.

        Return None if no observation has the policy U-SelfTrained.
        """
        observations, teacher = recipe.self_trained_observations, recipe.teacher
        if not observations:
            return None
        path = self.output / "soft_labels.csv"
        if teacher is not None and teacher.endswith(".csv"):
            path = Path(teacher)
        elif not path.exists():
            if teacher is None:
                self.say(f"Training the teacher with U-Ignore for {', '.join(observations)}.")
                first = _without_self_training(recipe, epochs=recipe.teacher_epochs or recipe.epochs)
                teacher = str(self.trained(first, "teacher"))
            if PartialState().is_main_process:
                _write_soft_labels(path, dataset, recipe, CheXpertClassifier.from_pretrained(teacher))
        PartialState().wait_for_everyone()
        soft = _read_soft_labels(path, dataset, recipe)
        self.say(f"Soft labels for {int((~np.isnan(soft)).sum()):,} uncertain cells: {path}.")
        return soft

    def teachers(self) -> list[CheXpertForImageClassification]:
        """Return the teachers for distillation: the models that the recipe names, or else models trained now.

        The latter are trained with the same recipe and the next seeds. The list is empty without distillation. Raise
        RecipeError if a teacher has other observations, or an image processor that makes other pixel values.
        """
        recipe = self.recipe
        if not recipe.distillation:
            return []
        names = list(recipe.distillation_models)
        for number in range(1, 1 if names else recipe.distillation_teachers + 1):
            self.say(f"Teacher {number} of {recipe.distillation_teachers}.")
            values: dict[str, Any] = {"distillation": 0.0, "mixup": False, "seed": recipe.seed + number}
            if recipe.held_out_fold is None:
                values |= {"calibration_folds": 0, "calibration_models": ()}
            names.append(str(self.trained(recipe.override(**values), f"teachers/teacher-{number}")))
        models = [load_model(name) for name in names]
        own = _pixel_values_settings(build_processor(recipe))
        for name, model in zip(names, models, strict=True):
            if model.config.observations != recipe.observations:
                raise RecipeError(
                    f"distillation_models names {name}, which predicts {', '.join(model.config.observations)}; "
                    f"expected the observations of the recipe, in their order: {', '.join(recipe.observations)}."
                )
            other = _pixel_values_settings(load_processor(model_folder(name), name=name))
            if different := [f"{key} {other[key]} instead of {own[key]}" for key in own if other[key] != own[key]]:
                raise RecipeError(
                    f"distillation_models names {name}, whose image processor has {', '.join(different)}; teachers get "
                    "the same pixel values as the model, so expected one that differs in the image size alone."
                )
        return models

    def without_fold(self, fold: int) -> Path:
        """Return the folder of a model trained without one fold of the training patients, for calibration.

        `fold` counts from 0. The model is trained now, unless the recipe names a model for each fold in
        `calibration_models`, or it has been trained already.
        """
        recipe = self.recipe
        if recipe.calibration_models:
            return model_folder(recipe.calibration_models[fold])
        self.say(f"For the calibration: training without part {fold + 1} of {recipe.calibration_folds}.")
        return self.trained(recipe.override(held_out_fold=fold), f"folds/fold-{fold + 1}")


def _pixel_values_settings(processor: CheXpertImageProcessor) -> dict[str, Any]:
    """Return a processor's settings that affect pixel values, except for the image size and its interpolation."""
    normalisation = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    return {name: getattr(processor, name) for name in (*normalisation, "gray_range", "do_square_crop", "resize_like")}


def expect_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError if the run in a folder has another recipe, except for workers, cache and spelling of paths."""
    before, now = Recipe.load(folder / RECIPE_FILE).to_dict(), recipe.to_dict()
    changes = [
        f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in now
        if name not in ("workers", "cache") and _resolved(name, now[name]) != _resolved(name, before[name])
    ]
    if changes:
        raise RecipeError(f"{folder} holds a run of another recipe: {', '.join(changes)}.")


def _resolved(name: str, value: Any) -> Any:
    if name not in MODEL_FIELDS or not value:
        return value
    return [Path(one).resolve() for one in value] if isinstance(value, list) else Path(value).resolve()


def _without_self_training(recipe: Recipe, **values: Any) -> Recipe:
    """Return the recipe with U-Ignore in place of U-SelfTrained; `values` replace other fields of the recipe."""
    ignored = dict.fromkeys(recipe.self_trained_observations, UncertaintyPolicy.U_IGNORE.value)
    return recipe.override(policy=recipe.policies | ignored, teacher_epochs=None, **values)


def _write_soft_labels(path: Path, dataset: datasets.Dataset, recipe: Recipe, teacher: CheXpertClassifier) -> None:
    """Write a teacher's probabilities of uncertain labels as CSV.

    The columns are `path` and the observations under U-SelfTrained. Each image with an uncertain label has a row, in
    which labels that are not uncertain are blank. Raise RecipeError if the teacher lacks an observation.
    """
    observations = list(recipe.self_trained_observations)
    missing = [name for name in observations if name not in teacher.observations]
    if missing:
        known = ", ".join(teacher.observations)
        raise RecipeError(f"The teacher does not predict {', '.join(missing)}; it predicts {known}.")
    is_uncertain = _uncertain_cells(dataset, recipe)
    rows = np.flatnonzero(is_uncertain.any(axis=1))
    subset = dataset.select(rows)
    judged = [teacher.observations.index(name) for name in observations]
    probabilities = predict_dataset(teacher, subset)[:, judged] if len(rows) else np.empty((0, len(observations)))
    table = pd.DataFrame(np.where(is_uncertain[rows], probabilities, np.nan), columns=observations)
    table.insert(0, "path", subset["path"][:])
    with replacing(path) as partial:
        table.to_csv(partial, index=False, float_format="%.9g")  # nine digits hold a float32 exactly


def _read_soft_labels(path: Path, dataset: datasets.Dataset, recipe: Recipe) -> NDArray[np.float32]:
    """Read soft labels `(num_rows, num_labels)` from a file like that of `_write_soft_labels`; NaN where not uncertain.

    Raise RecipeError if the file cannot be read, lacks an uncertain label, or holds a value outside [0, 1].
    """
    observations = list(recipe.self_trained_observations)
    try:
        table = pd.read_csv(path, dtype={"path": str}).set_index("path")
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(f"No soft labels could be read from {path}: {first_line(error)}") from error
    missing = [name for name in observations if name not in table.columns]
    if missing:
        raise RecipeError(f"{path} has no column {', '.join(missing)}; expected the U-SelfTrained ones.")
    found = table[observations].reindex(dataset["path"][:])
    if ((found < 0) | (found > 1)).any(axis=None):
        raise RecipeError(f"{path} holds values outside [0, 1]; expected probabilities.")
    is_uncertain = _uncertain_cells(dataset, recipe)
    lacking = int((is_uncertain & found.isna().to_numpy()).sum())
    if lacking:
        raise RecipeError(f"{path} lacks {lacking:,} uncertain labels of the training data; it belongs to other data.")
    return found.where(is_uncertain).reindex(columns=list(recipe.observations)).to_numpy(np.float32)


def _uncertain_cells(dataset: datasets.Dataset, recipe: Recipe) -> NDArray[np.bool_]:
    """Return a mask `(num_rows, num_self_trained)` of uncertain labels of the observations under U-SelfTrained."""
    columns = [recipe.observations.index(name) for name in recipe.self_trained_observations]
    return np.asarray(dataset["labels"][:], dtype=np.float32)[:, columns] == UNCERTAIN
