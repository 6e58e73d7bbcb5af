"""Where a model looks: localize."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexpert_hf.cli.app import (
    AsJson,
    Data,
    FollowLinks,
    Models,
    ReferenceFile,
    ReferenceMap,
    ReferenceName,
    Split,
    app,
    load_classifier,
    load_reference,
    load_split,
    progress_bar,
)
from chexpert_hf.errors import InputError

if TYPE_CHECKING:
    from chexpert_hf.evaluation.localization.ground_truth import GroundTruth


@app.command()
def localize(
    data: Data,
    model: Models,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for localization.md, .json and .csv (each image).")
    ],
    split: Annotated[Split, typer.Option(help="Which split.")] = Split.VALID,
    annotations: Annotated[
        Path | None,
        typer.Option(help="Boxes (CSV) or cheXlocalize's masks (JSON); the data's masks/ or boxes.csv if none."),
    ] = None,
    reference: ReferenceFile = None,
    reference_map: ReferenceMap = None,
    reference_name: ReferenceName = None,
    threshold: Annotated[str, typer.Option(help="What makes a map a mask: otsu, or a number in (0, 1).")] = "otsu",
    frontal_only: Annotated[bool, typer.Option("--frontal-only", help="No lateral views.")] = False,
    write_maps: Annotated[
        bool, typer.Option("--write-maps", help="Also the maps, as cheXlocalize's pickles, in maps/.")
    ] = False,
    replicates: Annotated[int, typer.Option(min=100, help="Of the patient bootstrap.")] = 1000,
    valid_fraction: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Held-out share of the patients where there is no valid.csv.")
    ] = 0.1,
    follow_links: FollowLinks = True,
    as_json: AsJson = False,
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
    dataset = load_split(
        data,
        split,
        classifier.observations,
        follow_links=follow_links,
        frontal_only=frontal_only,
        valid_fraction=valid_fraction,
    )
    rows = rows_with_truth(dataset, truth, classifier.observations)
    warnings = patient_warnings(model, dataset.select(rows)["patient"][:])
    with progress_bar(len(rows), "images") as bar:
        result = localize_dataset(
            classifier,
            dataset,
            truth,
            threshold=number,
            replicates=replicates,
            maps_folder=output / "maps" if write_maps else None,
            progress=bar.update,
        )
    write_localization(output, result, f"{data.resolve().name}, {split.value}", warnings)
    for line in [*warnings, *_elsewhere(truth, dataset["path"][:])]:
        typer.echo(f"Note: {line}", err=True)
    typer.echo(json.dumps(as_dictionary(result)) if as_json else as_text(result))
    typer.echo(f"Results are in {output}: localization.md, localization.json, localization.csv.", err=True)


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


def _elsewhere(truth: "GroundTruth", paths: list[str]) -> list[str]:
    """A line about images with boxes that are not in this split."""
    from chexpert_hf.evaluation.localization.ground_truth import Boxes

    others = sorted(set(truth.images()) - set(paths)) if isinstance(truth, Boxes) else []
    if not others:
        return []
    return [f"{len(others):,} more images with boxes are not in this split, such as {others[0]}; see --split."]
