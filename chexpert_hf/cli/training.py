"""From data to a model folder: phantom, train, quickstart."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from typer import Argument, Option, echo

from chexpert_hf.cli import options
from chexpert_hf.cli.app import app, progress_bar, quiet_transformers, say_on_stderr, show
from chexpert_hf.cli.predicting import demo
from chexpert_hf.errors import InputError
from chexpert_hf.training.recipe import Recipe

AUGMENTATION = {"rotation_degrees": 10.0, "translation": 0.05, "scaling": 0.1, "contrast": 0.2}


@app.command()
def phantom(
    output: Annotated[Path, Argument(help="Folder to write; must be new or empty.")],
    studies: Annotated[int, Option(min=1, help="Number of studies.")] = 200,
    seed: Annotated[int, Option(min=0, help="The same seed writes the same files.")] = 0,
    valid_fraction: Annotated[
        float, Option(min=0.001, max=0.999, help="Share of the studies in valid.csv; the others are in train.csv.")
    ] = 0.2,
) -> None:
    """Write synthetic radiographs in CheXpert layout, with exact masks of every planted finding."""
    from chexpert_hf.phantoms import write_phantoms

    with progress_bar(studies, "studies") as bar:
        write_phantoms(
            output,
            num_studies=studies,
            seed=seed,
            valid_fraction=valid_fraction,
            workers=os.cpu_count() or 1,
            progress=lambda done: bar.update(done - bar.n),
        )
    echo(f"Wrote {studies} synthetic studies to {output}: train.csv, valid.csv, truth.csv, masks/.")


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, in place of its `**flags`, an option for each recipe field that has one; None if not given."""
    signature, hints = inspect.signature(command), get_type_hints(Recipe)
    added = []
    for item in (item for item in fields(Recipe) if item.metadata.get("flag")):
        kinds = get_args(hints[item.name]) or (hints[item.name],)
        kind = kinds[0] if kinds[0] in (bool, int, float) else str
        names, text, default = f"--{item.name.replace('_', '-')}", item.metadata["text"], item.default
        if kind is bool:
            off = item.metadata["flag"]
            names += f"/{off if isinstance(off, str) else names.replace('--', '--no-', 1)}"
        elif isinstance(default, str):
            text += f" \\[{default}]"  # escaped, since the help text is markup
        elif isinstance(default, int | float):
            text += f" [{default:g}]"
        option = Annotated[kind | None, Option(names, help=text)]  # type: ignore[valid-type]
        added.append(
            inspect.Parameter(item.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=option)
        )
    given = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*given, *added])  # type: ignore[attr-defined]
    return command


@app.command()
@with_recipe_options
def train(
    data: options.Data,
    output: Annotated[Path, Option("--output", "-o", help="Becomes the model folder.")],
    recipe: Annotated[
        Path | None, Option(help="YAML file, or the name of one in train/recipes; flags override it.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue from the newest intact checkpoint.")] = False,
    augment: Annotated[
        bool, Option("--augment", help="Rotation 10 degrees, shift 5 %, size 10 %, contrast 20 %; no flip.")
    ] = False,
    follow_links: options.FollowLinks = True,
    report_to: Annotated[str, Option(help="none, tensorboard or trackio (installed separately).")] = "none",
    push_to_hub: Annotated[
        str | None, Option(metavar="REPO_ID", help="At the end, send the model folder to the Hub, as push does.")
    ] = None,
    private: Annotated[bool, Option("--private", help="With --push-to-hub: a new repository is private.")] = False,
    as_json: options.AsJson = False,
    **flags: Any,
) -> None:
    """Train a model on a CheXpert folder. The defaults are the CheXpert paper's recipe."""
    from accelerate import PartialState

    from chexpert_hf.evaluation.report.report import as_table
    from chexpert_hf.training.run import train as run

    chosen = _recipe(recipe, flags, augment)
    if push_to_hub is not None:
        _expect_that_it_can_be_pushed(push_to_hub, chosen)
    quiet_transformers()
    result = run(chosen, data, output, resume=resume, report_to=report_to, follow_links=follow_links, say=say_on_stderr)
    if not PartialState().is_main_process:
        return
    show(
        {"folder": str(result.folder), "chosen": result.chosen, **result.evaluation.to_dict()},
        f"{as_table(result.evaluation)}\nThe model folder {result.folder} holds {result.chosen}.",
        as_json,
    )
    if push_to_hub is not None:
        _push(output, push_to_hub, private=private)


def _recipe(file: Path | None, flags: Mapping[str, Any], augment: bool) -> Recipe:
    """The recipe of a file, or the default one, with the values that were given as options."""
    given = {name: value for name, value in flags.items() if value is not None}
    if "observations" in given:
        given["observations"] = tuple(name.strip() for name in given["observations"].split(","))
    return (Recipe.load(file) if file else Recipe()).override(**given, **(AUGMENTATION if augment else {}))


def _expect_that_it_can_be_pushed(repo_id: str, recipe: Recipe) -> None:
    """Checks before the training what a push needs after it."""
    from huggingface_hub import HfApi

    from chexpert_hf.models.repositories import expect_repo_id, expect_token

    expect_repo_id(repo_id)
    expect_token(HfApi())
    if recipe.runs > 1:
        raise InputError(
            "Several runs make an ensemble, which cannot be loaded from a repository: push its runs later."
        )


def _push(folder: Path, repo_id: str, *, private: bool) -> None:
    from chexpert_hf.publishing.publish import push_model

    try:
        done = push_model(folder, repo_id, private=private)
    except InputError as error:
        command = f"chexpert-hf push {folder} {repo_id}{' --private' if private else ''}"
        raise InputError(f"{error} The model folder {folder} is complete; send it later: {command}") from error
    say_on_stderr(f"Pushed to {repo_id}, commit {str(done.commit)[:12]}: {done.url}")


@app.command()
def quickstart(
    output: Annotated[Path, Option("--output", "-o", help="Folder for everything; must be new or empty.")] = Path(
        "chexpert-quickstart"
    ),
    serve: Annotated[bool, Option("--serve/--no-serve", help="Open the page at the end.")] = True,
) -> None:
    """Everything once, without data or network: phantoms, training, evaluation, overlays, model folder, page."""
    from chexpert_hf.quickstart import run_quickstart

    quiet_transformers()
    model = run_quickstart(output, say=echo)
    if serve:
        demo([str(model)])
