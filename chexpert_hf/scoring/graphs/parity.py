"""How far what a runtime computes is from the model in PyTorch, and how far it may be."""

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
"""Which field of a `Parity` each precision is judged by, and the most that it may be. Ours, not a source's: a float32
graph does the same arithmetic in another order; .01 changes no reading, and .03 is for those who ask for int8."""

_BATCH = 8


@dataclass(frozen=True)
class Parity:
    """Largest differences from the model in float32 on the CPU, over all observations.

    Attributes:
        num_images: On how many images.
        max_abs_probability_difference: In [0, 1].
        p99_abs_probability_difference: What 99 % of the images stay within, in [0, 1].
        max_abs_logit_difference: In logits.
        max_relative_saliency_difference: Of the maps, as a share of the largest value of any map.
    """

    num_images: int
    max_abs_probability_difference: float
    p99_abs_probability_difference: float
    max_abs_logit_difference: float
    max_relative_saliency_difference: float

    def excess(self, precision: Precision) -> str | None:
        """What is beyond the precision's bound, in words; None if nothing is."""
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
    """Compares a runtime with the model that it computes.

    Args:
        model: In float32 on the CPU, in evaluation mode.
        runtime: One of those in `sessions`.
        pixel_values: `(num_images, num_channels, height, width)`.
    """
    expected = [model(batch, output_saliency=True) for batch in pixel_values.split(_BATCH)]
    wanted, wanted_maps = (torch.cat([output[name] for output in expected]) for name in ("logits", "saliency"))
    outputs = [runtime(batch, saliency=True) for batch in pixel_values.split(_BATCH)]
    got = torch.cat([logits for logits, _ in outputs])
    got_maps = torch.cat([maps for _, maps in outputs if maps is not None])
    largest = wanted_maps.abs().max().clamp(min=torch.finfo(wanted_maps.dtype).tiny)
    of_images = (got.sigmoid() - wanted.sigmoid()).abs().amax(dim=1)
    return Parity(
        num_images=len(pixel_values),
        max_abs_probability_difference=of_images.max().item(),
        p99_abs_probability_difference=of_images.quantile(0.99).item(),
        max_abs_logit_difference=_largest(got - wanted),
        max_relative_saliency_difference=_largest((got_maps - wanted_maps) / largest),
    )


def _largest(differences: Tensor) -> float:
    return differences.abs().max().item()
