"""A model for other runtimes and other libraries: export."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexpert_hf.cli.app import AsJson, app, quiet_transformers
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.scoring.graphs.export import ExportedGraph


class GraphRuntime(str, Enum):
    """The runtimes that graphs are written for."""

    ONNX = "onnx"
    OPENVINO = "openvino"


class GraphPrecision(str, Enum):
    """The precisions that graphs are written in."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class LibraryFormat(str, Enum):
    """The libraries whose formats are written."""

    TIMM = "timm"
    TORCHXRAYVISION = "torchxrayvision"


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model folder, or repository id on the Hub.")],
    runtime: Annotated[GraphRuntime | None, typer.Option(help="Write a graph for it.")] = None,
    library: Annotated[
        LibraryFormat | None,
        typer.Option(
            "--format", help="Write a folder for it instead: timm is loaded without remote code; needs --output."
        ),
    ] = None,
    precision: Annotated[GraphPrecision, typer.Option(help="Of its weights; int8 also of its convolutions.")] = (
        GraphPrecision.FP32
    ),
    calibration: Annotated[
        Path | None, typer.Option(help="For int8: a CheXpert folder, or any folder of radiographs. [phantoms]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for a complete copy with the graph. [MODEL itself]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a model for a runtime, compared with PyTorch before it is kept, or for another library."""
    if library is not None:
        if runtime is not None or calibration is not None or precision is not GraphPrecision.FP32 or output is None:
            raise InputError("--format takes --output FOLDER and neither --runtime, --precision nor --calibration.")
        _export_format(model, library, output, as_json)
        return
    if runtime is None:
        raise InputError("Expected --runtime or --format, got neither.")
    from chexpert_hf.scoring.graphs.export import export_model

    quiet_transformers()
    exported = export_model(
        model,
        runtime.value,
        precision.value,
        output=output,
        calibration=calibration,
        say=lambda line: typer.echo(f"{line} ...", err=True),
    )
    typer.echo(json.dumps(exported.to_dict()) if as_json else _summary(exported))


def _export_format(model: str, library: LibraryFormat, output: Path, as_json: bool) -> None:
    from chexpert_hf.formats.exports import export_format

    quiet_transformers()
    remarks = export_format(model, library.value, output)
    if as_json:
        typer.echo(json.dumps({"folder": str(output), "format": library.value, "remarks": remarks}))
        return
    typer.echo("\n".join([f"Wrote {output} for {library.value}; its README.md says how to load it.", *remarks]))


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
