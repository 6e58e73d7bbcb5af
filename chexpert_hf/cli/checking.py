"""Whether a model's maps mean something: sanity."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chexpert_hf.cli.app import (
    DISCLAIMER,
    AsJson,
    FollowLinks,
    Models,
    Split,
    app,
    load_classifier,
    load_split,
    progress_bar,
    say_on_stderr,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from chexpert_hf.evaluation.sanity.sanity import SanityChecks
    from chexpert_hf.scoring.classifier import CheXpertClassifier


@app.command()
def sanity(
    paths: Annotated[
        list[str],
        typer.Argument(help="Radiographs, folders or ZIP archives of them; or one CheXpert folder: its valid split."),
    ],
    model: Models,
    limit: Annotated[int, typer.Option(min=2, help="Radiographs at most; more are drawn from by --seed.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample, the re-drawn weights and the random order.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for sanity.json and the plot, sanity.png.")
    ] = None,
    follow_links: FollowLinks = True,
    as_json: AsJson = False,
) -> None:
    """Do the maps depend on the weights, keep to the body, and name places that matter?

    A check that the maps do not pass says FAILED; the exit code is 0 all the same, for the command did what it should.
    """
    from chexpert_hf.evaluation.sanity.removal import PAIRS
    from chexpert_hf.evaluation.sanity.sanity_report import as_dictionary, as_text, write_sanity

    classifier = load_classifier(model)
    with progress_bar(limit + PAIRS, "pictures") as bar:
        checks = _check(classifier, paths, limit, seed, follow_links, bar.update)
    if output is not None:
        write_sanity(output, checks)
        typer.echo(f"The results are in {output}: sanity.json, sanity.png.", err=True)
    typer.echo(json.dumps(as_dictionary(checks)) if as_json else as_text(checks))
    typer.echo(DISCLAIMER, err=True)


def _check(
    classifier: "CheXpertClassifier",
    paths: list[str],
    limit: int,
    seed: int,
    follow_links: bool,
    progress: "Callable[[int], None]",
) -> "SanityChecks":
    from chexpert_hf.datasets.tables import find_table
    from chexpert_hf.evaluation.sanity.randomisation import check_sanity, dataset_sanity, sample_rows
    from chexpert_hf.radiographs.finding import find_radiographs

    folder = Path(paths[0])
    if len(paths) == 1 and any(find_table(folder, split) for split in ("train", "valid")):
        data = load_split(folder, Split.VALID, classifier.observations, follow_links=follow_links)
        return dataset_sanity(classifier, data, limit, seed=seed, progress=progress)
    found = find_radiographs(paths, follow_links=follow_links)
    for note in found.notes():
        say_on_stderr(note)
    files = found.files
    chosen = [files[row] for row in sample_rows(len(files), limit, seed)]
    return check_sanity(classifier, chosen, seed=seed, progress=progress)
