"""CPU time of reading full-size radiographs, by file format: `python -m tests.benchmarks.decoding`.

The files are made from RG1, a radiograph of pydicom-data, resized. Formats take turns; each figure is the median of
processor time, all threads together, from the file to the network's input. The network's own time is in the last row.
"""

import argparse
import copy
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless

from chexpert_hf.bench.contenders import machine, untrained_model
from chexpert_hf.evaluation.tables import aligned
from chexpert_hf.scoring.classifier import CheXpertClassifier

FULL, SQUARE = (2320, 2828), (2048, 2048)


def write_files(folder: Path) -> dict[str, Path]:
    """The radiograph in each format, by a title."""
    dicom = pydicom.dcmread(get_testdata_file("RG1_UNCR.dcm"))
    stored = dicom.pixel_array.astype(np.float32)
    whole = Image.fromarray((stored - stored.min()) / (stored.max() - stored.min()))  # mode F, in [0, 1]

    def pixels(size: tuple[int, int], levels: int) -> np.ndarray:
        return (np.asarray(whole.resize(size)).clip(0, 1) * (levels - 1)).round().astype(np.uint16)

    Image.fromarray(pixels((390, 390), 256).astype(np.uint8)).save(folder / "small.jpg", quality=90)
    Image.fromarray(pixels(FULL, 256).astype(np.uint8)).save(folder / "full.jpg", quality=90)
    Image.fromarray(pixels(SQUARE, 256).astype(np.uint8)).save(folder / "square8.png")
    Image.fromarray(pixels(SQUARE, 65_536)).save(folder / "square16.png")
    dicom.PixelData = pixels(SQUARE, 2**dicom.BitsStored).tobytes()
    dicom.Columns, dicom.Rows = SQUARE
    dicom.save_as(folder / "plain.dcm")
    for name, syntax in (("jpeg2000.dcm", JPEG2000Lossless), ("rle.dcm", RLELossless)):
        compressed = copy.deepcopy(dicom)
        compressed.compress(syntax)
        compressed.save_as(folder / name)
    titles = {
        "small.jpg": "JPEG, 390 x 390",
        "full.jpg": "JPEG, 2,320 x 2,828",
        "square8.png": "PNG of 8 bits, 2,048 x 2,048",
        "square16.png": "PNG of 16 bits, 2,048 x 2,048",
        "plain.dcm": "DICOM, not compressed, 2,048 x 2,048",
        "rle.dcm": "DICOM, RLE, 2,048 x 2,048",
        "jpeg2000.dcm": "DICOM, JPEG 2000, 2,048 x 2,048",
    }
    return {title: folder / name for name, title in titles.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="chexpert-hf-bench-") as scratch:
        model = untrained_model(Path(scratch) / "model", options.image_size)
        classifier = CheXpertClassifier.from_pretrained(model, runtime=options.runtime, precision=options.precision)
        files = write_files(Path(scratch))
        batch = torch.randn(8, 3, options.image_size, options.image_size)
        network = f"the network, {options.runtime} {options.precision}, {options.image_size} pixels"
        calls = {title: lambda path=path: classifier.prepare(classifier.read(path)) for title, path in files.items()}
        calls[network] = lambda: classifier.runtime(batch)
        seconds: dict[str, list[float]] = {title: [] for title in calls}
        for _ in range(options.rounds + 1):
            for title, call in calls.items():
                start = time.process_time()
                call()
                seconds[title].append((time.process_time() - start) / (len(batch) if title == network else 1))
        sizes = {title: f"{path.stat().st_size / 1e6:.2f} MB" for title, path in files.items()}
    rows = [
        [title, sizes.get(title, ""), f"{1000 * median(times[1:]):.1f}", f"{1000 * min(times[1:]):.1f}"]
        for title, times in seconds.items()
    ]
    print(f"{machine()}; {options.rounds} rounds.")
    print(aligned([["", "file", "CPU ms, median", "least"], *rows], right=range(1, 4)))


if __name__ == "__main__":
    main()
