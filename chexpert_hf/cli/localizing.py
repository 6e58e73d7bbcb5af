"""Where a model looks: localize."""

from pathlib import Path
from typing import Annotated, Any

import typer

from chexpert_hf.cli import options
from chexpert_hf.cli.app import app, load_classifier, load_reference, load_split, progress_bar, say_on_stderr, show
from chexpert_hf.errors import InputError


@app.command()
def localize(
    data: options.Data,
    model: options.Models,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for localization.md, .json and .csv (each image).")
    ],
    split: Annotated[options.Split, typer.Option(help="Which split.")] = "valid",
    annotations: Annotated[
        Path | None,
        typer.Option(help="Boxes (CSV) or cheXlocalize's masks (JSON); the data's masks/ or boxes.csv if none."),
    ] = None,
    reference: options.ReferenceFile = None,
    reference_map: options.ReferenceMap = None,
    reference_name: options.ReferenceName = None,
    threshold: Annotated[str, typer.Option(help="What makes a map a mask: otsu, or a number in (0, 1).")] = "otsu",
    frontal_only: Annotated[bool, typer.Option("--frontal-only", help="No lateral views.")] = False,
    write_maps: Annotated[
        bool, typer.Option("--write-maps", help="Also the maps, as cheXlocalize's pickles, in maps/.")
    ] = False,
    replicates: options.Replicates = 1000,
    valid_fraction: options.ValidFraction = 0.1,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Do the maps point at the findings? Hit rate and mIoU of each observation, next to those of baselines."""
    from chexpert_hf.datasets.tables import find_dataset_folder
    from chexpert_hf.evaluation.localization.ground_truth import Boxes, find_ground_truth
    from chexpert_hf.evaluation.localization.localization_report import as_dictionary, as_text, write_localization
    from chexpert_hf.evaluation.localization.localize import localize_dataset, rows_with_truth
    from chexpert_hf.evaluation.report.reporting import patient_warnings

    number = _parse_threshold(threshold)
    if reference and annotations:
        raise InputError("Expected --reference or --annotations, got both; pass the file that has the boxes.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be a folder for the results: {error.strerror}.") from error
    classifier = load_classifier(model)
    standard = load_reference(reference, classifier.observations, reference_map, reference_name)
    truth = Boxes(standard) if standard else find_ground_truth(find_dataset_folder(data), annotations)
    settings: dict[str, Any] = {"frontal_only": frontal_only, "valid_fraction": valid_fraction}
    dataset = load_split(data, split, classifier.observations, follow_links=follow_links, **settings)
    rows = rows_with_truth(dataset, truth, classifier.observations)
    warnings = patient_warnings(model, dataset.select(rows)["patient"][:])
    with progress_bar(len(rows), "images") as bar:
        result = localize_dataset(
            classifier,
            dataset,
            truth,
            thresholds=number,
            replicates=replicates,
            maps_folder=output / "maps" if write_maps else None,
            progress=bar.update,
        )
    write_localization(output, result, f"{data.resolve().name}, {split}", warnings)
    others = sorted(set(truth.images()) - set(dataset["path"][:])) if isinstance(truth, Boxes) else []
    if others:
        more = f"{len(others):,} more images with boxes are not in this split, such as {others[0]}; see --split."
        warnings = [*warnings, more]
    for line in warnings:
        say_on_stderr(f"Note: {line}")
    show(as_dictionary(result), as_text(result), as_json)
    say_on_stderr(f"Results are in {output}: localization.md, localization.json, localization.csv.")


def _parse_threshold(text: str) -> float | None:
    if text.lower() == "otsu":
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 < number < 1:
        raise InputError(f"--threshold is {text!r}, expected otsu or a number between 0 and 1.")
    return number
