"""The model: torchvision's DenseNet, one logit per observation, an uncertainty-aware loss, and saliency maps.

The maps come with the forward pass: for global average pooling followed by a head, the gradient of a logit with respect
to the last feature maps is known without a backward pass. This file travels with saved models (remote code).

Sources: Huang et al. 2017, arXiv:1608.06993 (DenseNet); Zhou et al. 2016, arXiv:1512.04150 (class activation maps);
Irvin et al. 2019, arXiv:1901.07031 (uncertainty policies, Grad-CAM at the last convolution).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import DenseNet
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_chexpert import CheXpertConfig
from .labels import IGNORED, NEGATIVE, POSITIVE, UNCERTAIN, UncertaintyPolicy, parse_policies

_RESOLVED = {
    UncertaintyPolicy.U_IGNORE: IGNORED,
    UncertaintyPolicy.U_ZEROS: NEGATIVE,
    UncertaintyPolicy.U_ONES: POSITIVE,
}


@dataclass
class CheXpertOutput(ModelOutput):
    """What `CheXpertForImageClassification` returns.

    Attributes:
        loss: Scalar, if labels were given.
        logits: `(batch, num_labels)`; `logits.sigmoid()` are the probabilities.
        saliency: `(batch, num_labels, h, w)`, on request: how much each place of the last feature map contributes to
            each logit. For a linear head the spatial mean of a map plus the head's bias is the logit. Grad-CAM is its
            positive part.
        hidden_states: On request, the feature maps `(batch, channels, h, w)` after each dense block.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    saliency: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class CheXpertForImageClassification(PreTrainedModel):
    """DenseNet with one logit per observation, whatever uncertainty policy it was trained with.

    Parameter names of the backbone are torchvision's (`features.*`); a linear head is `classifier`, one with a hidden
    layer is `classifier.0` and `classifier.3`, as in `Sequential(Linear, ReLU, Dropout, Linear)`.
    """

    config: CheXpertConfig
    config_class = CheXpertConfig
    base_model_prefix = "densenet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = True

    def __init__(self, config: CheXpertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        densenet = DenseNet(
            growth_rate=config.growth_rate,
            block_config=tuple(config.block_config),
            num_init_features=config.num_init_features,
            bn_size=config.bn_size,
            drop_rate=config.drop_rate,
            num_classes=1,
        )
        self.features = densenet.features
        if config.num_channels != self.features.conv0.in_channels:
            self.features.conv0 = nn.Conv2d(
                config.num_channels, config.num_init_features, kernel_size=7, stride=2, padding=3, bias=False
            )
        self.classifier = _head(densenet.classifier.in_features, config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As torchvision initialises its DenseNet."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def freeze_backbone(self) -> None:
        """Stops the training of all but the head; the statistics of the backbone's BatchNorm stay as they are, too."""
        self.features.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CheXpertForImageClassification":
        """As in torch, but a frozen backbone stays in evaluation mode: its running statistics would drift otherwise."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.features.parameters()):
            self.features.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_saliency: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CheXpertOutput:
        """Scores a batch of radiographs.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, from the image processor.
            labels: `(batch, num_labels)`: 1, 0, -1 (uncertain) and NaN (blank) as in the CSV files, to which the
                config's policies are applied; also targets in [0, 1], and -100 for what takes no part in the loss.
            output_saliency: Whether to return `saliency`; the config's value if None.
            output_hidden_states: Whether to return `hidden_states`; the config's value if None.
            num_items_in_batch: Known labels of all the batches of an optimizer step, by which the sum of the losses is
                divided (the Trainer passes it); this batch's own number if None.

        Raises:
            ValueError: If the shapes do not fit the model.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {self.config.num_channels}, "
                "height, width) from the image processor."
            )
        if output_saliency is None:
            output_saliency = self.config.output_saliency
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        features, hidden_states = self._feature_maps(pixel_values)  # (B, C, h, w)
        pooled = functional.adaptive_avg_pool2d(features, (1, 1)).flatten(1)  # (B, C)
        logits = self.classifier(pooled)
        return CheXpertOutput(
            loss=None if labels is None else self._loss(logits, labels, num_items_in_batch),
            logits=logits,
            saliency=self._saliency(features, pooled) if output_saliency else None,
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def _feature_maps(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The last feature maps after the last ReLU, and those after each dense block."""
        features = pixel_values
        after_blocks = []
        for name, module in self.features.named_children():
            features = module(features)
            if name.startswith("denseblock"):
                after_blocks.append(features)
        return functional.relu(features, inplace=True), tuple(after_blocks)

    def _saliency(self, features: Tensor, pooled: Tensor) -> Tensor:
        """`(batch, num_labels, h, w)`: the feature maps weighted by the gradient of each logit."""
        if not isinstance(self.classifier, nn.Sequential):
            return functional.conv2d(features, self.classifier.weight[:, :, None, None])
        first, last = self.classifier[0], self.classifier[-1]
        active = (first(pooled) > 0).to(features.dtype)  # (B, hidden): the ReLU's derivative
        gradients = (last.weight * active[:, None, :]) @ first.weight  # (B, num_labels, C)
        return torch.einsum("blc,bchw->blhw", gradients.to(features.dtype), features)

    def _loss(self, logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected {tuple(logits.shape)}: one value per observation."
            )
        targets = resolve_labels(labels, self.config)
        return masked_bce_with_logits(logits, targets, num_items_in_batch)


def _head(num_features: int, config: CheXpertConfig) -> nn.Linear | nn.Sequential:
    if config.head_hidden_size is None:
        return nn.Linear(num_features, config.num_labels)
    return nn.Sequential(
        nn.Linear(num_features, config.head_hidden_size),
        nn.ReLU(),
        nn.Dropout(config.head_dropout),
        nn.Linear(config.head_hidden_size, config.num_labels),
    )


def resolve_labels(labels: Tensor, config: CheXpertConfig) -> Tensor:
    """Applies the config's policies to labels as they stand in the CSV files.

    Args:
        labels: `(..., num_labels)`: 1, 0, -1, NaN; values that are resolved already stay as they are.
        config: Gives the policy of each observation and what a blank means.

    Returns:
        Targets of the same shape: in [0, 1], or -100 where the cell takes no part in the loss.
    """
    policies = parse_policies(config.uncertainty_policies or {}, config.observations)
    for_uncertain = labels.new_tensor([_RESOLVED[UncertaintyPolicy(policy)] for policy in policies.values()])
    targets = torch.where(labels == UNCERTAIN, for_uncertain, labels)
    return torch.nan_to_num(targets, nan=NEGATIVE if config.blank_labels == "negative" else IGNORED)


def masked_bce_with_logits(logits: Tensor, targets: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Mean binary cross-entropy over the cells that are known, in float32.

    Args:
        logits: `(batch, num_labels)`.
        targets: Of the same shape, in [0, 1], or -100 where unknown.
        num_items: What the sum is divided by; the number of known cells if None.

    Returns:
        A scalar, 0 if nothing is known.
    """
    is_known = targets != IGNORED
    losses = functional.binary_cross_entropy_with_logits(logits.float(), targets.float().clamp(min=0), reduction="none")
    total = (losses * is_known).sum()
    return total / (is_known.sum().clamp(min=1) if num_items is None else num_items)


CheXpertForImageClassification.register_for_auto_class("AutoModelForImageClassification")
