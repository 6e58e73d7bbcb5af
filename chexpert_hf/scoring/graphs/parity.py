"""Differences between a runtime's outputs and the model in PyTorch, and their bounds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import Precision

BOUNDS: Mapping[Precision, tuple[str, float]] = {
    Precision.FP32: ("max_abs_logit_difference", 1e-4),
    Precision.BF16: ("max_abs_probability_difference", 0.01),
    Precision.FP16: ("max_abs_probability_difference", 0.01),
    Precision.INT8: ("max_abs_probability_difference", 0.03),
}
"""The field of `Parity` by which each precision is judged, and its bound, our choice: a float32 graph does the same
arithmetic in another order; .01 changes no reading, and .03 is for those who ask for int8."""

_BATCH = 8


@dataclass(frozen=True)
class Parity:
    """Largest differences from the model in float32 on the CPU, over all observations.

    Attributes:
        num_images: The number of images compared.
        max_abs_probability_difference: In [0, 1].
        p99_abs_probability_difference: Within this are 99 % of the images, in [0, 1].
        max_abs_logit_difference: In logits.
        max_relative_saliency_difference: Of the maps, as a share of the largest value of any map.
    """

    num_images: int
    max_abs_probability_difference: float
    p99_abs_probability_difference: float
    max_abs_logit_difference: float
    max_relative_saliency_difference: float

    def excess(self, precision: Precision) -> str | None:
        """The difference beyond the precision's bound, in words; None if there is none."""
        name, bound = BOUNDS[precision]
        measured: float = getattr(self, name)
        if measured <= bound:  # and so not if it is NaN
            return None
        return f"{name.replace('_', ' ')} of {measured:.2g} on {self.num_images} images, at most {bound:g} is allowed"


@torch.inference_mode()
def measure_parity(
    model: CheXpertForImageClassification,
    runtime: Callable[..., tuple[Tensor, Tensor | None]],
    pixel_values: Tensor,
) -> Parity:
    """Compares a runtime with its model, which is in float32 on the CPU and in evaluation mode, on `pixel_values`."""
    batches = pixel_values.split(_BATCH)
    expected = [model(batch, output_saliency=True) for batch in batches]
    wanted, wanted_maps = (torch.cat([output[name] for output in expected]) for name in ("logits", "saliency"))
    outputs = [runtime(batch, saliency=True) for batch in batches]
    got = torch.cat([logits for logits, _ in outputs])
    got_maps = torch.cat([maps for _, maps in outputs if maps is not None])
    largest = wanted_maps.abs().max().clamp(min=torch.finfo(wanted_maps.dtype).tiny)
    of_images = (got.sigmoid() - wanted.sigmoid()).abs().amax(dim=1)
    return Parity(
        num_images=len(pixel_values),
        max_abs_probability_difference=of_images.max().item(),
        p99_abs_probability_difference=of_images.quantile(0.99).item(),
        max_abs_logit_difference=(got - wanted).abs().max().item(),
        max_relative_saliency_difference=((got_maps - wanted_maps) / largest).abs().max().item(),
    )
