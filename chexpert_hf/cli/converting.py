"""Commands that convert models from and to other libraries and runtimes, or time them: import, export, bench."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import INSPECT, SHARE, app, hide_bars, say, show
from chexpert_hf.default_model import DEFAULT_NAME
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.scoring.graphs.export import ExportedGraph

_SOURCES = (
    "torchvision:FILE (a state_dict of densenet121, 169 or 201, resnet50 or convnext_tiny), torchvision:NAME "
    "(ImageNet's weights, with a new head), torchxrayvision:densenet121-res224-chex (or -all, -nih, -pc, -mimic_nb, "
    "-mimic_ch, -rsna), stanford:FILE, student:FILE or timm:FILE_OR_FOLDER."
)
_FORMAT = "Write a folder for this library instead; a timm folder loads without remote code. Needs --output."
_PRECISION = "Number format of the weights; with int8 the convolutions compute in it, too."
_CALIBRATION = "For int8: a data set, or any folder of radiographs. \\[phantoms]"
_UNTRAINED = "Measure an untrained DenseNet121 of this image size, in pixels, instead of a model."
_LABELS = (
    "Names of the outputs, in their order, where the source does not say, or a label set such as nih; an empty name "
    "drops one."
)
_IMAGES = "Folder of radiographs; synthetic ones if none."


@app.command(
    "import",
    rich_help_panel=SHARE,
    epilog="Example: chexpert-hf import torchxrayvision:densenet121-res224-chex --output chex",
)
def import_weights(
    source: Annotated[str, Argument(metavar="SOURCE", help=_SOURCES)],
    output: Annotated[Path, options.new_folder("New or empty folder for the model.")],
    file: Annotated[Path | None, Option(help="The weights, where SOURCE names no file; nothing is downloaded.")] = None,
    labels: Annotated[str | None, Option(help=_LABELS)] = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a model folder from weights trained elsewhere. No code in the files is run."""
    from chexpert_hf.datasets.label_sets import LABEL_SETS
    from chexpert_hf.formats.imports import import_model

    hide_bars()
    names = None if labels is None else LABEL_SETS[labels].names if labels in LABEL_SETS else labels.split(",")
    model = import_model(source, output, file=file, labels=names)
    observations, points = model.config.observations, model.config.operating_points or {}
    done = f"Wrote {output}: {len(observations)} observations: {', '.join(observations)}."
    result = {"folder": str(output), "observations": observations, "operating_points": points, "remarks": model.remarks}
    show(result, "\n".join([done, *model.remarks]), as_json)


@app.command(rich_help_panel=SHARE, epilog="Example: chexpert-hf export --model runs/mine --runtime openvino")
def export(
    model: options.Model,
    output: Annotated[
        Path | None, options.output("Folder for a complete copy with the graph. \\[the model's own folder]")
    ] = None,
    runtime: Annotated[Literal["onnx", "openvino"] | None, Option(help="Runtime to write a graph for.")] = None,
    library: Annotated[Literal["timm", "torchxrayvision"] | None, Option("--format", help=_FORMAT)] = None,
    precision: Annotated[Literal["fp32", "fp16", "int8"], Option(help=_PRECISION)] = "fp32",
    calibration: Annotated[Path | None, Option(help=_CALIBRATION)] = None,
    as_json: options.AsJson = False,
) -> None:
    """Export a model to another library, or as a runtime's graph, which is kept only if it agrees with PyTorch."""
    hide_bars()
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
        model, runtime, precision, output=output, calibration=calibration, say=lambda line: say(f"{line} ...")
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


@app.command(
    rich_help_panel=INSPECT,
    epilog="Example: chexpert-hf bench radiographs/ --model runs/mine --limit 1000",
)
def bench(
    images: Annotated[Path | None, Argument(metavar="IMAGES", help=_IMAGES)] = None,
    model: options.Model = DEFAULT_NAME,
    image_size: Annotated[int | None, Option(min=32, help=_UNTRAINED)] = None,
    limit: Annotated[int, Option(min=8, help="Radiographs at most.")] = 256,
    batch_size: Annotated[int, Option(min=1, help="Radiographs at once.")] = 8,
    rounds: Annotated[int, Option(min=1, help="How often each runtime is measured.")] = 3,
    saliency: Annotated[bool, Option("--saliency", help="Measure each runtime with all maps, too.")] = False,
    only: Annotated[str | None, Option(help="Runtimes whose name has one of these: 'openvino,torch bf16'.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure speed, memory and exactness of each runtime on this machine."""
    from chexpert_hf.bench.contenders import machine, radiographs, runtime_specs, untrained_model
    from chexpert_hf.bench.measure import as_table, run_benchmark
    from chexpert_hf.models.model_files import no_model
    from chexpert_hf.models.repositories import model_folder

    hide_bars()
    with TemporaryDirectory(prefix="chexpert-hf-bench-") as scratch:
        folder = untrained_model(Path(scratch) / "model", image_size) if image_size else model_folder(model)
        if not (folder / "config.json").is_file():
            raise no_model(folder, folder)
        paths = radiographs(images, limit, Path(scratch) / "phantoms")
        specs = runtime_specs(folder, batch_size, saliency)
        if only:
            specs = [spec for spec in specs if any(part.strip() in spec.name for part in only.split(","))]
        if not specs:
            raise InputError(f"No runtime's name has {only!r} in it; run without --only to see them all.")
        results = run_benchmark(specs, paths, rounds=rounds, say=say)
    title = f"{machine()}; {len(paths)} radiographs, batches of {batch_size}, {rounds} rounds."
    result = {"machine": machine(), "images": len(paths), "results": [asdict(item) for item in results]}
    show(result, f"{title}\n{as_table(results)}", as_json)
