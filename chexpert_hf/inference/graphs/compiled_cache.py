"""What OpenVINO compiled, kept in the user's cache together with the sums that OpenVINO itself does not look at.

In a damaged file of OpenVINO's own cache, one flipped bit can change the scores without a word. Here the name of each
file holds its SHA-256; one that does not agree is deleted, and the graph is compiled again.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from chexpert_hf.inference.graphs.cache_folder import cache_folder, keep_newest
from chexpert_hf.inference.graphs.graph_files import sha256_of

KEPT = 16
"""Compiled graphs; one takes as much room as the graph's weights."""

_SHORT = 16

# OpenVINO changes the locale of the process while it writes such a file, and puts it back: of two threads at once, one
# would put back what the other had set, and text files would be read as ASCII from then on.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def compiled_cache(graph: Path) -> Iterator[Path | None]:
    """A folder for OpenVINO's `CACHE_DIR` while it compiles one graph.

    It is this process's own, so that no other reads what is half written; what is new in it afterwards is kept.

    Args:
        graph: The graph's `.xml` file. Several graphs may share it; OpenVINO tells them apart by their weights, and by
            options, processor and version.

    Yields:
        The folder, or None where the user's cache cannot be written.
    """
    store = cache_folder() / "compiled"
    start = (sha256_of(graph) or "")[:_SHORT]
    try:
        store.mkdir(parents=True, exist_ok=True)
        private = TemporaryDirectory(dir=store, prefix=".", ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with _ONE_AT_A_TIME, private as name:
        folder = Path(name)
        with suppress(OSError):
            _link_intact(store.glob(f"{start}-*.blob"), folder)
        before = set(folder.glob("*.blob"))
        yield folder
        with suppress(OSError):
            for blob in set(folder.glob("*.blob")) - before:
                blob.replace(store / f"{start}-{blob.stem}-{sha256_of(blob)}.blob")
            keep_newest(store, "*.blob", KEPT)


def _link_intact(kept: Iterable[Path], folder: Path) -> None:
    for blob in kept:
        _, name, digest = blob.stem.split("-")
        if sha256_of(blob) == digest:
            os.utime(blob)  # used last
            (folder / f"{name}.blob").hardlink_to(blob)
        else:
            blob.unlink(missing_ok=True)
