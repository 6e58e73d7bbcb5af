"""A training run from a CheXpert folder to a complete model folder, and its continuation after a stop."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers import TrainerState, set_seed

from chexpert_hf.data.chexpert import load_chexpert
from chexpert_hf.evaluation.metrics import Evaluation, evaluation_labels, judged_observations, maximum_per_study
from chexpert_hf.hub.folder import save_model_folder
from chexpert_hf.inference.classifier import load_model
from chexpert_hf.training.checkpoints import is_finished, newest_complete_checkpoint
from chexpert_hf.training.curve import plot_curve
from chexpert_hf.training.initial_model import build_model, build_processor
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.trainer import build_trainer, evaluate_split


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: The complete model folder.
        evaluation: The best checkpoint on the validation split, on which it was also chosen.
        best_step: The optimizer step of that checkpoint; the last one if the data can judge nothing.
    """

    folder: Path
    evaluation: Evaluation
    best_step: int


def train(
    recipe: Recipe,
    root: Path,
    output: Path,
    *,
    resume: bool = False,
    report_to: str = "none",
    say: Callable[[str], None] = print,
) -> TrainingResult:
    """Trains a model on a CheXpert folder.

    Args:
        recipe: What to train.
        root: The CheXpert folder.
        output: Becomes the model folder; checkpoints are in `checkpoints` below it.
        resume: Continue from the newest complete checkpoint there, or begin if there is none.
        report_to: "none", "tensorboard" or "trackio".
        say: Takes lines for the user.

    Raises:
        RecipeError: If `output` holds another run and `resume` is not set, or a run of another recipe.
        CheXpertDataError: If the data cannot be loaded.
    """
    data = load_data(recipe, root)
    _claim(output, recipe, resume)
    set_seed(recipe.seed)
    model, processor = build_model(recipe), build_processor(recipe)
    if recipe.freeze_backbone:
        model.freeze_backbone()
    trainer = build_trainer(recipe, model, processor, data, output, report_to)
    judged = _say_what_is_judged(data, recipe, say)

    checkpoint = newest_complete_checkpoint(output / "checkpoints") if resume else None
    if resume:
        say(
            f"Resuming from {checkpoint}." if checkpoint else "No complete checkpoint yet: beginning at the first step."
        )
    if checkpoint and is_finished(checkpoint):
        say("The run has finished: nothing is left to train.")
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # By step and not by the recorded path, which is wrong once the folder has moved.
    best_step = (judged and trainer.state.best_global_step) or trainer.state.global_step
    final = load_model(output / "checkpoints" / f"checkpoint-{best_step}")
    trainer.model = trainer.model_wrapped = final.to(trainer.args.device)
    evaluation = evaluate_split(trainer, data["valid"], recipe)
    history = trainer.state.log_history
    if trainer.is_world_process_zero():
        save_model_folder(
            output,
            final.float().cpu(),
            processor,
            recipe=recipe.to_dict(),
            data=describe_data(data, root),
            evaluation=evaluation,
            best_step=best_step,
        )
        (output / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        plot_curve(history, output / "curve.png", best_step)
    return TrainingResult(output, evaluation, best_step)


def load_data(recipe: Recipe, root: Path) -> datasets.DatasetDict:
    """The training and validation splits that the recipe asks for; who is held out does not depend on its seed."""
    return load_chexpert(
        root,
        frontal_only=recipe.frontal_only,
        observations=recipe.observations,
        num_patients=recipe.num_patients,
        valid_fraction=recipe.valid_fraction,
    )


def _say_what_is_judged(data: datasets.DatasetDict, recipe: Recipe, say: Callable[[str], None]) -> tuple[str, ...]:
    valid = data["valid"]
    labels = evaluation_labels(np.asarray(valid["labels"][:]), recipe.blank_labels)
    truth, studies = maximum_per_study(labels, valid["study"][:])
    judged = judged_observations(truth, recipe.observations)
    say(
        f"Training on {len(data['train']):,} images, validating on {len(valid):,} images of {len(studies):,} studies, "
        f"which can judge {len(judged)} of {len(recipe.observations)} observations."
    )
    if not judged:
        say("No observation has enough positive and negative validation studies: the last checkpoint will be used.")
    return judged


def describe_data(data: datasets.DatasetDict, root: Path) -> dict[str, Any]:
    """What a model was trained and validated on, for its card: counts, and no identities."""
    return {"name": root.resolve().name} | {
        name: {"images": len(split), "studies": len(set(split["study"][:])), "patients": len(set(split["patient"][:]))}
        for name, split in data.items()
    }


def _claim(output: Path, recipe: Recipe, resume: bool) -> None:
    """Makes `output` this run's, or raises RecipeError if it is another's."""
    state = PartialState()
    if state.is_main_process:
        path = output / "recipe.yaml"
        if resume and path.exists():
            _expect_same(recipe, Recipe.load(path), output)
        elif output.exists() and any(output.iterdir()):
            raise RecipeError(f"{output} is not empty: continue its run with --resume, or choose another folder.")
        output.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    state.wait_for_everyone()


def _expect_same(recipe: Recipe, earlier: Recipe, output: Path) -> None:
    before, now = earlier.to_dict(), recipe.to_dict()
    different = [name for name in now if now[name] != before[name] and name != "workers"]
    if different:
        changes = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in different)
        raise RecipeError(f"{output} holds a run of another recipe: {changes}.")
