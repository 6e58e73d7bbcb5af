"""Time of `load_dataset` on the real tables that torchxrayvision carries: `python -m tests.benchmarks.tables`.

The tables are read without images, layouts take turns; imports and unpacking of RSNA's ZIP archive are not counted.
"""

import argparse
import importlib.util
import time
import zipfile
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from chexpert_hf.bench.contenders import machine
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.evaluation.tables import aligned

TABLES = {  # layout -> torchxrayvision's file, and the name that the layout looks for
    "chexpert": ("chexpert_train.csv.gz", "train.csv.gz"),
    "padchest": ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", None),
    "nih": ("Data_Entry_2017_v2020.csv.gz", None),
    "rsna": ("kaggle_stage_2_train_labels.csv.zip", None),
    "vinbigdata": ("vinbigdata-train.csv.gz", "train.csv.gz"),
    "siim": ("siim-pneumothorax-train-rle.csv.gz", None),
    "google": ("google2019_nih-chest-xray-labels.csv.gz", None),
}
SPLITS = {"google": ("valid", "test")}


def write_folders(root: Path) -> None:
    package = importlib.util.find_spec("torchxrayvision")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("torchxrayvision, which carries the tables, is not installed.")
    data = Path(package.submodule_search_locations[0], "data")
    for layout, (file, name) in TABLES.items():
        (root / layout).mkdir()
        if file.endswith(".zip"):
            zipfile.ZipFile(data / file).extractall(root / layout)
        else:
            (root / layout / (name or file)).symlink_to(data / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[tuple[float, float]]] = {layout: [] for layout in TABLES}
    num_rows = {}
    with TemporaryDirectory() as scratch:
        write_folders(Path(scratch))
        for _ in range(rounds):
            for layout, measured in seconds.items():
                processor, wall = time.process_time(), time.perf_counter()
                splits = SPLITS.get(layout, ("train", "valid"))
                data = load_dataset(Path(scratch, layout), splits=splits, check_files=False)
                measured.append((time.process_time() - processor, time.perf_counter() - wall))
                num_rows[layout] = sum(split.num_rows for split in data.values())
    rows = [["layout", "radiographs", "CPU median (s)", "CPU largest (s)", "wall median (s)"]]
    for layout, measured in seconds.items():
        processor_times, wall_times = zip(*measured, strict=True)
        figures = (median(processor_times), max(processor_times), median(wall_times))
        rows.append([layout, f"{num_rows[layout]:,}", *(f"{figure:.2f}" for figure in figures)])
    print(f"{machine()}; {rounds} rounds.\n{aligned(rows)}")


if __name__ == "__main__":
    main()
