"""One call with a GPU prints what `predict` and `train` do there, beside the network and the readers alone.

    python -m tests.benchmarks.gpu                        # DenseNet121 at 320 pixels, for an H100 with 16 cores
    python -m tests.benchmarks.gpu --device cpu --quick   # a tiny network and few files, to see that all sections run

Files are phantoms, small JPEGs of 390 x 390 pixels and full-size ones of 2,320 x 2,828: a few that many names link to,
so that the disk plays no part. Each row is printed as soon as it is measured. A section that fails says why, and the
next one starts; none starts after `--minutes`.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from PIL import Image
from transformers import TrainerCallback

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.folders.processes import ReadingProcesses
from chexpert_hf.gate import GATE_FILE
from chexpert_hf.machine import num_processors
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.scoring.classifier import CheXpertClassifier
from chexpert_hf.scoring.preparation import Preparation
from chexpert_hf.training.initial_model import build_model, build_processor
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.trainer import build_trainer

CHEXPERT = {"images": 223_414, "epochs": 3, "images_per_checkpoint": 4800, "size": 320}
TINY = {"growth_rate": 4, "block_config": [2, 2], "num_init_features": 8, "bn_size": 2}

Row = tuple[str, float, str]
"""What was measured, its value, and the unit with remarks."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    size: int
    architecture: dict[str, Any]
    small_files: int
    full_files: int
    seconds: float  # of each measurement of the network alone
    steps: int  # of each training, after as many to warm up
    inference_batches: tuple[int, ...]
    training_batches: tuple[int, ...]
    rounds: int  # of the readers


FULL = Scale(320, {}, 24_000, 2_000, 2.0, 40, (64, 256), (16, 64, 128), 2)
QUICK = Scale(64, TINY, 64, 0, 0.05, 3, (4,), (4,), 1)


class Benchmark:
    """The sections of the table, and the files that they share, in a temporary folder."""

    def __init__(self, folder: Path, device: str, scale: Scale) -> None:
        self.folder, self.device, self.scale = folder, torch.device(device), scale
        self.cores = num_processors()
        self.rates: dict[tuple[int, str, str], float] = {}  # of training, by batch, network and cache
        write_phantoms(folder / "phantoms", num_studies=24, seed=0, workers=self.cores, valid_fraction=0.3)
        drawn = sorted((folder / "phantoms").rglob("*.jpg"))
        self.small = self._links("small", drawn, (390, 390), scale.small_files)
        self.full = self._links("full", drawn[:8], (2320, 2828), scale.full_files)
        self.model, self.processor = (
            folder / "model",
            CheXpertImageProcessor(size={"height": scale.size, "width": scale.size}),
        )
        CheXpertForImageClassification(CheXpertConfig(**scale.architecture)).save_pretrained(self.model)
        self.processor.save_pretrained(self.model)
        copyfile(DEFAULT_MODEL / GATE_FILE, self.model / GATE_FILE)

    def _links(self, name: str, drawn: list[Path], size: tuple[int, int], count: int) -> list[str]:
        folder = self.folder / name
        folder.mkdir()
        originals = [self.folder / f"{name}-{number}.jpg" for number in range(min(len(drawn), count))]
        for original, source in zip(originals, drawn, strict=False):
            Image.open(source).convert("L").resize(size).save(original, quality=90)
        for number, original in enumerate(islice(cycle(originals), count)):
            (folder / f"{number:06}.jpg").symlink_to(original)
        return sorted(map(str, folder.iterdir()))

    def network(self) -> Iterator[Row]:
        """The network alone on batches that are on the device."""
        is_cuda = self.device.type == "cuda"
        for precision in ("fp32", "bf16", "fp16") if is_cuda else ("fp32",):
            for compiled in (False, True) if is_cuda and precision != "fp32" else (False,):
                runtime = CheXpertClassifier.from_pretrained(
                    self.model, precision=precision, device=self.device
                ).runtime
                runtime = runtime.compiled() if compiled else runtime
                for batch in self.scale.inference_batches[-1:] if compiled else self.scale.inference_batches:
                    shape = (batch, self.processor.num_channels, self.scale.size, self.scale.size)
                    values = torch.randn(shape, device=self.device)
                    begin = time.monotonic()
                    runtime(values)[0].cpu()
                    first = time.monotonic() - begin
                    runtime(values)[0].cpu()
                    begin, count = time.monotonic(), 0
                    while time.monotonic() - begin < self.scale.seconds:
                        for _ in range(4):
                            logits, _ = runtime(values)
                        logits.cpu()
                        count += 4 * batch
                    rate = count / (time.monotonic() - begin)
                    name = f"network alone, {precision}{', compiled' if compiled else ''}, batch {batch}"
                    yield name, rate, f"images/s; first batch {first:.1f} s"

    def readers(self) -> Iterator[Row]:
        """Reading processes of `predict`, and as many workers of a bare DataLoader, in turns."""
        preparation = Preparation((self.processor,))
        loader: Any = torch.utils.data.DataLoader(
            _Files(self.small, preparation), batch_size=16, num_workers=self.cores, multiprocessing_context="fork"
        )
        rates: dict[str, float] = {}
        for _ in range(self.scale.rounds):
            for name, images in (
                ("bare DataLoader workers", (image for batch in loader for image in batch)),
                ("reading processes", ReadingProcesses(preparation, self.cores).read(self.small)),
            ):
                half = len(self.small) // 2
                for _ in islice(images, half):  # until all processes have started
                    pass
                begin = time.monotonic()
                count = sum(1 for _ in images)
                rates[name] = max(rates.get(name, 0), count / (time.monotonic() - begin))
        for name, rate in rates.items():
            yield f"{self.cores} {name}", rate, "files/s, the second half of them"
        yield (
            "reading processes, share of bare workers",
            rates["reading processes"] / rates["bare DataLoader workers"],
            "",
        )

    def predict(self) -> Iterator[Row]:
        """The command line, from its start to the table, with the gate."""
        for name, files in (("small", self.small), ("full", self.full)):
            if not files:
                continue
            command = [
                sys.executable,
                "-m",
                "chexpert_hf.cli",
                "predict",
                str(self.folder / name),
                "--model",
                str(self.model),
            ]
            command += ["--output", str(self.folder / f"{name}.csv"), "--runtime", "torch", "--json"]
            command += ["--workers", str(self.cores)]
            begin = time.monotonic()
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            whole, scored = time.monotonic() - begin, json.loads(answer.stdout)["seconds"]
            remark = f"files/s of {len(files):,}; with the start of Python {len(files) / whole:.0f}"
            yield f"predict, {name} JPEGs", len(files) / scored, remark

    def train(self) -> Iterator[Row]:
        """Training end to end, without evaluations and checkpoints; then one of both."""
        data = load_dataset(self.folder / "phantoms")
        networks = ("eager", "compiled") if self.device.type == "cuda" else ("eager",)
        for network in networks:
            for batch in self.scale.training_batches:
                for cache in ("none", "ram"):
                    rate, seconds = self._trained(data, batch, network, cache)
                    self.rates[batch, network, cache] = rate
                    self.pause = seconds
                    name = f"train, batch {batch}, {network}, {'images in RAM' if cache == 'ram' else 'files'}"
                    yield name, rate, f"images/s; evaluation and checkpoint {seconds:.1f} s"

    def _trained(self, data: datasets.DatasetDict, batch: int, network: str, cache: str) -> tuple[float, float]:
        """Images a second after the warm-up, and the seconds of the evaluation and checkpoint at the end."""
        count = 2 * self.scale.steps * batch
        recipe = Recipe(
            observations=tuple(CheXpertConfig().observations),
            init="random",
            architecture=self.scale.architecture,
            image_size=self.scale.size,
            batch_size=batch,
            epochs=1,
            compile=network == "compiled",
            cache=cache,
            workers="auto" if self.device.type == "cuda" else 0,
        )
        rows = [number % len(data["train"]) for number in range(count)]
        repeated = datasets.DatasetDict({"train": data["train"].select(rows), "valid": data["valid"]})
        watch = _Watch(self.scale.steps)
        with TemporaryDirectory(dir=self.folder) as output:
            model, processor = build_model(recipe), build_processor(recipe)
            trainer = build_trainer(recipe, model, processor, repeated, Path(output), progress=watch)
            trainer.train()
        return self.scale.steps * batch / (watch.end - watch.begin), watch.finished - watch.end

    def chexpert(self) -> Iterator[Row]:
        """The whole of CheXpert, extrapolated from the rates above."""
        images = CHEXPERT["images"] * CHEXPERT["epochs"]
        pauses = images / CHEXPERT["images_per_checkpoint"] * self.pause
        for (batch, network, cache), rate in self.rates.items():
            minutes = (images / rate + pauses) / 60
            yield f"CheXpert, 3 epochs, batch {batch}, {network}, {cache}", minutes, "minutes, extrapolated"


class _Files(torch.utils.data.Dataset):
    """Files for a bare DataLoader."""

    def __init__(self, files: list[str], preparation: Preparation) -> None:
        self.files, self.preparation = files, preparation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.preparation.prepare(self.preparation.read(self.files[index])).gray[0]


class _Watch(TrainerCallback):
    """Times the steps after the warm-up, and what follows the last one."""

    begin = end = finished = 0.0

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.warm_up, state.max_steps):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.begin, self.end = self.end or time.monotonic(), time.monotonic()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.finished = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--sections", nargs="+", default=["readers", "predict", "network", "train", "chexpert"])
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    name = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.processor() or "CPU"
    print(f"{name}, {num_processors()} cores, torch {torch.__version__}", flush=True)
    print("\n| | | |\n| --- | ---: | --- |", flush=True)
    start = time.monotonic()
    with TemporaryDirectory() as folder:
        benchmark = Benchmark(Path(folder), arguments.device, QUICK if arguments.quick else FULL)
        sections: list[Callable[[], Iterator[Row]]] = [getattr(benchmark, section) for section in arguments.sections]
        for section in sections:
            begin = time.monotonic()
            if begin - start > 60 * arguments.minutes:
                print(f"| {section.__name__} | skipped | no time left |", flush=True)
                continue
            try:
                for title, value, remark in section():
                    print(f"| {title} | {value:,.{0 if value >= 10 else 2}f} | {remark} |", flush=True)
                    if time.monotonic() - start > 60 * arguments.minutes:
                        print(f"| {section.__name__} | cut short | no time left |", flush=True)
                        break
            except Exception as error:  # noqa: BLE001 - the other sections go on
                detail = getattr(error, "stderr", None) or traceback.format_exc()
                print(f"| {section.__name__} | failed | {str(error).splitlines()[0][:200]} |", flush=True)
                print(detail, file=sys.stderr, flush=True)
            print(f"| {section.__name__}: all | {time.monotonic() - begin:.0f} | s |", flush=True)


if __name__ == "__main__":
    main()
