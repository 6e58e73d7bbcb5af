"""Where processor, model and operating points meet: radiographs in, scores and maps out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.data.radiograph import RadiographSource, read_radiograph
from chexpert_hf.errors import InputError
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.inference.saliency import positive_maps, resize_maps
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

Sources: TypeAlias = list[RadiographSource] | tuple[RadiographSource, ...]

BATCH_SIZE = 16


class ModelFolderError(InputError):
    """A model folder or repository that this package cannot use, with the reason and what to do."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one radiograph.

    Attributes:
        probabilities: Of each observation, in [0, 1], in the model's order.
        positives: Whether each probability reaches the observation's operating point.
        saliency: On request, of each observation a map `(height, width)` of the radiograph's size in [0, 1]: where the
            evidence for it lies, 1 being the strongest evidence for any observation in this radiograph.
    """

    probabilities: Mapping[str, float]
    positives: Mapping[str, bool]
    saliency: Mapping[str, NDArray[np.float32]] | None = None


class CheXpertClassifier:
    """Scores chest radiographs with a model from a folder or the Hub. Not a medical device.

    Args:
        model: The model; it is put into evaluation mode.
        processor: Its image processor.
    """

    def __init__(self, model: CheXpertForImageClassification, processor: CheXpertImageProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str | torch.device | None = None, revision: str | None = None
    ) -> "CheXpertClassifier":
        """Loads a model folder, or a repository of the Hub.

        Args:
            model: Path of a folder, or repository id.
            device: Where to compute; the first GPU, or the CPU where there is none, if None.
            revision: Branch, tag or commit of a repository.

        Raises:
            ModelFolderError: If it is no CheXpert model, or its weights do not fit its configuration.
        """
        network = load_model(model, revision=revision)
        processor = CheXpertImageProcessor.from_pretrained(model, revision=revision)
        if processor.num_channels != network.config.num_channels:
            raise ModelFolderError(
                f"The image processor makes {processor.num_channels} channels, but the model expects "
                f"{network.config.num_channels}; preprocessor_config.json and config.json are not of one model."
            )
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network.to(device), processor)

    @property
    def observations(self) -> tuple[str, ...]:
        """The observations that the model judges, in its order."""
        return self.model.config.observations

    @property
    def operating_points(self) -> dict[str, float]:
        """The probability from which on each observation is called positive."""
        return dict(self.model.config.operating_points or {})

    @overload
    def predict(self, inputs: RadiographSource, *, saliency: bool = ..., batch_size: int = ...) -> Prediction: ...

    @overload
    def predict(self, inputs: Sources, *, saliency: bool = ..., batch_size: int = ...) -> list[Prediction]: ...

    def predict(
        self,
        inputs: RadiographSource | Sources,
        *,
        saliency: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> Prediction | list[Prediction]:
        """Scores one radiograph or several.

        Args:
            inputs: Paths, bytes, file objects, PIL images or arrays; a list of them gives a list.
            saliency: Whether to compute the maps.
            batch_size: Radiographs that go through the network at once.

        Raises:
            RadiographError: If one cannot be read.
        """
        if not isinstance(inputs, (list, tuple)):
            return self.predict([inputs], saliency=saliency)[0]
        images = (self.read(source) for source in inputs)
        return list(self.predict_images(images, saliency=saliency, batch_size=batch_size))

    def read(self, source: RadiographSource) -> Image.Image:
        """Reads a radiograph as the model wants it; a large JPEG is scaled down while it is decoded.

        Raises:
            RadiographError: If it cannot be read.
        """
        return read_radiograph(source, target_size=self.processor.longest_side)

    def predict_images(
        self, images: Iterable[Image.Image], *, saliency: bool = False, batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction]:
        """Scores images from `read` as they come, one batch at a time."""
        images = iter(images)
        while batch := list(islice(images, batch_size)):
            yield from self._predict_batch(batch, saliency)

    @torch.inference_mode()
    def _predict_batch(self, images: list[Image.Image], saliency: bool) -> Iterator[Prediction]:
        pixel_values = self.processor(images, return_tensors="pt")["pixel_values"]
        output = self.model(pixel_values.to(self.model.device, self.model.dtype), output_saliency=saliency)
        probabilities = output.logits.float().sigmoid().cpu().numpy()
        for row, image in enumerate(images):
            maps = None
            if saliency:
                size = image.info.get("original_size", image.size)
                maps = resize_maps(positive_maps(output.saliency[row]), size)
            yield self._prediction(probabilities[row], maps)

    def _prediction(self, probabilities: NDArray[np.float32], maps: NDArray[np.float32] | None) -> Prediction:
        scores = dict(zip(self.observations, probabilities.tolist(), strict=True))
        points = self.operating_points
        return Prediction(
            probabilities=scores,
            positives={name: score >= points[name] for name, score in scores.items()},
            saliency=None if maps is None else dict(zip(self.observations, maps, strict=True)),
        )


def load_model(model: str | Path, *, revision: str | None = None) -> CheXpertForImageClassification:
    """Loads the network of a model folder or repository, from safetensors only.

    Raises:
        ModelFolderError: If it is no CheXpert model, or its weights do not fit its configuration.
    """
    try:
        config, _ = CheXpertConfig.get_config_dict(model, revision=revision)
        if not config:
            raise ModelFolderError(f"{model} holds no config.json; expected a model folder.")
        if config.get("model_type") != CheXpertConfig.model_type:
            raise ModelFolderError(
                f"{model} holds a model of type {config.get('model_type')!r}, expected {CheXpertConfig.model_type!r}."
            )
        loaded: tuple[CheXpertForImageClassification, dict[str, Any]] = CheXpertForImageClassification.from_pretrained(
            model,
            revision=revision,
            use_safetensors=True,
            # Loaded as far as they fit, so that what does not is known by name; it is refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ModelFolderError(
            f"No model could be loaded from {str(model)!r}: {reason} Expected a folder with config.json and "
            "model.safetensors, or the id of a repository that can be reached."
        ) from error
    network, info = loaded
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise ModelFolderError(
            f"The weights in {str(model)!r} do not fit its config.json: {kind} {', '.join(keys[:5])}"
            f"{' ...' if len(keys) > 5 else ''}."
        )
    return network
