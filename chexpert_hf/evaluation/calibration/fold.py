"""Calibration lives in the weights: a line on each logit is a rescaling of the rows of the head's last layer.

So one pass and a plain sigmoid give calibrated probabilities wherever the model runs, and nothing has to remember to
apply anything.
"""

from collections.abc import Mapping

import torch

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.evaluation.calibration.calibration import CalibrationError, Platt
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification


@torch.no_grad()
def fold_calibration(model: CheXpertForImageClassification, lines: Mapping[str, Platt]) -> None:
    """Changes the head's last layer, so that each of these observations' logits z becomes slope * z + intercept.

    The rows of other observations are not touched. Under U-MultiClass, where z is the difference of the positive and
    the negative output, all three rows are scaled, and half the intercept is added to the positive and taken from the
    negative one. That multiplies the log odds of the uncertain class against the geometric mean of the two by the slope
    and does nothing else to them; `uncertainty` changes, and is not itself calibrated.

    Args:
        model: Changed in place.
        lines: Observation -> its line.

    Raises:
        CalibrationError: If the model has a label hierarchy.
    """
    refuse_hierarchy(model.config)
    parameters = model.last_layer.weight, model.last_layer.bias
    weight, bias = (parameter.double() for parameter in parameters)
    num_labels, multiclass = model.config.num_labels, model.config.multiclass_observations
    for name, line in lines.items():
        positive = model.config.observations.index(name)
        rows, shifts = [positive], [line.intercept]
        if name in multiclass:
            negative = num_labels + multiclass.index(name)
            rows = [positive, negative, negative + len(multiclass)]
            shifts = [line.intercept / 2, -line.intercept / 2, 0.0]
        weight[rows] *= line.slope
        bias[rows] = bias[rows] * line.slope + bias.new_tensor(shifts)
    parameters[0].copy_(weight)
    parameters[1].copy_(bias)


def refuse_hierarchy(config: CheXpertConfig) -> None:
    """Raises CalibrationError if the model's logits are not those of its head alone."""
    if config.label_parents:
        raise CalibrationError(
            "The model multiplies probabilities along a label hierarchy (label_parents), and no line on a factor "
            "calibrates the product; calibrate a model without hierarchy."
        )
