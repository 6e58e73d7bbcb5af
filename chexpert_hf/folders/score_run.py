"""Scores of any number of radiographs as a file: started, killed, resumed, divided, and in the end the same bytes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from chexpert_hf.errors import InputError
from chexpert_hf.folders.score_output import ScoreOutput, read_rows, write_table
from chexpert_hf.folders.score_rows import RowFormat
from chexpert_hf.folders.score_table import GateMode, GrowingTable, lines_of, readable, resume_table
from chexpert_hf.folders.scoring import FileResult, common_folder, overlay_folder, score_files, write_overlays
from chexpert_hf.radiographs.archives import RadiographFile
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier


@dataclass(frozen=True)
class Shard:
    """One of several parts of a list of files: the `index`-th, `index + count`-th and so on of its batches.

    Whole batches, so that every radiograph is in the batch that it would be in if the list were not divided.
    """

    index: int = 0
    count: int = 1

    def of(self, files: Sequence[RadiographFile], batch_size: int) -> list[RadiographFile]:
        """The files of this part."""
        return [file for place, file in enumerate(files) if place // batch_size % self.count == self.index]


UNDIVIDED = Shard()


@dataclass(frozen=True)
class ScoreSummary:
    """Numbers of radiographs: all, those without scores (unreadable, or refused by the gate), those that an earlier run
    had done, and those that do not look like chest radiographs, as far as the gate was asked.
    """

    radiographs: int
    failed: int
    resumed: int
    not_radiographs: int = 0


class Watcher(Protocol):
    """Receives the progress of a run."""

    def begin(self, resumed: int, radiographs: int) -> None:
        """The numbers of radiographs that an earlier run has scored, and of all."""

    def tick(self, result: FileResult) -> None:
        """A result, when it is written."""


def score_to_file(
    classifier: CheXpertClassifier,
    files: Sequence[RadiographFile],
    output: ScoreOutput,
    *,
    batch_size: int = BATCH_SIZE,
    shard: Shard = UNDIVIDED,
    models: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> ScoreSummary:
    """Scores files and writes their rows as they come, in the order of the files.

    A run that was interrupted and is resumed leaves the same bytes as one that was not. To resume, the observations,
    the batch size, the shard, the kind of row, the paths in the rows, and the model must be the same; the model is
    identified by its scores of a test pattern. A batch that was not finished is scored again.

    Args:
        classifier: The model.
        files: All of them, whatever the shard.
        output: The output file.
        batch_size: Radiographs in a forward pass, if there are as many.
        shard: The part of the files to score.
        models: Names of the models, for the record.
        watcher: Receives the progress.

    Raises:
        InputError: If the output cannot be resumed or written.
    """
    record = _record(classifier, output, batch_size, shard, models)
    batch_size = batch_size_for(files, batch_size)
    names = shard.of(files, batch_size)
    if finished := output.begin(record):
        return _finished_summary(output, finished, names)
    rows = RowFormat(classifier.observations, output.gate, output.positives)
    lines = lines_of(output.growing, rows.columns())
    kept = resume_table(output.growing, lines, names, batch_size)
    if watcher:
        watcher.begin(kept.rows, len(names))
    failed, not_radiographs = kept.failed, kept.not_radiographs
    remaining = islice(names, kept.rows, None)
    common = common_folder(files) if output.overlays else None
    results = score_with_overlays(classifier, remaining, output.overlays, common, batch_size, output.gate)
    with GrowingTable(output.growing, lines) as table:
        while batch := list(islice(results, batch_size)):
            table.append(rows.rows(batch))
            failed += sum(result.error is not None for result in batch)
            not_radiographs += sum(result.is_no_radiograph for result in batch)
            if watcher:
                for result in batch:
                    watcher.tick(result)
    summary = ScoreSummary(len(names), failed, kept.rows, not_radiographs)
    if output.is_made_at_the_end:
        views = read_rows(output.growing, rows.columns())
        if output.by_study:
            write_table(output.path, rows.study_columns(), rows.study_rows(views))
        else:
            write_table(output.path, rows.columns(), views)
        output.finish(record, {**asdict(summary), "paths": _digest(names)})
    return summary


def batch_size_for(files: Sequence[RadiographFile], wanted: int) -> int:
    """The size of a batch: full batches are filled up with blanks, and one file should not take the time of sixteen."""
    return max(1, min(wanted, len(files)))


def score_with_overlays(
    classifier: CheXpertClassifier,
    files: Iterable[RadiographFile],
    overlays: Path | None,
    common: Path | None,
    batch_size: int,
    gate: GateMode,
) -> Iterator[FileResult]:
    """Scores files, and writes the overlays of each before it is passed on, without its maps.

    Overlays go to the folder `overlays`, if there is one, in the layout that the files have in the folder `common`.

    Raises:
        InputError: If overlays cannot be written.
    """
    results = score_files(classifier, files, saliency=overlays is not None, batch_size=batch_size, gate=gate)
    for result in results:
        if overlays is None or common is None or result.prediction is None:
            yield result
            continue
        try:
            write_overlays(result, overlay_folder(result.path, common, overlays), classifier.observations)
        except RadiographError as error:  # it could be read a moment ago
            yield FileResult(result.path, error=error.reason)
        except OSError as error:
            raise InputError(f"Overlays in {overlays} cannot be written: {error.strerror}.") from error
        else:
            yield replace(result, prediction=replace(result.prediction, saliency=None))


def _record(
    classifier: CheXpertClassifier, output: ScoreOutput, batch_size: int, shard: Shard, models: Sequence[str]
) -> dict[str, Any]:
    (prediction,) = classifier.predict_prepared([classifier.prepare(_test_pattern())], batch_size=1)
    return {
        "model": ", ".join(models),
        "observations": list(classifier.observations),
        "runtime": [f"{member.runtime.name} {member.runtime.precision}" for member in classifier.members],
        "row": "study" if output.by_study else "radiograph",
        "batch_size": batch_size,
        "shard": asdict(shard),
        "gate": output.gate.value,
        "positives": output.positives,
        "operating_points": classifier.operating_points,
        "test_pattern": {name: round(value, 7) for name, value in prediction.probabilities.items()},
    }


def _test_pattern() -> Image.Image:
    """Bands of rising frequency under a gradient: with other weights, size or normalisation the scores are others."""
    down, across = np.mgrid[0:1:256j, 0:1:256j]
    return Image.fromarray((127.5 + 127.5 * np.sin(40 * across**2 + 9 * down) * down).astype(np.uint8))


def _finished_summary(output: ScoreOutput, finished: Any, names: Sequence[RadiographFile]) -> ScoreSummary:
    if finished["paths"] != _digest(names):
        raise InputError(
            f"{output.path} is complete, and of other radiographs than these; choose another output, or score again "
            "with --overwrite."
        )
    counts = {name: count for name, count in finished.items() if name != "paths"}
    return ScoreSummary(**counts | {"resumed": finished["radiographs"]})


def _digest(names: Iterable[RadiographFile]) -> str:
    digest = sha256()
    for name in names:
        digest.update(readable(str(name)).encode() + b"\0")
    return digest.hexdigest()
