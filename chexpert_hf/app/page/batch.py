"""Many radiographs: found in uploads and archives, scored one after the other, as a table, as CSV, and as overlays.

A row keeps scores and the small maps, not the image: that is read again where it was uploaded when a row is opened or
its overlays are written. Names of files are the visitor's own and go to nobody else.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chexpert_hf.app.page.limits import BATCH_WORKERS, MAX_FILES, MAX_OVERLAYS_BYTES
from chexpert_hf.app.page.reading import (
    NO_FINDING,
    ExpiredError,
    RefusedError,
    bytes_of,
    decode_once,
    encode,
    score,
    shown_image,
)
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.errors import InputError
from chexpert_hf.folders.score_table import CsvLines, readable
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile
from chexpert_hf.radiographs.finding import radiographs_in
from chexpert_hf.radiographs.kinds import is_system_file
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.radiographs.walk import Found
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import overlay

_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)
_MAX_STEM = 60
_OPACITY = 0.5


@dataclass(frozen=True)
class Item:
    """A radiograph to score, and what the visitor calls it."""

    name: str
    file: RadiographFile


@dataclass(frozen=True, eq=False)
class Row:
    """What came of one radiograph.

    Attributes:
        item: The radiograph.
        prediction: With maps; None if there are no scores.
        error: Why there are none.
        is_refused: Whether the gate is why.
        warnings: Notes on the file, and warnings of the gate.
    """

    item: Item
    prediction: Prediction | None = None
    error: str | None = None
    is_refused: bool = False
    warnings: tuple[str, ...] = ()


def find_items(uploads: Sequence[tuple[str, Path]], found: Found) -> list[Item]:
    """The radiographs in uploads, those in archives one by one.

    Args:
        uploads: Names and paths; files of the operating system and DICOM files without an image are skipped.
        found: Counts what is skipped.

    Raises:
        InputError: If there are more than `MAX_FILES`, or none.
        ExpiredError: If one has been deleted.
    """
    if not all(path.exists() for _, path in uploads):
        raise ExpiredError(EXPIRED)
    items = [
        Item(f"{name}/{file.name}" if isinstance(file, ArchiveMember) and file.name else name, file)
        for name, path in uploads
        if not is_system_file(name)
        for file in radiographs_in(str(path), found)
    ]
    if not items:
        raise InputError(" ".join(["Expected radiographs, got none.", *found.notes()]))
    if len(items) > MAX_FILES:
        raise InputError(
            f"Expected at most {MAX_FILES:,} radiographs at once, got {len(items):,}; `chexpert-hf predict` takes "
            "any number."
        )
    return items


def score_items(classifier: CheXpertClassifier, items: Sequence[Item], *, is_gated: bool) -> Iterator[Row]:
    """Scores radiographs in order, a few side by side; what is not asked for any more is not scored."""
    with ThreadPoolExecutor(BATCH_WORKERS) as pool:
        # Closing this closes `map`, which takes back what has not begun.
        yield from pool.map(lambda item: score_item(classifier, item, is_gated=is_gated), items)


def score_item(classifier: CheXpertClassifier, item: Item, *, is_gated: bool) -> Row:
    """Scores one radiograph; what cannot be read is a row with an error."""
    try:
        data = bytes_of(item.file)
        prediction = score(classifier, data, is_gated=is_gated, decoded=decode_once(classifier, data))
    except RefusedError as refusal:
        return Row(item, error=str(refusal), is_refused=True, warnings=refusal.verdict.warnings)
    except RadiographError as error:
        return Row(item, error=str(error))
    warnings = prediction.gate.warnings if prediction.gate else ()
    return Row(item, prediction, warnings=(*prediction.notes, *warnings))


def csv_of(rows: Sequence[Row], observations: Sequence[str]) -> bytes:
    """The table as CSV: file, a probability for each observation, warnings, error. Safe to open in a spreadsheet."""
    lines = CsvLines(["file", *observations, "warnings", "error"])
    return lines.header() + b"".join(
        lines.line(
            [
                readable(row.item.name),
                *(row.prediction.probabilities[name] if row.prediction else None for name in observations),
                " ".join(row.warnings) or None,
                row.error,
            ]
        )
        for row in rows
    )


def write_overlays(path: Path, rows: Sequence[Row]) -> Iterator[int]:
    """Writes a ZIP archive of overlays: of each radiograph the observations at or above their operating points, and
    always the most probable one.

    Args:
        path: Of the archive.
        rows: Scored ones and others, which are left out.

    Yields:
        How many rows are done. At `MAX_OVERLAYS_BYTES` it stops; `README.txt` in the archive says what is missing.
    """
    missing = []
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for number, row in enumerate(rows, start=1):
            if row.prediction is not None:
                if stream.tell() > MAX_OVERLAYS_BYTES:
                    missing.append(f"{number:04d}: the archive has reached its largest size")
                else:
                    missing += _add_overlays(archive, row, number)
            yield number
        archive.writestr("README.txt", _readme(rows, missing))


def _add_overlays(archive: zipfile.ZipFile, row: Row, number: int) -> list[str]:
    if row.prediction is None:
        return []
    try:
        image = shown_image(bytes_of(row.item.file))
    except RadiographError as error:
        return [f"{number:04d}: {error}"]
    maps = row.prediction.maps.at_size(image.size)
    stem = _UNSAFE.sub("_", Path(row.item.name).stem)[-_MAX_STEM:]
    for name in _shown(row.prediction.probabilities, row.prediction.positives):
        file_name = f"{number:04d}_{stem}/{_UNSAFE.sub('_', name)}.jpg"
        archive.writestr(file_name, encode(overlay(image, maps[name], _OPACITY)))
    return []


def _shown(probabilities: Mapping[str, float], positives: Mapping[str, bool]) -> list[str]:
    placed = [name for name in probabilities if name != NO_FINDING] or list(probabilities)
    top = max(placed, key=probabilities.__getitem__)
    return [name for name in placed if positives[name] or name == top]


def _readme(rows: Sequence[Row], missing: Sequence[str]) -> str:
    lines = [
        "Overlays of chexpert-hf. Research software, not a medical device: not for diagnosis.",
        "A folder for each row of the table, by its number; in it the observations at or above their operating points,",
        "and the most probable one.",
        *(f"{number:04d}: {row.error}" for number, row in enumerate(rows, start=1) if row.error is not None),
        *missing,
    ]
    return "\n".join(lines) + "\n"
