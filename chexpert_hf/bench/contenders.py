"""The contenders of a benchmark: this package in each runtime and precision, and peers, each by its documented steps.

Each contender lives in a process of its own (`chexpert_hf.bench.worker`), so that its memory is its own and no thread
pool gets in another's way.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexpert_hf.folders.scoring import ROWS_SIDE_BY_SIDE, score_files
from chexpert_hf.scoring.classifier import CheXpertClassifier

XRV_SIZE = 224


@dataclass(frozen=True)
class Spec:
    """What a contender is to do, as it is handed to its process.

    Attributes:
        kind: One of `CONTENDERS`.
        model: Model folder; peers with an architecture of their own take none of it.
        runtime: Of this package.
        precision: Of this package.
        batch_size: Images that go through the network at once.
        saliency: Whether every observation's map is computed as well.
    """

    kind: str
    model: str
    runtime: str = ""
    precision: str = ""
    batch_size: int = 8
    saliency: bool = False

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"chexpert-hf, {self.runtime} {self.precision}" if self.kind == "chexpert-hf" else self.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


class Contender(Protocol):
    """What is timed."""

    def score(self, paths: Sequence[str]) -> NDArray[np.floating] | None:
        """From files to probabilities `(num_images, num_labels)`; None where they cannot be compared."""

    def forward(self, count: int) -> None:
        """The network alone, on `count` images that are in memory already, as one batch."""

    def forward_batches(self, times: int) -> None:
        """The network alone, on so many full batches, as it computes them in `score`."""


class OurContender:
    """This package."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._classifier = CheXpertClassifier.from_pretrained(
            spec.model, runtime=spec.runtime, precision=spec.precision
        )
        height, width = self._classifier.processor.output_size
        gray = np.random.default_rng(0).integers(0, 256, (spec.batch_size, 1, height, width), dtype=np.uint8)
        self._pixel_values = self._classifier.processor.pixel_values_of(torch.from_numpy(gray))
        self._workers = self._classifier.side_by_side()

    def score(self, paths: Sequence[str]) -> NDArray[np.floating]:
        results = score_files(self._classifier, paths, saliency=self._spec.saliency, batch_size=self._spec.batch_size)
        return np.array([list(result.prediction.probabilities.values()) for result in results if result.prediction])

    def forward(self, count: int) -> None:
        logits, _ = self._classifier.runtime(self._pixel_values[:count], saliency=self._spec.saliency)
        logits.cpu()

    def forward_batches(self, times: int) -> None:
        if len(self._workers) == 1:
            _one_after_the_other(self, times, self._spec.batch_size)
            return
        parts = self._pixel_values.split(ROWS_SIDE_BY_SIDE)
        free: SimpleQueue[CheXpertClassifier] = SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def pass_through(part: Tensor) -> None:
            worker = free.get()
            worker.runtime(part, saliency=self._spec.saliency)
            free.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            list(pool.map(pass_through, parts * times))


class PipelineContender:
    """The pipeline of transformers, as the model's card shows it, on the same model folder."""

    def __init__(self, spec: Spec) -> None:
        from transformers import pipeline

        self._spec = spec
        # Of the loaded model: by its folder's name it would run the code that lies in the folder.
        ours = CheXpertClassifier.from_pretrained(spec.model)
        self._pipeline = pipeline("image-classification", model=ours.model, image_processor=ours.processor)
        self._labels = list(self._pipeline.model.config.id2label.values())
        size = self._pipeline.image_processor.size
        self._pixel_values = torch.rand(spec.batch_size, 3, size["height"], size["width"])

    def score(self, paths: Sequence[str]) -> NDArray[np.floating]:
        answers = self._pipeline(list(paths), batch_size=self._spec.batch_size, top_k=len(self._labels))
        scores = [{item["label"]: item["score"] for item in answer} for answer in answers]
        return np.array([[score[label] for label in self._labels] for score in scores])

    @torch.inference_mode()
    def forward(self, count: int) -> None:
        model: Any = self._pipeline.model
        values = self._pixel_values[:count, : model.config.num_channels]
        model(values.to(model.device)).logits.cpu()

    def forward_batches(self, times: int) -> None:
        _one_after_the_other(self, times, self._spec.batch_size)


class TorchXRayVisionContender:
    """torchxrayvision's DenseNet121 by the steps of its README: read, normalise, centre crop, resize to 224, score.

    With weights that were never trained: what they are makes no difference to the speed, and nothing is downloaded.
    """

    def __init__(self, spec: Spec) -> None:
        import torchvision
        import torchxrayvision as xrv

        self._spec, self._xrv = spec, xrv
        self._transform = torchvision.transforms.Compose(
            [xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(XRV_SIZE, engine="cv2")]
        )
        self._model = xrv.models.DenseNet(num_classes=18, in_channels=1).eval()
        self._pixel_values = torch.rand(spec.batch_size, 1, XRV_SIZE, XRV_SIZE)

    def _read(self, path: str) -> Tensor:
        import skimage.io

        image = self._xrv.datasets.normalize(skimage.io.imread(path), 255)
        image = image.mean(2)[None] if image.ndim == 3 else image[None]
        return torch.from_numpy(self._transform(image))

    def score(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), self._spec.batch_size):
            batch = torch.stack([self._read(path) for path in paths[start : start + self._spec.batch_size]])
            with torch.no_grad():
                self._model(batch)

    @torch.no_grad()
    def forward(self, count: int) -> None:
        self._model(self._pixel_values[:count])

    def forward_batches(self, times: int) -> None:
        _one_after_the_other(self, times, self._spec.batch_size)


class GradCAMContender:
    """pytorch-grad-cam's maps of all observations, one target after the other, on the same model."""

    def __init__(self, spec: Spec) -> None:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        self._spec = spec
        self._classifier = CheXpertClassifier.from_pretrained(spec.model)
        model = self._classifier.model

        class Logits(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixel_values: Tensor) -> Tensor:
                return self.model(pixel_values).logits

        self._cam = GradCAM(Logits(), target_layers=[model.features.norm5])
        self._targets = [ClassifierOutputTarget(label) for label in range(model.num_labels)]
        height, width = self._classifier.processor.output_size
        self._pixel_values = torch.rand(spec.batch_size, model.config.num_channels, height, width)

    def score(self, paths: Sequence[str]) -> None:
        for path in paths:
            prepared = self._classifier.prepare(self._classifier.read(path))
            self._maps(self._classifier.processor.pixel_values_of(prepared.gray[0][None]))

    def forward(self, count: int) -> None:
        self._maps(self._pixel_values[:count])

    def _maps(self, pixel_values: Tensor) -> None:
        for target in self._targets:
            self._cam(pixel_values.to(self._classifier.model.device), targets=[target] * len(pixel_values))

    def forward_batches(self, times: int) -> None:
        _one_after_the_other(self, times, self._spec.batch_size)


def _one_after_the_other(contender: Contender, times: int, batch_size: int) -> None:
    for _ in range(times):
        contender.forward(batch_size)


CONTENDERS: Mapping[str, Callable[[Spec], Contender]] = {
    "chexpert-hf": OurContender,
    "transformers pipeline": PipelineContender,
    "torchxrayvision": TorchXRayVisionContender,
    "pytorch-grad-cam": GradCAMContender,
}

_NEEDS = {"torchxrayvision": ("torchxrayvision", "skimage"), "pytorch-grad-cam": ("pytorch_grad_cam",)}


def installed_specs(model: Path, batch_size: int, saliency: bool) -> list[Spec]:
    """The contenders that this machine has what it takes for.

    Args:
        model: Model folder; int8 takes part where the folder has such a graph.
        batch_size: Images at once.
        saliency: Compare maps: pytorch-grad-cam instead of the peers that give scores only, and each runtime with and
            without maps.
    """
    has = {name: importlib.util.find_spec(name) is not None for name in ("openvino", "onnxruntime", "onnxscript")}
    ours = [("torch", "fp32"), ("torch", "bf16")]
    if has["onnxruntime"] and has["onnxscript"]:
        ours.append(("onnx", "fp32"))
    if has["openvino"]:
        ours += [("openvino", "fp32"), ("openvino", "bf16")]
        if any((model / "openvino").glob("*int8*.xml")) or any((model / "openvino").glob("*quantized*.xml")):
            ours.append(("openvino", "int8"))
    if has["onnxruntime"] and (model / "onnx" / "model_quantized.onnx").is_file():
        ours.append(("onnx", "int8"))
    peers = ["pytorch-grad-cam"] if saliency else ["torchxrayvision", "transformers pipeline"]
    present = [
        kind for kind in peers if all(importlib.util.find_spec(needed) is not None for needed in _NEEDS.get(kind, ()))
    ]
    variants = [False, True] if saliency else [False]
    return [
        *(Spec("chexpert-hf", str(model), *pair, batch_size, with_maps) for pair in ours for with_maps in variants),
        *(Spec(kind, str(model), batch_size=batch_size, saliency=saliency) for kind in present),
    ]
