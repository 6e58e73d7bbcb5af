"""A recipe: every value that defines a training run. The defaults are the CheXpert paper's.

Source: Irvin et al. 2019, arXiv:1901.07031, section 3.2: DenseNet121 from ImageNet weights, 320 x 320 pixels, Adam with
(.9, .999), learning rate 1e-4, batches of 16, 3 epochs, a checkpoint every 4,800 images. The paper trains one model per
policy; U-Ones is the single policy without a second stage or a third class that does best there (table 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from chexpert_hf.errors import InputError
from chexpert_hf.labels import (
    OBSERVATIONS,
    BlankPolicy,
    UncertaintyPolicy,
    check_observations,
    parents_among,
    parse_policies,
)

Precision = Literal["fp32", "bf16"]
StoredPrecision = Literal["fp32", "fp16"]
Loss = Literal["cross-entropy", "auc-margin"]
Schedule = Literal["constant", "linear", "cosine"]
Checkpoint = Literal["best", "last"]
PAPER_POLICY = "u-ones"
_DENSENET121_BLOCKS = 4
_LISTS = ("observations", "warnings", "distillation_models", "calibration_models")


class RecipeError(InputError):
    """A recipe that cannot be trained, with the field, what was expected and what came."""


@dataclass(frozen=True)
class Recipe:
    """Every value that defines a run.

    Attributes:
        observations: What the model learns to judge, in the order of its outputs.
        policy: Uncertainty policy, for all or by observation, or "paper"; see `chexpert_hf.labels.parse_policies`.
        teacher: For U-SelfTrained: a model folder or repository that gives the soft labels, or a CSV file of them from
            an earlier run; None to train a teacher with U-Ignore first.
        teacher_epochs: Passes of that first stage; as many as `epochs` if None.
        conditional_epochs: Passes of a stage before all others, in which a child in the label hierarchy is learned
            only where its parent is positive (Pham et al. 2019); 0 for no such stage.
        unconditional: Train all stages like that and have the model multiply the probabilities along the hierarchy.
        loss: "cross-entropy" (the policies' own), or "auc-margin"; see `chexpert_hf.training.losses`.
        map_loss: Weight of a second loss, by which the strongest places of an observation's map must speak for or
            against it by themselves, so that maps point at findings; see `chexpert_hf.training.losses`. 0 for none.
        map_centring: Weight of a third loss, by which the strongest place of a map must look at itself and not beside;
            it takes the gradient of a gradient, for some images of each batch. 0 for none.
        register_maps: Measure after training how far beside its own place each map looks, so that it can be laid where
            the evidence is.
        class_weights: Weight positive labels by the number of negative ones for each; the paper does not.
        blank_labels: Whether a blank label is "negative" or "unknown".
        init: "imagenet", "random", or a model folder or repository to start from.
        architecture: Fields of `CheXpertConfig` that differ from DenseNet121, such as `growth_rate`; only with random
            initialisation.
        num_channels: 3 (grayscale repeated) or 1.
        head_hidden_size: Width of a hidden layer in the head; None for a linear head.
        head_dropout: Dropout behind that layer.
        freeze_backbone: Train the head only; the statistics of BatchNorm stay, too.
        image_size: Height and width of the input in pixels.
        gray_range: Bring every radiograph to one gray range, so that the scanner and the export do not matter; see
            `image_processing_chexpert.to_gray_range`. A model that is fine-tuned keeps the setting that it has.
        frontal_only: Leave lateral views out, of training and validation.
        num_patients: A subset of the training patients, always the same one; all if None.
        valid_fraction: Share of the patients held out where the data has no valid.csv.
        rotation_degrees: Largest rotation of the augmentation, either way. There is no flip: it moves the heart.
        translation: Largest shift, as a share of the image.
        scaling: Largest change of size, as a share.
        contrast: Largest change of contrast and brightness, as a share.
        gamma: Largest natural logarithm of the power that gray levels are raised to, either way.
        border: Widest black or white frame that an image may get, as a share of the side.
        epochs: Passes over the training images.
        batch_size: Images per forward pass, on each device.
        gradient_accumulation_steps: Forward passes per optimizer step.
        drop_last: Skip the last batch of an epoch where it is smaller than the others.
        gradient_checkpointing: Compute dense layers again in the backward pass instead of keeping their activations.
        sync_batch_norm: With several processes on GPUs, take BatchNorm's statistics over the batches of all of them;
            else those of each process's own batch are used, and those of the first process are saved.
        learning_rate: Of Adam, at its highest.
        schedule: "constant", "linear" or "cosine" decay.
        warmup: Share of the steps over which the learning rate rises.
        weight_decay: Decoupled (AdamW); 0 is Adam.
        max_grad_norm: Gradients are clipped to this norm; 0 for no clipping.
        precision: "fp32", or "bf16" autocast.
        channels_last: Memory layout, faster on CPUs and GPUs alike.
        compile: Whether to use torch.compile.
        images_per_checkpoint: Training images between two checkpoints; at least one checkpoint an epoch where the best
            one becomes the model.
        keep_checkpoints: How many checkpoints stay on disk: the best by validation AUROC, and the newest.
        checkpoint: Which of them becomes the model: the "best" by validation AUROC, or the "last", which is chosen
            without a look at the validation split.
        calibration_folds: Parts of the training patients for calibration by cross-validation: for each part a further
            model is trained on the others, and what they say of the parts left out gives the Platt scaling and the
            operating points (Youden's J) of the model that is trained on all; 0 for no calibration.
        calibration_models: Model folders to take for these further models instead, in the order of the parts.
        held_out_fold: Train on all parts but this one and validate on it; such are the further models.
        stored_precision: In which convolutions and head are stored: "fp32", or "fp16", which takes half the space.
        runs: Independent runs with seeds `seed`, `seed + 1`, ...; several make an ensemble of their best checkpoints.
        distillation: Weight, in [0, 1], of the mean probability of other networks in each label. They see each image
            as the new one does, augmented alike. 0 for no such networks.
        distillation_teachers: How many of them are trained first, by the same recipe with the seeds that follow.
        distillation_models: Model folders or repositories to take for them instead, which judge the same observations.
        workers: Processes that read images.
        cache: Keep the prepared images in memory, `image_size` squared bytes each, so that each is read once; with
            `workers` 0.
        seed: Of initialisation, order and augmentation.
        model_name: What the model is called; the card of a model without a name has that of its folder.
        warnings: Sentences that are shown with the model, such as that it is not a clinical one.
    """

    observations: tuple[str, ...] = OBSERVATIONS
    policy: str | Mapping[str, str] = PAPER_POLICY
    teacher: str | None = None
    teacher_epochs: float | None = None
    conditional_epochs: float = 0
    unconditional: bool = False
    loss: Loss = "cross-entropy"
    map_loss: float = 0.0
    map_centring: float = 0.0
    register_maps: bool = False
    class_weights: bool = False
    blank_labels: str = "negative"
    init: str = "imagenet"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    num_channels: int = 3
    head_hidden_size: int | None = None
    head_dropout: float = 0.0
    freeze_backbone: bool = False
    image_size: int = 320
    gray_range: bool = True
    frontal_only: bool = False
    num_patients: int | None = None
    valid_fraction: float = 0.1
    rotation_degrees: float = 0.0
    translation: float = 0.0
    scaling: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    border: float = 0.0
    epochs: float = 3
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    drop_last: bool = False
    gradient_checkpointing: bool = False
    sync_batch_norm: bool = False
    learning_rate: float = 1e-4
    schedule: Schedule = "constant"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0
    precision: Precision = "fp32"
    channels_last: bool = True
    compile: bool = False
    images_per_checkpoint: int = 4800
    keep_checkpoints: int = 10
    checkpoint: Checkpoint = "best"
    calibration_folds: int = 0
    calibration_models: Sequence[str] = ()
    held_out_fold: int | None = None
    stored_precision: StoredPrecision = "fp32"
    runs: int = 1
    distillation: float = 0.0
    distillation_teachers: int = 2
    distillation_models: Sequence[str] = ()
    workers: int = 2
    cache: bool = False
    seed: int = 0
    model_name: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_types(self)
        object.__setattr__(self, "warnings", tuple(self.warnings))
        try:
            object.__setattr__(self, "observations", check_observations(self.observations))
            parse_policies(self.policy, self.observations)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        _expect_one_of("blank_labels", self.blank_labels, [policy.value for policy in BlankPolicy])
        _expect_one_of("loss", self.loss, get_args(Loss))
        _expect_one_of("schedule", self.schedule, get_args(Schedule))
        _expect_one_of("precision", self.precision, get_args(Precision))
        _expect_one_of("checkpoint", self.checkpoint, get_args(Checkpoint))
        _expect_one_of("stored_precision", self.stored_precision, get_args(StoredPrecision))
        _expect_one_of("num_channels", self.num_channels, (1, 3))
        for name in (
            "image_size",
            "batch_size",
            "gradient_accumulation_steps",
            "images_per_checkpoint",
            "keep_checkpoints",
            "runs",
            "distillation_teachers",
        ):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        _expect("seed", self.seed, self.seed >= 0 and self.seed + self.runs <= 2**32, "in [0, 2**32)")
        smallest = 2 ** (len(self.architecture.get("block_config", (0,) * _DENSENET121_BLOCKS)) + 1)
        _expect("image_size", self.image_size, self.image_size >= smallest, f"at least {smallest} for this network")
        for name in ("epochs", "learning_rate"):
            _expect(name, getattr(self, name), getattr(self, name) > 0, "more than 0")
        for name in ("head_dropout", "translation", "scaling", "contrast", "warmup"):
            _expect(name, getattr(self, name), 0 <= getattr(self, name) < 1, "in [0, 1)")
        _expect("border", self.border, 0 <= self.border < 0.5, "in [0, .5)")
        _expect("distillation", self.distillation, 0 <= self.distillation <= 1, "in [0, 1]")
        _expect("cache", self.cache, not self.cache or self.workers == 0, "false, or workers 0")
        for name in (
            "map_loss",
            "map_centring",
            "conditional_epochs",
            "weight_decay",
            "max_grad_norm",
            "workers",
            "rotation_degrees",
            "gamma",
        ):
            _expect(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        _expect("valid_fraction", self.valid_fraction, 0 < self.valid_fraction < 1, "in (0, 1)")
        self._check_folds()
        if self.distillation and (self.runs > 1 or self.unconditional or self.conditional_epochs):
            raise RecipeError(
                "distillation is for one run of one stage, without a label hierarchy; leave out runs, unconditional "
                "and conditional_epochs."
            )
        if self.loss == "auc-margin" and (
            UncertaintyPolicy.U_MULTICLASS.value in self.policies.values()
            or self.unconditional
            or self.conditional_epochs
            or self.gradient_accumulation_steps > 1
        ):
            raise RecipeError(
                "loss 'auc-margin' knows no uncertain class, no label hierarchy and no accumulated batches; choose "
                "other policies, or the loss 'cross-entropy'."
            )
        if self.map_loss and (self.unconditional or self.conditional_epochs):
            raise RecipeError("map_loss is for models without a label hierarchy; leave out unconditional training.")
        if self.conditional_epochs and not parents_among(self.observations):
            raise RecipeError("conditional_epochs is set, but no observation of the recipe has a parent among them.")
        if self.teacher is not None and not self.self_trained_observations:
            raise RecipeError("teacher is set, but no observation has the policy u-self-trained.")
        if self.loss == "auc-margin" and self.class_weights:
            raise RecipeError(
                "class_weights has no meaning with loss 'auc-margin', which weighs both classes the same."
            )
        if self.architecture and self.init != "random":
            raise RecipeError(f"architecture is set, which needs init 'random', got init {self.init!r}.")

    def _check_folds(self) -> None:
        folds, held_out = self.calibration_folds, self.held_out_fold
        _expect("calibration_folds", folds, folds == 0 or folds >= 2, "0 or at least 2")
        _expect("held_out_fold", held_out, held_out is None or 0 <= held_out < folds, "from 0 to calibration_folds - 1")
        if self.calibration_models and len(self.calibration_models) != folds:
            raise RecipeError(
                f"calibration_models names {len(self.calibration_models)} models, expected one for each of the {folds} "
                "calibration_folds."
            )
        if folds and self.checkpoint != "last":
            raise RecipeError(
                "calibration_folds needs checkpoint 'last': the best one is chosen on the part that it is to judge."
            )
        if folds and (self.runs > 1 or self.unconditional or self.conditional_epochs or self.self_trained_observations):
            raise RecipeError(
                "calibration_folds is for one run of one stage: without a label hierarchy, conditional_epochs and "
                "u-self-trained; calibrate others with chexpert-hf calibrate."
            )

    @property
    def policies(self) -> dict[str, str]:
        """The policy of each observation."""
        return parse_policies(self.policy, self.observations)

    @property
    def self_trained_observations(self) -> tuple[str, ...]:
        """The observations whose uncertain labels a teacher gives."""
        return tuple(name for name, policy in self.policies.items() if policy == UncertaintyPolicy.U_SELF_TRAINED.value)

    def to_dict(self) -> dict[str, Any]:
        """All values, as plain types."""
        values = asdict(self)
        lists = {name: list(getattr(self, name)) for name in _LISTS}
        return values | lists | {"architecture": dict(self.architecture)}

    def save(self, path: Path) -> None:
        """Writes the recipe as YAML, from which `load` makes an equal one."""
        unfinished = path.with_suffix(".part")
        unfinished.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, width=120), encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Reads a YAML recipe; what it does not name has its default.

        Args:
            path: Of the file, or the name of one of this project's recipes, such as `u_ones`.

        Raises:
            RecipeError: If it is not a recipe, or a value is out of range.
        """
        own = {file.stem: file for file in recipes_folder().glob("*.yaml")}
        if not path.exists() and path.suffix == "" and path.name not in own:
            raise RecipeError(
                f"There is no recipe {str(path)!r}; expected a YAML file or one of: {', '.join(sorted(own))}."
            )
        path = path if path.exists() else own.get(str(path), path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise RecipeError(f"The recipe {path} cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict):
            raise RecipeError(f"The recipe {path} is no mapping of fields to values.")
        return cls().override(**values)

    def override(self, **values: Any) -> "Recipe":
        """The recipe with other values.

        Raises:
            RecipeError: If a field is unknown, or a value is out of range.
        """
        known = {item.name: item for item in fields(self)}
        hints = get_type_hints(type(self))
        for name, value in values.items():
            if name not in known:
                raise RecipeError(f"A recipe has no field {name!r}; expected: {', '.join(known)}.")
            if hints[name] in (float, float | None) and isinstance(value, str):
                # YAML reads 1e-4 as a string: it wants 1.0e-4.
                values[name] = _number(name, value)
        return replace(self, **values)


def recipes_folder() -> Path:
    """This project's recipes: beside this module once installed, in `train` in a checkout."""
    installed = Path(__file__).with_name("recipes")
    return installed if installed.exists() else Path(__file__).parents[2] / "train" / "recipes"


def _check_types(recipe: Recipe) -> None:
    """Raises RecipeError for a value of another type than its field's; an integer is a number, a truth value is not."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    for name, hint in get_type_hints(Recipe).items():
        value, kinds = getattr(recipe, name), get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        wanted = [kind for kind in kinds if kind in plain]
        if not wanted or (value is None and type(None) in kinds) or (name == "policy" and isinstance(value, Mapping)):
            continue
        accepted = tuple(wanted) + ((int,) if float in wanted else ())
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in wanted):
            raise RecipeError(f"{name} is {value!r}, expected {plain[wanted[0]]}.")
    for name in ("distillation_models", "calibration_models"):
        if isinstance(getattr(recipe, name), str):
            raise RecipeError(f"{name} is {getattr(recipe, name)!r}, expected a list of model folders.")
    if isinstance(recipe.observations, str) or not isinstance(recipe.architecture, Mapping):
        raise RecipeError("observations is expected to be a list of names, and architecture a mapping of fields.")
    if isinstance(recipe.warnings, str) or not all(isinstance(text, str) for text in recipe.warnings):
        raise RecipeError(f"warnings is {recipe.warnings!r}, expected a list of sentences.")


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RecipeError(f"{name} is {text!r}, expected a number.") from None


def _expect(name: str, value: Any, is_right: bool, expected: str) -> None:
    if not is_right:
        raise RecipeError(f"{name} is {value!r}, expected {expected}.")


def _expect_one_of(name: str, value: Any, choices: Any) -> None:
    _expect(name, value, value in choices, f"one of: {', '.join(map(str, choices))}")
