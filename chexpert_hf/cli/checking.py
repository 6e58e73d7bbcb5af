"""Whether a model's maps mean something: sanity."""

from pathlib import Path
from typing import Annotated

import typer

from chexpert_hf.cli import options
from chexpert_hf.cli.app import DISCLAIMER, app, load_classifier, load_split, progress_bar, say_on_stderr, show


@app.command()
def sanity(
    paths: Annotated[
        list[str],
        typer.Argument(help="Radiographs, folders or ZIP archives of them; or one CheXpert folder: its valid split."),
    ],
    model: options.Models,
    limit: Annotated[int, typer.Option(min=2, help="Radiographs at most; more are drawn from by --seed.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample, the re-drawn weights and the random order.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for sanity.json and the plot, sanity.png.")
    ] = None,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Do the maps depend on the weights, keep to the body, and name places that matter?

    A check that the maps do not pass says FAILED; the exit code is 0 all the same, for the command did what it should.
    """
    from chexpert_hf.datasets.tables import find_table
    from chexpert_hf.evaluation.sanity.randomisation import check_sanity, dataset_sanity, sample_rows
    from chexpert_hf.evaluation.sanity.removal import PAIRS
    from chexpert_hf.evaluation.sanity.sanity_report import as_dictionary, as_text, write_sanity
    from chexpert_hf.radiographs.finding import find_radiographs

    classifier = load_classifier(model)
    with progress_bar(limit + PAIRS, "pictures") as bar:
        folder = Path(paths[0])
        if len(paths) == 1 and any(find_table(folder, split) for split in ("train", "valid")):
            data = load_split(folder, "valid", classifier.observations, follow_links=follow_links)
            checks = dataset_sanity(classifier, data, limit, seed=seed, progress=bar.update)
        else:
            found = find_radiographs(paths, follow_links=follow_links)
            for note in found.notes():
                say_on_stderr(note)
            chosen = [found.files[row] for row in sample_rows(len(found.files), limit, seed)]
            checks = check_sanity(classifier, chosen, seed=seed, progress=bar.update)
    if output is not None:
        write_sanity(output, checks)
        say_on_stderr(f"The results are in {output}: sanity.json, sanity.png.")
    show(as_dictionary(checks), as_text(checks), as_json)
    say_on_stderr(DISCLAIMER)
