"""Batches of radiographs as NumPy arrays, for any framework, in an order that depends only on seed and epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.training.augmentation import RadiographAugmentation
from chexpert_hf.training.recipe import Recipe


class OrderedBatches:
    """The training data of a recipe, batch by batch.

    Args:
        rows: Training examples: a `RadiographDataset`, which reads them on demand, or a list.
        recipe: Batch size, augmentation and seed.
        processor: Normalises the images.
        drop_last: Skip an incomplete last batch.
    """

    def __init__(
        self, rows: Sequence[Any], recipe: Recipe, processor: CheXpertImageProcessor, *, drop_last: bool = False
    ) -> None:
        self.rows, self.processor, self.seed, self.batch_size = rows, processor, recipe.seed, recipe.batch_size
        self.augmentation = RadiographAugmentation(recipe)
        self.steps_per_epoch = len(rows) // self.batch_size if drop_last else -(-len(rows) // self.batch_size)

    def order(self, epoch: int) -> NDArray[np.intp]:
        """Return the indices of `rows`, `(num_rows,)`, in the order of an epoch."""
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))

    def batch(self, epoch: int, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return `pixel_values` (batch, channels, height, width) and targets `(batch, num_labels)`, -100 if unknown."""
        chosen = self.order(epoch)[number * self.batch_size : (number + 1) * self.batch_size]
        rows = [self.rows[int(index)] for index in chosen]
        gray = torch.stack([row["pixel_values"] for row in rows])
        if self.augmentation.is_active:
            gray = self.augmentation(gray, epoch=epoch, indices=torch.from_numpy(chosen))
        targets = torch.stack([row["labels"] for row in rows])
        return self.processor.pixel_values_of(gray).numpy(), targets.float().numpy()
