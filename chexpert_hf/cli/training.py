"""Commands that train models, and write data to try it on: train, phantom."""

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from typer import Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import INSPECT, MODEL, app, hide_bars, progress_bar, say, show
from chexpert_hf.errors import InputError
from chexpert_hf.files import require_empty
from chexpert_hf.machine import num_processors
from chexpert_hf.training.recipe import Recipe

AUGMENTATION = {"rotation_degrees": 10.0, "translation": 0.05, "scaling": 0.1, "contrast": 0.2}


_PANELS = {
    "observations": "Labels",
    "init": "Network",
    "image_size": "Images",
    "epochs": "Optimisation",
    "runs": "Runs and machine",
}
"""First recipe field of each panel in `train --help` -> the panel's title; the following fields are in it, too."""


def with_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's `**flags` by an option for each recipe field that has a flag.

    The command gets the options as keyword arguments, None for those that are not given.
    """
    own, hints, added, panel = signature(command), get_type_hints(Recipe), [], ""
    for item in (item for item in fields(Recipe) if item.metadata.get("flag")):
        first_type = (get_args(hints[item.name]) or (hints[item.name],))[0]
        kind = first_type if first_type in (bool, int, float) else str
        names, text, default = f"--{item.name.replace('_', '-')}", item.metadata["text"], item.default
        if kind is bool:
            off = item.metadata["flag"]
            names += f"/{off if isinstance(off, str) else names.replace('--', '--no-', 1)}"
        elif isinstance(default, str):
            text += f" \\[{default}]"  # escaped, since the help text is markup
        elif isinstance(default, int | float):
            text += f" [{default:g}]"
        panel = _PANELS.get(item.name, panel)
        settings = {"help": text, "rich_help_panel": panel}
        option: Any = Annotated[kind | None, Option(names, **settings)]
        if item.name == "workers":
            option = Annotated[Any, options.workers(**settings)]
        added.append(Parameter(item.name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=option))
    given = [one for one in own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    command.__signature__ = own.replace(parameters=[*given, *added])  # type: ignore[attr-defined]
    return command


@app.command(rich_help_panel=MODEL, epilog="Example: chexpert-hf train MY-DATA --output runs/mine --init nih")
@with_recipe_options
def train(
    data: options.SeveralData,
    output: Annotated[Path, options.output("New or empty folder for the model; with --resume that of the run.")],
    recipe: Annotated[Path | None, Option(help="YAML file, or name in train/recipes; flags override it.")] = None,
    resume: Annotated[
        bool, Option("--resume", help="Resume an interrupted run, from its newest intact checkpoint.")
    ] = False,
    augment: Annotated[
        bool, Option("--augment", help="Rotation 10 degrees, shift 5 %, size 10 %, contrast 20 %; no flip.")
    ] = False,
    follow_links: options.FollowLinks = True,
    report_to: Annotated[str, Option(help="none, tensorboard or trackio (installed separately).")] = "none",
    push_to_hub: Annotated[str | None, Option(metavar="REPO_ID", help="Push the folder to the Hub at the end.")] = None,
    private: Annotated[bool, Option("--private", help="With --push-to-hub: make a new repository private.")] = False,
    as_json: options.AsJson = False,
    **flags: Any,
) -> None:
    """Train a model on a data set. The defaults are the CheXpert paper's recipe."""
    if not resume:
        require_empty(output)
    if flags["init"] not in (None, "imagenet", "random"):
        options.existing_model(flags["init"])

    from accelerate import PartialState
    from huggingface_hub import HfApi

    from chexpert_hf.evaluation.report.report import as_table
    from chexpert_hf.models.repositories import expect_repo_id, expect_token
    from chexpert_hf.publishing.publish import push_model
    from chexpert_hf.training.run import train as run

    given = {name: value for name, value in flags.items() if value is not None}
    if "observations" in given:
        given["observations"] = tuple(name.strip() for name in given["observations"].split(","))
    if "labels" in given and "observations" not in given:
        given |= {"observations": (), "label_set": {}}  # not those of the recipe
    chosen = (Recipe.load(recipe) if recipe else Recipe()).override(**given, **(AUGMENTATION if augment else {}))
    if push_to_hub is not None:
        expect_repo_id(push_to_hub)
        expect_token(HfApi())
        if chosen.runs > 1:
            raise InputError(
                "Several runs make an ensemble, which cannot be loaded from a repository: push its runs later."
            )
    hide_bars()
    result = run(
        chosen,
        data,
        output,
        resume=resume,
        report_to=report_to,
        follow_links=follow_links,
        say=say,
    )
    if not PartialState().is_main_process:
        return
    show(
        {"folder": str(result.folder), "chosen": result.chosen, **result.evaluation.to_dict()},
        f"{as_table(result.evaluation)}\nThe model folder {result.folder} holds {result.chosen}.",
        as_json,
    )
    if push_to_hub is None:
        return
    try:
        done = push_model(output, push_to_hub, private=private)
    except InputError as error:
        command = f"chexpert-hf push {push_to_hub} --model {output}{' --private' if private else ''}"
        raise InputError(f"{error} The model folder {output} is complete; send it later: {command}") from error
    say(f"Pushed to {push_to_hub}, commit {str(done.commit)[:12]}: {done.url}")


@app.command(rich_help_panel=INSPECT, epilog="Example: chexpert-hf phantom --output phantoms --studies 300")
def phantom(
    output: Annotated[Path, options.new_folder("New or empty folder for the data set.")],
    studies: Annotated[int, Option(min=1, help="Number of studies.")] = 200,
    seed: Annotated[int, Option(min=0, help="The same seed writes the same files.")] = 0,
    valid_fraction: Annotated[float, Option(min=0.001, max=0.999, help="Share of the studies in valid.csv.")] = 0.2,
    as_json: options.AsJson = False,
) -> None:
    """Write synthetic radiographs in CheXpert layout, with exact masks of every planted finding."""
    from chexpert_hf.phantoms import write_phantoms

    with progress_bar(studies, "studies") as bar:
        numbers = {"num_studies": studies, "seed": seed, "workers": num_processors()}
        write_phantoms(output, **numbers, valid_fraction=valid_fraction, progress=lambda done: bar.update(done - bar.n))
    text = f"Wrote {studies} synthetic studies to {output}: train.csv, valid.csv, truth.csv, masks/."
    show({"folder": str(output), "studies": studies, "seed": seed}, text, as_json)
