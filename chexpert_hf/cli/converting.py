"""A model from and for other libraries and runtimes: import, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import app, quiet_transformers, say_on_stderr, show
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.scoring.graphs.export import ExportedGraph


@app.command("import")
def import_weights(
    source: Annotated[
        str,
        Argument(
            help="torchvision (ImageNet, with a new head), torchxrayvision:densenet121-res224-chex (or -all, -nih, "
            "-pc, -mimic_nb, -mimic_ch, -rsna), stanford:FILE, student:FILE or timm:FILE_OR_FOLDER."
        ),
    ],
    output: Annotated[Path, Argument(metavar="OUT", help="New or empty folder for the model.")],
    file: Annotated[
        Path | None, Option(help="The weights, where SOURCE does not name them: nothing is downloaded then.")
    ] = None,
    labels: Annotated[
        str | None,
        Option(help="What the outputs are, in their order, where the source does not say; an empty name drops one."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a model folder of weights that others trained. Nothing that a file of theirs holds is run."""
    from chexpert_hf.formats.imports import import_model

    quiet_transformers()
    names = None if labels is None else [name.strip() for name in labels.split(",")]
    model = import_model(source, output, file=file, labels=names)
    observations, points = model.config.observations, model.config.operating_points or {}
    done = f"Wrote {output}: {len(observations)} observations: {', '.join(observations)}."
    result = {"folder": str(output), "observations": observations, "operating_points": points, "remarks": model.remarks}
    show(result, "\n".join([done, *model.remarks]), as_json)


@app.command()
def export(
    model: Annotated[str, Argument(help="Model folder, or repository id on the Hub.")],
    runtime: Annotated[Literal["onnx", "openvino"] | None, Option(help="Write a graph for it.")] = None,
    library: Annotated[
        Literal["timm", "torchxrayvision"] | None,
        Option("--format", help="Write a folder for it instead: timm is loaded without remote code; needs --output."),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8"], Option(help="Of its weights; int8 also of its convolutions.")
    ] = "fp32",
    calibration: Annotated[
        Path | None, Option(help="For int8: a CheXpert folder, or any folder of radiographs. \\[phantoms]")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder for a complete copy with the graph. [MODEL itself]")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Export a model for a runtime, compared with PyTorch before it is kept, or for another library."""
    quiet_transformers()
    if library is not None:
        if runtime is not None or calibration is not None or precision != "fp32" or output is None:
            raise InputError("--format takes --output FOLDER and neither --runtime, --precision nor --calibration.")
        from chexpert_hf.formats.exports import export_format

        remarks = export_format(model, library, output)
        done = f"Wrote {output} for {library}; its README.md says how to load it."
        result = {"folder": str(output), "format": library, "remarks": remarks}
        show(result, "\n".join([done, *remarks]), as_json)
        return
    if runtime is None:
        raise InputError("Expected --runtime or --format, got neither.")
    from chexpert_hf.scoring.graphs.export import export_model

    exported = export_model(
        model, runtime, precision, output=output, calibration=calibration, say=lambda line: say_on_stderr(f"{line} ...")
    )
    show(exported.to_dict(), _summary(exported), as_json)


def _summary(exported: "ExportedGraph") -> str:
    record, parity = exported.record, exported.record.parity or {}
    height, width = record.input_size
    images = "other images of it" if record.calibration else "images"
    num_bytes = sum((exported.folder / file).stat().st_size for file in record.sha256)
    lines = [
        f"Wrote {exported.name} to {exported.folder}: {record.runtime}, {record.precision}, {height} x {width} pixels, "
        f"{num_bytes / 1e6:.1f} MB.",
        f"Largest differences from PyTorch in fp32 on {parity['num_images']} {images}: probability "
        f"{parity['max_abs_probability_difference']:.2g} (99 % of them within "
        f"{parity['p99_abs_probability_difference']:.2g}), logit {parity['max_abs_logit_difference']:.2g}, map "
        f"{parity['max_relative_saliency_difference']:.2g} of its largest value.",
    ]
    if record.calibration:
        lines.insert(1, f"Quantised on {record.calibration['num_images']} images: {record.calibration['data']}.")
    return "\n".join(lines)
