"""A model at work: predict, demo."""

import csv
from pathlib import Path
from typing import Annotated

import typer

from chexpert_hf.cli.app import DISCLAIMER, Models, app, load_classifier, open_output, progress_bar
from chexpert_hf.errors import InputError


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Radiographs, or folders of them.")],
    model: Models,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV file; standard output if none.")] = None,
    saliency: Annotated[Path | None, typer.Option(help="Folder for overlays, a PNG per observation.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Radiographs at once.")] = 16,
) -> None:
    """Score radiographs: a CSV with the probability of each observation. Exit code 1 if a file could not be read."""
    from chexpert_hf.inference.files import find_radiographs, overlay_folders, score_files, write_overlays

    if saliency is not None and saliency.exists() and not saliency.is_dir():
        raise InputError(f"{saliency} is a file; expected a folder for the overlays.")
    files = find_radiographs(paths)
    classifier = load_classifier(model)
    folders = overlay_folders(files, saliency) if saliency else {}
    failed = 0
    with open_output(output) as stream, progress_bar(len(files), "images") as bar:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", *classifier.observations])
        for result in score_files(classifier, files, saliency=saliency is not None, batch_size=batch_size):
            bar.update()
            if result.prediction is None:
                failed += 1
                typer.echo(f"{result.path}: {result.error}", err=True)
                continue
            writer.writerow([result.path, *(f"{value:.6f}" for value in result.prediction.probabilities.values())])
            if saliency:
                write_overlays(result, folders[result.path], classifier.observations)
    scored = len(files) - failed
    where = f" Scores in {output}." if output else ""
    typer.echo(f"{scored} of {len(files)} radiographs scored.{where} {DISCLAIMER}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    model: Models,
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1 is this machine only.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port; the first free one from 7860 on.")] = None,
) -> None:
    """Open the page: upload a radiograph, see scores and maps."""
    from chexpert_hf.demo import build_demo, launch

    launch(build_demo(load_classifier(model)), host=host, port=port)
