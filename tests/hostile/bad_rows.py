"""G13: bad files of a data set are all named before the first step of a training."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from chexpert_hf.datasets.image_files import find_bad_files
from tests.hostile.promises import Figure, Settings, judged

ROWS, EVERY = 1_000, 50


def file_rows(_: Settings) -> Iterator[Figure]:
    """Missing, empty, cut to half, no image, and outside the root."""
    paths = [f"patient{number:05}/study1/view1_frontal.jpg" for number in range(ROWS)]
    bad = set(paths[7::EVERY])
    with tempfile.TemporaryDirectory() as name:
        root, outside = Path(name) / "rows", Path(name) / "outside.jpg"
        for path in paths:
            (root / path).parent.mkdir(parents=True)
            Image.new("L", (32, 32), len(path)).save(root / path)
        outside.write_bytes((root / paths[0]).read_bytes())
        for number, path in enumerate(paths[7::EVERY]):
            file = root / path
            content = file.read_bytes()
            file.unlink()
            if number % 5 == 1:
                file.symlink_to(outside)
            elif number % 5:
                file.write_bytes((b"", content[: len(content) // 2], b"<html>404</html>")[number % 5 - 2])
        found = find_bad_files(root, paths)
    named, refused = len(found.keys() & bad), len(found.keys() - bad)
    yield judged(
        f"{ROWS:,} rows, {len(bad)} bad: {len(bad) // 5} each missing, empty, cut to half, no image, outside the root",
        {"named before step 1": f"{named} of {len(bad)}", "good ones refused": refused},
        {"all named": named == len(bad), "no good one refused": refused == 0},
    )
