"""The configuration of a CheXpert model: architecture, observations, uncertainty policies and operating points.

This file is copied into saved models (remote code), so it imports only files of the package that are copied, too.
"""

import re
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .labels import CHEXPERT, LabelSet, UncertaintyPolicy, ancestors, parents_among, parse_policies

DEFAULT_OPERATING_POINT = 0.5
"""Operating point of an observation for which none was chosen."""

DENSENET, TIMM_PREFIX = "densenet", "timm:"
DENSENET_FIELDS = ("growth_rate", "block_config", "num_init_features", "bn_size")
"""Fields that define a DenseNet; not `drop_rate`, which matters in training only."""

NETWORKS = {
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
    "resnet50": "ResNet-50",
    "convnext_tiny": "ConvNeXt-Tiny",
}
"""The networks of torchvision that can be a backbone, by torchvision's name."""

_DENSENET_BLOCKS = {
    "densenet121": (6, 12, 24, 16),
    "densenet169": (6, 12, 32, 32),
    "densenet201": (6, 12, 48, 32),
}
_BACKBONES = (DENSENET, *(name for name in NETWORKS if name not in _DENSENET_BLOCKS))
_TIMM = re.compile(rf"{TIMM_PREFIX}[a-z0-9_]+(\.[a-z0-9_]+)?")  # names only: no addresses of files or repositories

_RECORDS_OF_HEAD = ("operating_points", "operating_points_source", "calibration", "map_evaluation")
"""Fields that describe the scores of a trained head and are invalid for a new one."""


@strict
class CheXpertConfig(PreTrainedConfig):
    """Configuration of a `CheXpertForImageClassification`.

    The input size and the normalisation are in the image processor's `preprocessor_config.json`.

    If the labels are replaced (`id2label` or `num_labels`, in `from_pretrained` or set later), observations that remain
    keep their policies and hierarchy; operating points and other records of the head trained for the earlier labels are
    dropped.

    Args:
        num_channels: Channels of `pixel_values`: 1, or 3 for the gray image repeated.
        backbone: "densenet", "resnet50" or "convnext_tiny" (torchvision's), or "timm:NAME", a convolutional network of
            timm. The next five fields are for "densenet" only.
        growth_rate: Feature maps that each dense layer adds (`k` in the paper).
        block_config: Dense layers in each dense block. With n blocks, the sides of the last feature map are those of
            the input divided by 2 ** (n + 1).
        num_init_features: Feature maps after the first convolution.
        bn_size: Width of the 1 x 1 bottleneck in units of `growth_rate`.
        drop_rate: Dropout after each dense layer.
        head_hidden_size: Width of a hidden layer (with ReLU) between the pooled features and the logits; None for a
            linear head.
        head_dropout: Dropout between the hidden layer of the head and its last layer.
        output_saliency: Whether `forward` returns maps by default.
        uncertainty_policies: Observation -> how the loss treats its uncertain labels, a value of
            `labels.UncertaintyPolicy`; U-Ignore if missing. U-MultiClass has three outputs per observation in the head.
        policies_source: Who chose the policies or how, as a phrase, or None if that is not recorded.
        blank_labels: "negative" to train on blank (NaN) labels as negatives, "unknown" to leave them out of the loss.
        label_set: Headline, hierarchy and definitions of the observations, from `LabelSet.to_dict`; CheXpert's if None.
        label_parents: Child -> parent, if the head gives the probability of a child on condition that its parent is
            positive. The model returns logits of unconditional probabilities: products along the path to the root.
        operating_points: Observation -> lowest probability at which it is called positive; .5 for others.
        operating_points_source: A record of the method and data by which the operating points were chosen, or None.
        calibration: A record of the method and data by which the head was calibrated, or None. Its `slopes` and
            `intercepts` are already in the weights and must not be applied again.
        map_evaluation: How well maps point at annotated findings, None if not measured. `hit_rate` is the fraction of
            findings whose region contains the map's maximum, `constant_point` the hit rate of the best point that is
            the same in all images, `n` the number of findings, and `reference` who marked them, a noun phrase.
            `further` is a list of such dictionaries for other sets of findings, if there are any.
        model_name: Name of the model, or None.
        warnings: Sentences that are shown with the model's name, such as that it is not a clinical model.

    Raises:
        StrictDataclassError: If a value has the wrong type or is outside its range, or an observation is named that the
            model does not have (`huggingface_hub.errors`).

    Source: Huang et al. 2017, "Densely Connected Convolutional Networks", arXiv:1608.06993; the defaults are
    DenseNet121's. Policies: Irvin et al. 2019, arXiv:1901.07031, section 3.1.
    """

    model_type = "chexpert"
    keys_to_ignore_at_inference = ["uncertainty", "saliency", "hidden_states"]  # noqa: RUF012 - the Trainer appends to a list

    num_channels: int = 3
    backbone: str = DENSENET
    growth_rate: int = 32
    block_config: list[int] | tuple[int, ...] = (6, 12, 24, 16)
    num_init_features: int = 64
    bn_size: int = 4
    drop_rate: float | int = 0.0
    head_hidden_size: int | None = None
    head_dropout: float | int = 0.0
    output_saliency: bool = False
    uncertainty_policies: dict[str, str] | None = None
    policies_source: str | None = None
    blank_labels: Literal["negative", "unknown"] = "negative"
    label_set: dict[str, Any] | None = None
    label_parents: dict[str, str] | None = None
    operating_points: dict[str, float | int] | None = None
    operating_points_source: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    map_evaluation: dict[str, Any] | None = None
    model_name: str | None = None
    warnings: list[str] | tuple[str, ...] | None = None
    # One sigmoid per observation: fixed, so that every standard consumer of `logits` is right.
    problem_type: Literal["multi_label_classification"] | None = "multi_label_classification"

    def __post_init__(self, **kwargs: Any) -> None:
        self.problem_type = "multi_label_classification"
        self.block_config = list(self.block_config)
        names: dict[int, str] | dict[str, str] | None = getattr(self, "id2label", None)
        if names is None and (self.label2id or kwargs.get("num_labels") is None):
            label2id = self.label2id or {name: index for index, name in enumerate(CHEXPERT.names)}
            self.id2label = {int(index): name for name, index in label2id.items()}
        kwargs.pop("map_offsets", None)  # a field of configs written before it was removed
        super().__post_init__(**kwargs)
        self._fill_in()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from a dictionary as in transformers; `num_labels`, `id2label` or `label2id` replace labels.

        Raises:
            ValueError: If `num_labels` differs from the number of labels in `id2label` or `label2id`, or these two
                contradict each other.
        """
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        labels = _labels_asked_for(kwargs, len(config_dict.get("id2label") or CHEXPERT.names))
        asked = {} if labels is None else {"id2label": labels}
        config, unused = super().from_dict(config_dict, **asked, **kwargs, return_unused_kwargs=True)
        config._fill_in()
        config.validate()
        return (config, unused) if wants_unused else config

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "operating_points" and isinstance(value, dict) and self.__dict__.get("id2label"):
            value = {**dict.fromkeys(self.observations, DEFAULT_OPERATING_POINT), **value}
        if name != "id2label" or value is None:
            super().__setattr__(name, value)
            return
        is_loaded = self.id2label is not None and self.__dict__.keys() >= set(_RECORDS_OF_HEAD)
        before = self.observations if is_loaded else None
        super().__setattr__(name, {int(index): label for index, label in value.items()})
        if before is not None and self.observations != before:
            if self.label_set is not None:
                self.label_set = LabelSet.from_dict(before, self.label_set).among(self.observations).to_dict()
            self._follow_labels()

    def _follow_labels(self) -> None:
        """Adapt the config to a new `id2label`, for which the model gets a new head.

        Policies and parents of labels that are gone are dropped. So are all records of the earlier head: operating
        points, calibration and evaluation of maps.
        """
        observations = self.observations
        self.uncertainty_policies = {
            name: policy for name, policy in (self.uncertainty_policies or {}).items() if name in observations
        }
        self.policies_source = None
        self.label_parents = parents_among(observations, self.label_parents or {}) or None
        self.forget_head()

    def forget_head(self) -> None:
        """Reset operating points, calibration and evaluation of maps, which describe a head that is no longer there."""
        for name in _RECORDS_OF_HEAD:
            setattr(self, name, None)
        self._fill_in()

    def _fill_in(self) -> None:
        """Set `label2id` from `id2label`, and fill in defaults: policy U-Ignore and operating point .5."""
        self.label2id = {name: index for index, name in enumerate(self.observations)}
        chosen = self.uncertainty_policies or {}
        default = UncertaintyPolicy.U_IGNORE.value
        self.uncertainty_policies = {name: chosen.get(name, default) for name in (*self.observations, *chosen)}
        points = self.operating_points or {}
        self.operating_points = {
            name: float(points.get(name, DEFAULT_OPERATING_POINT)) for name in (*self.observations, *points)
        }

    @property
    def observations(self) -> tuple[str, ...]:
        """The names of the model's outputs, in the order of `logits`."""
        return tuple(name for _, name in sorted(self.id2label.items()))

    @property
    def labels(self) -> LabelSet:
        """The model's observations with their headline, hierarchy and definitions."""
        if self.label_set is None:
            return CHEXPERT.among(self.observations)
        return LabelSet.from_dict(self.observations, self.label_set)

    @property
    def multiclass_observations(self) -> tuple[str, ...]:
        """The observations under U-MultiClass, in the order of the model's outputs."""
        policies, multiclass = self.uncertainty_policies or {}, UncertaintyPolicy.U_MULTICLASS.value
        return tuple(name for name in self.observations if policies.get(name) == multiclass)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as in transformers, without those of DenseNets if the backbone is another network."""
        values: dict[str, Any] = super().to_dict()
        unused = () if self.backbone == DENSENET else (*DENSENET_FIELDS, "drop_rate")
        return {name: value for name, value in values.items() if name not in unused}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the fields to save: those that transformers saves, and always the labels.

        transformers would not save the labels LABEL_0 and LABEL_1, its defaults.
        """
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        return {**super().to_diff_dict(), **labels}

    @property
    def backbone_fields(self) -> dict[str, Any]:
        """The fields that define the backbone, and their values."""
        own = DENSENET_FIELDS if self.backbone == DENSENET else ("backbone",)
        return {name: getattr(self, name) for name in ("num_channels", *own)}

    @property
    def network(self) -> str:
        """The backbone's key in `NETWORKS`, such as "densenet121", if it has one; else "densenet" or "timm:NAME"."""
        blocks = tuple(self.block_config)
        if self.backbone != DENSENET or any(self._differs(name) for name in DENSENET_FIELDS if name != "block_config"):
            return self.backbone
        return next((name for name, known in _DENSENET_BLOCKS.items() if known == blocks), self.backbone)

    @property
    def network_title(self) -> str:
        """The backbone's name in texts, such as "DenseNet121" or "resnet18 of timm"."""
        if self.backbone.startswith(TIMM_PREFIX):
            return f"{self.backbone.removeprefix(TIMM_PREFIX)} of timm"
        return NETWORKS.get(self.network, "DenseNet")

    def _differs(self, name: str) -> bool:
        """Return whether a field differs from its default value."""
        value = getattr(self, name)
        return bool((tuple(value) if isinstance(value, list) else value) != getattr(CheXpertConfig, name))

    @property
    def architecture(self) -> dict[str, Any]:
        """The fields that, with the weights, determine the model's scores, and their values."""
        fields = {
            **self.backbone_fields,
            "head_hidden_size": self.head_hidden_size,
            "label_parents": self.label_parents,
        }
        return {**fields, "observations": self.observations, "multiclass": self.multiclass_observations}

    @property
    def head_outputs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All observations, and those with three outputs (U-MultiClass).

        The weights of a head can be loaded into another model only if both models have equal `head_outputs`.
        """
        return self.observations, self.multiclass_observations

    def validate_architecture(self) -> None:
        """Raise ValueError if a field of the architecture is out of range."""
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels is {self.num_channels}, expected 1 or 3.")
        sizes = [self.growth_rate, self.num_init_features, self.bn_size, *self.block_config]
        if not self.block_config or min(sizes) < 1 or (self.head_hidden_size is not None and self.head_hidden_size < 1):
            raise ValueError(
                "growth_rate, num_init_features, bn_size, head_hidden_size and each of block_config must be at least "
                f"1, got {self.growth_rate}, {self.num_init_features}, {self.bn_size}, {self.head_hidden_size} and "
                f"{self.block_config}."
            )
        for name in ("drop_rate", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a probability in [0, 1).")
        if self.head_dropout and self.head_hidden_size is None:
            raise ValueError("head_dropout is set, but a linear head has none; set head_hidden_size or leave it 0.")

    def validate_backbone(self) -> None:
        """Raise ValueError if the backbone is unknown, or if a field of DenseNets is set for another backbone."""
        if self.backbone not in _BACKBONES and not _TIMM.fullmatch(self.backbone):
            raise ValueError(
                f"backbone is {self.backbone!r}, expected one of: {', '.join(_BACKBONES)}, {TIMM_PREFIX}NAME."
            )
        for name in () if self.backbone == DENSENET else (*DENSENET_FIELDS, "drop_rate"):
            if self._differs(name):
                raise ValueError(f"{name} is a field of DenseNets, but the backbone is {self.backbone!r}; omit it.")

    def validate_labels(self) -> None:
        """Raise ValueError if policies, hierarchy or operating points do not fit the observations."""
        observations = self.observations
        if not observations or not all(str(name).strip() for name in observations):
            raise ValueError(f"id2label is {self.id2label}, expected at least one label, and a name for each.")
        if sorted(self.id2label) != list(range(len(observations))):
            raise ValueError(f"id2label has the indices {sorted(self.id2label)}, expected 0, 1, ... without a gap.")
        if len(set(observations)) < len(observations):
            raise ValueError(f"Each observation may occur once in id2label, got: {', '.join(observations)}.")
        if {int(index): name for name, index in (self.label2id or {}).items()} != self.id2label:
            raise ValueError(
                "id2label and label2id name different labels or places; assign id2label a new dictionary to change the "
                "labels, and label2id follows."
            )
        _ = self.labels
        parse_policies(self.uncertainty_policies or {}, observations)
        for child, parent in (self.label_parents or {}).items():
            if child not in observations or parent not in observations:
                raise ValueError(f"label_parents names {child!r} under {parent!r}, expected two of the observations.")
            if child in ancestors(child, self.label_parents or {}):
                raise ValueError(f"label_parents makes {child!r} its own ancestor.")
        for name, point in (self.operating_points or {}).items():
            if name not in observations:
                raise ValueError(f"operating_points names {name!r}, which is not among: {', '.join(observations)}.")
            if not 0 <= point <= 1:
                raise ValueError(f"The operating point of {name} is {point}, expected a probability in [0, 1].")

    def validate_calibration(self) -> None:
        """Raise ValueError if the calibration has an observation that the model lacks, or a slope of 0 or less."""
        slopes = (self.calibration or {}).get("slopes", {})
        for name, slope in slopes.items():
            if name not in self.observations:
                raise ValueError(f"calibration names {name!r}, which is not among: {', '.join(self.observations)}.")
            if not slope > 0:
                raise ValueError(f"The calibration's slope of {name} is {slope}, expected a number above 0.")

    def validate_texts(self) -> None:
        """Raise ValueError if the name or a warning is empty or more than one line of text."""
        for text in (self.model_name, *(self.warnings or ())):
            if text is not None and not (text.strip() and text.isprintable()):
                raise ValueError(f"model_name and each of warnings must be one line of text, got {text!r}.")

    def validate_map_evaluation(self) -> None:
        """Raise ValueError if a record in `map_evaluation` lacks a value or has an impossible one."""
        if self.map_evaluation is None:
            return
        further = self.map_evaluation.get("further", [])
        for record in (self.map_evaluation, *(further if isinstance(further, list) else [further])):
            if not isinstance(record, dict):
                raise ValueError(f"map_evaluation's further must be a list of such dictionaries, got {further!r}.")
            rates = [record.get(name) for name in ("hit_rate", "constant_point")]
            n, reference = record.get("n"), record.get("reference")
            are_rates = all(isinstance(rate, (int, float)) and 0 <= rate <= 1 for rate in rates)
            if not (
                are_rates and isinstance(n, int) and n > 0 and isinstance(reference, str) and reference.isprintable()
            ):
                raise ValueError(
                    "map_evaluation must have hit_rate and constant_point in [0, 1], n of at least 1 and the reference "
                    f"as one line of text, got {record!r}."
                )


def fields_of(network: str) -> dict[str, Any]:
    """Return the config's fields that select a backbone, given a key of `NETWORKS` or "timm:NAME"."""
    blocks = _DENSENET_BLOCKS.get(network)
    return {"backbone": network} if blocks is None else {"backbone": DENSENET, "block_config": list(blocks)}


def _labels_asked_for(kwargs: dict[str, Any], num_stored: int) -> dict[Any, str] | None:
    """Pop `num_labels`, `id2label` and `label2id` from `kwargs`, and return the labels that they ask for.

    The result is index -> label, or None if the labels of the stored config are to be kept: none of the arguments is
    given, or `num_labels` alone, equal to `num_stored`. `num_labels` alone with another number gives "LABEL_0" etc.
    """
    num_labels, id2label, label2id = (kwargs.pop(name, None) for name in ("num_labels", "id2label", "label2id"))
    indices = None if label2id is None else {int(index): name for name, index in label2id.items()}
    if id2label is not None and indices not in (None, {int(index): name for index, name in id2label.items()}):
        raise ValueError(f"id2label is {id2label}, but label2id is {label2id}; expected the same pairs or one of them.")
    id2label = indices if id2label is None else id2label
    if id2label is None:
        return None if num_labels in (None, num_stored) else {index: f"LABEL_{index}" for index in range(num_labels)}
    if num_labels not in (None, len(id2label)):
        raise ValueError(
            f"num_labels is {num_labels}, but id2label names {len(id2label)} labels; give one or the other."
        )
    return id2label


CheXpertConfig.register_for_auto_class()
