"""Train in Keras 3 on a CheXpert folder, with `model.fit`, from a recipe of this project to its model folder.

    KERAS_BACKEND=tensorflow python -m train.keras_train DATA --model START --output runs/keras

START is a model folder, "imagenet" or "random". Policies: u-ignore, u-zeros and u-ones. Recipes with unsupported values
are refused. The weights of the last step are saved: validation metrics are reported and choose nothing.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import set_seed

from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import Evaluation, evaluate_probabilities, split_labels
from chexpert_hf.evaluation.patients import TRAINING_PATIENTS_FILE, write_patient_hashes
from chexpert_hf.formats.keras import HEAD, CheXpertKeras, from_torch, to_torch
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import IGNORED, UncertaintyPolicy
from chexpert_hf.models.model_files import RECIPE_FILE, write_checksums
from chexpert_hf.publishing.model_folder import save_trained_folder
from chexpert_hf.training.batches import RadiographDataset, TrainingTargets
from chexpert_hf.training.data import describe_data, load_data, with_labels
from chexpert_hf.training.initial_model import build_model, build_processor, image_size_of
from chexpert_hf.training.recipe import Recipe, RecipeError
from train.ordered_batches import OrderedBatches

# After chexpert_hf.formats.keras, which raises a one-line error if Keras is not installed.
import keras  # isort: skip
from keras import ops  # isort: skip

POLICIES = tuple(
    item.value for item in (UncertaintyPolicy.U_IGNORE, UncertaintyPolicy.U_ZEROS, UncertaintyPolicy.U_ONES)
)
# Fields of a recipe that are not supported here, with the only value that is.
_ONLY: dict[str, Any] = {
    "loss": "cross-entropy",
    "class_weights": False,
    "unconditional": False,
    "conditional_epochs": 0,
    "gradient_accumulation_steps": 1,
    "precision": "fp32",
    "stored_precision": "fp32",
    "runs": 1,
    "calibration_folds": 0,
    "checkpoint": "last",
    "map_loss": 0.0,
    "map_centring": 0.0,
    "distillation": 0.0,
    "mixup": False,
    "drop_last": False,
    "sync_batch_norm": False,
}
_BY_DEVICE = {"precision": "auto"}  # also accepted; PyTorch chooses by the device then, Keras takes the value above
_TORCH_ADAM_EPSILON = 1e-8
_EVALUATION_BATCH_SIZE = 32


class RecipeSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of a recipe at each step, as the Hugging Face Trainer's schedules give it.

    Args:
        recipe: Learning rate, schedule and warm-up.
        num_steps: Number of steps of the whole run.
    """

    def __init__(self, recipe: Recipe, num_steps: int) -> None:
        self.recipe, self.num_steps = recipe, num_steps
        self.warmup_steps = math.ceil(num_steps * recipe.warmup)

    def __call__(self, step: Any) -> Any:
        """Return the learning rate at a step, counted from 0."""
        step = ops.cast(step, "float32")
        rise = step / max(1, self.warmup_steps)
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        share = {
            "constant": ops.ones_like(step),
            "linear": ops.maximum(1 - progress, 0.0),
            "cosine": ops.maximum(0.5 * (1 + ops.cos(math.pi * progress)), 0.0),
        }[self.recipe.schedule]
        return self.recipe.learning_rate * ops.where(step < self.warmup_steps, rise, share)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, for Keras's serialisation."""
        return {"recipe": self.recipe.to_dict(), "num_steps": self.num_steps}


class EpochBatches(keras.utils.PyDataset):
    """One epoch of `OrderedBatches` as a Keras data set."""

    def __init__(self, batches: OrderedBatches, epoch: int) -> None:
        super().__init__()
        self.batches, self.epoch = batches, epoch

    def __len__(self) -> int:
        return self.batches.steps_per_epoch

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self.batches.batch(self.epoch, number)


def masked_cross_entropy(targets: Any, logits: Any) -> Any:
    """Return the loss of `CheXpertForImageClassification`: the sum over known labels, divided by their number.

    Args:
        targets: `(batch, num_labels)` in [0, 1], or -100 where unknown.
        logits: Of the same shape.
    """
    is_known = ops.cast(targets != IGNORED, logits.dtype)
    losses = ops.binary_crossentropy(ops.maximum(targets, 0.0), logits, from_logits=True)
    return ops.sum(losses * is_known) / ops.maximum(ops.sum(is_known), 1.0)


def compiled(port: CheXpertKeras, recipe: Recipe, num_steps: int) -> keras.Model:
    """Return the part of a Keras port that gives logits, compiled for `fit`; it shares the port's weights."""
    scorer = keras.Model(port.input, port.output["logits"])
    scorer.compile(
        optimizer=_optimizer(port, recipe, num_steps),
        loss=masked_cross_entropy,
        # JAX needs its compiler; TensorFlow would take minutes in XLA for 121 layers.
        jit_compile=keras.backend.backend() == "jax",
    )
    return scorer


def _optimizer(port: CheXpertKeras, recipe: Recipe, num_steps: int) -> keras.optimizers.Optimizer:
    """Make the Trainer's AdamW, which does not decay biases and BatchNorm; it is Adam if weight_decay is 0."""
    optimizer = keras.optimizers.AdamW(
        RecipeSchedule(recipe, num_steps),
        weight_decay=recipe.weight_decay,
        epsilon=_TORCH_ADAM_EPSILON,
        global_clipnorm=recipe.max_grad_norm or None,
    )
    optimizer.exclude_from_weight_decay([weight for weight in port.trainable_weights if len(weight.shape) == 1])
    return optimizer


def freeze_backbone(port: CheXpertKeras) -> None:
    """Freeze all layers except the head; in Keras that freezes BatchNorm's statistics, too."""
    for layer in port.layers:
        layer.trainable = layer.name == HEAD


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError for values that are not supported here."""
    for name, only in _ONLY.items():
        if getattr(recipe, name) not in (only, _BY_DEVICE.get(name, only)):
            raise RecipeError(
                f"{name} is {getattr(recipe, name)!r}, expected {only!r} in Keras; use chexpert-hf train for it."
            )
    if recipe.epochs != int(recipe.epochs):
        raise RecipeError(f"epochs is {recipe.epochs}, expected a whole number in Keras.")
    for observation, policy in recipe.policies.items():
        if policy not in POLICIES:
            raise RecipeError(
                f"The policy of {observation} is {policy}, expected {', '.join(POLICIES)} in Keras; use chexpert-hf "
                "train for it."
            )


def train(recipe: Recipe, root: Path, output: Path, *, say: Callable[[str], None] = print) -> Evaluation:
    """Train on a CheXpert folder and write a model folder; return the metrics on the validation split.

    Raises:
        RecipeError: If the recipe is not supported, `output` is in use, or the weights diverged.
        DatasetError: If the data cannot be loaded.
    """
    check_recipe(recipe)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RecipeError(f"{output} is in use; choose a new folder.")
    recipe = with_labels(recipe, root).override(image_size=image_size_of(recipe))
    data = load_data(recipe, root)
    set_seed(recipe.seed)
    keras.utils.set_random_seed(recipe.seed)
    model, processor = build_model(recipe), build_processor(recipe)
    port = from_torch(model, processor)
    if recipe.freeze_backbone:
        freeze_backbone(port)
    rows = RadiographDataset(data["train"], processor, TrainingTargets(model.config, recipe.seed))
    batches = OrderedBatches(rows, recipe, processor)  # type: ignore[arg-type] # a dataset is a sequence but by name
    epochs = int(recipe.epochs)
    scorer = compiled(port, recipe, epochs * batches.steps_per_epoch)
    say(f"Keras {keras.version()} on {keras.backend.backend()}: {len(rows):,} images, {epochs} epochs.")
    for epoch in range(epochs):
        # shuffle is on by default, and would change the order of the batches.
        history = scorer.fit(EpochBatches(batches, epoch), shuffle=False, verbose=0)
        evaluation = evaluate(scorer, processor, data["valid"], recipe)
        say(
            f"epoch {epoch + 1} of {epochs}  loss {history.history['loss'][-1]:.4f}  validation mean AUROC "
            f"{evaluation.mean_auroc:.3f}"
        )
    final = to_torch(port)
    if not all(tensor.isfinite().all() for tensor in final.state_dict().values()):
        raise RecipeError("Training diverged: lower learning_rate, or set max_grad_norm to 1.")
    steps = epochs * batches.steps_per_epoch
    described = describe_data(data, root, recipe.observations)
    save_trained_folder(
        output, final, processor, recipe=recipe.to_dict(), data=described, evaluation=evaluation, best_step=steps
    )
    recipe.save(output / RECIPE_FILE)
    write_patient_hashes(output / TRAINING_PATIENTS_FILE, data["train"]["patient"][:])
    write_checksums(output)
    return evaluation


def evaluate(
    scorer: keras.Model, processor: CheXpertImageProcessor, dataset: datasets.Dataset, recipe: Recipe
) -> Evaluation:
    """Compute the metrics of a network from `compiled` on a split, per study."""
    rows = RadiographDataset(dataset, processor, lambda _labels, _index: {})
    logits = predict(scorer, processor, [rows[index]["pixel_values"] for index in range(len(rows))])
    labels = split_labels(dataset, recipe.blank_labels)
    probabilities = torch.from_numpy(logits).sigmoid().numpy()
    return evaluate_probabilities(
        probabilities, labels, dataset["study"][:], recipe.observations, recipe.known_labels.headline
    )


def predict(scorer: keras.Model, processor: CheXpertImageProcessor, gray: list[torch.Tensor]) -> Any:
    """Return logits `(num_images, num_labels)` for a list of gray levels `(1, height, width)`."""
    parts = [
        scorer.predict_on_batch(
            processor.pixel_values_of(torch.stack(gray[start : start + _EVALUATION_BATCH_SIZE])).numpy()
        )
        for start in range(0, len(gray), _EVALUATION_BATCH_SIZE)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder in CheXpert's layout")
    parser.add_argument("--output", type=Path, required=True, help="becomes the model folder")
    parser.add_argument("--recipe", type=Path, help="YAML file, or the name of one in train/recipes")
    parser.add_argument("--model", dest="init", help="initial weights: a model folder, imagenet or random [imagenet]")
    parser.add_argument("--policy", help="u-ignore, u-zeros, u-ones, or 'Edema=u-ones,...' [u-ones]")
    parser.add_argument("--blank-labels", choices=("negative", "unknown"))
    for name, kind in (
        ("epochs", float), ("batch-size", int), ("learning-rate", float), ("schedule", str), ("warmup", float),
        ("weight-decay", float), ("image-size", int), ("num-channels", int), ("head-hidden-size", int), ("seed", int),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help="as in chexpert-hf train")
    parser.add_argument("--frontal-only", action="store_const", const=True)
    parser.add_argument("--freeze-backbone", action="store_const", const=True)
    return parser.parse_args(arguments)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Make the recipe from the command line's options; it keeps the last checkpoint."""
    recipe = Recipe() if options.recipe is None else Recipe.load(options.recipe)
    given = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name not in ("data", "output", "recipe")
    }
    return recipe.override(**{"checkpoint": "last", **given})


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 2 for bad input, else 0."""
    options = parse(arguments)
    try:
        evaluation = train(recipe_of(options), options.data, options.output)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{options.output}: mean AUROC {evaluation.mean_auroc:.3f} on {evaluation.num_studies:,} studies, over "
        f"{', '.join(evaluation.mean_over)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
