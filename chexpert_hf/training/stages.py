"""The stages of a run beside its own training, each a run in a folder of its own below the output."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from chexpert_hf.labels import UncertaintyPolicy
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.model_files import CURVE_FILE, RECIPE_FILE, read_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.publishing.card import MODEL_FIELDS
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.self_training import read_soft_labels, write_soft_labels


@dataclass(frozen=True)
class Stages:
    """The stages of a run with a recipe in a folder; `run(recipe, output=..., resume=...)` trains one of them."""

    recipe: Recipe
    output: Path
    run: Callable[..., Any]
    say: Callable[[str], None]

    def trained(self, recipe: Recipe, name: str) -> Path:
        """The model folder of a stage, which is trained, continued or complete already."""
        folder = self.output / name
        resume = (folder / RECIPE_FILE).exists()
        is_complete = resume and CURVE_FILE in (read_checksums(folder) or {})  # the last that is written before them
        PartialState().wait_for_everyone()  # all have looked before the first one writes
        if is_complete:
            expect_same_recipe(recipe, folder)
        else:
            self.run(recipe, output=folder, resume=resume)
        return folder

    def start(self) -> Recipe:
        """The recipe to go on with: from the weights of the conditional stage, if there is one."""
        recipe = self.recipe
        if not recipe.conditional_epochs:
            return recipe
        self.say("First stage: children in the label hierarchy are learned where their parent is positive.")
        first = recipe.override(
            epochs=recipe.conditional_epochs,
            conditional_epochs=0,
            unconditional=True,
            freeze_backbone=False,
            policy=_without_self_training(recipe),
            teacher=None,
            teacher_epochs=None,
        )
        folder = self.trained(first, "conditional")
        self.say("Second stage." if recipe.unconditional else "Second stage: every label, whatever its parent.")
        return recipe.override(init=str(folder), architecture={}, conditional_epochs=0)

    def soft_labels(self, recipe: Recipe, dataset: datasets.Dataset) -> NDArray[np.float32] | None:
        """A teacher's probabilities of uncertain labels `(num_rows, num_labels)`; None if no observation needs them."""
        observations, teacher = recipe.self_trained_observations, recipe.teacher
        if not observations:
            return None
        path = self.output / "soft_labels.csv"
        if teacher is not None and teacher.endswith(".csv"):
            path = Path(teacher)
        elif not path.exists():
            if teacher is None:
                self.say(f"The teacher: U-Ignore for {', '.join(observations)}.")
                epochs = recipe.teacher_epochs or recipe.epochs
                first = recipe.override(policy=_without_self_training(recipe), epochs=epochs, teacher_epochs=None)
                teacher = str(self.trained(first, "teacher"))
            if PartialState().is_main_process:
                classifier = CheXpertClassifier.from_pretrained(teacher)
                write_soft_labels(path, dataset, recipe, classifier)
        PartialState().wait_for_everyone()
        soft = read_soft_labels(path, dataset, recipe)
        self.say(f"Soft labels for {int((~np.isnan(soft)).sum()):,} uncertain cells: {path}.")
        return soft

    def teachers(self) -> list[CheXpertForImageClassification]:
        """The networks to distil: those named, or ones trained by the same recipe with the seeds that follow."""
        recipe = self.recipe
        if not recipe.distillation:
            return []
        names = list(recipe.distillation_models)
        for number in range(1, 1 if names else recipe.distillation_teachers + 1):
            self.say(f"Teacher {number} of {recipe.distillation_teachers}.")
            values: dict[str, Any] = {"distillation": 0.0, "seed": recipe.seed + number}
            if recipe.held_out_fold is None:
                values |= {"calibration_folds": 0, "calibration_models": ()}
            teacher = recipe.override(**values)
            names.append(str(self.trained(teacher, f"teachers/teacher-{number}")))
        models = [load_model(name) for name in names]
        for name, model in zip(names, models, strict=True):
            if model.config.observations != recipe.observations:
                raise RecipeError(
                    f"distillation_models names {name}, which judges {', '.join(model.config.observations)}; expected "
                    f"the observations of the recipe, in their order: {', '.join(recipe.observations)}."
                )
        return models

    def without_part(self, fold: int) -> Path:
        """The model folder of a run that holds out a part of the training patients."""
        recipe = self.recipe
        if recipe.calibration_models:
            return model_folder(recipe.calibration_models[fold])
        self.say(f"For the calibration: training without part {fold + 1} of {recipe.calibration_folds}.")
        return self.trained(recipe.override(held_out_fold=fold), f"folds/fold-{fold + 1}")


def expect_same_recipe(recipe: Recipe, folder: Path) -> None:
    """Raises RecipeError if a folder's run has another recipe; workers and the spelling of paths may differ."""
    before, now = Recipe.load(folder / RECIPE_FILE).to_dict(), recipe.to_dict()
    changes = [
        f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in now
        if name != "workers" and _resolved(name, now[name]) != _resolved(name, before[name])
    ]
    if changes:
        raise RecipeError(f"{folder} holds a run of another recipe: {', '.join(changes)}.")


def _resolved(name: str, value: Any) -> Any:
    if name not in MODEL_FIELDS or not value:
        return value
    return [Path(one).resolve() for one in value] if isinstance(value, list) else Path(value).resolve()


def _without_self_training(recipe: Recipe) -> dict[str, str]:
    return recipe.policies | dict.fromkeys(recipe.self_trained_observations, UncertaintyPolicy.U_IGNORE.value)
