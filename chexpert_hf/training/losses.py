"""Losses besides the model's own cross-entropy.

The AUC-margin loss is not taken from its authors' package: `AUCMLoss` of libauc 2.0.1 counts unknown labels in its
means (v1) or is NaN for a batch without positives (v2), and has parameters that the Trainer's checkpoints lack.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from chexpert_hf.labels import IGNORED
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification, masked_mean

AUC_MARGIN = 1.0  # of Yuan et al. 2021 for CheXpert
MAP_SHARPNESS = 4.0  # weight of a map's strongest cell in `map_loss`; 4 found focal findings of phantoms best
CENTRED = 0.02  # unit of `centring_loss`, as a share of an image's side

_MAX_OFFSET = 5.0  # in units of CENTRED; longer offsets are clipped
_MIN_MASS = 1e-20


def auc_margin_loss(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:  # noqa: ARG001 - the Trainer passes it
    """Return the squared AUC-margin loss, a mean over the observations with both classes in the batch.

    An observation's loss is a sum of three terms, computed from its probabilities in the batch: the variance among the
    positive images, the variance among the negative images, and `max(0, AUC_MARGIN - gap) ** 2`. `gap` is the mean
    probability of the positive images minus that of the negative ones. For a given batch, this is the closed form of
    the min-max problem of Yuan et al. 2021, arXiv:2012.03173, equation 7.

    Use it to fine-tune a model trained with cross-entropy, with several positives of each observation in a batch.
    Gradients cannot be accumulated over smaller batches, since the loss compares images within a batch.

    `outputs` has `logits` `(batch, num_labels)`; `labels`, of the same shape, are in [0, 1] or -100 (ignored). A soft
    label p counts as a positive of weight p and a negative of weight 1 - p.
    """
    scores = outputs.logits.float().sigmoid()
    is_known = labels != IGNORED
    positive = labels.clamp(min=0) * is_known
    negative = (1 - labels.clamp(min=0)) * is_known
    mean_positive, variance_positive = _weighted_moments(scores, positive)
    mean_negative, variance_negative = _weighted_moments(scores, negative)
    gap = (AUC_MARGIN + mean_negative - mean_positive).clamp(min=0)
    has_both = (positive.sum(dim=0) > 0) & (negative.sum(dim=0) > 0)
    losses = (variance_positive + variance_negative + gap**2) * has_both
    return losses.sum() / has_both.sum().clamp(min=1)


def map_loss(
    outputs: Any, targets: Tensor, weights: Tensor | None = None, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Return a second classification loss: the cross-entropy of the strongest cells of the saliency maps.

    The model's own logit is the mean over all cells of a map, plus the head's bias. A network can reach a high mean by
    spreading its evidence over the whole image. This loss takes other logits, with log-mean-exp (a smooth maximum) in
    place of the mean. To make them high, the network needs at least one strong cell. Source: Pinheiro and Collobert
    2015, arXiv:1411.6228, section 3.2; Wang et al. 2017, arXiv:1705.02315.

    `outputs` has `logits` `(batch, num_labels)` and `saliency` `(batch, num_labels, h, w)`. `targets` and `weights`
    have the shape of the logits; negative targets are ignored. The result is the sum of the losses, divided by
    `num_items_in_batch` or, if that is None, by the number of targets that are not ignored.
    """
    maps = outputs.saliency.float().flatten(2)  # (B, num_labels, cells)
    strongest = (torch.logsumexp(MAP_SHARPNESS * maps, dim=2) - math.log(maps.shape[2])) / MAP_SHARPNESS
    logits = outputs.logits.float() - maps.mean(dim=2) + strongest
    losses = functional.binary_cross_entropy_with_logits(logits, targets.float().clamp(min=0), reduction="none")
    if weights is not None:
        losses = losses * weights
    return masked_mean(losses, targets >= 0, num_items_in_batch)


def centring_loss(offsets: Tensor) -> Tensor:
    """Return a loss that moves the peak of a saliency map to the image region that drives it.

    Each row of `offsets` `(batch, 2)` is the offset from the peak of one image's map to that region: (down, right), as
    fractions of the image's height and width; see `offsets_of_peaks`. The loss is the mean squared length of the
    offsets. Lengths are measured in units of `CENTRED`; those above 5 units count as 5.
    """
    return (offsets / CENTRED).square().sum(dim=1).clamp(max=_MAX_OFFSET**2).mean()


def offsets_of_peaks(model: CheXpertForImageClassification, pixel_values: Tensor, columns: Tensor) -> Tensor:
    """Return the offset `(batch, 2)` from a map's strongest cell to the image region that drives it.

    The region's position is the centre of mass of the squared gradient of that cell's value with respect to the pixels.
    Offsets are (down, right), as fractions of height and width, and differentiable. `columns` `(batch,)` is the index
    of the observation whose map is used for each image; the model is in evaluation mode.
    Source: Luo et al. 2016, "Understanding the Effective Receptive Field", arXiv:1701.04128.
    """
    with torch.enable_grad():
        values = pixel_values.detach().clone().requires_grad_()
        maps = model(values, output_saliency=True).saliency[torch.arange(len(values)), columns]  # (B, h, w)
        height, width = maps.shape[1:]
        maps = maps.flatten(1)
        peaks = maps.detach().argmax(dim=1)
        (gradient,) = torch.autograd.grad(maps.gather(1, peaks[:, None]).sum(), values, create_graph=True)
        mass = gradient.float().square().sum(dim=1)  # (B, height, width)
        mass = mass / mass.sum(dim=(1, 2), keepdim=True).clamp(min=_MIN_MASS)
        cells = torch.stack([(peaks // width + 0.5) / height, (peaks % width + 0.5) / width], dim=1)
        down = (mass.sum(dim=2) * _pixel_centres(mass.shape[1], mass)).sum(dim=1)
        right = (mass.sum(dim=1) * _pixel_centres(mass.shape[2], mass)).sum(dim=1)
        return torch.stack([down, right], dim=1) - cells


def _pixel_centres(count: int, like: Tensor) -> Tensor:
    """Return the positions of a side's pixel centres, `(count,)`, as fractions of the side; on the device of `like`."""
    return (torch.arange(count, device=like.device) + 0.5) / count


def _weighted_moments(scores: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted means and variances, `(num_labels,)` each, of the columns of `scores` `(batch, num_labels)`.

    `weights` has the shape of `scores`. Both results are 0 for a column whose weights are all 0.
    """
    total = weights.sum(dim=0).clamp(min=torch.finfo(weights.dtype).tiny)
    mean = (scores * weights).sum(dim=0) / total
    return mean, ((scores - mean) ** 2 * weights).sum(dim=0) / total
