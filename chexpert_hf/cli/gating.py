"""Is it a chest radiograph? gate."""

import json
from pathlib import Path
from typing import Annotated

import typer

from chexpert_hf.cli.app import AsJson, Data, FollowLinks, Split, app, load_split, progress_bar, quiet_transformers


@app.command()
def gate(
    data: Data,
    model: Annotated[Path, typer.Option("--model", "-m", help="Model folder; gate.safetensors is written into it.")],
    split: Annotated[Split, typer.Option(help="Whose radiographs it is fitted on: those of training.")] = Split.TRAIN,
    valid_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Held-out share of the patients where there is no valid.csv.")
    ] = 0.1,
    follow_links: FollowLinks = True,
    as_json: AsJson = False,
) -> None:
    """Fit what tells a chest radiograph from any other image, on a model's training radiographs."""
    from chexpert_hf.errors import ModelFolderError
    from chexpert_hf.gate import GATE_FILE
    from chexpert_hf.gate.fit import MAX_IMAGES, fit_folder_gate
    from chexpert_hf.models.loading import load_model

    if not model.is_dir():
        raise ModelFolderError(f"{model} is no folder; expected that of a model, since {GATE_FILE} is written into it.")
    quiet_transformers()
    observations = load_model(model).config.observations
    dataset = load_split(data, split, observations, follow_links=follow_links, valid_fraction=valid_fraction)
    with progress_bar(min(len(dataset), MAX_IMAGES), "images") as bar:
        name = f"{data.resolve().name} ({split.value})"
        fitted = fit_folder_gate(model, dataset, name, bar.update)
    if as_json:
        typer.echo(json.dumps({"file": str(model / GATE_FILE), "n": fitted.num_images, "limit": fitted.limit}))
        return
    typer.echo(
        f"Fitted on {fitted.num_images:,} radiographs of {fitted.data_name}; the limit of the distance is "
        f"{fitted.limit:.2f}, which 99.5 % of unseen radiographs like these should stay below. "
        f"Written: {model / GATE_FILE}"
    )
