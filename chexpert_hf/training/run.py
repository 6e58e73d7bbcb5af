"""A training run from a CheXpert folder to a complete model folder, and its continuation after a stop."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from transformers import TrainerState, set_seed

from chexpert_hf.datasets.chexpert import BadFilesError, load_chexpert
from chexpert_hf.evaluation.metrics import Evaluation, evaluation_labels, judged_observations, maximum_per_study
from chexpert_hf.evaluation.patients import SELECTION_PATIENTS_FILE, TRAINING_PATIENTS_FILE, write_patient_hashes
from chexpert_hf.evaluation.report.reporting import evaluate_dataset
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.gate.fit import MIN_IMAGES
from chexpert_hf.gate.folder import fit_folder_gate
from chexpert_hf.labels import UncertaintyPolicy
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.ensembles import write_ensemble
from chexpert_hf.models.half_precision import round_to_half
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.model_files import CHECKSUMS_FILE, write_checksums
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.publishing.measured import assess_predictions, evaluate_predictions
from chexpert_hf.publishing.model_folder import EVALUATION_FILE, save_model_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.checkpoints import best_checkpoints, is_finished
from chexpert_hf.training.cross_fitting import calibrate_by_folds, hold_out_fold
from chexpert_hf.training.curve import plot_curve
from chexpert_hf.training.durable.intact import expect_intact
from chexpert_hf.training.initial_model import build_model, build_processor
from chexpert_hf.training.normalisation import expect_statistics
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.self_training import read_soft_labels, write_soft_labels
from chexpert_hf.training.trainer import CheXpertTrainer, build_trainer

RECIPE_FILE = "recipe.yaml"
REPORTERS = ("none", "tensorboard", "trackio")


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: The complete model folder, or that of an ensemble.
        evaluation: On the validation split, on which the checkpoints were also chosen.
        chosen: What the folder holds, in words: the checkpoint by its optimizer step, or an ensemble; and why.
    """

    folder: Path
    evaluation: Evaluation
    chosen: str


def train(
    recipe: Recipe,
    root: Path,
    output: Path,
    *,
    resume: bool = False,
    report_to: str = "none",
    follow_links: bool = True,
    say: Callable[[str], None] = print,
) -> TrainingResult:
    """Trains a model on a CheXpert folder.

    Args:
        recipe: What to train.
        root: The CheXpert folder.
        output: Becomes the model folder; checkpoints are in `checkpoints` below it.
        resume: Continue from the newest intact checkpoint there, or begin if there is none.
        report_to: "none", "tensorboard" or "trackio".
        follow_links: Whether radiographs may be links that lead out of the folder.
        say: Takes lines for the user.

    Raises:
        RecipeError: If `output` holds another run and `resume` is not set, or a run of another recipe.
        CheXpertDataError: If the data cannot be loaded.
    """
    _check_reporter(report_to)
    torch.backends.cudnn.deterministic = True  # on a GPU the same run gives the same bits, too
    # Without `cpu`, each process that torchrun starts on a machine without GPUs takes itself for the only one.
    PartialState(cpu=not torch.accelerator.is_available())
    if not PartialState().is_main_process:
        say = _say_nothing
    try:
        data = load_data(recipe, root, follow_links=follow_links, say=say)
    except BadFilesError as error:
        raise _with_list(error, output) from error
    set_seed(recipe.seed)
    # Before anything is written, so that what cannot be trained leaves nothing behind.
    expect_statistics(recipe, build_model(recipe), data["train"])
    _claim(output, recipe, resume)
    stage = partial(_stage, root=root, report_to=report_to, follow_links=follow_links, say=say)
    if recipe.runs > 1:
        return _train_several(recipe, output, data, stage, say)
    start = _conditional_stage(recipe, output, stage, say)
    soft_labels = _soft_labels(start, output, data["train"], stage, say)
    teachers = _teachers(recipe, output, stage, say)

    set_seed(recipe.seed)
    model, processor = build_model(start), build_processor(start)
    if recipe.freeze_backbone:
        model.freeze_backbone()
    trainer = build_trainer(
        recipe,
        model,
        processor,
        data,
        output,
        soft_labels=soft_labels,
        teachers=teachers,
        report_to=report_to,
    )
    judged = _say_what_is_judged(data, recipe, say)
    _train_or_resume(trainer, resume, say)

    # By step and not by the recorded path, which is wrong once the folder has moved.
    is_best = bool(judged) and recipe.checkpoint == "best"
    best_step = (is_best and trainer.state.best_global_step) or trainer.state.global_step
    chosen = output / "checkpoints" / f"checkpoint-{best_step}"
    expect_intact(chosen)
    final = load_model(chosen)
    if not all(parameter.isfinite().all() for parameter in final.parameters()):
        raise RecipeError(f"Training diverged before step {best_step}: lower learning_rate, or set max_grad_norm to 1.")
    if recipe.calibration_folds and recipe.held_out_fold is None:
        given = [model_folder(name) for name in recipe.calibration_models]
        train_without = partial(_train_without, recipe=recipe, output=output, stage=stage, say=say)
        part = given.__getitem__ if given else train_without
        calibrate_by_folds(final, data["train"], recipe, root.resolve().name, part)
    if recipe.stored_precision == "fp16":
        round_to_half(final)  # before the evaluation, whose figures are those of the weights that are stored
    # Not by the Trainer, which computes in bf16 or float32 depending on whether it has just trained or was resumed.
    probabilities = predict_dataset(CheXpertClassifier(final.to(trainer.args.device), processor), data["valid"])
    evaluation = evaluate_predictions(probabilities, data["valid"], final.config)
    history = trainer.state.log_history
    if trainer.is_world_process_zero():
        save_model_folder(
            output,
            final.float().cpu(),
            processor,
            recipe=recipe.to_dict(),
            data=describe_data(data, root, recipe.observations),
            evaluation=evaluation,
            best_step=best_step,
            assessment=assess_predictions(probabilities, data["valid"], final.config),
        )
        _write_patients(output, data, recipe)
        if recipe.held_out_fold is None:
            _fit_gate(output, data["train"], root, say)
        (output / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")
        plot_curve(history, output / "curve.png", best_step)
        write_checksums(output)
    PartialState().wait_for_everyone()  # the next stage of a larger run reads this folder
    if recipe.checkpoint == "last":
        why = "the last one, as the recipe says"
    else:
        why = "the best on these same studies" if judged else "the last one, as these studies can judge nothing"
    return TrainingResult(output, evaluation, f"step {best_step}, {why}")


def _with_list(error: BadFilesError, output: Path) -> BadFilesError:
    """The error with a list of all files beside `output`, which stays as it is."""
    path = output.with_name(f"{output.name}.bad_files.csv")
    if PartialState().is_main_process:
        error.write_list(path)
    return BadFilesError(f"{error} All are listed in {path}.", error.faults)


def _check_reporter(name: str) -> None:
    if name not in REPORTERS:
        raise RecipeError(f"Cannot report to {name!r}; expected one of: {', '.join(REPORTERS)}.")
    if name != "none" and importlib.util.find_spec(name) is None:
        raise RecipeError(f"Reporting to {name} needs that package: pip install {name}.")


def _train_or_resume(trainer: CheXpertTrainer, resume: bool, say: Callable[[str], None]) -> None:
    checkpoint = trainer.newest_intact_checkpoint(say) if resume else None
    if checkpoint and is_finished(Path(checkpoint)):
        say("The run has finished: nothing is left to train.")
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=checkpoint)


def _write_patients(output: Path, data: datasets.DatasetDict, recipe: Recipe) -> None:
    """Whom the model has seen, as hashes, so that figures on the same patients are noticed."""
    write_patient_hashes(output / TRAINING_PATIENTS_FILE, data["train"]["patient"][:])
    if recipe.checkpoint == "best":
        write_patient_hashes(output / SELECTION_PATIENTS_FILE, data["valid"]["patient"][:])


def _fit_gate(output: Path, train_split: datasets.Dataset, root: Path, say: Callable[[str], None]) -> None:
    """What tells a chest radiograph from any other image; very small data say nothing about that."""
    if len(train_split) < MIN_IMAGES:
        say(f"No gate is fitted: {len(train_split)} radiographs are too few to know others by.")
        return
    fit_folder_gate(output, train_split, f"{root.resolve().name} (train)")


def _say_nothing(_line: str) -> None:
    """What all processes but the first say."""


def _stage(
    recipe: Recipe, folder: Path, *, root: Path, report_to: str, follow_links: bool, say: Callable[[str], None]
) -> Path:
    """Trains a stage of a larger run, or what is left of it; gives its model folder."""
    resume = (folder / RECIPE_FILE).exists()
    is_complete = resume and (folder / CHECKSUMS_FILE).exists()  # which is written last
    PartialState().wait_for_everyone()  # all have looked before the first one writes
    if is_complete:
        _expect_same(recipe, Recipe.load(folder / RECIPE_FILE), folder)
        return folder
    return train(recipe, root, folder, resume=resume, report_to=report_to, follow_links=follow_links, say=say).folder


def _train_without(
    fold: int, *, recipe: Recipe, output: Path, stage: Callable[..., Path], say: Callable[[str], None]
) -> Path:
    """The model folder of a run that holds out a part of the training patients."""
    say(f"For the calibration: training without part {fold + 1} of {recipe.calibration_folds}.")
    return stage(recipe.override(held_out_fold=fold), output / "folds" / f"fold-{fold + 1}")


def _teachers(
    recipe: Recipe, output: Path, stage: Callable[..., Path], say: Callable[[str], None]
) -> list[CheXpertForImageClassification]:
    """The networks to distil: those named, or ones trained by the same recipe with the seeds that follow."""
    if not recipe.distillation:
        return []
    if recipe.distillation_models:
        return [_teacher(name, recipe) for name in recipe.distillation_models]
    teachers = []
    for number in range(1, recipe.distillation_teachers + 1):
        say(f"Teacher {number} of {recipe.distillation_teachers}.")
        folds = {} if recipe.held_out_fold is not None else {"calibration_folds": 0}
        teacher = recipe.override(distillation=0.0, seed=recipe.seed + number, **folds)
        teachers.append(_teacher(str(stage(teacher, output / "teachers" / f"teacher-{number}")), recipe))
    return teachers


def _teacher(name: str, recipe: Recipe) -> CheXpertForImageClassification:
    model = load_model(name)
    if model.config.observations != recipe.observations:
        raise RecipeError(
            f"distillation_models names {name}, which judges {', '.join(model.config.observations)}; expected the "
            f"observations of the recipe, in their order: {', '.join(recipe.observations)}."
        )
    return model


def _conditional_stage(recipe: Recipe, output: Path, stage: Callable[..., Path], say: Callable[[str], None]) -> Recipe:
    """The recipe to go on with: from the weights of the conditional stage, if there is one."""
    if not recipe.conditional_epochs:
        return recipe
    say("First stage: children in the label hierarchy are learned where their parent is positive.")
    first = recipe.override(
        epochs=recipe.conditional_epochs,
        conditional_epochs=0,
        unconditional=True,
        freeze_backbone=False,
        policy=_without_self_training(recipe),
        teacher=None,
        teacher_epochs=None,
    )
    folder = stage(first, output / "conditional")
    say("Second stage." if recipe.unconditional else "Second stage: every label, whatever its parent.")
    return recipe.override(init=str(folder), architecture={}, conditional_epochs=0)


def _soft_labels(
    recipe: Recipe,
    output: Path,
    dataset: datasets.Dataset,
    stage: Callable[..., Path],
    say: Callable[[str], None],
) -> NDArray[np.float32] | None:
    """A teacher's probabilities for uncertain labels `(num_rows, num_labels)`; None if no observation wants them."""
    observations = recipe.self_trained_observations
    if not observations:
        return None
    given = recipe.teacher is not None and recipe.teacher.endswith(".csv")
    path = Path(recipe.teacher or "") if given else output / "soft_labels.csv"
    if not path.exists() and not given:
        teacher = recipe.teacher
        if teacher is None:
            say(f"The teacher: U-Ignore for {', '.join(observations)}.")
            first = recipe.override(
                policy=_without_self_training(recipe),
                epochs=recipe.teacher_epochs or recipe.epochs,
                teacher_epochs=None,
            )
            teacher = str(stage(first, output / "teacher"))
        if PartialState().is_main_process:
            classifier = CheXpertClassifier.from_pretrained(teacher)
            write_soft_labels(classifier, dataset, recipe.observations, observations, path)
    PartialState().wait_for_everyone()
    soft = read_soft_labels(path, dataset, recipe.observations, observations)
    say(f"Soft labels for {int((~np.isnan(soft)).sum()):,} uncertain cells: {path}.")
    return soft


def _without_self_training(recipe: Recipe) -> dict[str, str]:
    ignored = dict.fromkeys(recipe.self_trained_observations, UncertaintyPolicy.U_IGNORE.value)
    return recipe.policies | ignored


def _train_several(
    recipe: Recipe, output: Path, data: datasets.DatasetDict, stage: Callable[..., Path], say: Callable[[str], None]
) -> TrainingResult:
    """Independent runs, and the ensemble of their best checkpoints."""
    members: list[Path] = []
    for number in range(recipe.runs):
        say(f"Run {number + 1} of {recipe.runs}.")
        folder = stage(recipe.override(runs=1, seed=recipe.seed + number), output / f"run-{number + 1}")
        members += best_checkpoints(folder / "checkpoints", recipe.keep_checkpoints)
    for member in members:
        expect_intact(member)
    if PartialState().is_main_process:
        write_ensemble(output, members)
        _write_patients(output, data, recipe)
    PartialState().wait_for_everyone()
    evaluation = evaluate_dataset(CheXpertClassifier.from_pretrained(output), data["valid"])
    if PartialState().is_main_process:
        summary = json.dumps({"split": "valid", **evaluation.to_dict()}, indent=2)
        (output / EVALUATION_FILE).write_text(summary, encoding="utf-8")
    return TrainingResult(output, evaluation, f"the mean of {len(members)} checkpoints, the best on these same studies")


def load_data(
    recipe: Recipe, root: Path, *, follow_links: bool = True, say: Callable[[str], None] | None = None
) -> datasets.DatasetDict:
    """The training and validation splits that the recipe asks for; who is held out does not depend on its seed."""
    data = load_chexpert(
        root,
        follow_links=follow_links,
        say=say,
        frontal_only=recipe.frontal_only,
        observations=recipe.observations,
        num_patients=recipe.num_patients,
        valid_fraction=recipe.valid_fraction,
    )
    return data if recipe.held_out_fold is None else hold_out_fold(data["train"], recipe)


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


def describe_data(data: datasets.DatasetDict, root: Path, observations: Sequence[str]) -> dict[str, Any]:
    """What a model was trained and validated on, for its card: counts, and no identities."""
    return {"name": root.resolve().name} | {
        name: {
            "images": len(split),
            "studies": len(set(split["study"][:])),
            "patients": len(set(split["patient"][:])),
            "positives": dict(
                zip(observations, (np.asarray(split["labels"][:]) == 1).sum(axis=0).tolist(), strict=True)
            ),
        }
        for name, split in data.items()
    }


def _claim(output: Path, recipe: Recipe, resume: bool) -> None:
    """Makes `output` this run's, or raises RecipeError if it is another's."""
    state = PartialState()
    if state.is_main_process:
        path = output / RECIPE_FILE
        if resume and path.exists():
            _expect_same(recipe, Recipe.load(path), output)
        elif output.exists() and not output.is_dir():
            raise RecipeError(f"{output} is a file; expected a folder to write.")
        elif resume and output.exists() and any(output.iterdir()):
            raise RecipeError(f"{output} holds no {RECIPE_FILE}: there is no run to continue; choose its folder.")
        elif output.exists() and any(item.name != RECIPE_FILE for item in output.iterdir()):
            raise RecipeError(f"{output} is not empty: continue its run with --resume, or choose another folder.")
        output.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
    state.wait_for_everyone()


def _is_same(field: str, one: Any, other: Any) -> bool:
    """Whether two values of a recipe's field are equal; two spellings of one path are."""
    if field in ("init", "teacher") and one is not None and other is not None:
        return one == other or Path(one).resolve() == Path(other).resolve()
    return one == other


def _expect_same(recipe: Recipe, earlier: Recipe, output: Path) -> None:
    before, now = earlier.to_dict(), recipe.to_dict()
    different = [name for name in now if not _is_same(name, now[name], before[name]) and name != "workers"]
    if different:
        changes = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in different)
        raise RecipeError(f"{output} holds a run of another recipe: {changes}.")
