"""The model: a backbone, one logit per observation, an uncertainty-aware loss, and saliency maps.

The maps need no backward pass: with global average pooling before the head, the gradient of a logit with respect to the
last feature maps has a closed form. This file is copied into saved models (remote code).

Sources: Zhou et al. 2016, arXiv:1512.04150 (class activation maps); Irvin et al. 2019, arXiv:1901.07031 (uncertainty
policies, Grad-CAM at the last convolution).
"""

import copy
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .backbones_chexpert import LAST_STAGE, build_backbone
from .configuration_chexpert import CheXpertConfig
from .labels import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    SMOOTHING_RANGES,
    UNCERTAIN,
    UncertaintyPolicy,
    ancestors,
    parse_policies,
)

logger = logging.getLogger(__name__)

_HIGHEST_LOGIT = 80.0  # 1 minus its sigmoid is still a normal number in float32

_RESOLVED = {
    UncertaintyPolicy.U_IGNORE: IGNORED,
    UncertaintyPolicy.U_ZEROS: NEGATIVE,
    UncertaintyPolicy.U_ONES: POSITIVE,
    # Ignored until a teacher has given the probability.
    UncertaintyPolicy.U_SELF_TRAINED: IGNORED,
    UncertaintyPolicy.U_MULTICLASS: UNCERTAIN,
    # The middle of the range, where a data set does not draw targets by sample.
    UncertaintyPolicy.U_ZEROS_LSR: sum(SMOOTHING_RANGES[UncertaintyPolicy.U_ZEROS_LSR]) / 2,
    UncertaintyPolicy.U_ONES_LSR: sum(SMOOTHING_RANGES[UncertaintyPolicy.U_ONES_LSR]) / 2,
}


@dataclass
class CheXpertOutput(ModelOutput):
    """Output of `CheXpertForImageClassification`.

    Attributes:
        loss: Scalar, if labels were given.
        logits: `(batch, num_labels)`; `logits.sigmoid()` are the probabilities. Under U-MultiClass the logit is the
            positive class's minus the negative class's, so its sigmoid is p1 / (p0 + p1).
        uncertainty: `(batch, num_multiclass)`: the probability of the uncertain class, in the order of the config's
            `multiclass_observations`; None if there are none.
        saliency: If requested, `(batch, num_labels, h, w)`: the contribution of each cell of the last feature map to
            each logit. With a linear head and no hierarchy, a map's mean plus the bias is the logit. Grad-CAM is the
            positive part.
        hidden_states: If requested, the feature maps `(batch, channels, h, w)` after each dense block or stage.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    uncertainty: Tensor | None = None
    saliency: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class CheXpertForImageClassification(PreTrainedModel):
    """A backbone and a head with one logit per observation, whatever its uncertainty policy.

    The name of a backbone weight is `features.` followed by its name in torchvision or timm. A linear head is
    `classifier`. A head with a hidden layer is `Sequential(Linear, ReLU, Dropout, Linear)`; its linear layers are
    `classifier.0` and `classifier.3`.
    """

    config: CheXpertConfig
    config_class = CheXpertConfig
    base_model_prefix = "densenet"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True

    def __init__(self, config: CheXpertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.features = build_backbone(config)
        self.supports_gradient_checkpointing = self.features.supports_gradient_checkpointing
        self.classifier = _new_head(self.features.num_features, config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model as in transformers, but re-initialise a head saved for other labels, even one of the same size.

        If the head is new, the config's operating points, calibration, evaluation of maps, name and warnings are reset.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        path = pretrained_model_name_or_path
        model, info = super().from_pretrained(path, *model_args, output_loading_info=True, **kwargs)
        try:
            stored, _ = cls.config_class.get_config_dict(path, **kwargs) if path is not None else ({}, {})
        except OSError:  # there are only weights
            stored = {}
        if stored.get("model_type") == model.config.model_type:
            trained = cls.config_class.from_dict(stored)
            not_loaded = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
            is_new = any(key.startswith("classifier.") for key in not_loaded)
            is_adapted = hasattr(model, "peft_config")  # by peft; the adapter may have a head of its own
            if not (is_new or is_adapted) and trained.head_outputs != model.config.head_outputs:
                is_new, last = True, model.last_layer
                last.reset_parameters()
                nn.init.zeros_(last.bias)
                parts = {id(parameter) for parameter in last.parameters()}
                info["missing_keys"].update(name for name, one in model.named_parameters() if id(one) in parts)
                logger.warning(
                    f"The head in {path} was trained for other labels ({', '.join(trained.observations)}), so its last "
                    f"layer is newly initialised for {', '.join(model.config.observations)}. Train it before use."
                )
            if is_new or is_adapted:
                model.config.forget_head()
                for name in ("model_name", "warnings"):  # unless the caller gave others
                    if getattr(model.config, name) == getattr(trained, name):
                        setattr(model.config, name, None)
        return (model, info) if wants_info else model

    @classmethod
    def _from_config(cls, config: CheXpertConfig, **kwargs: Any) -> Any:
        """Make a new model for `AutoModel...from_config`.

        The model gets a copy of `config` without the values that describe a trained head, such as operating points.
        """
        model = super()._from_config(copy.deepcopy(config), **kwargs)  # as a model in use may have this config
        model.config.forget_head()
        return model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module: in the head as torchvision's DenseNet does, in the backbone as its library does."""
        if not any(module is part for part in self.classifier.modules()):
            self.features.initialise(module, super()._init_weights)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.zeros_(module.bias)

    @property
    def last_layer(self) -> nn.Linear:
        """The last layer of the head, with a row of weights for each output."""
        head = self._head
        last: Any = head[-1] if isinstance(head, nn.Sequential) else head
        return last

    @property
    def _head(self) -> nn.Module:
        """The head that `forward` uses: the active peft adapter's trained copy of it, if there is one."""
        wrapper: Any = self.classifier
        if not hasattr(wrapper, "modules_to_save"):
            return self.classifier
        adapted = wrapper.modules_to_save[wrapper.active_adapters[0]] if wrapper.active_adapters else None
        return wrapper.original_module if adapted is None or wrapper.disable_adapters else adapted

    def freeze_backbone(self) -> None:
        """Freeze the backbone, including its BatchNorm statistics, so that only the head is trained."""
        self.features.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CheXpertForImageClassification":
        """Set the mode, but keep frozen parts in evaluation mode: the backbone, or single BatchNorms (as under LoRA).

        Otherwise the running statistics of a frozen BatchNorm would drift, and a saved LoRA adapter would lack them.
        """
        super().train(mode)
        if not _is_trained(self.features):
            self.features.eval()
        for module in self.features.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not _is_trained(module):
                module.eval()
        return self

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        output_saliency: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CheXpertOutput:
        """Score a batch of radiographs; with labels, compute the loss.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, from the image processor.
            labels: `(batch, num_labels)`: 1, 0, -1 (uncertain) and NaN (blank) as in the CSV files, to which the
                config's policies are applied; also targets in [0, 1], and -100 for labels without a loss. Integers
                `(batch,)` are class indices: the label of that index is positive, all others negative.
            loss_weights: `(batch, num_labels)`: weight of each label in the sum of the losses; 1 if None. (Not named
                "label...": the Trainer takes all such arguments for columns of labels.)
            output_saliency: Whether to return `saliency`; the config's value if None.
            output_hidden_states: Whether to return `hidden_states`; the config's value if None.
            num_items_in_batch: Number of labels other than -100 in all batches of an optimizer step, given by the
                Trainer; the sum of the losses is divided by it. If None, the labels with a loss in this batch are
                counted.

        Raises:
            ValueError: If the shapes do not fit the model, or labels on the CPU have other values. On a GPU, where a
                check would make the CPU wait, the loss is then NaN.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, {self.config.num_channels}, "
                "height, width) from the image processor."
            )
        if pixel_values.is_floating_point():  # the processor's are float32, the weights may be float16
            pixel_values = pixel_values.to(self.dtype)
        if output_saliency is None:
            output_saliency = self.config.output_saliency
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        stages = self.stages(pixel_values)
        features = stages[LAST_STAGE]  # (B, C, h, w)
        hidden_states = tuple(maps for name, maps in stages.items() if name.startswith(self.features.block_title))
        pooled = _pooled(features)  # (B, C)
        outputs = self.classifier(pooled)  # (B, num_labels + 2 num_multiclass)
        if outputs.shape[1] != (expected := _num_outputs(self.config)):
            raise ValueError(
                f"The head has {outputs.shape[1]} outputs, but the labels and uncertainty policies in the config need "
                f"{expected}: pass id2label and uncertainty_policies to from_pretrained, or replace the head, too."
            )
        logits = self._positive_minus_negative(outputs)
        return CheXpertOutput(
            loss=None if labels is None else self._loss(outputs, labels, loss_weights, num_items_in_batch),
            logits=unconditional_logits(logits, self.config),
            uncertainty=self._classes(outputs).softmax(dim=2)[..., 2] if self._multiclass_columns else None,
            saliency=self._saliency(features, pooled, logits) if output_saliency else None,
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def logits_from(self, features: Tensor) -> Tensor:
        """Return the logits `(batch, num_labels)` for last feature maps `(batch, channels, h, w)`, as in `forward`."""
        return unconditional_logits(self._positive_minus_negative(self.classifier(_pooled(features))), self.config)

    def stages(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the feature maps `(batch, channels, h, w)` after each stage of the backbone, in order.

        Keys: for DenseNet "stem", "dense block 1", "transition 1", ...; last always `LAST_STAGE`, which the head pools.
        """
        return self.features.stages(pixel_values)

    @property
    def _multiclass_columns(self) -> list[int]:
        return [self.config.observations.index(name) for name in self.config.multiclass_observations]

    def _positive_minus_negative(self, outputs: Tensor) -> Tensor:
        """Turn the head's outputs `(..., num_outputs)` into one logit per observation `(..., num_labels)`.

        First comes one output for each observation; if the observation is under U-MultiClass, that of its positive
        class. Then come the negative classes of all observations under U-MultiClass, then their uncertain classes.
        Example: of two observations A and B, only B is under U-MultiClass. The outputs are A, B positive, B negative,
        B uncertain. The logit of A is its output; the logit of B is B positive minus B negative.

        `outputs` may also be the last layer's weights, transposed to `(inputs, num_outputs)`. The result is then the
        weights of the logits, `(inputs, num_labels)`.
        """
        columns = self._multiclass_columns
        if not columns:
            return outputs
        # The 0 after the last output is the negative class of an observation with a plain sigmoid.
        num_labels = self.config.num_labels
        negative = [outputs.shape[-1]] * num_labels
        for place, column in enumerate(columns):
            negative[column] = num_labels + place
        return outputs[..., :num_labels] - functional.pad(outputs, (0, 1))[..., negative]

    def _classes(self, outputs: Tensor) -> Tensor:
        """Return the head's outputs for the observations under U-MultiClass, `(batch, num_multiclass, 3)`.

        The three are the outputs of the negative, the positive and the uncertain class. `outputs` are all outputs of
        the head, `(batch, num_outputs)`.
        """
        columns = self._multiclass_columns
        negative, uncertain = outputs[:, self.config.num_labels :].split(len(columns), dim=1)
        return torch.stack([negative, outputs[:, columns], uncertain], dim=2)

    def _saliency(self, features: Tensor, pooled: Tensor, logits: Tensor) -> Tensor:
        """Return the maps `(batch, num_labels, h, w)`: the feature maps weighted by the gradient of each logit.

        `pooled` are the means of `features` over h and w; `logits` are those before the label hierarchy is applied.
        """
        head = self._head
        width = pooled.shape[1] if self.config.head_hidden_size is None else self.config.head_hidden_size
        weight = self._positive_minus_negative(_matrix(self.last_layer, width, pooled).T).T  # (num_labels, C or hidden)
        if isinstance(head, nn.Sequential):
            first: Any = head[0]
            active = (first(pooled) > 0).to(weight.dtype)  # (B, hidden): the ReLU's derivative
            gradients = (weight * active[:, None, :]) @ _matrix(first, pooled.shape[1], pooled)  # (B, num_labels, C)
            maps = torch.einsum("blc,bchw->blhw", gradients.to(features.dtype), features)
        else:
            maps = functional.conv2d(features, weight[:, :, None, None])
        if self.config.label_parents is None:
            return maps
        # d logit(p) / d z_i = (1 - sigmoid(z_i)) / (1 - p) for each z_i on the path to the root.
        paths = hierarchy_paths(self.config).to(logits.device)
        absent, _, complement = _along_hierarchy(paths, logits)
        share = absent[:, None, :] / complement[:, :, None] * paths
        return torch.einsum("bli,bihw->blhw", share.to(maps.dtype), maps)

    def _loss(
        self, outputs: Tensor, labels: Tensor, weights: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        logits = self._positive_minus_negative(outputs)
        num_labels = logits.shape[1]
        if labels.ndim == 1 and not labels.is_floating_point() and num_labels > 1:
            if _is_any((labels < 0) | (labels >= num_labels)):
                raise ValueError(f"labels has class indices {labels.tolist()}, expected 0 to {num_labels - 1}.")
            labels = functional.one_hot(labels.long(), num_labels)  # (B, num_labels)
            if num_items_in_batch is not None:
                num_items_in_batch = num_items_in_batch * num_labels
        expected = tuple(logits.shape)
        for name, given in (("labels", labels), ("loss_weights", weights)):
            if given is not None and given.shape != expected:
                raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {expected}: one per observation.")
        labels = labels.float()  # integers would round the targets of smoothed labels
        is_wrong = (labels > POSITIVE) | ((labels < NEGATIVE) & (labels != UNCERTAIN) & (labels != IGNORED))
        if _is_any(is_wrong):
            raise ValueError(
                f"labels has the value {labels[is_wrong][0].item():g}, expected 1, 0, -1 (uncertain), NaN (blank), "
                "-100 (no loss), or a target between 0 and 1."
            )
        targets = resolve_labels(labels, self.config)
        losses = functional.binary_cross_entropy_with_logits(logits.float(), targets.clamp(min=0), reduction="none")
        if columns := self._multiclass_columns:
            negative, positive, uncertain = self._classes(outputs).float().log_softmax(dim=2).unbind(dim=2)
            wanted = targets[:, columns]  # -1, 0, 1 or between
            known = wanted.clamp(min=0)
            cross_entropy = -torch.where(wanted == UNCERTAIN, uncertain, known * positive + (1 - known) * negative)
            losses = losses.index_copy(1, torch.tensor(columns, device=losses.device), cross_entropy)
        if weights is not None:
            losses = losses * weights
        losses = losses.masked_fill(is_wrong, math.nan)  # for GPUs, where nothing was raised
        return masked_mean(losses, targets != IGNORED, num_items_in_batch)


def _matrix(layer: nn.Linear, width: int, inputs: Tensor) -> Tensor:
    """Return the weights `(outputs, width)` of a linear layer with `width` inputs.

    If the layer is quantised, has an adapter, such as LoRA's, or is offloaded by accelerate, its weights are found by
    feeding unit vectors to it, of the type and on the device of `inputs`.
    """
    if type(layer) is nn.Linear and not layer.weight.is_meta:
        return layer.weight
    unit = torch.eye(width, dtype=inputs.dtype, device=inputs.device)
    return (layer(unit) - layer(torch.zeros_like(unit))).T


def _is_any(condition: Tensor) -> bool:
    """Return whether a condition holds anywhere; always False when compiled, and on a GPU, where looking is slow."""
    return condition.device.type == "cpu" and not torch.compiler.is_compiling() and bool(condition.any())


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def unconditional_logits(logits: Tensor, config: CheXpertConfig) -> Tensor:
    """Return logits of the unconditional probabilities, if the config has a hierarchy; else the logits as they are.

    Args:
        logits: `(batch, num_labels)`: logits of each observation given that its parent is positive.
        config: Its `label_parents` are the hierarchy.

    Returns:
        Logits of the same shape. The unconditional probability of an observation is the product of its conditional
        probability (the sigmoid of its logit) and those of all its ancestors.

    Source: Pham et al. 2019, arXiv:1911.06475.
    """
    if config.label_parents is None:
        return logits
    paths = hierarchy_paths(config).to(logits.device)
    is_root = paths.sum(dim=1) == 1
    _, log_p, complement = _along_hierarchy(paths, logits)
    return torch.where(is_root, logits, (log_p - complement.log()).to(logits.dtype))


def _along_hierarchy(paths: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 - s, log(p) and 1 - p of each observation, all `(batch, num_labels)`, in float32.

    s is the sigmoid of the logit: the probability given that the parent is positive. p is the unconditional
    probability: the product of s over the observation and its ancestors. `paths`, from `hierarchy_paths`, marks these
    in a row for each observation.

    1 - p is the probability that the observation or an ancestor is negative. It is computed as a sum. For example, a
    child has s = .5 and its parent, the top of the hierarchy, s = .8. The parent is negative with probability .2. The
    parent is positive but the child negative with probability .8 * .5 = .4. So the child's 1 - p is .6.

    Subtracting p from 1 would give 0 for high logits. 1 - s could be computed as the sigmoid of the negative logit, but
    some runtimes return 0 for sigmoids below -18. So an exponential is used.
    """
    given = logits.float().clamp(-_HIGHEST_LOGIT, _HIGHEST_LOGIT)
    odds = (-given).exp()
    log_s, absent = functional.logsigmoid(given), odds / (1 + odds)
    # Not matrix products, which autocast would compute in bf16, with ties.
    log_p = (log_s[:, None, :] * paths).sum(dim=2)
    complement = ((absent * (log_p - log_s).exp())[:, None, :] * paths).sum(dim=2)
    return absent, log_p, complement


def hierarchy_paths(config: CheXpertConfig) -> Tensor:
    """Return a matrix `(num_labels, num_labels)` with a row per observation: 1 at itself and its ancestors, else 0."""
    observations, parents = config.observations, config.label_parents or {}
    paths = torch.eye(len(observations))
    for row, name in enumerate(observations):
        for ancestor in ancestors(name, parents):
            paths[row, observations.index(ancestor)] = 1
    return paths


def _pooled(features: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(features, (1, 1)).flatten(1)


def _num_outputs(config: CheXpertConfig) -> int:
    return config.num_labels + 2 * len(config.multiclass_observations)


def _new_head(num_features: int, config: CheXpertConfig) -> nn.Linear | nn.Sequential:
    num_outputs = _num_outputs(config)
    if config.head_hidden_size is None:
        return nn.Linear(num_features, num_outputs)
    return nn.Sequential(
        nn.Linear(num_features, config.head_hidden_size),
        nn.ReLU(),
        nn.Dropout(config.head_dropout),
        nn.Linear(config.head_hidden_size, num_outputs),
    )


def resolve_labels(labels: Tensor, config: CheXpertConfig) -> Tensor:
    """Turn raw labels of the CSV files into targets, by the config's policies and `blank_labels`.

    Args:
        labels: `(..., num_labels)`: 1, 0, -1, NaN; values that are already targets stay as they are.
        config: The model's configuration.

    Returns:
        Targets of the same shape: in [0, 1], -1 for the uncertain class under U-MultiClass, or -100 for labels without
        a loss. If the config has `label_parents`, two rules follow the hierarchy. The ancestors of a positive
        observation become positive, too, since the CSV files do not guarantee it. And an observation has a loss only
        where its parent is positive.
    """
    if config.label_parents:
        paths = hierarchy_paths(config).to(labels.device)  # (L, L): row l is 1 at l and at its ancestors
        implied = (labels == POSITIVE).to(paths.dtype) @ paths  # (..., L): positive labels below each observation
        labels = torch.where(implied > 0, POSITIVE, labels)
    policies = parse_policies(config.uncertainty_policies or {}, config.observations)
    for_uncertain = labels.new_tensor([_RESOLVED[UncertaintyPolicy(policy)] for policy in policies.values()])
    targets = torch.where(labels == UNCERTAIN, for_uncertain, labels)
    targets = torch.nan_to_num(targets, nan=NEGATIVE if config.blank_labels == "negative" else IGNORED)
    for child, parent in (config.label_parents or {}).items():
        column, parent_column = config.observations.index(child), config.observations.index(parent)
        is_asked = labels[..., parent_column] == POSITIVE
        targets[..., column] = torch.where(is_asked, targets[..., column], IGNORED)
    return targets


def masked_mean(losses: Tensor, is_known: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Return the mean of the losses where `is_known`; 0 if nothing is known.

    `num_items` is the divisor if the batch is part of a larger one; if None, the number of known labels here.
    """
    count = is_known.sum() if num_items is None else num_items
    return (losses * is_known).sum() / torch.as_tensor(count, device=losses.device).clamp(min=1)


CheXpertForImageClassification.register_for_auto_class("AutoModelForImageClassification")
