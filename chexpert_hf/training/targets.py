"""Training targets from raw labels: policies, smoothing, a teacher's soft labels, weights."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.labels import NEGATIVE, POSITIVE, SMOOTHING_RANGES, UNCERTAIN, UncertaintyPolicy
from chexpert_hf.modeling_chexpert import resolve_labels

# Keeps the draws of smoothing apart from those of augmentation, which are keyed by (seed, epoch, index).
_SMOOTHING_STREAM = 1_000_003


@dataclass(frozen=True)
class TrainingTargets:
    """Makes the targets of a row of the training data by the policies of a config.

    Attributes:
        config: The model's.
        seed: Of label smoothing, which is drawn once for each row and observation.
        soft_labels: `(num_rows, num_labels)`: a teacher's probabilities for uncertain labels, NaN elsewhere.
        positive_weights: `(num_labels,)`: how much more a positive label counts; None if all count the same.
    """

    config: CheXpertConfig
    seed: int = 0
    soft_labels: NDArray[np.float32] | None = None
    positive_weights: NDArray[np.float32] | None = None

    def __call__(self, labels: Tensor, index: int) -> dict[str, Tensor]:
        """`labels` in [0, 1], -1 (uncertain class) or -100, and `loss_weights` if there are weights."""
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
    """The number of negative labels for each positive one `(num_labels,)`; 1 where there are none of either.

    Args:
        targets: `(num_rows, num_labels)`: 0, 1, or another value for neither.
    """
    positive, negative = (targets == POSITIVE).sum(axis=0), (targets == NEGATIVE).sum(axis=0)
    has_both = (positive > 0) & (negative > 0)
    return np.where(has_both, negative / np.maximum(positive, 1), 1).astype(np.float32)
