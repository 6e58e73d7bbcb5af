"""Runs a training, from a data set to a complete model folder; an interrupted run can be resumed."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerState, set_seed

from chexpert_hf.datasets.loading import BadFilesError, data_name
from chexpert_hf.errors import NotANumberError
from chexpert_hf.evaluation.metrics import Evaluation, judged_observations, per_study, split_labels
from chexpert_hf.evaluation.patients import (
    SELECTION_PATIENTS_FILE,
    TRAINING_PATIENTS_FILE,
    overlapping_patients,
    write_patient_hashes,
)
from chexpert_hf.evaluation.report.reporting import evaluate_dataset, evaluate_predictions
from chexpert_hf.files import exclusive, write_json, write_text
from chexpert_hf.folders.dataset import predict_dataset
from chexpert_hf.gate import GATE_FILE
from chexpert_hf.gate.fit import MIN_IMAGES, fit_folder_gate
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.model_files import (
    CURVE_FILE,
    EVALUATION_FILE,
    RECIPE_FILE,
    ensemble_members,
    write_checksums,
    write_ensemble,
)
from chexpert_hf.models.weights import half_state_dict
from chexpert_hf.publishing.model_folder import assess_predictions, evaluation_record, save_trained_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.training.checkpoints import best_checkpoints, checkpoints_by_step, is_finished, plot_curve
from chexpert_hf.training.cross_fitting import calibrate_by_folds
from chexpert_hf.training.data import Roots, describe_data, load_data, with_labels, with_stated_labels
from chexpert_hf.training.durable.intact import expect_intact
from chexpert_hf.training.initial_model import (
    build_model,
    build_processor,
    changes_to_initial,
    expect_trainable_batches,
    image_size_of,
)
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.stages import Stages, expect_same_recipe
from chexpert_hf.training.trainer import build_trainer

REPORTERS = ("none", "tensorboard", "trackio")


@dataclass(frozen=True)
class TrainingResult:
    """The model folder that a training has written, and the model's evaluation on the validation split.

    `chosen` is a text that says which checkpoint, or which checkpoints of an ensemble, became the model. An example is
    "step 300, the best on these same studies"; "these" means the studies of the validation split.
    """

    folder: Path
    evaluation: Evaluation
    chosen: str


def train(
    recipe: Recipe,
    root: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    resume: bool = False,
    report_to: str = "none",
    follow_links: bool = True,
    say: Callable[[str], None] = print,
    progress: TrainerCallback | None = None,
) -> TrainingResult:
    """Train a model on a data set, or on several as one; `output` becomes the model folder.

    Args:
        recipe: All settings of the run. If it names no observations, those of the data are used.
        root: The folder of a data set in a layout that is recognised, or several such folders.
        output: A new or empty folder; with `resume`, the folder of the run to resume.
        resume: Resume from the newest intact checkpoint in `output/checkpoints`, or start if there is none.
        report_to: Service that the Trainer logs the metrics to: "tensorboard" or "trackio"; "none" for no service.
        follow_links: Whether radiographs may be links that lead out of the data set's folder.
        say: Called with each line for the user.
        progress: Callback that shows progress; `TrainingProgress` if None.

    Raises:
        RecipeError: If the recipe cannot be trained or training diverged; or if `output` is not empty and `resume` is
            not set, or it holds a run of another recipe.
        DatasetError: If the data cannot be loaded; `OUTPUT.bad_files.csv` then lists radiographs that cannot be read.
        CheckpointError: If a checkpoint cannot be written, or none is intact.
    """
    if report_to not in REPORTERS:
        raise RecipeError(f"Cannot report to {report_to!r}; expected one of: {', '.join(REPORTERS)}.")
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise RecipeError(f"Reporting to {report_to} needs that package: pip install {report_to}.")
    roots: Roots = Path(root) if isinstance(root, str | Path) else [Path(each) for each in root]
    output = Path(output)
    torch.backends.cudnn.deterministic = True  # the same run gives the same bits on a GPU, too
    # Without `cpu`, processes that torchrun starts on a machine without GPUs do not find each other.
    PartialState(cpu=not torch.accelerator.is_available())
    say = say if PartialState().is_main_process else (lambda _line: None)
    recipe, told = with_labels(recipe, roots), list[str]()

    def tell(line: str) -> None:
        told.append(line)
        say(line)

    try:
        data = load_data(recipe, roots, follow_links=follow_links, say=tell)
        stated = with_stated_labels(recipe, data["train"], tell)
        if stated != recipe:
            recipe, data = stated, load_data(stated, roots, follow_links=follow_links, check_files=False)
    except BadFilesError as error:
        path = output.with_name(f"{output.name}.bad_files.csv")
        if PartialState().is_main_process:
            error.write_list(path)
        raise BadFilesError(f"{error} All are listed in {path}.", error.faults) from error
    about = [f"Labels: {', '.join(recipe.observations)}", *changes_to_initial(recipe), *_seen_by_initial(recipe, data)]
    recipe = recipe.override(image_size=image_size_of(recipe))
    if resume and (output / RECIPE_FILE).is_file():  # checked again once the folder is locked
        expect_same_recipe(recipe, output)
    set_seed(recipe.seed)
    # Before anything is written, so that a run that cannot be trained leaves nothing behind.
    expect_trainable_batches(recipe, build_model(recipe), data["train"])
    with _locked_output(output, recipe, resume):
        for line in about:
            tell(line)

        def say_what_is_new(line: str) -> None:  # each stage, run and fold would repeat these lines
            if line not in told:
                say(line)

        run = partial(train, root=roots, report_to=report_to, follow_links=follow_links, say=say_what_is_new)
        stages = Stages(recipe, output, run, say)
        if recipe.runs > 1:
            return _train_several(stages, data, roots)
        return _train_once(stages, data, roots, resume, report_to, progress)


def _train_once(
    stages: Stages,
    data: datasets.DatasetDict,
    roots: Roots,
    resume: bool,
    report_to: str,
    progress: TrainerCallback | None,
) -> TrainingResult:
    """Train one model by the recipe `stages.recipe`, and complete its model folder `stages.output`.

    `data` holds the splits loaded from `roots`, the folders of the data. With `resume`, training continues from the
    newest intact checkpoint, if there is one. `report_to` is the service that metrics are logged to, or "none".
    `progress` shows the progress; `TrainingProgress` if None.
    """
    recipe, output, say = stages.recipe, stages.output, stages.say
    start = stages.after_first_stage()
    soft_labels, teachers = stages.soft_labels(start, data["train"]), stages.teachers()

    set_seed(recipe.seed)
    model, processor = build_model(start), build_processor(start)
    if recipe.freeze_backbone:
        model.freeze_backbone()
    inputs: dict[str, Any] = {"soft_labels": soft_labels, "teachers": teachers}
    trainer = build_trainer(recipe, model, processor, data, output, **inputs, report_to=report_to, progress=progress)
    judged = _judged_observations(data, recipe, say)
    checkpoint = trainer.newest_intact_checkpoint(say) if resume else None
    if checkpoint and is_finished(Path(checkpoint)):
        say("The run is complete: nothing is left to train.")
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    else:
        trainer.train(resume_from_checkpoint=checkpoint)

    # By step and not by the recorded path, which becomes wrong when the folder is moved.
    is_best = bool(judged) and recipe.checkpoint == "best"
    best_step = (is_best and trainer.state.best_global_step) or trainer.state.global_step
    chosen = output / "checkpoints" / f"checkpoint-{best_step}"
    expect_intact(chosen)
    final = load_model(chosen)
    diverged = f"Training diverged before step {best_step}: lower learning_rate, or set max_grad_norm to 1."
    if not all(parameter.isfinite().all() for parameter in final.parameters()):
        raise RecipeError(diverged)
    if recipe.calibration_folds and recipe.held_out_fold is None:
        calibrate_by_folds(final, data["train"], recipe, data_name(roots), stages.without_fold)
    if recipe.stored_precision == "fp16":
        final.load_state_dict(half_state_dict(final))  # the stored weights, which are evaluated
    # Not by the Trainer, which computes in bf16 or float32 depending on whether it has trained or was resumed.
    try:
        probabilities = predict_dataset(CheXpertClassifier(final.to(trainer.args.device), processor), data["valid"])
    except NotANumberError as error:  # the weights are finite, but too large
        raise RecipeError(diverged) from error
    evaluation = evaluate_predictions(probabilities, data["valid"], final.config)
    if trainer.is_world_process_zero():
        save_trained_folder(
            output,
            final.float().cpu(),
            processor,
            recipe=recipe.to_dict(),
            data=describe_data(data, roots, recipe.observations),
            evaluation=evaluation,
            best_step=best_step,
            assessment=assess_predictions(probabilities, data["valid"], final.config),
        )
        _write_patients(output, data, recipe, was_checkpoint_chosen=is_best)
        if recipe.held_out_fold is None and len(data["train"]) < MIN_IMAGES:
            say(f"No gate is fitted: {len(data['train'])} radiographs are too few; it needs {MIN_IMAGES}.")
        elif recipe.held_out_fold is None:
            fit_folder_gate(output, data["train"], f"{data_name(roots)} (train)")
        write_text(output / "history.json", json.dumps(trainer.state.log_history, indent=1))
        plot_curve(trainer.state.log_history, output / CURVE_FILE, best_step)
        write_checksums(output)
    PartialState().wait_for_everyone()  # the next stage of a larger run reads this folder
    why = "the last one, as the recipe says"
    if recipe.checkpoint == "best":
        why = "the best on these same studies" if judged else "the last one, as no observation can be evaluated on them"
    return TrainingResult(output, evaluation, f"step {best_step}, {why}")


@contextmanager
def _locked_output(output: Path, recipe: Recipe, resume: bool) -> Iterator[None]:
    """Context manager: make and lock the folder `output`, and write the recipe into it.

    A missing or empty folder is always accepted. With `resume`, the folder may also hold a run of the same recipe.
    Without `resume`, it may hold a recipe, but nothing else. In all other cases, RecipeError is raised. Raise
    FolderError if another run writes into the folder.
    """
    if not PartialState().is_main_process:
        PartialState().wait_for_everyone()
        yield
        return
    if output.exists() and not output.is_dir():
        raise RecipeError(f"{output} is a file; expected a folder to write.")
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        names = {path.name for path in output.iterdir()}
        if resume and RECIPE_FILE in names:
            expect_same_recipe(recipe, output)
        elif resume and names:
            raise RecipeError(f"{output} holds no {RECIPE_FILE}: there is no run to resume; choose its folder.")
        elif names - {RECIPE_FILE}:
            raise RecipeError(f"{output} is not empty: resume its run with --resume, or choose another folder.")
        recipe.save(output / RECIPE_FILE)
        PartialState().wait_for_everyone()
        yield


def _seen_by_initial(recipe: Recipe, data: datasets.DatasetDict) -> list[str]:
    """Return a list with a warning if the initial model was trained on patients of the validation split, else `[]`."""
    file = Path(recipe.init) / TRAINING_PATIENTS_FILE
    patients = set(data["valid"]["patient"][:])
    shared = overlapping_patients(file, patients) if file.is_file() else ()
    return [
        f"{len(shared):,} of the {len(patients):,} validation patients are, by their ids, among those that "
        f"{recipe.init} was trained on: metrics on them are optimistic."
    ] * bool(shared)


def _write_patients(folder: Path, data: datasets.DatasetDict, recipe: Recipe, *, was_checkpoint_chosen: bool) -> None:
    """Write hashed ids of the training patients, and of the validation patients if a checkpoint was chosen on them.

    If the initial model is a local folder, the ids in its files are added. A later evaluation reads the written files
    to detect that some of its patients were used in training, or to choose the checkpoint.
    """
    chosen_on = data["valid"]["patient"][:] if was_checkpoint_chosen else []
    for file, patients in ((TRAINING_PATIENTS_FILE, data["train"]["patient"][:]), (SELECTION_PATIENTS_FILE, chosen_on)):
        earlier = Path(recipe.init) / file
        if patients or earlier.is_file():
            write_patient_hashes(folder / file, patients, earlier)


def _train_several(stages: Stages, data: datasets.DatasetDict, root: Roots) -> TrainingResult:
    """Train `recipe.runs` models with successive seeds; write the ensemble of all runs' best (or last) checkpoints.

    `stages` holds the recipe, `data` the splits loaded from `root`, the folder or folders of the data.
    """
    recipe, output = stages.recipe, stages.output
    is_best = recipe.checkpoint == "best" and bool(_judged_observations(data, recipe))
    members: list[Path] = []
    for number in range(recipe.runs):
        stages.say(f"Run {number + 1} of {recipe.runs}.")
        folder = stages.trained(recipe.override(runs=1, seed=recipe.seed + number), f"run-{number + 1}")
        checkpoints = folder / "checkpoints"
        best = best_checkpoints(checkpoints, recipe.keep_checkpoints)
        members += best if is_best else checkpoints_by_step(checkpoints)[-1:]
    for member in members:
        expect_intact(member)
    if PartialState().is_main_process:
        write_ensemble(output, members)
        copies = [Path(member) for member in ensemble_members(output)]
        for gate in folder.glob(GATE_FILE):  # of the last run; all runs have the same training images
            shutil.copy(gate, copies[0])
        _write_patients(output, data, recipe, was_checkpoint_chosen=is_best)
        for copy in copies:  # a member may be calibrated and evaluated alone
            _write_patients(copy, data, recipe, was_checkpoint_chosen=is_best)
            write_checksums(copy)
    PartialState().wait_for_everyone()
    evaluation = evaluate_dataset(CheXpertClassifier.from_pretrained(output), data["valid"])
    if PartialState().is_main_process:
        described = describe_data(data, root, recipe.observations)
        write_json(output / EVALUATION_FILE, evaluation_record(evaluation, described, was_chosen_on_it=is_best))
    why = "the best on these same studies" if is_best else "the last of each run"
    return TrainingResult(output, evaluation, f"the mean of {len(members)} checkpoints, {why}")


def _judged_observations(
    data: datasets.DatasetDict, recipe: Recipe, say: Callable[[str], None] = lambda _line: None
) -> tuple[str, ...]:
    """Return the observations that have enough validation studies to be evaluated.

    Enough are `metrics.MIN_STUDIES_PER_CLASS` positive studies and as many negative ones. `say` is called with a line
    on the numbers of images, validation studies and returned observations, and with a warning if no observation is
    returned.
    """
    valid = data["valid"]
    truth, studies = per_study(split_labels(valid, recipe.blank_labels), valid["study"][:])
    judged = judged_observations(truth, recipe.observations)
    say(
        f"Training on {len(data['train']):,} images, validating on {len(valid):,} images of {len(studies):,} studies, "
        f"on which {len(judged)} of {len(recipe.observations)} observations can be evaluated."
    )
    if not judged:
        say(
            "No observation has enough positive and negative validation studies: the last checkpoint will be used. "
            "More are held out by a larger --valid-fraction, or chosen in a column split with train, valid or test."
        )
    return judged
