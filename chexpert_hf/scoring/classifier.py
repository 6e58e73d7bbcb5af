"""`CheXpertClassifier` and `CheXpertEnsemble`: from image files to scores, with one model or several."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from chexpert_hf.datasets.label_sets import refuse_duplicate_columns
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError, ModelFolderError, NotANumberError, printable
from chexpert_hf.gate import GATE_FILE, Gate, Verdict
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.labels import LabelSet
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import exported_files_for
from chexpert_hf.models.loading import load_model, load_processor
from chexpert_hf.models.model_files import ensemble_members
from chexpert_hf.models.repositories import SCORING_FILES, model_folder
from chexpert_hf.radiographs.archives import ArchiveMember
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.grey_levels import RadiographError
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographSource
from chexpert_hf.scoring.graphs.sessions import TorchRuntime, to_device, to_host
from chexpert_hf.scoring.prediction import Prediction
from chexpert_hf.scoring.preparation import Preparation, Prepared, name_of
from chexpert_hf.scoring.runtimes import Precision, Runtime, open_runtime
from chexpert_hf.scoring.saliency import NoMaps, SaliencyMaps, positive_maps, resize_maps

if TYPE_CHECKING:
    from pandas import DataFrame

_Output: TypeAlias = tuple[Tensor, Tensor | None]  # logits (batch, num_labels) and maps (batch, num_labels, h, w)

Sources: TypeAlias = list[RadiographSource] | tuple[RadiographSource, ...]

BATCH_SIZE, CUDA_BATCH_SIZE = 16, 256

_READ_AGAIN = (str, os.PathLike, bytes, Image.Image, np.ndarray, Radiograph)  # unlike an open file

# Grid over the whole radiograph for averaging maps of models that see different parts of it; finer than any map.
_COMMON_SIZE = (128, 128)


class CheXpertClassifier:
    """Scores chest radiographs with one model. Not a medical device.

    Args:
        model: The network. It is put into evaluation mode, now and for each batch, in case it is trained in between.
        processor: The model's image processor.
        runtime: Computes the scores, from `open_runtime`; PyTorch in float32 on the model's device if None.
        gate: Decides whether an image is a chest radiograph at all; no such check if None.

    Attributes:
        members: The classifiers whose outputs are averaged: only this one, unless it is a `CheXpertEnsemble`.
    """

    def __init__(
        self,
        model: CheXpertForImageClassification,
        processor: CheXpertImageProcessor,
        *,
        runtime: Runtime | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.runtime = runtime or TorchRuntime(model, Precision.FP32, model.device)
        self.gate = gate
        self.members: tuple[CheXpertClassifier, ...] = (self,)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Sequence[str | Path] = DEFAULT_MODEL,
        *,
        runtime: str = "torch",
        precision: str = "fp32",
        device: str | torch.device | None = None,
        revision: str | None = None,
        autotune: bool = True,
    ) -> "CheXpertClassifier":
        """Load a model folder, a repository of the Hub, or several of them as an ensemble.

        Args:
            model: Path of a folder, repository id, or "nih", the bundled model, which is not a clinical one. A list of
                these, or a folder with `ensemble.json`, gives a `CheXpertEnsemble`.
            runtime: "torch", "onnx", "openvino", or "auto" for the fastest that is available; see `open_runtime`.
            precision: "fp32", "bf16", "fp16", "int8", or "auto". fp32 gives the same scores in every runtime; the
                others are faster, and change probabilities by up to .01 (int8 .03).
            device: Such as "cpu" or "cuda:1". None is a GPU if there is one and the runtime can use it, else the CPU.
            revision: Branch, tag or commit of a repository.
            autotune: Whether "auto" on a CPU times the runtimes and precisions on first use, and keeps the choice in
                the user's cache. If False, a fixed order decides; see `open_runtime`.

        Raises:
            ModelFolderError: If there is no CheXpert model, its weights do not fit its configuration, or the members of
                an ensemble score different observations.
            ChecksumError: If a file of the model has changed since it was saved.
            HubError: If the model is not a local folder, and the repository cannot be downloaded.
            InputError: If the runtime or precision is not available.
        """
        if not isinstance(model, (str, Path, Sequence)):
            raise ModelFolderError(
                f"Expected a folder or repository, got a {type(model).__name__}; CheXpertClassifier(model, processor) "
                "takes a model itself."
            )
        names = [model] if isinstance(model, (str, Path)) else list(model)
        folders = [member for name in names for member in ensemble_members(name)]
        if not folders:
            raise ModelFolderError("Expected at least one model, got none.")
        options = {"runtime": runtime, "precision": precision, "device": device, "autotune": autotune}
        return _combined([cls._load(folder, revision, **options) for folder in folders])

    @classmethod
    def _load(cls, model: str | Path, revision: str | None, **options: Any) -> "CheXpertClassifier":
        graphs = exported_files_for(options["runtime"], options["precision"])
        folder = model_folder(model, revision, files=(*SCORING_FILES, *graphs))
        network = load_model(folder, name=str(model))
        processor = load_processor(folder, name=str(model))
        if processor.num_channels != network.config.num_channels:
            raise ModelFolderError(
                f"The image processor makes {processor.num_channels} channels, but the model expects "
                f"{network.config.num_channels}; preprocessor_config.json and config.json are not of one model."
            )
        graph_folder = folder if graphs or Path(model).is_dir() else None
        opened = open_runtime(network, folder=graph_folder, input_size=processor.output_size, **options)
        gate = Gate.load(folder / GATE_FILE) if (folder / GATE_FILE).is_file() else None
        return CheXpertClassifier(network, processor, runtime=opened, gate=gate)

    def __repr__(self) -> str:
        names = ", ".join(member.model.config.model_name or "unnamed model" for member in self.members)
        side = self.processor.longest_side
        runtime = f"{self.runtime.name} in {self.runtime.precision}"
        return f"{type(self).__name__}({names}; {len(self.observations)} observations, {side} pixels, {runtime})"

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the scored observations, in the order of the model's outputs."""
        return self.model.config.observations

    @property
    def labels(self) -> LabelSet:
        """The scored observations with their headline, hierarchy and definitions."""
        return self.model.config.labels

    @property
    def operating_points(self) -> dict[str, float]:
        """Lowest probability at which each observation is called positive; for an ensemble, the members' mean."""
        points = [member.model.config.operating_points or {} for member in self.members]
        return {name: sum(point[name] for point in points) / len(points) for name in self.observations}

    @property
    def has_gate(self) -> bool:
        """Whether there is a gate, which tells chest radiographs from other images."""
        return self.gate is not None

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
        """Score one radiograph or a list of them; the gate, if there is one, checks each.

        Args:
            inputs: A path, bytes, binary file object, PIL image or array; a list or tuple of these, or a column of a
                `datasets.Dataset`, gives a list of results.
            saliency: Whether to compute saliency maps, too.
            batch_size: Radiographs per forward pass.
            errors: Treatment of inputs that cannot be read. "raise": raise the RadiographError of the first one.
                "return": return the error in place of the prediction. Errors name the file without its folder, and the
                index in a list.

        Raises:
            RadiographError: If an input cannot be read, and `errors` is "raise".
            InputError: If `errors` or `batch_size` is invalid, or scores are NaN because the model is damaged.
        """
        _check_options(errors, batch_size)
        is_list = isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, bytearray))
        sources: Iterable[Any] = inputs if is_list else [inputs]  # type: ignore[assignment]
        results: list[Prediction | RadiographError] = []
        named, read = tee(sources)  # a column decodes its images each time
        for source, result in zip(named, self._each(read, saliency, batch_size), strict=True):
            if isinstance(result, RadiographError):
                result.name = f"{f'inputs[{len(results)}] ' if is_list else ''}{name_of(source)}".rstrip()
                if errors == "raise":
                    raise result
            results.append(result)
        return results if is_list else results[0]

    def _each(
        self, inputs: Iterable[RadiographSource | ArchiveMember], saliency: bool, batch_size: int
    ) -> Iterator[Prediction | RadiographError]:
        """Yield the prediction of each input, in order, or the RadiographError if it cannot be read."""
        read: deque[RadiographError | None] = deque()

        def prepared() -> Iterator[Prepared]:
            for source in inputs:
                try:
                    one = self.prepare(self.read(source), for_gate=True)
                    one = replace(one, source=source if isinstance(source, _READ_AGAIN) else None)
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

    def predict_folder(
        self,
        folder: str | Path,
        *,
        positives: bool = False,
        batch_size: int = BATCH_SIZE,
        errors: Literal["raise", "return"] = "return",
    ) -> "DataFrame":
        """Score all radiographs below a folder or in a ZIP archive, with a progress bar.

        No saliency maps are computed; use `predict(..., saliency=True)` or `chexpert-hf predict --saliency FOLDER` for
        them.

        Args:
            folder: A folder, ZIP archive or single file.
            positives: Whether to add columns `<observation> positive`: 1 from the operating point on, else 0.
            batch_size: Radiographs per forward pass.
            errors: Treatment of files that cannot be read: "return" gives them a row with an `error`; "raise" raises
                the first one's RadiographError.

        Returns:
            A row per file, in order of the names: `path`, a probability per observation, `note` (remarks on reading the
            file) and `error`; with a gate also `gate` ("pass", "warning" or "flagged") and `gate_reason`.

        Raises:
            InputError: If the folder does not exist, there are no radiographs in it, an option is invalid, or an
                observation has the name of another column.
            RadiographError: If a file cannot be read, and `errors` is "raise"; the message names the file.
        """
        import pandas as pd
        from tqdm.auto import tqdm

        _check_options(errors, batch_size)
        calls = [f"{name} positive" for name in self.observations] if positives else []
        refuse_duplicate_columns(self.observations, calls)
        found = find_radiographs([str(folder)])
        for note in found.notes():
            warnings.warn(note, stacklevel=2)
        rows: list[dict[str, Any]] = []
        with tqdm(total=len(found.files), unit="file", disable=None) as bar:
            for file, result in zip(found.files, self._each(found.files, False, batch_size), strict=True):
                if errors == "raise" and isinstance(result, RadiographError):
                    result.name = printable(file)
                    raise result
                rows.append({"path": str(file), **_cells(result, positives)})
                bar.update()
        gate = ["gate", "gate_reason"] if self.has_gate else []
        return pd.DataFrame(rows, columns=["path", *self.observations, *calls, *gate, "note", "error"])

    @property
    def preparation(self) -> Preparation:
        """Reads and prepares radiographs for this classifier; holds no model and can be sent to another process."""
        return Preparation(tuple(member.processor for member in self.members), self.gate)

    def read(self, source: RadiographSource | ArchiveMember) -> Radiograph:
        """Read a radiograph from a file or another source; see `Preparation.read`."""
        return self.preparation.read(source)

    def prepare(self, radiograph: Radiograph | Image.Image, *, for_gate: bool = False) -> Prepared:
        """Resize a radiograph for the networks; see `Preparation.prepare`."""
        return self.preparation.prepare(radiograph, for_gate=for_gate)

    def verdicts(self, radiographs: Sequence[Prepared]) -> list[Verdict | None]:
        """Return a verdict for each radiograph, None if the gate does not check it; see `Preparation.verdicts`."""
        return self.preparation.verdicts(radiographs)

    def predict_prepared(
        self, radiographs: Iterable[Prepared], *, saliency: bool = False, batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction]:
        """Score radiographs from `prepare` in batches; yield the predictions of a batch as soon as it is computed."""
        _check_options("raise", batch_size)
        radiographs = iter(radiographs)
        computing: deque[tuple[list[Prepared], Callable[[], list[_Output]]]] = deque()
        while batch := list(islice(radiographs, batch_size)):
            computing.append((batch, self._compute(batch, saliency)))
            # A GPU computes the next batch while the predictions of this one are built.
            if len(computing) > (not self.is_on_cpu):
                yield from self._predictions(*computing.popleft())
        for each in computing:
            yield from self._predictions(*each)

    @property
    def batch_size(self) -> int:
        """Recommended batch size for many radiographs; larger on a CUDA GPU, to keep it busy."""
        is_cuda = any(member.runtime.device.type == "cuda" for member in self.members)
        return CUDA_BATCH_SIZE if is_cuda else BATCH_SIZE

    @property
    def is_on_cpu(self) -> bool:
        """Whether all members compute on the CPU."""
        return all(member.runtime.is_on_cpu for member in self.members)

    def compiled(self) -> "CheXpertClassifier":
        """Return a classifier with compiled networks, or this one if compiling does not help; see `Runtime.compiled`.

        The first batch is slow, since it compiles; later ones are faster. Scores differ by rounding errors only.
        """
        faster = [member.runtime.compiled() for member in self.members]
        if faster == [member.runtime for member in self.members]:
            return self
        return _combined([one._with_runtime(runtime) for one, runtime in zip(self.members, faster, strict=True)])

    def _with_runtime(self, runtime: Runtime) -> "CheXpertClassifier":
        return CheXpertClassifier(self.model, self.processor, runtime=runtime, gate=self.gate)

    def side_by_side(self) -> "Sequence[CheXpertClassifier]":
        """Return classifiers of the same model that can be used at the same time, each in its own thread.

        Returns only this one if a member's runtime cannot work on several calls at once; see `Runtime.side_by_side`.
        """
        runtimes = [member.runtime.side_by_side() for member in self.members]
        if min(map(len, runtimes)) == 1:
            return [self]
        workers = [
            [member._with_runtime(one) for one in each] for member, each in zip(self.members, runtimes, strict=True)
        ]
        return [_combined(members) for members in zip(*workers, strict=False)]

    @torch.inference_mode()
    def _compute(self, batch: list[Prepared], saliency: bool) -> Callable[[], list[_Output]]:
        """Start the members' forward passes; return a function that waits and returns their outputs on the CPU."""
        outputs: list[_Output] = []
        for index, member in enumerate(self.members):
            gray = to_device([one.gray[index] for one in batch], member.runtime.device)
            outputs.append(member.runtime(member.processor.pixel_values_of(gray), saliency=saliency))
        return to_host(outputs)

    @torch.inference_mode()
    def _predictions(self, batch: list[Prepared], computed: Callable[[], list[_Output]]) -> Iterator[Prediction]:
        points, labels, outputs = self.operating_points, self.labels, computed()
        for row, (one, verdict) in enumerate(zip(batch, self.verdicts(batch), strict=True)):
            # Row by row: over a whole batch, the last bits of torch's sigmoid depend on a row's position.
            mean = torch.stack([logits[row].sigmoid() for logits, _ in outputs]).mean(dim=0)
            maps = self._mean_maps([maps[row] for _, maps in outputs if maps is not None], one.size)
            if mean.isnan().any():
                raise NotANumberError(
                    "The model's scores are not numbers: its weights or its image processor's values are damaged, or "
                    "fp16 cannot hold them."
                )
            scores = dict(zip(self.observations, mean.tolist(), strict=True))
            positives = {name: score >= points[name] for name, score in scores.items()}
            yield Prediction(scores, positives, maps, one.notes, verdict, points, labels, one.source)

    def _mean_maps(self, maps: list[Tensor], size: tuple[int, int]) -> SaliencyMaps | NoMaps:
        """Average the members' maps, each `(num_labels, h, w)`, at the finest of their resolutions.

        `size` is the radiograph's (width, height). Return `NoMaps` if `maps` is empty.
        """
        if not maps:
            return NoMaps()
        boxes = [member.processor.seen_box(*size) for member in self.members]
        if len(set(boxes)) > 1:
            x, y = _COMMON_SIZE[0] / size[0], _COMMON_SIZE[1] / size[1]
            maps = [
                torch.from_numpy(resize_maps(item.float(), _COMMON_SIZE, (left * x, top * y, right * x, bottom * y)))
                for item, (left, top, right, bottom) in zip(maps, boxes, strict=True)
            ]
            boxes = [(0.0, 0.0, float(size[0]), float(size[1]))]
        finest = max((item.shape[1], item.shape[2]) for item in maps)
        resized = [functional.interpolate(item[None], size=finest, mode="bilinear")[0] for item in maps]
        return SaliencyMaps(positive_maps(torch.stack(resized).mean(dim=0)).cpu(), self.observations, size, boxes[0])


class CheXpertEnsemble(CheXpertClassifier):
    """Scores chest radiographs with several models: means of their probabilities, maps and operating points.

    Its `model`, `processor` and `runtime` are the first member's; its `gate` is that of the first member with a gate.

    Args:
        members: Classifiers of the same observations.

    Raises:
        ModelFolderError: If a member scores other observations than the first, or in another order.
    """

    def __init__(self, members: Sequence[CheXpertClassifier]) -> None:
        first, gates = members[0], [member.gate for member in members if member.gate is not None]
        super().__init__(first.model, first.processor, runtime=first.runtime, gate=next(iter(gates), None))
        self.members = tuple(members)
        for member in members:
            if member.observations != self.observations:
                raise ModelFolderError(
                    f"The members of an ensemble judge the same observations in the same order; one has "
                    f"{', '.join(self.observations)}, another {', '.join(member.observations)}. `chexpert-hf evaluate` "
                    "without --ensemble compares such models."
                )


def _combined(members: Sequence[CheXpertClassifier]) -> CheXpertClassifier:
    return members[0] if len(members) == 1 else CheXpertEnsemble(members)


def _check_options(errors: str, batch_size: int) -> None:
    if errors not in ("raise", "return"):
        raise InputError(f"Expected errors='raise' or errors='return', got {errors!r}.")
    if batch_size < 1:
        raise InputError(f"Expected a batch_size of at least 1, got {batch_size}.")


def _cells(result: Prediction | RadiographError, positives: bool) -> dict[str, Any]:
    """Return the row of one file in the table of `predict_folder`, as column -> value, without the column `path`.

    With `positives`, it has a column such as "Edema positive" for each observation. For an error, it has only `error`.
    """
    if isinstance(result, RadiographError):
        return {"error": result.reason}
    cells = {**result.probabilities, "note": " ".join(result.notes) or None}
    if positives:
        cells |= {f"{name} positive": int(call) for name, call in result.positives.items()}
    if result.gate is not None:
        cells |= {"gate": result.gate.state, "gate_reason": " ".join(result.gate.messages) or None}
    return cells
