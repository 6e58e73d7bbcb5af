"""Runs of a second in which a bad resumption shows: with dropout, shuffling, an optimizer with a state, a schedule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from chexpert_hf.training.durable.intact import numbered_checkpoints
from chexpert_hf.training.durable.trainer_checkpoints import DurableCheckpoints
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.run import train

from ..conftest import TINY

NUM_IMAGES = 20


class Run(Protocol):
    """Something that trains, and can be stopped and resumed.

    Attributes:
        name: For folders.
        what: For people.
        second_step: The optimizer step of its second checkpoint.
    """

    name: str
    what: str
    second_step: int

    def train(self, folder: Path, *, workers: int, resume: bool, say: Callable[[str], None] = ...) -> None: ...


class SmallConfig(PreTrainedConfig):
    model_type = "small"


class SmallModel(PreTrainedModel):
    """Two layers with dropout between; a model as any user of the Trainer may have, and none of this package."""

    config_class = SmallConfig

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(config)
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(192, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 3)
        )
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixel_values)  # (B, 3)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.pixels = torch.randn(NUM_IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"pixel_values": self.pixels[index], "labels": index % 3}


def small_trainer(
    folder: Path,
    *,
    kind: type[Trainer] = DurableCheckpoints,
    model: torch.nn.Module | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: object,
) -> Trainer:
    """A trainer that always begins with the same weights; `arguments` are some of TrainingArguments."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    values = {
        "max_steps": 7,  # 5 steps an epoch, so that no checkpoint is at the end of one
        "save_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "logging_steps": 100,
        "use_cpu": True,
    }
    trainer = kind(
        model=SmallModel(SmallConfig()) if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **{**values, **arguments}),
        train_dataset=Images(),
        eval_dataset=Images(),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


@dataclass(frozen=True)
class SmallRun:
    """The class alone, as somebody else would use it."""

    name: str = "small"
    what: str = "the Trainer alone"
    second_step: int = 6

    def train(self, folder: Path, *, workers: int, resume: bool, say: Callable[[str], None] = print) -> None:
        trainer = small_trainer(folder, dataloader_num_workers=workers)
        trainer.train(trainer.newest_intact_checkpoint(say) if resume else None)


@dataclass(frozen=True)
class WholeRun:
    """`chexpert-hf train` on phantoms, with augmentation and evaluation.

    Attributes:
        root: The phantoms.
    """

    root: Path
    name: str = "whole"
    what: str = "chexpert-hf train on phantoms with augmentation"
    second_step: int = 4

    def train(self, folder: Path, *, workers: int, resume: bool, say: Callable[[str], None] = print) -> None:
        recipe = Recipe(
            init="random",
            architecture=TINY | {"drop_rate": 0.1},
            num_channels=1,
            image_size=32,
            frontal_only=True,
            rotation_degrees=10,
            translation=0.05,
            contrast=0.2,
            epochs=2,
            batch_size=8,
            images_per_checkpoint=16,
            learning_rate=3e-3,
            schedule="cosine",
            warmup=0.1,
            workers=workers,
        )
        train(recipe, self.root, folder, resume=resume and (folder / "recipe.yaml").exists(), say=say)


def checkpoints_of(folder: Path) -> list[Path]:
    """Of a run of either kind, oldest first."""
    return numbered_checkpoints(folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder)


def differences(one: Path, other: Path) -> list[str]:
    """Which of the last checkpoints' weights and of the optimizer's and schedule's values differ in any bit."""
    checkpoints = [checkpoints_of(folder)[-1] for folder in (one, other)]
    left, right = (load_file(path / "model.safetensors") for path in checkpoints)
    found = [] if checkpoints[0].name == checkpoints[1].name else [f"{checkpoints[0].name} is the last"]
    found += [name for name in left.keys() | right.keys() if not _equal(left.get(name), right.get(name))]
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(path / name, weights_only=True) for path in checkpoints]
        found += [] if _equal(*states) else [name]
    return found


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(_equal, one, other))
    return one == other
