"""Speed of the runtimes on this machine: bench."""

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from typer import Argument, Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import app, quiet_transformers, say_on_stderr, show
from chexpert_hf.default_model import resolve_model
from chexpert_hf.errors import InputError


@app.command()
def bench(
    model: Annotated[Path | None, Argument(help="Model folder; a DenseNet121 that was never trained, if none.")] = None,
    images: Annotated[Path | None, Argument(help="Folder of radiographs; synthetic ones if none.")] = None,
    limit: Annotated[int, Option(min=8, help="At most so many radiographs.")] = 256,
    image_size: Annotated[int, Option(min=32, help="Of the untrained model, in pixels.")] = 224,
    batch_size: Annotated[int, Option(min=1, help="Images through the network at once.")] = 8,
    rounds: Annotated[int, Option(min=1, help="Turns of each runtime.")] = 3,
    saliency: Annotated[bool, Option("--saliency", help="Each runtime with all maps, too.")] = False,
    only: Annotated[str | None, Option(help="Runtimes whose name has one of these: 'openvino,torch bf16'.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure speed, memory and exactness of each runtime on this machine."""
    from chexpert_hf.bench.contenders import machine, radiographs, runtime_specs, untrained_model
    from chexpert_hf.bench.measure import as_table, run_benchmark

    quiet_transformers()
    with TemporaryDirectory(prefix="chexpert-hf-bench-") as scratch:
        folder = Path(resolve_model(model)) if model else untrained_model(Path(scratch) / "model", image_size)
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds no config.json; expected a model folder.")
        paths = radiographs(images, limit, Path(scratch) / "phantoms")
        specs = runtime_specs(folder, batch_size, saliency)
        if only:
            specs = [spec for spec in specs if any(part.strip() in spec.name for part in only.split(","))]
        if not specs:
            raise InputError(f"No runtime's name has {only!r} in it; run without --only to see them all.")
        results = run_benchmark(specs, paths, rounds=rounds, say=say_on_stderr)
    title = f"{machine()}; {len(paths)} radiographs, batches of {batch_size}, {rounds} rounds."
    result = {"machine": machine(), "images": len(paths), "results": [asdict(item) for item in results]}
    show(result, f"{title}\n{as_table(results)}", as_json)
