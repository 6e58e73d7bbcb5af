"""Many radiographs: found in uploads and archives, scored, and written as CSV, Parquet and overlays.

A row holds scores, the small maps and a thumbnail; its image is read again from the upload when the row is opened or
its overlays are written. Names of files are the visitor's own and go to nobody else.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chexpert_hf import DISCLAIMER
from chexpert_hf.app.page.reading import Item, bytes_of, encode, read, shown_image
from chexpert_hf.app.page.text import EXPIRED
from chexpert_hf.errors import InputError
from chexpert_hf.folders.score_table import CsvLines, readable
from chexpert_hf.radiographs.archives import ArchiveMember
from chexpert_hf.radiographs.finding import Found, is_system_file, radiographs_in
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertClassifier, Prediction
from chexpert_hf.scoring.saliency import overlay_of

MAX_FILES = 1000  # radiographs in one list, those in archives included
MAX_OVERLAYS_BYTES = 500_000_000  # an archive of overlays that has reached this size gets no more of them
THUMBNAIL_SIZE = 80  # longest side in pixels: twice that in the list, for high-density screens
BATCH_WORKERS = 2  # radiographs of one list that are read and scored at once

_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)
_MAX_STEM = 60


def find_items(uploads: Sequence[tuple[str, Path]], found: Found) -> list[Item]:
    """Return the radiographs in `uploads` (names and paths) and in archives among them.

    The counts in `found` are increased, such as the number of skipped files.

    Raises:
        InputError: If there are more than `MAX_FILES` radiographs, or none.
        RadiographError: If an upload has been deleted.
    """
    if not all(path.exists() for _, path in uploads):
        raise RadiographError(EXPIRED)
    items = [
        Item(file, name=f"{name}/{file.name}" if isinstance(file, ArchiveMember) and file.name else name)
        for name, path in uploads
        if not is_system_file(name)
        for file in radiographs_in(str(path), found)
    ]
    if not items:
        raise InputError(" ".join(["Expected radiographs, got none.", *found.notes()]))
    if len(items) > MAX_FILES:
        more = "`chexpert-hf predict` takes any number"
        raise InputError(f"Expected at most {MAX_FILES:,} radiographs at once, got {len(items):,}; {more}.")
    return items


def score_items(classifier: CheXpertClassifier, items: Sequence[Item], *, is_gated: bool) -> Iterator[Item]:
    """Score radiographs, `BATCH_WORKERS` at a time, and yield them in order.

    With `is_gated`, images that the gate refuses get an error instead of scores. Closing the iterator drops radiographs
    that have not started.
    """
    with ThreadPoolExecutor(BATCH_WORKERS) as pool:
        yield from pool.map(partial(read, classifier, size=THUMBNAIL_SIZE, is_gated=is_gated), items)


def csv_of(rows: Sequence[Item], observations: Sequence[str]) -> bytes:
    """Return the table as CSV: file, observations above their thresholds, probabilities, warnings, error.

    Names of files are changed where a spreadsheet would take them for formulas.
    """
    lines = CsvLines(["file", "above threshold", *observations, "warnings", "error"])
    content = lines.header()
    for row in rows:
        scores = [row.prediction.probabilities[name] if row.prediction else None for name in observations]
        texts = " ".join(row.warnings) or None, row.error
        content += lines.line([readable(row.name), ", ".join(row.above) or None, *scores, *texts])
    return content


def parquet_of(rows: Sequence[Item], observations: Sequence[str]) -> bytes:
    """Return the table of scores as Parquet: a row per radiograph, with columns named as in the CSV file (`csv_of`).

    Probabilities are float32, "above threshold" is a list of names, and names of files are as they were given.
    """
    scores = [row.prediction.probabilities if row.prediction else {} for row in rows]
    columns: dict[str, pa.Array] = {"file": pa.array([row.name for row in rows], pa.string())}
    columns["above threshold"] = pa.array([row.above for row in rows], pa.list_(pa.string()))
    for name in observations:
        columns[name] = pa.array([each.get(name) for each in scores], pa.float32())
    columns["warnings"] = pa.array([" ".join(row.warnings) or None for row in rows], pa.string())
    columns["error"] = pa.array([row.error for row in rows], pa.string())
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def write_overlays(path: Path, rows: Sequence[Item]) -> Iterator[int]:
    """Write a ZIP archive with a folder of overlays for each scored row.

    Overlays are those of positive observations, or of the most probable one if none is positive. Rows that come after
    the archive has reached `MAX_OVERLAYS_BYTES` get none; `README.txt` in the archive says what is missing.

    Yields:
        How many rows are done.
    """
    missing = []
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for number, row in enumerate(rows, start=1):
            if row.prediction is None:
                reason = row.error
            elif stream.tell() > MAX_OVERLAYS_BYTES:
                reason = "the archive has reached its largest size"
            else:
                reason = _add_overlays(archive, f"{number:04d}", row, row.prediction)
            missing += [f"{number:04d}, {row.name}: {reason}"] if reason else []
            yield number
        lines = (
            f"Overlays of chexpert-hf. {DISCLAIMER}",
            "A folder for each row of the table, by its number; in it the observations at or above their operating",
            "points, or the most probable one if there is none.",
            *missing,
        )
        archive.writestr("README.txt", "\n".join(lines) + "\n")


def _add_overlays(archive: zipfile.ZipFile, number: str, item: Item, prediction: Prediction) -> str | None:
    """Add the overlays of row `number` to the archive; return None, or why the radiograph can no longer be read."""
    try:
        image = shown_image(bytes_of(item.path))
    except RadiographError as error:
        return str(error)
    maps = prediction.maps.at_size(image.size)
    folder = f"{number}_{_UNSAFE.sub('_', Path(item.name).stem)[-_MAX_STEM:]}"
    for name in prediction.sorted_positives() or prediction.display_order()[:1]:
        archive.writestr(f"{folder}/{_UNSAFE.sub('_', name)}.jpg", encode(overlay_of(image, maps, name)))
    return None
