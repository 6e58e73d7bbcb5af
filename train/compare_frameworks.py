"""Compare PyTorch and Keras 3 on the installed backends: train the same network on the same radiographs.

    python -m train.compare_frameworks DATA --output runs/frameworks

Each contender runs in its own process, one after the other. All start from the same weights and see the same images of
the folder DATA in the same order, decoded and resized beforehand. So the table shows the cost of the frameworks' own
computing: images per second through the network, in training (forward, backward, Adam) and in inference, without
reading files and without the first two steps, in which graphs are traced and compiled (a separate column). On a shared
machine the CPU time per image, over all threads, is the more stable metric. Memory is the peak of the process, and
separately that of libraries and images without the network; Keras's processes load PyTorch, too, to prepare images.

The table does not show the speed of a tuned framework (compilers, lower precision, larger batches) or on a GPU. AUROCs
of a short training that differ by a few hundredths do not show which framework learns better: the differences come from
rounding, which training amplifies, and from BatchNorm's running variance.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import evaluate_probabilities, split_labels
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.models.loading import load_model
from chexpert_hf.training.batches import RadiographDataset, TrainingTargets
from chexpert_hf.training.data import load_data, with_labels
from chexpert_hf.training.initial_model import build_model, build_processor, image_size_of
from chexpert_hf.training.recipe import Recipe
from train.ordered_batches import OrderedBatches

TORCH = "PyTorch"
BACKENDS = ("tensorflow", "jax", "torch")
COMPARED_IMAGES = 16
WARM_UP_STEPS = 2  # in which graphs are traced and compiled
_MIB_IN_KIB = 1024


@dataclass(frozen=True)
class Contender:
    """A framework in the comparison, as functions of `pixel_values` in NumPy arrays.

    `score` returns logits and maps, `logits` only logits. `train_epoch` trains on all batches of an epoch, given by its
    number, and calls a function after each step.
    """

    score: Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    train_epoch: Callable[[OrderedBatches, int, Callable[[], None]], None]


def torch_contender(start: Path, recipe: Recipe) -> Contender:
    """Set up PyTorch, with the recipe's memory layout, from the model folder `start`."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = load_model(start).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)

    def tensor(pixel_values: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(pixel_values).contiguous(memory_format=layout)

    @torch.inference_mode()
    def score(pixel_values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        output = model.eval()(tensor(pixel_values), output_saliency=True)
        return output.logits.numpy(), output.saliency.numpy()

    @torch.inference_mode()
    def logits(pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.eval()(tensor(pixel_values)).logits.numpy()

    def train_epoch(batches: OrderedBatches, epoch: int, on_step: Callable[[], None]) -> None:
        model.train()
        for number in range(batches.steps_per_epoch):
            pixel_values, targets = batches.batch(epoch, number)
            optimizer.zero_grad()
            model(tensor(pixel_values), labels=torch.from_numpy(targets)).loss.backward()
            optimizer.step()
            on_step()

    return Contender(score, logits, train_epoch)


def keras_contender(start: Path, recipe: Recipe, num_steps: int) -> Contender:
    """Set up Keras, on the backend that KERAS_BACKEND names, from the model folder `start`."""
    # An optional extra, needed only by this contender's process.
    import keras

    from chexpert_hf.formats.keras import from_model_folder
    from train.keras_train import EpochBatches, compiled

    port = from_model_folder(start)
    scorer = compiled(port, recipe, num_steps)

    def score(pixel_values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        both = port(pixel_values, training=False)
        logits, saliency = (np.array(keras.ops.convert_to_numpy(both[name])) for name in ("logits", "saliency"))
        return logits, saliency

    def logits(pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(scorer.predict_on_batch(pixel_values))

    def train_epoch(batches: OrderedBatches, epoch: int, on_step: Callable[[], None]) -> None:
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_batch, **_logs: on_step())
        scorer.fit(EpochBatches(batches, epoch), shuffle=False, verbose=0, callbacks=[callback])

    return Contender(score, logits, train_epoch)


def measure(name: str, start: Path, root: Path, recipe: Recipe, output: Path) -> dict[str, Any]:
    """Train and measure one contender on the data in `root`, in this process; return its metrics.

    `start` is a model folder with the initial weights, whose logits and maps of a few images go to `output/NAME.npz`.
    """
    processor = CheXpertImageProcessor.from_pretrained(start)
    recipe = with_labels(recipe, root)
    data = load_data(recipe, root)
    config = load_model(start).config
    train_rows = _read(RadiographDataset(data["train"], processor, TrainingTargets(config, recipe.seed)))
    valid_rows = _read(RadiographDataset(data["valid"], processor, lambda _labels, _index: {}))
    batches = OrderedBatches(train_rows, recipe, processor, drop_last=True)
    if batches.steps_per_epoch * recipe.epochs <= WARM_UP_STEPS:
        raise InputError(f"{len(train_rows)} training images make too few batches of {recipe.batch_size} to be timed.")
    epochs = int(recipe.epochs)
    before = _mebibytes()
    contender = (
        torch_contender(start, recipe)
        if name == TORCH
        else keras_contender(start, recipe, epochs * batches.steps_per_epoch)
    )
    logits, saliency = contender.score(_pixel_values(processor, valid_rows[:COMPARED_IMAGES]))
    np.savez(output / f"{_file_name(name)}.npz", logits=logits, saliency=saliency)

    times: list[float] = []
    cpu_times: list[float] = []

    def on_step() -> None:
        times.append(time.perf_counter())
        cpu_times.append(time.process_time())

    began = time.perf_counter()
    for epoch in range(epochs):
        contender.train_epoch(batches, epoch, on_step)
    num_timed = (len(times) - WARM_UP_STEPS) * recipe.batch_size
    training = num_timed / (time.perf_counter() - times[WARM_UP_STEPS - 1])
    cpu_per_image = (time.process_time() - cpu_times[WARM_UP_STEPS - 1]) / num_timed

    contender.logits(_pixel_values(processor, valid_rows[: recipe.batch_size]))  # traces and compiles
    scores, seconds = [], 0.0
    for first in range(0, len(valid_rows), recipe.batch_size):
        rows = valid_rows[first : first + recipe.batch_size]
        pixel_values = _pixel_values(processor, _filled(rows, recipe.batch_size))
        start_time = time.perf_counter()
        scores.append(contender.logits(pixel_values)[: len(rows)])
        seconds += time.perf_counter() - start_time
    probabilities = torch.from_numpy(np.concatenate(scores)).sigmoid().numpy()
    labels = split_labels(data["valid"], recipe.blank_labels)
    evaluation = evaluate_probabilities(
        probabilities, labels, data["valid"]["study"][:], recipe.observations, recipe.known_labels.headline
    )
    return {
        "name": name, "training": training, "inference": len(scores) * recipe.batch_size / seconds,
        "first_steps": times[WARM_UP_STEPS - 1] - began, "peak": _mebibytes(), "before": before,
        "auroc": evaluation.mean_auroc, "studies": evaluation.num_studies, "mean_over": evaluation.mean_over,
        "images": len(train_rows), "cpu_per_image": cpu_per_image,
    }  # fmt: skip


def _read(dataset: RadiographDataset) -> list[dict[str, Any]]:
    return [dataset[index] for index in range(len(dataset))]


def _filled(rows: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """Repeat rows up to a full batch, since a batch of another size would be compiled again."""
    return (rows * size)[: max(size, len(rows))]


def _pixel_values(processor: CheXpertImageProcessor, rows: list[dict[str, Any]]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = processor.pixel_values_of(torch.stack([row["pixel_values"] for row in rows])).numpy()
    return values


def _mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB_IN_KIB


def _file_name(name: str) -> str:
    return name.lower().replace(" ", "-")


def contenders() -> list[str]:
    """Return the names of the contenders: PyTorch, and Keras on each backend that is installed."""
    if importlib.util.find_spec("keras") is None:
        return [TORCH]
    return [TORCH, *(f"Keras {backend}" for backend in BACKENDS if importlib.util.find_spec(backend))]


def compare(root: Path, recipe: Recipe, output: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measure all contenders, each in its own process, and how far their scores before training are from PyTorch's.

    Returns one dictionary of metrics per contender; contenders that fail are skipped.

    Raises:
        InputError: If the data cannot be loaded, or nothing could be measured.
    """
    recipe = with_labels(recipe, root)
    load_data(recipe, root)  # so that errors of the data are reported once
    start = output / "start"
    set_seed(recipe.seed)
    build_model(recipe).save_pretrained(start)
    build_processor(recipe).save_pretrained(start)
    recipe.save(output / "recipe.yaml")
    found = []
    for name in contenders():
        say(f"{name} ...")
        answer = subprocess.run(
            [sys.executable, "-m", "train.compare_frameworks", str(root), "--output", str(output), "--contender", name],
            capture_output=True, text=True, check=False,
            env=os.environ | {"KERAS_BACKEND": name.removeprefix("Keras "), "TF_CPP_MIN_LOG_LEVEL": "2"},
        )  # fmt: skip
        if answer.returncode:
            lines = answer.stderr.strip().splitlines()
            say(f"{name} is skipped: {lines[-1][:200] if lines else f'exit code {answer.returncode}'}")
            continue
        found.append(json.loads(answer.stdout.strip().splitlines()[-1]) | _differences(name, output))
    if not found:
        raise InputError("No contender could be measured; their errors are above.")
    return found


def _differences(name: str, output: Path) -> dict[str, float]:
    """Return the largest differences of a contender's logits and maps before training from PyTorch's."""
    reference = output / f"{_file_name(TORCH)}.npz"
    if not reference.exists():
        return {}
    ours, theirs = np.load(output / f"{_file_name(name)}.npz"), np.load(reference)
    return {item: float(np.abs(ours[item] - theirs[item]).max()) for item in ("logits", "saliency")}


def as_markdown(figures: Sequence[dict[str, Any]], recipe: Recipe) -> str:
    """Return the table and its explanation as Markdown."""
    lines = [
        "| | training, images/s | training, CPU s/image | inference, images/s | first two steps, s "
        "| peak memory, MiB | without network, MiB | mean AUROC | logits differ | maps differ |",
        "| --- |" + " ---: |" * 9,
    ]
    for one in figures:
        differences = [f"{one[item]:.0e}" if item in one else "" for item in ("logits", "saliency")]
        lines.append(
            f"| {one['name']} | {one['training']:.1f} | {one['cpu_per_image']:.3f} | {one['inference']:.1f} | "
            f"{one['first_steps']:.1f} | "
            f"{one['peak']:,.0f} | {one['before']:,.0f} | {one['auroc']:.3f} | {' | '.join(differences)} |"
        )
    first = figures[0]
    network = "DenseNet121" if not recipe.architecture else f"DenseNet {dict(recipe.architecture)}"
    lines += [
        "",
        f"{network} from {recipe.init} weights, {image_size_of(recipe)} pixels, batches of {recipe.batch_size}, "
        f"float32, {os.cpu_count()} cores, {recipe.epochs:g} epochs of {first['images']:,} images, Adam "
        f"{recipe.learning_rate:g}. AUROC on {first['studies']:,} studies, mean over {', '.join(first['mean_over'])}. "
        f"Differences from PyTorch are the largest on {COMPARED_IMAGES} radiographs with the initial weights.",
        "",
        "\n\n".join((__doc__ or "").strip().split("\n\n")[2:]),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for bad input, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder in CheXpert's layout")
    parser.add_argument("--output", type=Path, required=True, help="new folder for weights, scores and the table")
    parser.add_argument("--recipe", type=Path, help="YAML file, or the name of one in train/recipes")
    parser.add_argument("--init", default="random", help="a model folder, imagenet or random")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    if options.contender:
        recipe = Recipe.load(options.output / "recipe.yaml")
        start = options.output / "start"
        print(json.dumps(measure(options.contender, start, options.data, recipe, options.output)))
        return 0
    try:
        values = {
            name: getattr(options, name) for name in ("image_size", "epochs", "batch_size", "learning_rate", "init")
        }
        recipe = Recipe() if options.recipe is None else Recipe.load(options.recipe)
        recipe = recipe.override(**values, precision="fp32")  # what Keras computes in
        if options.output.exists():
            raise InputError(f"{options.output} is there already; choose a new folder.")
        options.output.mkdir(parents=True)
        table = as_markdown(compare(options.data, recipe, options.output), recipe)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    (options.output / "frameworks.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
