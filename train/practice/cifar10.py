"""Practice: small images, from scratch or by transfer, with the Hugging Face Trainer.

    python -m train.practice.cifar10 --data digits --output runs/digits        # no network, under two minutes
    python -m train.practice.cifar10 --data cifar10 --output runs/cifar --model bc-100-12 --epochs 300
    python -m train.practice.cifar10 --data cifar10 --output runs/transfer --model frozen --epochs 5

Reports accuracy on the test split with its 95 % interval (Wilson), and draws the confusion matrix and the feature maps
after each dense block. The recipe is the paper's for CIFAR: SGD with Nesterov momentum .9, learning rate .1, divided
by 10 after half and three quarters of the epochs, weight decay 1e-4, batches of 64, shifts by up to an eighth of the
image and mirror images (section 4.2 of arXiv:1608.06993; digits are not mirrored).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainingArguments, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.trainer_callback import PrinterCallback

from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.intervals import wilson_interval
from chexpert_hf.models.weights import imagenet_state_dict
from train.practice.densenet import CIFAR_BC_100, DenseNet, densenet121
from train.practice.image_sets import ImageSet, load_image_sets
from train.practice.pictures import block_maps, confusion_matrix, plot_block_maps, plot_confusion

MODELS = ("two-block", "bc-100-12", "frozen", "fine-tuned")
TRANSFER = ("frozen", "fine-tuned")
TRANSFER_SIZE = 224
LEARNING_RATES = {"two-block": 0.1, "bc-100-12": 0.1, "frozen": 0.1, "fine-tuned": 0.01}
BATCH_SIZE = 64
SHIFT_SHARE = 8
"""Images are shifted by up to their size divided by this, as is usual for CIFAR: 4 of 32 pixels."""


class PracticeModel(nn.Module):
    """A DenseNet with the Trainer's interface: uint8 images in, loss and logits out.

    Args:
        net: The network.
        mean: Of the gray levels of each channel, in [0, 1].
        std: Their standard deviation.
        size: Side in pixels to which images are resized first; None to leave them.
        is_frozen: Whether only the classifier learns; the backbone's BatchNorm statistics stay, too.
        mirrors: Whether images are mirrored at random in training.
    """

    def __init__(
        self, net: DenseNet, mean: Tensor, std: Tensor, *, size: int | None, is_frozen: bool, mirrors: bool
    ) -> None:
        super().__init__()
        self.net, self.size, self.is_frozen, self.mirrors = net, size, is_frozen, mirrors
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        if is_frozen:
            net.features.requires_grad_(False)

    def train(self, mode: bool = True) -> "PracticeModel":
        super().train(mode)
        if self.is_frozen:
            self.net.features.eval()
        return self

    def pixel_values_of(self, images: Tensor) -> Tensor:
        """Normalise uint8 images `(batch, channels, side, side)`; repeat one channel if three are needed."""
        scaled = images.float() / 255
        if self.size is not None:
            scaled = functional.interpolate(scaled, size=(self.size, self.size), mode="bilinear")
        return (scaled - self.mean) / self.std

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` (batch, num_classes), and `loss` if there are labels."""
        if self.training:
            images = augmented(images, mirrors=self.mirrors)
        logits = self.net(self.pixel_values_of(images))
        return (
            {"logits": logits}
            if labels is None
            else {"loss": functional.cross_entropy(logits, labels), "logits": logits}
        )


def augmented(images: Tensor, *, mirrors: bool) -> Tensor:
    """Shift every image by up to an eighth of its size, with a black border, and mirror half of them if `mirrors`."""
    batch, _, height, width = images.shape
    pad = max(1, height // SHIFT_SHARE)
    padded = functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, batch, 1), device=images.device)
    rows = (top + torch.arange(height, device=images.device))[:, None, :, None]  # (B, 1, h, 1)
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]  # (B, 1, 1, w)
    place = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    shifted = padded[place, channel, rows, columns]
    if not mirrors:
        return shifted
    is_mirrored = torch.rand(batch, 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_mirrored, shifted.flip(3), shifted)


def build_model(
    name: str, train: ImageSet, weights: Callable[[], dict[str, Tensor]] = imagenet_state_dict
) -> PracticeModel:
    """Build a network for the images; random weights are from torch's global generator.

    Args:
        name: "two-block", the student project's small net: two dense blocks of six layers, k = 12; "bc-100-12", the
            paper's DenseNet-BC; "frozen" or "fine-tuned", DenseNet121 from ImageNet weights at 224 pixels.
        train: Images that determine the classes and channels, and without ImageNet weights the mean and deviation.
        weights: Returns torchvision's DenseNet121 weights.

    Raises:
        WeightsError: If ImageNet weights are asked for and cannot be fetched.
    """
    num_classes = len(train.classes)
    if name in TRANSFER:
        net = densenet121()
        net.load_state_dict(weights())
        net.classifier = nn.Linear(net.classifier.in_features, num_classes)
        mean, std, size = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD), TRANSFER_SIZE
    else:
        blocks = (6, 6) if name == "two-block" else CIFAR_BC_100
        net = DenseNet(12, blocks, num_classes, in_channels=train.images.shape[1])
        levels = torch.from_numpy(train.images).float().div(255).transpose(0, 1).flatten(1)  # (C, N h w)
        mean, std, size = levels.mean(dim=1), levels.std(dim=1), None
    return PracticeModel(net, mean, std, size=size, is_frozen=name == "frozen", mirrors=train.mirrors)


def train_and_test(
    name: str, train: ImageSet, test: ImageSet, output: Path, *, epochs: int, learning_rate: float, seed: int
) -> dict[str, Any]:
    """Train and test a network, write weights, metrics and pictures into `output`, and return the metrics."""
    set_seed(seed)
    start = time.perf_counter()
    model = build_model(name, train)
    steps = -(-len(train.labels) // BATCH_SIZE) * epochs
    # As in the paper, weight decay takes in all weights.
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=1e-4,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4], gamma=0.1)
    trainer = Trainer(
        model=model,
        args=training_arguments(output, epochs, seed),
        train_dataset=_rows(train),
        optimizers=(optimizer, schedule),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    predicted = np.asarray(trainer.predict(_rows(test)).predictions).argmax(axis=1)
    seconds = time.perf_counter() - start
    right = int((predicted == test.labels).sum())
    accuracy = wilson_interval(right, len(test.labels))
    figures = {
        "model": name, "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train.labels), "test_images": len(test.labels), "right": right,
        "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
        "epochs": epochs, "learning_rate": learning_rate, "seed": seed, "seconds": round(seconds, 1),
    }  # fmt: skip
    _write(output, model, test, predicted, figures)
    return figures


def training_arguments(output: Path, epochs: int, seed: int) -> TrainingArguments:
    """Return the Trainer's arguments; optimizer and schedule are passed as objects."""
    return TrainingArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=BATCH_SIZE,
        max_grad_norm=0,
        save_strategy="no",
        logging_strategy="epoch",
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
        data_seed=seed,
        report_to="none",
    )


def _rows(images: ImageSet) -> list[dict[str, Any]]:
    tensors, labels = torch.from_numpy(images.images), images.labels.tolist()
    return [{"images": image, "labels": label} for image, label in zip(tensors, labels, strict=True)]


def _write(output: Path, model: PracticeModel, test: ImageSet, predicted: Any, figures: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    save_file(model.net.state_dict(), output / "model.safetensors")
    (output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    matrix = confusion_matrix(test.labels, predicted, len(test.classes))
    title = f"{figures['model']}: {figures['right']} of {figures['test_images']} test images right"
    plot_confusion(matrix, test.classes, title, output / "confusion.png")
    with torch.inference_mode():
        maps = block_maps(model.net, model.pixel_values_of(torch.from_numpy(test.images[:1])))
    names = f"true {test.classes[test.labels[0]]}, predicted {test.classes[predicted[0]]}"
    plot_block_maps(test.images[0], maps, f"First test image: {names}", output / "feature_maps.png")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for bad input, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, cifar10, or a folder (see train/practice/README.md)")
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, metrics and pictures")
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, help="initial learning rate [.1; fine-tuning .01]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rate = LEARNING_RATES[options.model] if options.learning_rate is None else options.learning_rate
    try:
        train, test = load_image_sets(options.data)
        print(f"{len(train.labels):,} images to train on, {len(test.labels):,} to test, {len(train.classes)} classes.")
        figures = train_and_test(
            options.model, train, test, options.output, epochs=options.epochs, learning_rate=rate, seed=options.seed
        )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"accuracy {figures['accuracy']:.4f} ({figures['low']:.4f} to {figures['high']:.4f}, 95 %, Wilson), "
        f"{figures['right']} of {figures['test_images']} test images, {figures['seconds']:.0f} s\n"
        f"{options.output}: model.safetensors, figures.json, confusion.png, feature_maps.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
