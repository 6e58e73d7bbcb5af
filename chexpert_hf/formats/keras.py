"""The Keras 3 port of a model folder, to use and train in TensorFlow, JAX or PyTorch, and conversion back to PyTorch.

Set the environment variable `KERAS_BACKEND` before Keras is imported. Training differs from PyTorch: the running
variance of BatchNorm takes the biased variance of a batch, in PyTorch the unbiased one; and Keras does not count
batches, so that `num_batches_tracked` is 0 afterwards.

Source of the calls: Keras 3.15, https://keras.io/api/.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexpert_hf.configuration_chexpert import DENSENET, CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.files import make_readable
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification, hierarchy_paths
from chexpert_hf.models.model_files import ENSEMBLE_FILE
from chexpert_hf.publishing.model_folder import refresh_folder
from chexpert_hf.scoring.classifier import CheXpertClassifier

try:
    import keras
    from keras import layers, ops
except (ImportError, ValueError) as error:  # ValueError: KERAS_BACKEND names none that Keras knows
    raise InputError(
        f'Keras cannot be imported ({error}): pip install "chexpert-hf[keras]", and set KERAS_BACKEND to tensorflow, '
        "jax or torch, whichever is installed."
    ) from error

HEAD = "head"  # the name of the layer that gives logits and maps

# A layer's weights in Keras -> in PyTorch.
_NAMES = {
    "kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
# Number of a weight's axes -> PyTorch's axes in the order of Keras.
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
_UNMAPPED = "num_batches_tracked"
_CHANNELS = {"data_format": "channels_last"}


class KerasError(InputError):
    """A model without a Keras port, or weights that do not fit one; the message says why."""


class CheXpertKeras(keras.Model):
    """The Keras port of `CheXpertForImageClassification`; layers have PyTorch's names with "-" for ".".

    Its input is the processor's `pixel_values` (batch, num_channels, height, width) of any size; its outputs are
    `logits` (batch, num_labels) and the signed maps `saliency` (batch, num_labels, h, w). Raises KerasError for a
    backbone that is no DenseNet.
    """

    def __init__(self, config: CheXpertConfig, processor: CheXpertImageProcessor) -> None:
        if config.backbone != DENSENET:
            raise KerasError(f"There is a Keras port of DenseNets only, but the backbone is {config.backbone}.")
        pixel_values = keras.Input((config.num_channels, None, None), name="pixel_values")
        features = _features(layers.Permute((2, 3, 1))(pixel_values), config)  # (B, h, w, C)
        head = Head(config, name=HEAD)
        outputs = {"logits": head(features), "saliency": head(features, output_saliency=True)}
        super().__init__(inputs=pixel_values, outputs=outputs, name="chexpert")
        self.config, self.processor = config, processor


class Head(layers.Layer):
    """Global average pooling and the classifier: returns the logits, or the saliency maps, of all observations."""

    def __init__(self, config: CheXpertConfig, name: str) -> None:
        super().__init__(name=name)
        num_outputs = config.num_labels + 2 * len(config.multiclass_observations)
        size = config.head_hidden_size
        self.hidden = None if size is None else layers.Dense(size, name="classifier-0")
        self.dropout = layers.Dropout(config.head_dropout)
        self.last = layers.Dense(num_outputs, name="classifier" if self.hidden is None else "classifier-3")
        self.to_logits = _positive_minus_negative(config)  # (num_outputs, num_labels)
        self.paths = hierarchy_paths(config).numpy() if config.label_parents else None  # (num_labels, num_labels)

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Create the weights for features of `shape` (batch, h, w, channels)."""
        num_features: int | None = shape[-1]
        if self.hidden is not None:
            self.hidden.build((None, num_features))
            num_features = self.hidden.units
        self.last.build((None, num_features))

    def call(self, features: Any, output_saliency: bool = False, training: bool | None = None) -> Any:
        """Return logits `(batch, num_labels)`, or the maps `(batch, num_labels, h, w)` if `output_saliency`."""
        pooled = inputs = ops.mean(features, axis=(1, 2))  # (B, C)
        if self.hidden is not None:
            inputs = ops.relu(self.hidden(pooled))
            inputs = inputs if output_saliency else self.dropout(inputs, training=training)
        outputs = self.last(inputs)  # (B, num_outputs)
        logits = outputs if self.to_logits is None else ops.matmul(outputs, self.to_logits)
        if not output_saliency:
            return logits if self.paths is None else _unconditional(logits, self.paths)
        return self._saliency(features, pooled, logits)

    def _saliency(self, features: Any, pooled: Any, logits: Any) -> Any:
        """Return features weighted by the gradient of each logit, summed over channels: `(batch, num_labels, h, w)`.

        `pooled` are the means of `features` over h and w; `logits` are those before the label hierarchy is applied.
        """
        weight = self.last.kernel if self.to_logits is None else ops.matmul(self.last.kernel, self.to_logits)
        if self.hidden is None:
            maps = ops.einsum("bhwc,cl->blhw", features, weight)
        else:
            is_active = ops.cast(self.hidden(pooled) > 0, features.dtype)  # (B, hidden): the ReLU's derivative
            gradients = ops.einsum("bn,nl,cn->blc", is_active, weight, self.hidden.kernel)
            maps = ops.einsum("blc,bhwc->blhw", gradients, features)
        if self.paths is None:
            return maps
        product = ops.sigmoid(_unconditional(logits, self.paths))
        share = ops.multiply((1 - ops.sigmoid(logits))[:, None, :] / (1 - product)[:, :, None], self.paths)
        return ops.einsum("bli,bihw->blhw", share, maps)


def from_model_folder(folder: str | Path) -> CheXpertKeras:
    """Return the Keras port of a model folder, with its weights; KerasError unless it is a single DenseNet."""
    if (Path(folder) / ENSEMBLE_FILE).is_file():
        raise KerasError(f"{folder} is an ensemble, expected one model; take a folder of its 'members'.")
    classifier = CheXpertClassifier.from_pretrained(folder, device="cpu")
    return from_torch(classifier.model, classifier.processor)


def from_torch(model: CheXpertForImageClassification, processor: CheXpertImageProcessor) -> CheXpertKeras:
    """Return the Keras port of a PyTorch model, with a copy of its weights."""
    port = CheXpertKeras(model.config, processor)
    load_state_dict(port, model.state_dict())
    return port


def to_torch(port: CheXpertKeras) -> CheXpertForImageClassification:
    """Return the PyTorch model, in evaluation mode, with a copy of the port's weights."""
    model = CheXpertForImageClassification(port.config)
    counters = {name: tensor for name, tensor in model.state_dict().items() if name.endswith(_UNMAPPED)}
    model.load_state_dict(state_dict(port) | counters)
    return model.eval()


def write_back(port: CheXpertKeras, folder: str | Path) -> None:
    """Write the port to a model folder: weights, configuration, processor, reference scores, checksums.

    The folder is made if needed, and its files are replaced. If the folder has a model card, the card is updated; if
    it has none, no card is written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    to_torch(port).save_pretrained(folder)
    make_readable(folder / "model.safetensors")
    port.processor.save_pretrained(folder)
    refresh_folder(folder)


def state_dict(port: keras.Model) -> dict[str, Tensor]:
    """Return a copy of the port's weights under PyTorch's names and in its shapes, in float32."""
    arrays = {name: ops.convert_to_numpy(variable).astype(np.float32) for name, variable in _pairs(port)}
    return {
        name: torch.from_numpy(array.transpose(np.argsort(_AXES[array.ndim])).copy()) for name, array in arrays.items()
    }


def load_state_dict(port: keras.Model, weights: Mapping[str, Tensor]) -> None:
    """Copy PyTorch's weights into the port; raise KerasError if one is missing, left over, or of another shape."""
    expected, given = dict(_pairs(port)), {name for name in weights if not name.endswith(_UNMAPPED)}
    if expected.keys() != given:
        name = min(expected.keys() ^ given)
        fault = "missing" if name in expected else "left over"
        raise KerasError(f"The weights do not fit the network: {name} is {fault}.")
    for name, variable in expected.items():
        values = weights[name].detach().float().cpu().numpy()
        values = values.transpose(_AXES.get(values.ndim))
        if values.shape != tuple(variable.shape):
            raise KerasError(f"The weights do not fit: {name} gives {values.shape}, expected {tuple(variable.shape)}.")
        variable.assign(values)


def _pairs(port: keras.Model) -> Iterator[tuple[str, Any]]:
    """Yield each weight's PyTorch name and Keras variable; KerasError if a variable has no counterpart in PyTorch."""
    found, head = set(), port.get_layer(HEAD)
    for layer in (*port.layers, head.hidden, head.last):
        for attribute, name in _NAMES.items():
            if isinstance(variable := getattr(layer, attribute, None), keras.Variable):
                found.add(id(variable))
                yield f"{layer.name.replace('-', '.')}.{name}", variable
    unmapped = [variable.path for variable in port.weights if id(variable) not in found and "seed" not in variable.path]
    if unmapped:
        raise KerasError(f"{unmapped[0]} has no counterpart in PyTorch; expected the port as it was built.")


def _features(images: Any, config: CheXpertConfig) -> Any:
    """Return the last feature maps `(batch, h, w, C)`, after the ReLU, of `images` `(batch, height, width, channels)`.

    Padding has its own layers: with stride 2, PyTorch pads on both sides, Keras's "same" mostly on one. The input of
    maximum pooling is not negative, so padding with zeros does the same as PyTorch's padding with -inf.
    """
    width = config.bn_size * config.growth_rate
    features = layers.ZeroPadding2D(3, **_CHANNELS)(images)
    features = _convolution("features.conv0", config.num_init_features, 7, strides=2)(features)
    features = _norm_relu("features.norm0", features)
    features = layers.ZeroPadding2D(1, **_CHANNELS)(features)
    features = layers.MaxPooling2D(3, strides=2, **_CHANNELS)(features)
    for number, num_layers in enumerate(config.block_config, start=1):
        for layer in range(1, num_layers + 1):
            name = f"features.denseblock{number}.denselayer{layer}"
            new = _convolution(f"{name}.conv1", width, 1)(_norm_relu(f"{name}.norm1", features))
            new = _norm_relu(f"{name}.norm2", new)
            new = _convolution(f"{name}.conv2", config.growth_rate, 3, padding="same")(new)
            new = layers.Dropout(config.drop_rate)(new) if config.drop_rate else new
            features = layers.Concatenate()([features, new])
        if number < len(config.block_config):
            name = f"features.transition{number}"
            features = _convolution(f"{name}.conv", features.shape[-1] // 2, 1)(_norm_relu(f"{name}.norm", features))
            features = layers.AveragePooling2D(2, **_CHANNELS)(features)
    return _norm_relu("features.norm5", features)


def _convolution(name: str, channels: int, size: int, **options: Any) -> Any:
    # PyTorch's module names contain dots, which Keras's PyTorch backend does not allow in names.
    options |= {"kernel_initializer": keras.initializers.HeNormal(), "name": name.replace(".", "-"), **_CHANNELS}
    return layers.Conv2D(channels, size, use_bias=False, **options)


def _norm_relu(name: str, features: Any) -> Any:
    # The values of torch.nn.BatchNorm2d; Keras's momentum is 1 - PyTorch's.
    return ops.relu(layers.BatchNormalization(momentum=1 - 0.1, epsilon=1e-5, name=name.replace(".", "-"))(features))


def _positive_minus_negative(config: CheXpertConfig) -> NDArray[np.float32] | None:
    """Return the matrix `(num_outputs, num_labels)` that turns the head's outputs into logits.

    For an observation under U-MultiClass it subtracts the output of the negative class from that of the positive class.
    None if there is no such observation: then the outputs are the logits.
    """
    columns = [config.observations.index(name) for name in config.multiclass_observations]
    matrix = np.eye(config.num_labels + 2 * len(columns), config.num_labels, dtype=np.float32)
    for place, column in enumerate(columns):
        matrix[config.num_labels + place, column] = -1
    return matrix if columns else None


def _unconditional(logits: Any, paths: NDArray[np.float32]) -> Any:
    """Turn conditional `logits` into unconditional ones, both `(batch, num_labels)`, by the label hierarchy.

    The conditional probability of an observation assumes that its parent is positive. Its unconditional probability is
    the product of the conditional ones of the observation and of all its ancestors. `paths` is the result of
    `hierarchy_paths`.
    """
    log_p = ops.sum(ops.multiply(ops.log_sigmoid(logits)[:, None, :], paths), axis=2)
    highest = -float(np.finfo(np.float32).eps)
    product = log_p - ops.log(-ops.expm1(ops.minimum(log_p, highest)))
    return ops.where(paths.sum(axis=1) == 1, logits, product)
