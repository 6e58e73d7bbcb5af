"""Builds the Hugging Face Trainer that a recipe describes."""

import math
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.evaluation.metrics import evaluate_probabilities, split_labels
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import IGNORED, POSITIVE, LabelSet
from chexpert_hf.machine import num_processors
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification, resolve_labels
from chexpert_hf.scoring.graphs.sessions import torch_has_bf16
from chexpert_hf.training.augmentation import RadiographAugmentation
from chexpert_hf.training.batches import RadiographDataset, TrainingTargets, positive_weights
from chexpert_hf.training.cache import cached_images
from chexpert_hf.training.checkpoints import SCORE, best_checkpoints, checkpoints_by_step
from chexpert_hf.training.durable.trainer_checkpoints import DurableCheckpoints
from chexpert_hf.training.initial_model import num_devices
from chexpert_hf.training.losses import auc_margin_loss, centring_loss, map_loss, offsets_of_peaks
from chexpert_hf.training.recipe import Recipe

METRIC = SCORE.removeprefix("eval_")
EVALUATION_BATCH_SIZE = 64
CENTRED_IMAGES = 8  # per batch, for the centring loss
MAX_WORKERS = 16  # enough to keep a GPU busy
COMPILED_FROM = 4000  # steps that repay a minute or two of compilation


class CheXpertTrainer(DurableCheckpoints):
    """A Trainer for batches of gray levels, which it augments and normalises on the accelerator.

    Args:
        recipe: The recipe of the run.
        teachers: Models to distil; empty for none. Their mean probability for the same images, augmented and
            mixed, is mixed into the labels.
        kwargs: Arguments of `Trainer`.
    """

    def __init__(self, *, recipe: Recipe, teachers: Sequence[CheXpertForImageClassification], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recipe, self.augmentation = recipe, RadiographAugmentation(recipe)
        self.memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        for teacher in teachers:
            teacher.eval().requires_grad_(False).to(self.args.device, memory_format=self.memory_format)
        self.teachers = teachers

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the Trainer's evaluation loader, but with every image, even if `dataloader_drop_last` is set."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return self.network_inputs(super()._prepare_inputs(inputs))

    def network_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Turn a batch of a RadiographDataset into the network's inputs, with normalised `pixel_values`.

        In training, images are augmented. With `mixup`, each is then mixed with another of the batch, and `labels` by
        the same shares. Last, the teachers' probabilities for these images are mixed into `labels`. `inputs` is
        changed: it loses `index`, and gets these labels.
        """
        gray, indices = inputs["pixel_values"], inputs.pop("index")  # (B, 1, height, width)
        if self.model.training and self.augmentation.is_active:
            # The state's epoch is exact at the ends of epochs, also after resuming.
            gray = self.augmentation(gray, epoch=int(self.state.epoch or 0), indices=indices)
        processor: Any = self.processing_class
        pixel_values = processor.pixel_values_of(gray)
        if self.model.training and self.recipe.mixup:
            pixel_values, inputs["labels"] = _mixed(pixel_values, inputs["labels"])
        pixel_values = pixel_values.contiguous(memory_format=self.memory_format)
        if self.model.training and self.teachers:
            inputs["labels"] = self._with_teachers(inputs["labels"], pixel_values)
        return inputs | {"pixel_values": pixel_values}

    @torch.no_grad()
    def _with_teachers(self, targets: Tensor, pixel_values: Tensor) -> Tensor:
        """Mix the teachers' mean probability into targets `(batch, num_labels)`; -1 and -100 stay as they are.

        The loss for the mixed targets equals a weighted sum of two losses, one for the labels and one for the teachers'
        probabilities, since cross-entropy is linear in its targets.
        """
        with self.compute_loss_context_manager():
            logits = [teacher(pixel_values).logits.float() for teacher in self.teachers]
        probabilities = torch.stack(logits).sigmoid().mean(dim=0)
        mixed = torch.lerp(targets, probabilities, self.recipe.distillation)
        return torch.where(targets >= 0, mixed, targets)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        map_weight, centring_weight = self.recipe.map_loss, self.recipe.map_centring
        if not (map_weight or centring_weight) or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with_maps = inputs | {"output_saliency": bool(map_weight)}
        loss, outputs = super().compute_loss(model, with_maps, True, num_items_in_batch)
        if map_weight:
            added = map_loss(outputs, inputs["labels"], inputs.get("loss_weights"), num_items_in_batch)
            loss = loss + map_weight * added
        if centring_weight:
            # This loss is a mean per batch; the others are divided by the labels of the whole optimizer step.
            weight = centring_weight / self.args.gradient_accumulation_steps
            loss = loss + weight * self.centring(inputs["pixel_values"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def centring(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Return a loss that is low if the peaks of saliency maps lie at the image regions that cause them.

        It is the `centring_loss` over the batch's first `CENTRED_IMAGES` images. Of each image with a positive label,
        one map is used: that of a positive observation drawn at random. If there is no such image, the loss is 0.
        """
        positive = labels[:CENTRED_IMAGES] == POSITIVE
        rows = positive.any(dim=1).nonzero()[:, 0]
        if len(rows) == 0:
            return labels.new_zeros(())
        columns = torch.multinomial(positive[rows].float(), 1)[:, 0]
        network = self.accelerator.unwrap_model(self.model)
        network.eval()  # so few images give no batch statistics
        try:
            with torch.autocast(pixel_values.device.type, enabled=False):
                return centring_loss(offsets_of_peaks(network, pixel_values[rows].float(), columns))
        finally:
            network.train()


class BestCheckpoints(TrainerCallback):
    """Deletes all checkpoints except the newest and the best ones by validation AUROC.

    Also makes the Trainer evaluate and save after the last step of the run, not only at its regular intervals.

    Args:
        count: Number of best checkpoints to keep.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            for path in set(checkpoints_by_step(folder)[:-1]) - set(best_checkpoints(folder, self.count)):
                shutil.rmtree(path)


class TrainingProgress(ProgressCallback):
    """Shows a progress bar on a terminal, and prints one line per evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, unit=" steps", dynamic_ncols=True, disable=None)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing: evaluations are short and need no bar of their own."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.training_bar is None:
            return
        if "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")
        if SCORE in logs:
            # The state learns of a new best only after its callbacks.
            best = max(logs[SCORE], -math.inf if state.best_metric is None else state.best_metric)
            self.training_bar.write(
                f"step {state.global_step:>6} of {state.max_steps}  epoch {logs['epoch']:.2f}  validation mean AUROC "
                f"{logs[SCORE]:.3f}  (best {best:.3f})",
                file=sys.stderr,
            )


def _mixed(pixel_values: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch, and its targets `(batch, num_labels)`, with one chosen at random; return both.

    The chosen image may be the same one, which then stays as it is. The shares are uniform in [0, 1], one for each
    image. A target is -100 (ignored) if that of either image is. The Trainer divides the loss by the number of targets
    that were not ignored before. Teachers know their training images by heart, but not mixtures of them.

    Source: Beyer et al. 2022, Knowledge distillation: A good teacher is patient and consistent.
    """
    other = torch.randperm(len(targets), device=targets.device)
    share = torch.rand(len(targets), 1, 1, 1, device=targets.device)
    is_known = (targets >= 0) & (targets[other] >= 0)
    mixed = torch.lerp(targets[other], targets, share[:, :, 0, 0])
    return torch.lerp(pixel_values[other], pixel_values, share), torch.where(is_known, mixed, IGNORED)


def build_trainer(
    recipe: Recipe,
    model: CheXpertForImageClassification,
    processor: CheXpertImageProcessor,
    data: datasets.DatasetDict,
    output: Path,
    *,
    soft_labels: NDArray[np.float32] | None = None,
    teachers: Sequence[CheXpertForImageClassification] = (),
    report_to: str = "none",
    progress: TrainerCallback | None = None,
) -> CheXpertTrainer:
    """Build the Trainer of a recipe, for a model with its initial weights; it writes into `output/checkpoints`.

    `data` holds the splits `train` and `valid`. `soft_labels` `(num_rows, num_labels)` are probabilities that replace
    the uncertain labels of `train`, NaN elsewhere. `teachers` are models to distil. `progress` is the callback that
    shows progress, `TrainingProgress` if None.
    """
    if recipe.sync_batch_norm:  # the weights keep their names
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if recipe.gradient_checkpointing:
        # Later releases of transformers call it activation checkpointing, and warn of the earlier name.
        enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    raw = torch.from_numpy(np.asarray(data["train"]["labels"][:]))
    weights = positive_weights(resolve_labels(raw, model.config).numpy()) if recipe.class_weights else None
    targets = TrainingTargets(model.config, recipe.seed, soft_labels, weights)
    known = np.nan_to_num(split_labels(data["valid"], recipe.blank_labels), nan=IGNORED)
    truth = partial(_evaluation_targets, targets=torch.from_numpy(known).float())
    trainer = CheXpertTrainer(
        recipe=recipe,
        teachers=teachers,
        model=model,
        args=_training_arguments(recipe, len(data["train"]), output, report_to),
        train_dataset=_dataset(recipe, data["train"], processor, targets),
        eval_dataset=_dataset(recipe, data["valid"], processor, truth),
        processing_class=processor,
        compute_metrics=partial(_compute_metrics, studies=data["valid"]["study"][:], known=recipe.known_labels),
        compute_loss_func=auc_margin_loss if recipe.loss == "auc-margin" else None,
        callbacks=[BestCheckpoints(recipe.keep_checkpoints)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(progress or TrainingProgress())
    return trainer


def _dataset(
    recipe: Recipe, split: datasets.Dataset, processor: CheXpertImageProcessor, to_targets: Any
) -> RadiographDataset:
    images = cached_images(image_files(split), processor, recipe.cache, recipe.workers)
    return RadiographDataset(split, processor, to_targets, images=images)


def _training_arguments(recipe: Recipe, num_images: int, output: Path, report_to: str) -> TrainingArguments:
    """Translate the recipe to the Trainer's arguments, for `num_images` training images."""
    images_per_batch = recipe.batch_size * num_devices()
    images_per_step = images_per_batch * recipe.gradient_accumulation_steps
    num_skipped = num_images % images_per_batch if recipe.drop_last else 0
    steps_per_epoch = math.ceil((num_images - num_skipped) / images_per_step)
    # The best checkpoint is chosen among at least one per epoch.
    longest = steps_per_epoch if recipe.checkpoint == "best" else math.ceil(steps_per_epoch * recipe.epochs)
    interval = max(1, min(recipe.images_per_checkpoint // images_per_step, longest))
    is_cuda = torch.cuda.is_available()
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16" if torch_has_bf16(PartialState().device) else "fp32"
    is_long = steps_per_epoch * recipe.epochs >= COMPILED_FROM
    has_warmup = recipe.warmup > 0 and recipe.schedule == "constant"
    return TrainingArguments(
        output_dir=str(output / "checkpoints"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=EVALUATION_BATCH_SIZE,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="constant_with_warmup" if has_warmup else recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),  # else bf16 is refused on a CPU
        torch_compile=(is_cuda and is_long) if recipe.compile is None else recipe.compile,
        # A fold held out for the calibration chooses no checkpoint: it is evaluated once, at the end.
        eval_strategy="steps" if recipe.held_out_fold is None else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        metric_for_best_model=METRIC,
        greater_is_better=True,
        logging_steps=max(1, min(10, steps_per_epoch // 4)),
        logging_nan_inf_filter=False,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_drop_last=recipe.drop_last,
        dataloader_num_workers=_num_workers(recipe),
        dataloader_pin_memory=is_cuda,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to=report_to,
        project="chexpert-hf",
        trackio_static_space_id=False,
        disable_tqdm=False,
    )


def _num_workers(recipe: Recipe) -> int:
    """Return the number of processes that load batches. It is 0, no extra process, if decoded images are cached.

    Copying a batch from the cache takes less time than sending it from another process.
    """
    if recipe.cache != "none":
        return 0
    if recipe.workers != "auto":
        return recipe.workers
    return min(max(2, num_processors() // num_devices()), MAX_WORKERS) if torch.cuda.is_available() else 2


def _compute_metrics(prediction: EvalPrediction, studies: Sequence[str], known: LabelSet) -> dict[str, float]:
    """Return the AUROC over studies of each observation (`auroc/Edema`), and the mean AUROC under the key `METRIC`.

    Observations without positive or without negative studies are left out. `studies` names the study of each image.
    The mean is over the observations that `averaged_observations` chooses from `known.headline`. If the model diverged,
    the only entry is `METRIC`, which is NaN.
    """
    if not np.isfinite(prediction.predictions).all():
        return {METRIC: math.nan}  # diverged; reported at the end of the run
    probabilities = torch.from_numpy(np.asarray(prediction.predictions)).float().sigmoid().numpy()
    labels = np.where(prediction.label_ids == IGNORED, np.nan, prediction.label_ids)
    evaluation = evaluate_probabilities(probabilities, labels, studies, known.names, known.headline)
    per_observation = {f"auroc/{item.observation}": item.auroc for item in evaluation.observations}
    return {METRIC: evaluation.mean_auroc} | {k: v for k, v in per_observation.items() if not math.isnan(v)}


def _evaluation_targets(_labels: Tensor, index: int, targets: Tensor) -> dict[str, Tensor]:
    """Return the evaluation targets of one image: row `index` of `targets`, `(num_images, num_labels)`.

    The raw labels, `_labels`, are not used; `RadiographDataset` passes them to every function of this kind.
    """
    return {"labels": targets[index]}
