"""Models that others trained: import."""

from pathlib import Path
from typing import Annotated

import typer

from chexpert_hf.cli import options
from chexpert_hf.cli.app import app, quiet_transformers, show


@app.command("import")
def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            help="torchvision (ImageNet, with a new head), torchxrayvision:densenet121-res224-chex (or -all, -nih, "
            "-pc, -mimic_nb, -mimic_ch, -rsna), stanford:FILE, student:FILE or timm:FILE_OR_FOLDER."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for the model.")],
    file: Annotated[
        Path | None, typer.Option(help="The weights, where SOURCE does not name them: nothing is downloaded then.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="What the outputs are, in their order, where the source does not say; an empty name drops one."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a model folder of weights that others trained. Nothing that a file of theirs holds is run."""
    from chexpert_hf.formats.imports import import_model

    quiet_transformers()
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    imported = import_model(source, output, file=file, labels=names)
    result = {name: getattr(imported, name) for name in ("observations", "operating_points", "remarks")}
    done = f"Wrote {imported.folder}: {len(imported.observations)} observations: {', '.join(imported.observations)}."
    show({"folder": str(imported.folder), **result}, "\n".join([done, *imported.remarks]), as_json)
