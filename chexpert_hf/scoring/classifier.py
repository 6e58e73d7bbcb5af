"""Where processor, model and operating points meet: radiographs in, scores and maps out."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError, ModelFolderError, printable
from chexpert_hf.gate import GATE_FILE, Gate, GateInput, Verdict
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.ensembles import ensemble_members
from chexpert_hf.models.loading import load_model
from chexpert_hf.models.repositories import model_folder
from chexpert_hf.radiographs.grey_levels import RadiographError, naming
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographSource, open_radiograph
from chexpert_hf.scoring.graphs.sessions import TorchRuntime
from chexpert_hf.scoring.runtimes import Precision, Runtime, open_runtime
from chexpert_hf.scoring.saliency import Box, SaliencyMaps, map_offsets, positive_maps, resize_maps

Sources: TypeAlias = list[RadiographSource] | tuple[RadiographSource, ...]

BATCH_SIZE = 16

# Where members of an ensemble see different parts of a radiograph, their maps meet on this grid over all of it; maps
# with offsets are moved on it. It is several times finer than any of them.
_COMMON_SIZE = (128, 128)

_ON_ERRORS = ("raise", "return")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one radiograph.

    Attributes:
        probabilities: Of each observation, in [0, 1], in the model's order.
        positives: Whether each probability reaches the observation's operating point.
        saliency: On request, of each observation a map `(height, width)` of the radiograph's size in [0, 1]: where the
            evidence for it lies, 1 being the strongest evidence for any observation in this radiograph. All zeros where
            nothing speaks for the observation.
        notes: A line for each part of the file that had to be supplied or ignored, such as a useless window.
        gate: The verdict of the model's gate: whether it is a chest radiograph; None if the model has no gate.
    """

    probabilities: Mapping[str, float]
    positives: Mapping[str, bool]
    saliency: SaliencyMaps | None = None
    notes: tuple[str, ...] = ()
    gate: Verdict | None = None

    @property
    def maps(self) -> SaliencyMaps:
        """`saliency` where it was asked for.

        Raises:
            ValueError: If it was not.
        """
        if self.saliency is None:
            raise ValueError("There are no maps; ask for them with saliency=True.")
        return self.saliency


@dataclass(frozen=True)
class Prepared:
    """A radiograph as the network wants it, but for the normalisation.

    Attributes:
        gray: For each member of the classifier the gray levels `(1, height, width)` at its size, as its processor gives
            them.
        size: (width, height) of the radiograph.
        notes: As in `Prediction`.
        gate_input: The input of the model's gate; None if the gate is not to be asked.
    """

    gray: tuple[Tensor, ...]
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    gate_input: GateInput | None = None


class CheXpertClassifier:
    """Scores chest radiographs with a model from a folder or the Hub. Not a medical device.

    Args:
        model: The model; it is put into evaluation mode.
        processor: Its image processor.
        others: Further members of an ensemble, which judge the same observations. Probabilities and maps are the means
            over all members, and so are the operating points.
        runtime: What computes; PyTorch in float32 where the model is, if None.
        gate: Tells whether an image is a chest radiograph, for this model, if it has one.

    Raises:
        ModelFolderError: If a member judges other observations, or in another order.
    """

    _names_files = True

    def __init__(
        self,
        model: CheXpertForImageClassification,
        processor: CheXpertImageProcessor,
        others: Sequence["CheXpertClassifier"] = (),
        *,
        runtime: Runtime | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.runtime = runtime or TorchRuntime(model, Precision.FP32, model.device)
        self.gate = gate
        self.members: tuple[CheXpertClassifier, ...] = (self, *others)
        for other in others:
            if other.observations != self.observations:
                raise ModelFolderError(
                    f"The members of an ensemble judge the same observations in the same order; one has "
                    f"{', '.join(self.observations)}, another {', '.join(other.observations)}."
                )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Sequence[str | Path] = DEFAULT_MODEL,
        *,
        runtime: str = "torch",
        precision: str = "fp32",
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> "CheXpertClassifier":
        """Loads a model folder, a repository of the Hub, or an ensemble.

        Args:
            model: Path of a folder, repository id, or "nih", the bundled model, which is not a clinical one; several
                make an ensemble, and so does a folder with `ensemble.json`. If not given, the bundled model.
            runtime: "torch", "onnx", "openvino", or "auto" for the fastest that is there; see `open_runtime`. Its
                `reason` then says what was chosen.
            precision: "fp32", "bf16", "fp16", "int8", or "auto". fp32 gives the same scores everywhere; the others are
                faster, and differ by up to .01 (int8 .03).
            device: Where to compute; if None, a GPU where there is one and the runtime can use it.
            revision: Branch, tag or commit of a repository.

        Raises:
            ModelFolderError: If it is no CheXpert model, its weights do not fit its configuration, or members do not
                fit each other.
            HubError: If it is no folder, and no repository that can be had.
            InputError: If the runtime or precision cannot be had.
        """
        names = [model] if isinstance(model, (str, Path)) else list(model)
        members = [member for name in names for member in ensemble_members(name)]
        if not members:
            raise ModelFolderError("Expected at least one model, got none.")
        first, *others = (cls._load(name, runtime, precision, device, revision) for name in members)
        return cls(first.model, first.processor, others, runtime=first.runtime, gate=first.gate) if others else first

    @classmethod
    def _load(
        cls, model: str | Path, runtime: str, precision: str, device: str | torch.device | None, revision: str | None
    ) -> "CheXpertClassifier":
        folder = model_folder(model, revision)
        network = load_model(folder, name=str(model))
        try:
            processor = CheXpertImageProcessor.from_pretrained(folder)
        except OSError as error:
            raise ModelFolderError(
                f"{model} has no image processor; expected preprocessor_config.json beside config.json."
            ) from error
        if processor.num_channels != network.config.num_channels:
            raise ModelFolderError(
                f"The image processor makes {processor.num_channels} channels, but the model expects "
                f"{network.config.num_channels}; preprocessor_config.json and config.json are not of one model."
            )
        opened = open_runtime(
            network,
            folder=Path(model) if Path(model).is_dir() else None,
            runtime=runtime,
            precision=precision,
            device=device,
            input_size=processor.output_size,
        )
        return cls(network, processor, runtime=opened, gate=_load_gate(folder))

    @property
    def observations(self) -> tuple[str, ...]:
        """The observations that the model judges, in its order."""
        return self.model.config.observations

    @property
    def operating_points(self) -> dict[str, float]:
        """The probability from which on each observation is called positive."""
        points = [member.model.config.operating_points or {} for member in self.members]
        return {name: sum(point[name] for point in points) / len(points) for name in self.observations}

    @property
    def has_gate(self) -> bool:
        """Whether a member has a gate, which tells chest radiographs from other images."""
        return self._gatekeeper is not None

    @overload
    def predict(
        self, inputs: RadiographSource, *, saliency: bool = ..., batch_size: int = ..., errors: Literal["raise"] = ...
    ) -> Prediction: ...

    @overload
    def predict(
        self, inputs: Sources, *, saliency: bool = ..., batch_size: int = ..., errors: Literal["raise"] = ...
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, inputs: RadiographSource, *, saliency: bool = ..., batch_size: int = ..., errors: Literal["return"]
    ) -> Prediction | RadiographError: ...

    @overload
    def predict(
        self, inputs: Sources, *, saliency: bool = ..., batch_size: int = ..., errors: Literal["return"]
    ) -> list[Prediction | RadiographError]: ...

    def predict(
        self,
        inputs: RadiographSource | Sources,
        *,
        saliency: bool = False,
        batch_size: int = BATCH_SIZE,
        errors: Literal["raise", "return"] = "raise",
    ) -> Prediction | RadiographError | Sequence[Prediction | RadiographError]:
        """Scores one radiograph or several, and asks the model's gate if it has one.

        Args:
            inputs: Paths, bytes, file objects, PIL images or arrays; a list of them gives a list.
            saliency: Whether to compute the maps.
            batch_size: Radiographs that go through the network at once.
            errors: "raise" raises the error of the first input that cannot be read; "return" puts each error in the
                place of its prediction. An error names a file without its folder, and the place in a list.

        Raises:
            RadiographError: If an input cannot be read and `errors` is "raise".
            InputError: If `errors` is neither.
        """
        if errors not in _ON_ERRORS:
            raise InputError(f"Expected errors='raise' or errors='return', got {errors!r}.")
        if not isinstance(inputs, (list, tuple)):
            return self._results([inputs], [_name(inputs)], saliency, 1, errors)[0]
        names = [f"inputs[{place}] {_name(source)}".rstrip() for place, source in enumerate(inputs)]
        return self._results(inputs, names, saliency, batch_size, errors)

    def _results(
        self, inputs: Sequence[RadiographSource], names: Sequence[str], saliency: bool, batch_size: int, errors: str
    ) -> list[Prediction | RadiographError]:
        results: list[Prediction | RadiographError] = []
        for result, name in zip(self._each(inputs, saliency, batch_size), names, strict=True):
            if isinstance(result, RadiographError):
                result.name = name if self._names_files else ""
                if errors == "raise":
                    raise result
            results.append(result)
        return results

    def _each(
        self, inputs: Iterable[RadiographSource], saliency: bool, batch_size: int
    ) -> Iterator[Prediction | RadiographError]:
        """The prediction of each input, in order, or its error."""
        read: deque[RadiographError | None] = deque()

        def prepared() -> Iterator[Prepared]:
            for source in inputs:
                try:
                    one = self.prepare(self.read(source), for_gate=True)
                except RadiographError as error:
                    read.append(error)
                else:
                    read.append(None)
                    yield one

        for prediction in self.predict_prepared(prepared(), saliency=saliency, batch_size=batch_size):
            while (error := read.popleft()) is not None:
                yield error
            yield prediction
        yield from filter(None, read)

    def read(self, source: RadiographSource) -> Radiograph:
        """Reads a radiograph as the model wants it; a large JPEG is scaled down while it is decoded.

        Raises:
            RadiographError: If it cannot be read; it names a file without its folder.
        """
        sides = [member.processor.decoded_side for member in self.members]
        target_size = None if None in sides else max(side for side in sides if side)
        with naming(_name(source) if self._names_files else ""):
            return open_radiograph(source, target_size=target_size)

    def verdicts(self, radiographs: Sequence[Prepared]) -> list[Verdict | None]:
        """Verdicts of the gate, by the first member that has one; None for radiographs without `gate_input`."""
        inputs = [one.gate_input for one in radiographs if one.gate_input is not None]
        keeper = self._gatekeeper
        if keeper is None or keeper.gate is None:
            return [None] * len(radiographs)
        judged = iter(keeper.gate.judge_batch(inputs))
        return [None if one.gate_input is None else next(judged) for one in radiographs]

    @property
    def _gatekeeper(self) -> "CheXpertClassifier | None":
        return next((member for member in self.members if member.gate is not None), None)

    def predict_images(
        self, images: Iterable[Radiograph | Image.Image], *, saliency: bool = False, batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction]:
        """Scores radiographs from `read` as they come, one batch at a time."""
        yield from self.predict_prepared(map(self.prepare, images), saliency=saliency, batch_size=batch_size)

    def prepare(self, radiograph: Radiograph | Image.Image, *, for_gate: bool = False) -> Prepared:
        """Prepare one radiograph for a batch; several threads may do it at once.

        Args:
            radiograph: From `read`, or an image.
            for_gate: Whether the model's gate is to be asked, if it has one.
        """
        radiograph = open_radiograph(radiograph)
        image = radiograph.image
        gray = [
            member.processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
            for member in self.members
        ]
        gate_input = None
        if for_gate and (keeper := self._gatekeeper) is not None and keeper.gate is not None:
            gate_input = keeper.gate.prepare(image, is_colour=radiograph.is_colour, is_lateral=radiograph.is_lateral)
        return Prepared(tuple(gray), radiograph.original_size, radiograph.notes, gate_input)

    def predict_prepared(
        self, radiographs: Iterable[Prepared], *, saliency: bool = False, batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction]:
        """Scores what `prepare` gives as it comes, one batch at a time."""
        radiographs = iter(radiographs)
        while batch := list(islice(radiographs, batch_size)):
            for prediction, verdict in zip(self._predict_batch(batch, saliency), self.verdicts(batch), strict=True):
                yield prediction if verdict is None else replace(prediction, gate=verdict)

    def side_by_side(self) -> "Sequence[CheXpertClassifier]":
        """Classifiers with these scores for a thread each, which do more together than this one; see `Runtime`.

        Only this one where a member's runtime has no such thing.
        """
        runtimes = [member.runtime.side_by_side() for member in self.members]
        if min(map(len, runtimes)) == 1:
            return [self]
        return [self._computed_by(one_of_each) for one_of_each in zip(*runtimes, strict=False)]

    def _computed_by(self, runtimes: Sequence[Runtime]) -> "CheXpertClassifier":
        first, *others = (
            CheXpertClassifier(member.model, member.processor, runtime=runtime, gate=member.gate)
            for member, runtime in zip(self.members, runtimes, strict=True)
        )
        return CheXpertClassifier(first.model, first.processor, others, runtime=first.runtime, gate=first.gate)

    @torch.inference_mode()
    def _predict_batch(self, batch: list[Prepared], saliency: bool) -> Iterator[Prediction]:
        outputs = [
            member._forward(torch.stack([one.gray[place] for one in batch]), saliency)
            for place, member in enumerate(self.members)
        ]
        for row, one in enumerate(batch):
            # Row by row: over a whole batch, the last bits of torch's sigmoid depend on where in it a row stands.
            probabilities = torch.stack([logits[row].sigmoid() for logits, _ in outputs]).mean(dim=0).cpu().numpy()
            maps = self._maps([maps[row] for _, maps in outputs if maps is not None], one.size) if saliency else None
            yield self._prediction(probabilities, maps, one.notes)

    def _forward(self, gray: Tensor, saliency: bool) -> tuple[Tensor, Tensor | None]:
        return self.runtime(self.processor.pixel_values_of(gray), saliency=saliency)

    def _maps(self, saliencies: list[Tensor], size: tuple[int, int]) -> SaliencyMaps:
        """The mean of the members' maps `(num_labels, h, w)` of one radiograph of `size`, where their evidence is."""
        boxes = [member.processor.seen_box(*size) for member in self.members]
        offsets = [map_offsets(member.model.config) for member in self.members]
        if len(set(boxes)) > 1 or any(offset is not None for offset in offsets):
            # Of a single member only what is positive, so that a small peak stays one.
            saliencies = saliencies if len(self.members) > 1 else [saliencies[0].clamp(min=0)]
            saliencies = [
                torch.from_numpy(resize_maps(maps.float(), _COMMON_SIZE, _scaled(box, size), offset))
                for maps, box, offset in zip(saliencies, boxes, offsets, strict=True)
            ]
            boxes = [(0.0, 0.0, float(size[0]), float(size[1]))]
        return SaliencyMaps(positive_maps(_mean_maps(saliencies)).cpu(), self.observations, size, boxes[0])

    def _prediction(
        self, probabilities: NDArray[np.float32], maps: SaliencyMaps | None, notes: tuple[str, ...]
    ) -> Prediction:
        scores = dict(zip(self.observations, probabilities.tolist(), strict=True))
        points = self.operating_points
        return Prediction(
            probabilities=scores,
            positives={name: score >= points[name] for name, score in scores.items()},
            saliency=maps,
            notes=notes,
        )


def _name(source: object) -> str:
    """The name of a file without its folder; empty for what has none."""
    path = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "")
    return printable(Path(path).name) if isinstance(path, (str, os.PathLike)) else ""


def _mean_maps(maps: list[Tensor]) -> Tensor:
    """The mean of maps `(num_labels, h, w)` at the finest of their resolutions."""
    height, width = max((item.shape[1], item.shape[2]) for item in maps)
    finest = [functional.interpolate(item[None], size=(height, width), mode="bilinear")[0] for item in maps]
    return torch.stack(finest).mean(dim=0)


def _scaled(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels of `size`, in those of `_COMMON_SIZE`."""
    x, y = _COMMON_SIZE[0] / size[0], _COMMON_SIZE[1] / size[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _load_gate(folder: Path) -> Gate | None:
    """The gate of a folder; None if it has none."""
    if not (folder / GATE_FILE).is_file():
        return None
    return Gate.load(folder / GATE_FILE)
