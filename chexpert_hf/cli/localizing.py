"""Commands that test a model's saliency maps: localize, sanity."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import (
    DISCLAIMER,
    MODEL,
    app,
    load_classifier,
    load_reference,
    load_split,
    progress_bar,
    say,
    show,
)
from chexpert_hf.errors import InputError
from chexpert_hf.files import result_folder

_PATHS = "Radiographs, folders, ZIPs; or one data set: its valid split."


@app.command(rich_help_panel=MODEL, epilog="Example: chexpert-hf localize MY-DATA --model runs/mine --output maps/")
def localize(
    data: options.Data,
    model: options.Models,
    output: Annotated[Path, options.output("Folder for localization.md, .json and .csv (each image).")],
    split: Annotated[options.Split, Option(help="Split to evaluate on.")] = "valid",
    valid_fraction: options.ValidFraction = 0.1,
    annotations: Annotated[
        Path | None, Option(help="Boxes (CSV) or cheXlocalize's masks (JSON); by default the data set's own.")
    ] = None,
    reference: options.ReferenceFile = None,
    reference_map: options.ReferenceMap = None,
    reference_name: options.ReferenceName = None,
    threshold: Annotated[str, Option(help="Threshold of a map's mask: otsu, or a number in (0, 1).")] = "otsu",
    frontal_only: Annotated[bool, Option("--frontal-only", help="Use frontal views only.")] = False,
    write_maps: Annotated[
        bool, Option("--write-maps", help="Also write maps/ as pickles like cheXlocalize's.")
    ] = False,
    replicates: options.Replicates = 1000,
    layout: options.LayoutName = None,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Measure whether maps point at the findings: hit rate and mIoU of each observation, next to those of baselines."""
    number = _parse_threshold(threshold)
    if reference and annotations:
        raise InputError("Expected --reference or --annotations, got both; pass the file that has the boxes.")
    result_folder(output)

    from chexpert_hf.evaluation.localization.ground_truth import Boxes, find_ground_truth
    from chexpert_hf.evaluation.localization.localization_report import as_dictionary, as_text, write_localization
    from chexpert_hf.evaluation.localization.localize import localize_dataset, rows_with_truth
    from chexpert_hf.evaluation.report.reporting import patient_warnings

    classifier = load_classifier(model)
    judged = classifier.observations
    settings: dict[str, Any] = {"layout": layout, "frontal_only": frontal_only, "follow_links": follow_links}
    settings["valid_fraction"] = valid_fraction
    dataset = load_split(data, split, judged, **settings)
    paths = dataset["path"][:]
    standard = load_reference(reference, paths, judged, reference_map, reference_name)
    truth = Boxes(standard) if standard else find_ground_truth(data, judged, annotations, layout, paths)
    rows = rows_with_truth(dataset, truth, judged)
    warnings = patient_warnings(model, dataset.select(rows)["patient"][:])
    with progress_bar(len(rows), "images") as bar:
        maps = output / "maps" if write_maps else None
        result = localize_dataset(
            classifier, dataset, truth, threshold=number, replicates=replicates, maps_folder=maps, progress=bar.update
        )
    write_localization(output, result, f"{data.resolve().name}, {split}", warnings)
    others = sorted(set(truth.images()) - set(dataset["path"][:])) if isinstance(truth, Boxes) else []
    if others:
        warnings += [f"{len(others):,} more images with boxes are not in this split, such as {others[0]}; see --split."]
    for line in warnings:
        say(f"Note: {line}")
    show(as_dictionary(result), as_text(result), as_json)
    say(f"Results are in {output}: localization.md, localization.json, localization.csv.")


@app.command(rich_help_panel=MODEL, epilog="Example: chexpert-hf sanity MY-DATA --model runs/mine --output sanity/")
def sanity(
    paths: Annotated[list[str], Argument(metavar="PATHS", help=_PATHS)],
    model: options.Models,
    output: Annotated[Path | None, options.output("Folder for sanity.json and sanity.png.")] = None,
    valid_fraction: options.ValidFraction = 0.1,
    limit: Annotated[int, Option(min=2, help="Radiographs at most; --seed chooses them.")] = 50,
    seed: Annotated[int, Option(min=0, help="Seed of the sample and of random weights and orders.")] = 0,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Check that maps depend on the weights, stay on the body, and mark regions that change the scores.

    A check that the maps do not pass is shown as FAILED; the exit code is 0 all the same.
    """
    if output is not None:
        result_folder(output)

    from chexpert_hf.datasets.sources import has_labels_for
    from chexpert_hf.evaluation.sanity.checks import PAIRS, check_sanity, dataset_sanity, sample_rows
    from chexpert_hf.evaluation.sanity.sanity_report import as_dictionary, as_text, write_sanity
    from chexpert_hf.radiographs.finding import find_radiographs

    classifier = load_classifier(model)
    with progress_bar(limit + PAIRS, "pictures") as bar:
        folder = Path(paths[0])
        if len(paths) == 1 and has_labels_for(folder, classifier.observations):
            settings: dict[str, Any] = {"follow_links": follow_links, "valid_fraction": valid_fraction}
            data = load_split(folder, "valid", classifier.observations, **settings)
            checks = dataset_sanity(classifier, data, limit, seed=seed, progress=bar.update)
        else:
            found = find_radiographs(paths, follow_links=follow_links)
            for note in found.notes():
                say(note)
            chosen = [found.files[row] for row in sample_rows(len(found.files), limit, seed)]
            checks = check_sanity(classifier, chosen, seed=seed, progress=bar.update)
    if output is not None:
        write_sanity(output, checks)
        say(f"The results are in {output}: sanity.json, sanity.png.")
    show(as_dictionary(checks), as_text(checks), as_json)
    say(DISCLAIMER)


def _parse_threshold(text: str) -> float | None:
    if text.lower() == "otsu":
        return None
    with suppress(ValueError):
        if 0 < (number := float(text)) < 1:
            return number
    raise InputError(f"--threshold is {text!r}, expected otsu or a number between 0 and 1.")
