"""Scores any number of files, in order and in constant memory; files are decoded ahead of the model.

The scores of a file do not depend on the files around it or on where scoring was resumed. A network's rounding errors
depend on the size of a batch, but not on the other images in the batch or on their order. So batches are made by
position in the list of files, every batch is full, and a blank image replaces a file that cannot be read.
"""

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from queue import SimpleQueue

from PIL import Image

from chexpert_hf.folders.processes import ReadFile, read_one
from chexpert_hf.folders.readers import Workers, batched, num_processes, read_ahead, read_prepared
from chexpert_hf.folders.score_table import GateMode
from chexpert_hf.gate import Verdict
from chexpert_hf.radiographs.archives import ArchiveMember, RadiographFile, source_of
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier, Prediction
from chexpert_hf.scoring.preparation import Prepared
from chexpert_hf.scoring.saliency import overlay_of

ROWS_SIDE_BY_SIDE = 4
"""Batch size of a thread that has one processor to itself: larger ones are slower there, and need more memory."""

_NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # of files, on Linux or Windows
_PNG_COMPRESSION = 1  # zlib's fastest: level 6 takes four times as long for files a tenth smaller


@dataclass(frozen=True)
class FileResult:
    """The result of one file: either a prediction or an error, and the gate's verdict."""

    path: RadiographFile
    prediction: Prediction | None = None  # None if there is an error
    error: str | None = None  # why there is no prediction: the file is unreadable, or refused by the gate
    gate: Verdict | None = None  # None if the gate did not judge the image

    @property
    def is_no_radiograph(self) -> bool:
        """Whether the gate judged that the image is no chest radiograph; False without a verdict."""
        return self.gate is not None and not self.gate.is_chest_radiograph

    @property
    def has_warning(self) -> bool:
        """Whether the gate accepts the image with a warning, such as that it looks upside down."""
        return self.gate is not None and self.gate.state == "warning"


def score_files(
    classifier: CheXpertClassifier,
    files: Iterable[RadiographFile],
    *,
    saliency: bool = False,
    batch_size: int = BATCH_SIZE,
    gate: GateMode = GateMode.OFF,
    workers: Workers = 0,
) -> Iterator[FileResult]:
    """Read and score files as they are needed; yield a FileResult for each, in order.

    A forward pass has at most `batch_size` radiographs; blank images fill up the last batch. `gate` says whether the
    model's gate judges the images, and whether those that it refuses are scored. `workers` is the number of processes
    that read files; 0 for threads, "auto" to let `readers.read_prepared` choose. A file that cannot be read has an
    error in its result; any other exception is raised.
    """
    streams = classifier.side_by_side() if batch_size > 1 else [classifier]
    size = min(batch_size, ROWS_SIDE_BY_SIDE) if len(streams) > 1 else batch_size
    blank = classifier.prepare(Image.new("L", (32, 32)))
    for_gate = gate is not GateMode.OFF

    def score(stream: CheXpertClassifier, images: Iterable[ReadFile]) -> Iterator[FileResult]:
        taken: deque[tuple[RadiographFile, RadiographError | None]] = deque()

        def filled() -> Iterator[Prepared]:
            count = 0
            for count, (file, image) in enumerate(images, start=1):  # noqa: B007 - needed after the loop
                error = image if isinstance(image, RadiographError) else None
                taken.append((file, error))
                yield blank if isinstance(image, RadiographError) else image
            yield from repeat(blank, -count % size)

        for prediction in stream.predict_prepared(filled(), saliency=saliency, batch_size=size):
            if taken:  # else the prediction is of a blank image at the end
                yield _result(*taken.popleft(), prediction, gate)

    if len(streams) == 1:
        reading = read_prepared(classifier, files, for_gate=for_gate, batch_size=size, workers=workers)
        with closing(reading) as images:
            yield from score(classifier, images)
        return
    free: SimpleQueue[CheXpertClassifier] = SimpleQueue()
    for stream in streams:
        free.put(stream)

    def read_and_score(batch: list[RadiographFile | ReadFile]) -> list[FileResult]:
        stream = free.get()
        try:
            images = [one if isinstance(one, ReadFile) else read_one(stream, one, for_gate) for one in batch]
            return list(score(stream, images))
        finally:
            free.put(stream)

    with ExitStack() as stack:
        items: Iterable[RadiographFile | ReadFile] = files
        if num_processes(classifier, files, workers):  # else `read_and_score` reads
            reading = read_prepared(classifier, files, for_gate=for_gate, batch_size=size, workers=workers)
            items = stack.enter_context(closing(reading))
        batches = batched(items, size)
        ahead = 2 * len(streams)
        scored = stack.enter_context(closing(read_ahead(read_and_score, batches, threads=len(streams), ahead=ahead)))
        yield from chain.from_iterable(scored)


def _result(file: RadiographFile, error: RadiographError | None, prediction: Prediction, gate: GateMode) -> FileResult:
    verdict = prediction.gate
    if error is not None:
        return FileResult(file, error=error.reason)
    if gate is GateMode.REFUSE and verdict is not None and not verdict.is_chest_radiograph:
        return FileResult(file, error=verdict.reason, gate=verdict)
    return FileResult(file, prediction, gate=verdict)


def write_overlays(result: FileResult, folder: Path, observations: Iterable[str]) -> list[Path]:
    """Write a picture `<observation>.png` for each observation: the radiograph at its full size with the map over it.

    `folder` is made if needed. Characters that no file name may have, such as the slash in "Nodule/Mass", become "_".
    If a map has no positive evidence, a line of text in its picture says so. Returns the paths of the pictures.
    ValueError if `result` has no maps.
    """
    if result.prediction is None or not result.prediction.saliency:
        raise ValueError(f"{result.path} has no maps; ask for them with saliency=True.")
    maps = result.prediction.maps
    folder.mkdir(parents=True, exist_ok=True)
    image = read_radiograph(source_of(result.path))
    written = []
    for observation in observations:  # one map at a time: at full size each takes megabytes
        written.append(folder / f"{_NOT_IN_NAMES.sub('_', observation)}.png")
        picture = overlay_of(image, maps, observation)
        picture.save(written[-1], format="PNG", compress_level=_PNG_COMPRESSION)
    return written


def overlay_folder(file: RadiographFile, common: Path, root: Path) -> Path:
    """Return the folder for a file's overlays: `root`, then the file's path below `common`, such as `a/b.png/`.

    The suffix is kept so that no two files share a folder. For a file in an archive, its name in the archive follows.
    """
    member = file.name if isinstance(file, ArchiveMember) else ""
    return root / _path_on_disk(file).relative_to(common) / member


def common_folder(files: Sequence[RadiographFile]) -> Path:
    """Return the deepest folder, as an absolute path, that all files are in."""
    return Path(os.path.commonpath({_path_on_disk(file).parent for file in files}))


def _path_on_disk(file: RadiographFile) -> Path:
    return Path(os.path.abspath(file.archive if isinstance(file, ArchiveMember) else file))
