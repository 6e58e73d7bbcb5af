"""The command line: one thin command per capability. Heavy imports happen inside the commands."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from chexpert_hf import __version__
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

    from chexpert_hf.inference.classifier import CheXpertClassifier
    from chexpert_hf.training.recipe import Recipe

DISCLAIMER = "Research software, not a medical device."

app = typer.Typer(
    name="chexpert-hf",
    help=f"DenseNet121 for chest radiographs: train, evaluate, predict, serve. {DISCLAIMER}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Split(str, Enum):
    """The splits of a CheXpert folder."""

    TRAIN = "train"
    VALID = "valid"
    TEST = "test"


class Aggregation(str, Enum):
    """How the views of a study become one score."""

    MAXIMUM = "maximum"
    MEAN = "mean"


class CalibrationMethod(str, Enum):
    """How a model is calibrated."""

    PLATT = "platt"
    TEMPERATURE = "temperature"


Data = Annotated[Path, typer.Argument(help="CheXpert folder: train.csv, valid.csv and the images.")]
Models = Annotated[
    list[str],
    typer.Option("--model", "-m", help="Model folder, or repository id on the Hub; several make an ensemble."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit code 2."""
    try:
        app()
    except InputError as error:
        # The last line, for what a data loader's worker raised comes with the worker's traceback in front.
        typer.echo(f"Error: {str(error).strip().splitlines()[-1]}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"chexpert-hf {__version__}")
        raise typer.Exit


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same files.")] = 0,
) -> None:
    """Write synthetic radiographs in CheXpert layout, with exact masks of every planted finding."""
    from chexpert_hf.data.phantom import write_phantoms

    try:
        with _progress(studies, "studies") as bar:
            write_phantoms(
                output,
                num_studies=studies,
                seed=seed,
                workers=os.cpu_count() or 1,
                progress=lambda done: bar.update(done - bar.n),
            )
    except FileExistsError as error:
        raise InputError(str(error)) from error
    typer.echo(f"Wrote {studies} synthetic studies to {output}: train.csv, valid.csv, truth.csv, masks/.")


@app.command()
def train(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Becomes the model folder.")],
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file, or the name of one in train/recipes; flags override it.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest complete checkpoint.")] = False,
    init: Annotated[str | None, typer.Option(help="imagenet, random, or a model to fine-tune. [imagenet]")] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Uncertain labels: u-ignore, u-zeros, u-ones, u-self-trained, u-multiclass, u-zeros+lsr, u-ones+lsr; "
            "'Edema=u-ones,...' by observation; or paper. [u-ones]"
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="For u-self-trained: a model or a soft_labels.csv, to skip the first stage.")
    ] = None,
    conditional_epochs: Annotated[
        float | None, typer.Option(help="First learn children in the label hierarchy where parents are positive. [0]")
    ] = None,
    unconditional: Annotated[
        bool | None,
        typer.Option("--unconditional/--no-unconditional", help="Multiply along the label hierarchy."),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="cross-entropy or auc-margin. [cross-entropy]")] = None,
    class_weights: Annotated[
        bool | None,
        typer.Option("--class-weights/--no-class-weights", help="Weight positive labels up."),
    ] = None,
    runs: Annotated[int | None, typer.Option(help="Independent runs; several make an ensemble. [1]")] = None,
    blank_labels: Annotated[str | None, typer.Option(help="Blank labels: negative or unknown. [negative]")] = None,
    observations: Annotated[str | None, typer.Option(help="Comma-separated; all 14 if not given.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width in pixels. [320]")] = None,
    num_channels: Annotated[int | None, typer.Option(help="3 or 1. [3]")] = None,
    head_hidden_size: Annotated[int | None, typer.Option(help="Hidden layer in the head. [none]")] = None,
    freeze_backbone: Annotated[
        bool | None,
        typer.Option("--freeze-backbone/--no-freeze-backbone", help="Train the head only."),
    ] = None,
    frontal_only: Annotated[bool | None, typer.Option("--frontal-only/--all-views", help="No lateral views.")] = None,
    num_patients: Annotated[int | None, typer.Option(help="Train on a seeded subset of the patients.")] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Rotation 10 degrees, shift 5 %, size 10 %, contrast 20 %; no flip.")
    ] = False,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data. [3]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step. [16]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam, at its highest. [1e-4]")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine. [constant]")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps that warm up. [0]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW. [0]")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16. [fp32]")] = None,
    compile_model: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images. [2]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [0]")] = None,
    report_to: Annotated[str, typer.Option(help="none, tensorboard or trackio (installed separately).")] = "none",
    as_json: AsJson = False,
) -> None:
    """Train a model on a CheXpert folder. The defaults are the CheXpert paper's recipe."""
    from chexpert_hf.training.recipe import Recipe

    chosen = Recipe.load(recipe) if recipe else Recipe()
    flags = {
        "init": init,
        "policy": policy,
        "teacher": teacher,
        "conditional_epochs": conditional_epochs,
        "unconditional": unconditional,
        "loss": loss,
        "class_weights": class_weights,
        "runs": runs,
        "blank_labels": blank_labels,
        "observations": _split_names(observations),
        "image_size": image_size,
        "num_channels": num_channels,
        "head_hidden_size": head_hidden_size,
        "freeze_backbone": freeze_backbone,
        "frontal_only": frontal_only,
        "num_patients": num_patients,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": schedule,
        "warmup": warmup,
        "weight_decay": weight_decay,
        "precision": precision,
        "compile": compile_model,
        "workers": workers,
        "seed": seed,
    }
    if augment:
        flags |= {"rotation_degrees": 10.0, "translation": 0.05, "scaling": 0.1, "contrast": 0.2}
    chosen = chosen.override(**{name: value for name, value in flags.items() if value is not None})
    _train(chosen, data, output, resume=resume, report_to=report_to, as_json=as_json)


def _train(recipe: "Recipe", data: Path, output: Path, *, resume: bool, report_to: str, as_json: bool) -> None:
    from chexpert_hf.evaluation.report import as_table
    from chexpert_hf.training.run import train as run

    _quiet_transformers()
    result = run(recipe, data, output, resume=resume, report_to=report_to, say=lambda line: typer.echo(line, err=True))
    if as_json:
        typer.echo(json.dumps({"folder": str(result.folder), "chosen": result.chosen, **result.evaluation.to_dict()}))
        return
    typer.echo(as_table(result.evaluation))
    typer.echo(f"The model folder {result.folder} holds {result.chosen}.")


@app.command()
def evaluate(
    data: Data,
    model: Models,
    split: Annotated[Split, typer.Option(help="Which split.")] = Split.VALID,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the full report: HTML, Markdown, JSON, CSV, plots."),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average several models; without it they are compared.")
    ] = False,
    aggregation: Annotated[Aggregation, typer.Option(help="Over the views of a study.")] = Aggregation.MAXIMUM,
    replicates: Annotated[int, typer.Option(min=100, help="Of the patient bootstrap.")] = 1000,
    allow_calibration_patients: Annotated[
        bool, typer.Option("--allow-calibration-patients", help="Also on patients that calibration saw; it is said.")
    ] = False,
    thumbnails: Annotated[
        int, typer.Option(min=0, help="Worst errors of each kind to show for each observation, with their maps.")
    ] = 0,
    valid_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Held-out share of the patients where there is no valid.csv.")
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    """AUROC of each observation, per study, on a split of a CheXpert folder; with --output a full report."""
    from chexpert_hf.data.chexpert import load_chexpert
    from chexpert_hf.evaluation.report import as_table, write_report
    from chexpert_hf.inference.dataset import evaluate_dataset
    from chexpert_hf.inference.reporting import assess_dataset, patient_warnings, refuse_calibration_patients

    classifiers = (
        {"ensemble": _load_classifier(model)}
        if ensemble
        else {name: _load_classifier([path]) for name, path in _names_of(model).items()}
    )
    first = next(iter(classifiers.values()))
    for name, other in classifiers.items():
        if other.observations != first.observations:
            raise InputError(
                f"{name} judges other observations than {next(iter(classifiers))}; compare like with like."
            )
    dataset = load_chexpert(data, splits=[split.value], observations=first.observations, valid_fraction=valid_fraction)[
        split.value
    ]
    if not allow_calibration_patients:
        refuse_calibration_patients(model, dataset["patient"][:])
    warnings = patient_warnings(model, dataset["patient"][:])
    with _progress(len(dataset) * len(classifiers), "images") as bar:
        if output is None:
            evaluations = {name: evaluate_dataset(one, dataset, bar.update) for name, one in classifiers.items()}
        else:
            report = assess_dataset(
                classifiers,
                dataset,
                title=f"{data.resolve().name}, {split.value}",
                aggregation=aggregation.value,
                replicates=replicates,
                num_thumbnails=thumbnails,
                warnings=warnings,
                progress=bar.update,
            )
    for warning in warnings:
        typer.echo(f"Note: {warning}", err=True)
    if output is not None:
        write_report(output, report)
        typer.echo(json.dumps(report.metrics) if as_json else (output / "report.md").read_text(encoding="utf-8"))
        typer.echo(f"The report is in {output}: report.html, report.md, metrics.json, predictions.", err=True)
    elif as_json:
        values = {name: evaluation.to_dict() for name, evaluation in evaluations.items()}
        typer.echo(json.dumps(next(iter(values.values())) if len(values) == 1 else values))
    else:
        for name, evaluation in evaluations.items():
            typer.echo(f"{name}\n{as_table(evaluation)}" if len(evaluations) > 1 else as_table(evaluation))


@app.command()
def calibrate(
    data: Data,
    model: Annotated[Path, typer.Option("--model", "-m", help="Model folder; it stays as it is.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Becomes the calibrated model folder; must be new.")],
    split: Annotated[Split, typer.Option(help="Fitted on this split.")] = Split.VALID,
    valid_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Held-out share of the patients where there is no valid.csv.")
    ] = 0.1,
    method: Annotated[
        CalibrationMethod, typer.Option(help="A line for each observation's logit, or one temperature for all.")
    ] = CalibrationMethod.PLATT,
    operating_points: Annotated[
        str | None, typer.Option(help="Also choose them: youden, sensitivity=.9 or ppv=.5.")
    ] = None,
    other_people: Annotated[
        bool, typer.Option("--other-people", help="Ids that occur in training too are of other people.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Calibrate a model on a split: probabilities that mean what they say, in the weights of a new model folder."""
    from datetime import date

    from chexpert_hf.data.chexpert import load_chexpert
    from chexpert_hf.evaluation.calibration import Method
    from chexpert_hf.evaluation.operating_points import OperatingRule
    from chexpert_hf.hub.folder import refresh_folder
    from chexpert_hf.inference.calibrate import Origin, calibrate_folder
    from chexpert_hf.inference.classifier import load_model

    rule = OperatingRule.parse(operating_points) if operating_points else None
    _quiet_transformers()
    dataset = load_chexpert(
        data,
        splits=[split.value],
        observations=load_model(model).config.observations,
        valid_fraction=valid_fraction,
    )[split.value]
    origin = Origin(data=data.resolve().name, split=split.value, date=date.today().isoformat())
    with _progress(len(dataset), "images") as bar:
        result = calibrate_folder(
            model,
            output,
            dataset,
            origin,
            method=Method(method.value),
            rule=rule,
            are_other_people=other_people,
            progress=bar.update,
        )
    refresh_folder(output)
    if as_json:
        typer.echo(json.dumps({"folder": str(output), **result.to_dict()}))
        return
    typer.echo(result.as_table())
    typer.echo(
        f"Fitted on {result.num_studies:,} studies of {origin.data} ({origin.split}); figures on these same studies "
        f"would be optimistic. The calibrated model folder is {output}."
    )


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Radiographs, or folders of them.")],
    model: Models,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV file; standard output if none.")] = None,
    saliency: Annotated[Path | None, typer.Option(help="Folder for overlays, a PNG per observation.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Radiographs at once.")] = 16,
) -> None:
    """Score radiographs: a CSV with the probability of each observation. Exit code 1 if a file could not be read."""
    from chexpert_hf.inference.files import find_radiographs, overlay_folders, score_files, write_overlays

    if saliency is not None and saliency.exists() and not saliency.is_dir():
        raise InputError(f"{saliency} is a file; expected a folder for the overlays.")
    files = find_radiographs(paths)
    classifier = _load_classifier(model)
    folders = overlay_folders(files, saliency) if saliency else {}
    failed = 0
    with _open_output(output) as stream, _progress(len(files), "images") as bar:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", *classifier.observations])
        for result in score_files(classifier, files, saliency=saliency is not None, batch_size=batch_size):
            bar.update()
            if result.prediction is None:
                failed += 1
                typer.echo(f"{result.path}: {result.error}", err=True)
                continue
            writer.writerow([result.path, *(f"{value:.6f}" for value in result.prediction.probabilities.values())])
            if saliency:
                write_overlays(result, folders[result.path], classifier.observations)
    scored = len(files) - failed
    where = f" Scores in {output}." if output else ""
    typer.echo(f"{scored} of {len(files)} radiographs scored.{where} {DISCLAIMER}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    model: Models,
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 7860 on.")] = None,
) -> None:
    """Open the page: upload a radiograph, see scores and maps."""
    from chexpert_hf.demo import build_demo, launch

    launch(build_demo(_load_classifier(model)), host=host, port=port)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything; must be new or empty.")] = Path(
        "chexpert-quickstart"
    ),
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the page at the end.")] = True,
) -> None:
    """Everything once, without data or network: phantoms, training, evaluation, overlays, model folder, page."""
    from chexpert_hf.quickstart import run_quickstart

    _quiet_transformers()
    model = run_quickstart(output, say=typer.echo)
    if serve:
        demo([str(model)])


def _names_of(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model: its folder's, or the whole path where two folders have one name."""
    short = [Path(model).name or model for model in models]
    return {name if short.count(name) == 1 else model: model for name, model in zip(short, models, strict=True)}


def _load_classifier(models: Sequence[str]) -> "CheXpertClassifier":
    from chexpert_hf.inference.classifier import CheXpertClassifier

    _quiet_transformers()
    return CheXpertClassifier.from_pretrained(models)


def _quiet_transformers() -> None:
    """No bar for each file of weights that is read or written."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _split_names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


@contextmanager
def _open_output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error
    with stream:
        yield stream


@contextmanager
def _progress(total: int, unit: str) -> "Iterator[tqdm]":
    """A progress bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None, dynamic_ncols=True, leave=False) as bar:
        yield bar


if __name__ == "__main__":
    main()
