"""A recipe: all settings of a training run. The defaults are the CheXpert paper's.

Source: Irvin et al. 2019, arXiv:1901.07031, section 3.2. The paper compares policies for uncertain labels; the default
here is U-Ones, its best one (table 3) that needs neither a second stage nor a third class.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from chexpert_hf.errors import InputError
from chexpert_hf.files import first_line, write_text
from chexpert_hf.labels import CHEXPERT, LabelSet, UncertaintyPolicy, check_observations, parse_policies

BACKBONES = ("densenet121", "densenet169", "densenet201", "resnet50", "convnext_tiny")
"""Values of `backbone`, besides "timm:NAME"; repeats `configuration_chexpert.NETWORKS`, whose import needs torch."""

DEFAULT_IMAGE_SIZE = 320
"""Height and width in pixels of a run that does not fine-tune a model of this package, as in the paper."""

_NUM_BLOCKS = 4  # of each of these backbones; an image's side is halved once more than that
_REMOVED = "register_maps"  # a field of earlier recipes without influence on the weights

_RANGES: dict[str, Callable[[Any], bool]] = {
    "at least 0": lambda value: value >= 0,
    "at least 1": lambda value: value >= 1,
    "more than 0": lambda value: 0 < value < math.inf,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "in [0, .5)": lambda value: 0 <= value < 0.5,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in (0, 1)": lambda value: 0 < value < 1,
    "one of: 1, 3": lambda value: value in (1, 3),
}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_LISTS = {
    "observations": "a list of names",
    "warnings": "a list of sentences",
    "distillation_models": "a list of model folders",
    "calibration_models": "a list of model folders",
}


class RecipeError(InputError):
    """A recipe cannot be trained; the message names the field, its value and what was expected."""


def _value(default: Any, text: str, expected: str | None = None, *, flag: bool | str = False) -> Any:
    """Declare a field of the recipe.

    Args:
        default: The field's default.
        text: Describes the field, such as in `chexpert-hf train --help`.
        expected: For a number: its range, as a key of `_RANGES`, such as "at least 1".
        flag: Whether `chexpert-hf train` has an option for the field, named after it, such as `--frontal-only`. A
            string, such as "--all-views", names a second option, which sets the field to False.
    """
    return field(default=default, metadata={"text": text, "expected": expected, "flag": flag})


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run; each field is described by its `metadata["text"]` or by a comment."""

    # Labels
    observations: tuple[str, ...] = _value((), "Comma-separated; all of the label set if not given.", flag=True)
    labels: str | None = _value(
        None,
        "Label set: chexpert, nih, padchest, vindr, a YAML file, or comma-separated names; by default the data's, "
        "or the union for several data sets.",
        flag=True,
    )
    layout: str | None = _value(
        None, "Layout of the data, such as nih or table:image=FILE,patient=PID; recognised if not given.", flag=True
    )
    # Properties of the observations besides their names, as from `LabelSet.to_dict`; CheXpert's if empty.
    label_set: Mapping[str, Any] = field(default_factory=dict)
    policy: str | Mapping[str, str] = _value(
        "u-ones",
        "Uncertain labels: u-ignore, u-zeros, u-ones, u-self-trained, u-multiclass, u-zeros+lsr, u-ones+lsr; "
        "'Edema=u-ones,...' by observation; or paper (the CheXpert paper's choice for each observation).",
        flag=True,
    )
    teacher: str | None = _value(None, "For u-self-trained: model or soft_labels.csv to use as teacher.", flag=True)
    teacher_epochs: float | None = _value(None, "Epochs of the teacher's training; `epochs` if None.", "more than 0")
    conditional_epochs: float = _value(
        0, "Epochs of a first stage: child labels count only where their parent is positive.", "at least 0", flag=True
    )
    unconditional: bool = _value(False, "Multiply probabilities along the label hierarchy.", flag=True)
    loss: Literal["cross-entropy", "auc-margin"] = _value("cross-entropy", "cross-entropy or auc-margin.", flag=True)
    map_loss: float = _value(
        0.0, "Weight of a second classification loss, on the strongest cell of each saliency map.", "at least 0"
    )
    map_centring: float = _value(
        0.0, "Weight of the loss that centres maps on the image regions driving them.", "at least 0"
    )
    class_weights: bool = _value(False, "Weight positive labels by the ratio of negative to positive ones.", flag=True)
    blank_labels: Literal["negative", "unknown"] = _value("negative", "Blank labels: negative or unknown.", flag=True)

    # Network
    init: str = _value("imagenet", "imagenet, random, or a model to fine-tune.", flag=True)
    backbone: str | None = _value(
        None,
        f"{', '.join(BACKBONES)} or timm:NAME; by default densenet121, or the fine-tuned model's.",
        flag=True,
    )
    # Fields of `CheXpertConfig` that differ from DenseNet121, such as `growth_rate`; with random weights only.
    architecture: Mapping[str, Any] = field(default_factory=dict)
    num_channels: int = _value(3, "3 or 1.", "one of: 1, 3", flag=True)
    head_hidden_size: int | None = _value(None, "Hidden layer in the head.", "at least 1", flag=True)
    head_dropout: float = _value(0.0, "Dropout after the hidden layer of the head.", "in [0, 1)")
    freeze_backbone: bool = _value(False, "Train the head only.", flag=True)

    # Images
    image_size: int | None = _value(
        None,
        f"Height and width in pixels; by default those of the model to fine-tune, else {DEFAULT_IMAGE_SIZE}.",
        "at least 1",
        flag=True,
    )
    gray_range: bool = _value(True, "Bring radiographs to one gray range; a fine-tuned model keeps its setting.")
    frontal_only: bool = _value(False, "Use frontal views only.", flag="--all-views")
    num_patients: int | None = _value(None, "Train on this many patients, always the same.", "at least 1", flag=True)
    valid_fraction: float = _value(
        0.1, "Share of patients to hold out if the data has no valid split.", "in (0, 1)", flag=True
    )

    # Augmentation, without a flip: it moves the heart
    rotation_degrees: float = _value(0.0, "Largest rotation, either way.", "at least 0")
    translation: float = _value(0.0, "Largest shift, as a share of the image.", "in [0, 1)")
    scaling: float = _value(0.0, "Largest change of size, as a share of it.", "in [0, 1)")
    contrast: float = _value(0.0, "Largest change of contrast and brightness, as a share.", "in [0, 1)")
    gamma: float = _value(0.0, "Largest absolute logarithm of the gamma exponent.", "at least 0")
    border: float = _value(0.0, "Widest black or white frame, as a share of the side.", "in [0, .5)")

    # Optimisation
    epochs: float = _value(3, "Passes over the data.", "more than 0", flag=True)
    batch_size: int = _value(16, "Images per step.", "at least 1", flag=True)
    gradient_accumulation_steps: int = _value(1, "Forward passes per optimizer step.", "at least 1")
    drop_last: bool = _value(False, "Skip the last batch if it is smaller.", flag=True)
    gradient_checkpointing: bool = _value(False, "Less memory, more computation.", flag=True)
    sync_batch_norm: bool = _value(False, "BatchNorm over all processes; GPUs only.", flag=True)
    learning_rate: float = _value(1e-4, "Peak learning rate of Adam.", "more than 0", flag=True)
    schedule: Literal["constant", "linear", "cosine"] = _value("constant", "constant, linear or cosine.", flag=True)
    warmup: float = _value(0.0, "Share of the steps for warm-up.", "in [0, 1)", flag=True)
    weight_decay: float = _value(0.0, "Weight decay of AdamW.", "at least 0", flag=True)
    max_grad_norm: float = _value(0.0, "Largest norm of the gradients, for clipping; 0 for no clipping.", "at least 0")
    precision: Literal["auto", "fp32", "bf16"] = _value(
        "auto", "fp32, bf16, or auto: bf16 on a GPU or processor that multiplies it.", flag=True
    )
    channels_last: bool = _value(True, "Channels-last memory layout, faster on CPUs and GPUs.")
    compile: bool | None = _value(
        None, "Use torch.compile; by default on a CUDA GPU, for runs of many steps.", flag=True
    )

    # Checkpoints and the final model
    images_per_checkpoint: int = _value(4800, "Training images between two checkpoints.", "at least 1")
    keep_checkpoints: int = _value(10, "Best checkpoints that stay on disk, besides the newest.", "at least 1")
    checkpoint: Literal["best", "last"] = _value("best", "Checkpoint that becomes the model; best by validation AUROC.")
    calibration_folds: int = _value(0, "Folds of the training patients for calibration by cross-validation; 0: none.")
    calibration_models: tuple[str, ...] = _value((), "Model folders to use for these folds instead of training.")
    held_out_fold: int | None = _value(None, "Train on all folds except this one; validate on it.")
    stored_precision: Literal["fp32", "fp16"] = _value("fp32", "Precision of the stored convolutions and head.")
    runs: int = _value(1, "Independent runs; several make an ensemble.", "at least 1", flag=True)
    distillation: float = _value(0.0, "Weight of teachers' mean probability in each label.", "in [0, 1]")
    distillation_teachers: int = _value(2, "Number of teachers to train for distillation.", "at least 1")
    distillation_models: tuple[str, ...] = _value((), "Models to use as teachers instead of training them.")
    mixup: bool = _value(False, "In distillation, learn mixtures of two images, where both have the label.")

    # The machine and the card
    workers: int | Literal["auto"] = _value(
        "auto",
        "Processes that read images; auto: 2, beside a GPU as many as there are processors.",
        "at least 0",
        flag=True,
    )
    cache: Literal["none", "ram", "disk"] = _value(
        "none", "Decode images once and keep them, at the training size: none, ram or disk.", flag=True
    )
    seed: int = _value(0, "Random seed.", flag=True)
    model_name: str | None = _value(None, "The model's name on its card; its folder's name if None.")
    warnings: tuple[str, ...] = _value((), "Sentences shown with the model.")

    def __post_init__(self) -> None:
        if isinstance(self.cache, bool):  # as in recipes of version 0.1
            object.__setattr__(self, "cache", "ram" if self.cache else "none")
        self._check_values()
        for name in _LISTS:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        try:
            if self.observations:
                check_observations(self.observations)
            policies, parents = self.policies, self.known_labels.parents
        except ValueError as error:
            raise RecipeError(str(error)) from error
        num_blocks = len(self.architecture.get("block_config", range(_NUM_BLOCKS)))
        smallest = 2 ** (num_blocks + 1)
        folds, held_out = self.calibration_folds, self.held_out_fold
        size = self.image_size or DEFAULT_IMAGE_SIZE
        _expect("image_size", size, size >= smallest, f"at least {smallest} for this network")
        _expect("seed", self.seed, self.seed >= 0 and self.seed + self.runs <= 2**32, "in [0, 2**32)")
        _expect("calibration_folds", folds, folds == 0 or folds >= 2, "0 or at least 2")
        _expect("held_out_fold", held_out, held_out is None or 0 <= held_out < folds, "from 0 to calibration_folds - 1")

        has_stages = self.unconditional or self.conditional_epochs > 0
        has_third_class = UncertaintyPolicy.U_MULTICLASS in policies.values()
        is_margin, is_distilled = self.loss == "auc-margin", self.distillation > 0
        has_teacher, num_models = bool(self.self_trained_observations), len(self.calibration_models)
        contradictions = {
            f"calibration_models names {num_models} models, expected one for each of the {folds} calibration_folds.": (
                num_models not in (0, folds)
            ),
            "calibration_folds needs checkpoint 'last': the best one is chosen on the part that it is evaluated on.": (
                folds and self.checkpoint != "last"
            ),
            "calibration_folds is for one run of one stage: without a label hierarchy, conditional_epochs and "
            "u-self-trained; calibrate others with chexpert-hf calibrate.": (
                folds and (self.runs > 1 or has_stages or has_teacher)
            ),
            "distillation is for one run of one stage, without a label hierarchy; omit runs, unconditional and "
            "conditional_epochs.": is_distilled and (self.runs > 1 or has_stages),
            "loss 'auc-margin' supports no uncertain class, label hierarchy or gradient accumulation; choose other "
            "policies, or the loss 'cross-entropy'.": (
                is_margin and (has_stages or has_third_class or self.gradient_accumulation_steps > 1)
            ),
            "class_weights has no meaning with loss 'auc-margin', which weighs both classes the same.": (
                is_margin and self.class_weights
            ),
            "map_loss is for models without a label hierarchy; omit unconditional training.": (
                self.map_loss and has_stages
            ),
            "map_centring needs labels of 1, which distillation mixes with probabilities; omit one of them.": (
                self.map_centring and is_distilled
            ),
            "mixup needs distillation above 0, and supports no class_weights, map_loss and u-multiclass.": (
                self.mixup and (not is_distilled or self.class_weights or self.map_loss or has_third_class)
            ),
            "conditional_epochs is set, but no observation of the recipe has a parent among them.": (
                self.conditional_epochs and self.observations and not parents
            ),
            "teacher is set, but no observation has the policy u-self-trained.": (
                self.teacher is not None and not has_teacher
            ),
            f"architecture is set, which needs init 'random', got init {self.init!r}.": (
                self.architecture and self.init != "random"
            ),
        }
        if message := next((message for message, holds in contradictions.items() if holds), None):
            raise RecipeError(message)

    def _check_values(self) -> None:
        """Raise RecipeError if a value has a wrong type or range; an int is accepted as a float, a bool as neither."""
        hints = get_type_hints(Recipe)
        for item in fields(self):
            name, value = item.name, getattr(self, item.name)
            kinds = get_args(hints[name]) or (hints[name],)
            chosen = [word for kind in kinds for word in get_args(kind)]  # such as auto, instead of a number
            if name in _LISTS:
                is_list = isinstance(value, Sequence) and not isinstance(value, str)
                is_list = is_list and all(isinstance(text, str) for text in value)
                _expect(name, value, is_list, _LISTS[name])
            elif name in ("architecture", "label_set"):
                _expect(name, value, isinstance(value, Mapping), "a mapping of fields")
                blocks = value.get("block_config", ())
                _expect("block_config", blocks, isinstance(blocks, Sequence), "a list of whole numbers")
            elif name == "backbone" and value is not None:
                is_known = value in BACKBONES or (isinstance(value, str) and value.startswith("timm:"))
                _expect(name, value, is_known, f"one of: {', '.join(BACKBONES)}, timm:NAME")
            elif name == "policy" and isinstance(value, Mapping):
                is_text = all(isinstance(one, str) for one in (*value, *value.values()))
                _expect(name, value, is_text, "a mapping of observations to policies")
            elif isinstance(kinds[0], str):
                _expect(name, value, value in kinds, f"one of: {', '.join(kinds)}")
            elif not (value is None and type(None) in kinds) and not (isinstance(value, str) and value in chosen):
                accepted = (int, float) if kinds[0] is float else kinds[0]
                is_right = isinstance(value, accepted) and (kinds[0] is bool or not isinstance(value, bool))
                _expect(name, value, is_right, _KINDS[kinds[0]])
                expected = item.metadata.get("expected")
                _expect(name, value, expected is None or _RANGES[expected](value), expected)

    @property
    def known_labels(self) -> LabelSet:
        """The observations with their hierarchy and definitions; empty while the field `observations` is empty."""
        if self.label_set:
            return LabelSet.from_dict(self.observations, self.label_set)
        return CHEXPERT.among(self.observations)

    @property
    def policies(self) -> dict[str, str]:
        """The policy for uncertain labels of each observation.

        If `observations` is empty, the keys are CheXpert's 14 observations and any others that `policy` names.
        """
        named: Iterable[str] = self.policy
        if isinstance(self.policy, str):
            named = (item.partition("=")[0].strip() for item in self.policy.split(",") if "=" in item)
        return parse_policies(self.policy, self.observations or dict.fromkeys((*CHEXPERT.names, *named)))

    @property
    def self_trained_observations(self) -> tuple[str, ...]:
        """The observations whose policy is U-SelfTrained."""
        return tuple(name for name, policy in self.policies.items() if policy == UncertaintyPolicy.U_SELF_TRAINED)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as plain types, for YAML or JSON."""
        return asdict(self) | {name: list(getattr(self, name)) for name in _LISTS}

    def save(self, path: Path) -> None:
        """Write the recipe as YAML; `load` returns an equal recipe from the file."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, width=120))

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a recipe from a YAML file; fields that the file leaves out get their defaults.

        `path` may also be the name of a recipe that comes with this package, such as `u_ones`. Raise RecipeError if
        there is no such recipe, or it is not valid.
        """
        own = {file.stem: file for file in recipes_folder().glob("*.yaml")}
        if not path.exists() and path.suffix == "" and path.name not in own:
            raise RecipeError(
                f"There is no recipe {str(path)!r}; expected a YAML file or one of: {', '.join(sorted(own))}."
            )
        path = path if path.exists() else own.get(str(path), path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RecipeError(f"The recipe {path} cannot be read: {first_line(error)}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"The recipe {path} is not a mapping of fields to values.")
        return cls().override(**{str(name): value for name, value in values.items() if name != _REMOVED})

    def override(self, **values: Any) -> "Recipe":
        """Return a copy with other values; raise RecipeError if a field is unknown or a value is not valid.

        If `observations` is among `values` and `label_set` is not, the label set is reduced to these observations.
        """
        hints = get_type_hints(Recipe)
        for name, value in values.items():
            if name not in hints:
                raise RecipeError(f"A recipe has no field {name!r}; expected: {', '.join(hints)}.")
            if hints[name] in (float, float | None) and isinstance(value, str):
                try:  # YAML reads 1e-4 as a string: it wants 1.0e-4.
                    values[name] = float(value)
                except ValueError:
                    raise RecipeError(f"{name} is {value!r}, expected a number.") from None
        if "observations" in values and "label_set" not in values and self.label_set:
            chosen = self.known_labels.among(values["observations"])
            values["label_set"] = chosen.to_dict() or {"headline": list(chosen.names)}
        return replace(self, **values)


def recipes_folder() -> Path:
    """Return the folder of this package's recipes: beside this module once installed, `train/recipes` in a checkout."""
    installed = Path(__file__).with_name("recipes")
    return installed if installed.exists() else Path(__file__).parents[2] / "train" / "recipes"


def _expect(name: str, value: Any, is_right: bool, expected: str | None) -> None:
    if not is_right:
        raise RecipeError(f"{name} is {value!r}, expected {expected}.")
