"""Training examples of a data set: gray levels at the network's input size, and targets made from the raw labels."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import NEGATIVE, POSITIVE, SMOOTHING_RANGES, UNCERTAIN, UncertaintyPolicy
from chexpert_hf.modeling_chexpert import resolve_labels
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.preparation import gray_levels

# Separates the random numbers of label smoothing from those of augmentation, which are seeded by (seed, epoch, index).
_SMOOTHING_STREAM = 1_000_003


class RadiographDataset(torch.utils.data.Dataset):
    """The radiographs of a split from `load_dataset`, read on demand and not yet augmented.

    Args:
        dataset: The split.
        processor: Resizes the images.
        to_targets: Maps a row's raw labels `(num_labels,)` and its index to a dictionary of targets.
        images: All images, decoded already, from `cache.cached_images`; if None, their files are read.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: CheXpertImageProcessor,
        to_targets: Callable[[Tensor, int], dict[str, Tensor]],
        *,
        images: NDArray[np.generic] | None = None,
    ) -> None:
        self.files = image_files(dataset)
        self.names: list[str] = dataset["path"][:]
        self.labels = torch.from_numpy(np.asarray(dataset["labels"][:], dtype=np.float32))
        self.processor = processor
        self.to_targets = to_targets
        self.images = images

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """Return `pixel_values` (gray levels `(1, height, width)`), `index`, and the targets of an image.

        Gray levels are uint8, or float32 if the processor's `resize_like` is set. Raise RadiographError if a file
        cannot be read.
        """
        if self.images is None:
            with naming(self.names[index]):
                image = read_radiograph(self.files[index], target_size=self.processor.decoded_side)
            gray = gray_levels(self.processor, image)
        else:
            gray = torch.from_numpy(np.array(self.images[index]))
        return {"pixel_values": gray, "index": index, **self.to_targets(self.labels[index], index)}


@dataclass(frozen=True)
class TrainingTargets:
    """Turns raw labels (1, 0, -1 uncertain, NaN blank, -100 not stated) into targets, by a model config's policies.

    `soft_labels` are a teacher's probabilities, which replace uncertain labels. `positive_weights` are factors by which
    the loss of positive labels is multiplied.
    """

    config: CheXpertConfig
    seed: int = 0  # of label smoothing, which is drawn once for each row and observation
    soft_labels: NDArray[np.float32] | None = None  # (num_rows, num_labels), a teacher's; NaN where not uncertain
    positive_weights: NDArray[np.float32] | None = None  # (num_labels,), weights of positive labels; all 1 if None

    def __call__(self, labels: Tensor, index: int) -> dict[str, Tensor]:
        """Turn one image's raw labels into targets, which are returned under the key `labels`, `(num_labels,)`.

        A target is in [0, 1], -1 (uncertain, as a third class) or -100 (ignored). If positive labels are weighted, the
        result also has `loss_weights`, of the same shape. `index` is the image's row in the split: soft labels are
        looked up by it, and label smoothing is seeded with it.
        """
        labels = self._smoothed(labels, index)
        if self.soft_labels is not None:
            soft = torch.from_numpy(self.soft_labels[index])
            labels = torch.where((labels == UNCERTAIN) & ~soft.isnan(), soft, labels)
        targets = resolve_labels(labels, self.config)
        if self.positive_weights is None:
            return {"labels": targets}
        share = targets.clamp(NEGATIVE, POSITIVE)  # a soft label is weighted by how positive it is
        return {"labels": targets, "loss_weights": 1 + share * (torch.from_numpy(self.positive_weights) - 1)}

    def _smoothed(self, labels: Tensor, index: int) -> Tensor:
        policies = self.config.uncertainty_policies or {}
        chosen = [UncertaintyPolicy(policies[name]) for name in self.config.observations]
        if not set(chosen) & SMOOTHING_RANGES.keys() or not (labels == UNCERTAIN).any():
            return labels
        low, high = np.array([SMOOTHING_RANGES.get(policy, (np.nan, np.nan)) for policy in chosen]).T
        drawn = np.random.default_rng((self.seed, _SMOOTHING_STREAM, index)).random(len(low))
        smooth = torch.from_numpy(low + (high - low) * drawn).to(labels.dtype)  # NaN without smoothing
        return torch.where((labels == UNCERTAIN) & ~smooth.isnan(), smooth, labels)


def positive_weights(targets: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the ratio of 0s to 1s in each column of `targets` `(num_rows, num_labels)`; 1 if it has no 0s or no 1s."""
    positive, negative = (targets == POSITIVE).sum(axis=0), (targets == NEGATIVE).sum(axis=0)
    has_both = (positive > 0) & (negative > 0)
    return np.where(has_both, negative / np.maximum(positive, 1), 1).astype(np.float32)
