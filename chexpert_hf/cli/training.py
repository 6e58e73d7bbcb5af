"""From data to a model folder: phantom, train, quickstart."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexpert_hf.cli.app import AsJson, Data, FollowLinks, app, progress_bar, quiet_transformers, say_on_stderr
from chexpert_hf.cli.predicting import demo
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.training.recipe import Recipe


@app.command()
def phantom(
    output: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same files.")] = 0,
    valid_fraction: Annotated[
        float,
        typer.Option(min=0.001, max=0.999, help="Share of the studies in valid.csv; the others are in train.csv."),
    ] = 0.2,
) -> None:
    """Write synthetic radiographs in CheXpert layout, with exact masks of every planted finding."""
    from chexpert_hf.phantoms import write_phantoms

    try:
        with progress_bar(studies, "studies") as bar:
            write_phantoms(
                output,
                num_studies=studies,
                seed=seed,
                valid_fraction=valid_fraction,
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
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest intact checkpoint.")] = False,
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
    drop_last: Annotated[
        bool | None, typer.Option("--drop-last/--no-drop-last", help="Skip the last batch if it is smaller.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, more computation."),
    ] = None,
    sync_batch_norm: Annotated[
        bool | None,
        typer.Option("--sync-batch-norm/--no-sync-batch-norm", help="BatchNorm over all processes; GPUs only."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam, at its highest. [1e-4]")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine. [constant]")] = None,
    warmup: Annotated[float | None, typer.Option(help="Share of the steps that warm up. [0]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW. [0]")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16. [fp32]")] = None,
    compile_model: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images. [2]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random. [0]")] = None,
    follow_links: FollowLinks = True,
    report_to: Annotated[str, typer.Option(help="none, tensorboard or trackio (installed separately).")] = "none",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="At the end, send the model folder to the Hub, as push does.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push-to-hub: a new repository is private.")
    ] = False,
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
        "drop_last": drop_last,
        "gradient_checkpointing": gradient_checkpointing,
        "sync_batch_norm": sync_batch_norm,
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
    if push_to_hub is not None:
        _expect_that_it_can_be_pushed(push_to_hub, chosen)
    _train(chosen, data, output, resume=resume, report_to=report_to, follow_links=follow_links, as_json=as_json)
    if push_to_hub is not None:
        _push(output, push_to_hub, private=private)


def _expect_that_it_can_be_pushed(repo_id: str, recipe: "Recipe") -> None:
    """Before the training, not after it."""
    from huggingface_hub import HfApi

    from chexpert_hf.models.repositories import expect_repo_id, expect_token

    expect_repo_id(repo_id)
    expect_token(HfApi())
    if recipe.runs > 1:
        raise InputError(
            "Several runs make an ensemble, which cannot be loaded from a repository: push its runs later."
        )


def _push(folder: Path, repo_id: str, *, private: bool) -> None:
    from accelerate import PartialState

    from chexpert_hf.publishing.publish import push_model

    if not PartialState().is_main_process:
        return
    try:
        done = push_model(folder, repo_id, private=private)
    except InputError as error:
        command = f"chexpert-hf push {folder} {repo_id}{' --private' if private else ''}"
        raise InputError(f"{error} The model folder {folder} is complete; send it later: {command}") from error
    typer.echo(f"Pushed to {repo_id}, commit {str(done.commit)[:12]}: {done.url}", err=True)


def _train(
    recipe: "Recipe", data: Path, output: Path, *, resume: bool, report_to: str, follow_links: bool, as_json: bool
) -> None:
    from accelerate import PartialState

    from chexpert_hf.evaluation.report.report import as_table
    from chexpert_hf.training.run import train as run

    quiet_transformers()
    result = run(recipe, data, output, resume=resume, report_to=report_to, follow_links=follow_links, say=say_on_stderr)
    if not PartialState().is_main_process:
        return
    if as_json:
        typer.echo(json.dumps({"folder": str(result.folder), "chosen": result.chosen, **result.evaluation.to_dict()}))
        return
    typer.echo(as_table(result.evaluation))
    typer.echo(f"The model folder {result.folder} holds {result.chosen}.")


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything; must be new or empty.")] = Path(
        "chexpert-quickstart"
    ),
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Open the page at the end.")] = True,
) -> None:
    """Everything once, without data or network: phantoms, training, evaluation, overlays, model folder, page."""
    from chexpert_hf.quickstart import run_quickstart

    quiet_transformers()
    model = run_quickstart(output, say=typer.echo)
    if serve:
        demo([str(model)])


def _split_names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))
