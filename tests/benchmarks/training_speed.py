"""Training beside the Trainer as transformers' example for image classification sets it up, in turns:

    python -m tests.benchmarks.training_speed DATA --images 256 --size 224

Both train the same untrained DenseNet121 on the same radiographs, end to end: files, augmentation, steps of 16 images.
The peer does as `run_image_classification.py` of transformers does by default: images from a data set of `datasets`,
torchvision's transforms of RGB images one by one in the main process, float32, contiguous tensors. Ours is what
`chexpert-hf train DATA --augment` does (in bf16 where the processor multiplies it), with images in RAM, and in float32.
Each turn is a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.training.initial_model import build_model, build_processor
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.trainer import build_trainer

BATCH = 16
WARM_UP = 2  # steps
PEER = "transformers' example"
CONTENDERS: dict[str, dict[str, Any]] = {
    PEER: {},
    "chexpert-hf": {},
    "chexpert-hf, images in RAM": {"cache": "ram"},
    "chexpert-hf, fp32": {"precision": "fp32"},
}


class Watch(TrainerCallback):
    """Wall and processor seconds after the first steps, of this process and of those that read for it."""

    begin: tuple[float, float]
    end: tuple[float, float]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.begin = time.monotonic(), _processor_seconds()
        self.end = time.monotonic(), _processor_seconds()


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peer(recipe: Recipe, data: datasets.DatasetDict, output: Path, watch: Watch) -> Trainer:
    """The Trainer of transformers' example, with our network and multi-label targets."""
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

    processor = build_processor(recipe)
    transform = Compose(
        [
            RandomResizedCrop(recipe.image_size),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(processor.image_mean, processor.image_std),
        ]
    )
    labels = np.nan_to_num(np.asarray(data["train"]["labels"][:], dtype=np.float32)).clip(0, 1).tolist()
    images = datasets.Dataset.from_dict({"image": [str(file) for file in image_files(data["train"])], "labels": labels})
    images = images.cast_column("image", datasets.Image())

    def transformed(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"pixel_values": [transform(image.convert("RGB")) for image in rows["image"]]}

    def collated(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
            "labels": torch.tensor([example["labels"] for example in examples]),
        }

    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.accelerator.is_available(),
    )
    return Trainer(
        model=build_model(recipe),
        args=arguments,
        train_dataset=images.with_transform(transformed),
        data_collator=collated,
        callbacks=[watch],
    )


def measure(name: str, folder: Path, count: int, size: int) -> dict[str, float]:
    """Images a second and processor seconds an image of one contender, in this process."""
    datasets.disable_progress_bars()
    data = load_dataset(folder)
    rows = list(islice(cycle(range(len(data["train"]))), count))
    data = datasets.DatasetDict({"train": data["train"].select(rows), "valid": data["valid"].select(range(8))})
    augmented = {"rotation_degrees": 10.0, "translation": 0.05, "scaling": 0.1, "contrast": 0.2}
    recipe = Recipe(
        observations=tuple(CheXpertConfig().observations),
        init="random",
        image_size=size,
        batch_size=BATCH,
        epochs=1,
        checkpoint="last",
        **augmented | CONTENDERS[name],
    )
    watch = Watch()
    with TemporaryDirectory() as output:
        if name == PEER:
            trainer: Any = peer(recipe, data, Path(output), watch)
        else:
            model, processor = build_model(recipe), build_processor(recipe)
            trainer = build_trainer(recipe, model, processor, data, Path(output), progress=watch)
        trainer.train()
    images = count - WARM_UP * BATCH
    wall, processor_seconds = (end - begin for begin, end in zip(watch.begin, watch.end, strict=True))
    return {"rate": images / wall, "cost": processor_seconds / images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contender", choices=CONTENDERS, help="Only this one, in this process; prints JSON.")
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(measure(given.contender, given.data, given.images, given.size)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(given.rounds):
        for name in CONTENDERS:
            command = [sys.executable, "-m", "tests.benchmarks.training_speed", str(given.data), "--contender", name]
            command += ["--images", str(given.images), "--size", str(given.size)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(answer.splitlines()[-1]))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    print("| | images/s | CPU s/image (main process) | against the example |\n| --- | ---: | ---: | ---: |")
    rates = {name: float(np.median([turn["rate"] for turn in turns])) for name, turns in found.items()}
    for name, turns in found.items():
        cost = np.median([turn["cost"] for turn in turns])
        print(f"| {name} | {rates[name]:.1f} | {cost:.3f} | {rates[name] / rates[PEER]:.2f} |")


if __name__ == "__main__":
    main()
