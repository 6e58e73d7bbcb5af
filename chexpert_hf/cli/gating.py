"""Is it a chest radiograph? gate."""

from pathlib import Path
from typing import Annotated

from typer import Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import app, load_split, progress_bar, quiet_transformers, show


@app.command()
def gate(
    data: options.Data,
    model: Annotated[Path, Option("--model", "-m", help="Model folder; gate.safetensors is written into it.")],
    split: Annotated[options.Split, Option(help="Whose radiographs it is fitted on: those of training.")] = "train",
    valid_fraction: options.ValidFraction = 0.1,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
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
        name = f"{data.resolve().name} ({split})"
        fitted = fit_folder_gate(model, dataset, name, bar.update)
    show(
        {"file": str(model / GATE_FILE), "n": fitted.num_images, "limit": fitted.limit},
        f"Fitted on {fitted.num_images:,} radiographs of {fitted.data_name}; the limit of the distance is "
        f"{fitted.limit:.2f}, which 99.5 % of unseen radiographs like these should stay below. "
        f"Written: {model / GATE_FILE}",
        as_json,
    )
