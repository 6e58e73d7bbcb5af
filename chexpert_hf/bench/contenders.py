"""The contenders of `chexpert-hf bench` (this package in each runtime and precision), and the files that they score."""

import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from chexpert_hf.bench.measure import Contender, Spec
from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.folders.scoring import ROWS_SIDE_BY_SIDE, score_files
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.machine import num_processors, processor_name
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.archives import ArchiveMember
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.scoring.classifier import CheXpertClassifier

_DISTINCT = 32  # phantoms that are drawn; further files repeat them


class RuntimeContender(Contender):
    """A model folder opened in one runtime and precision; with `saliency`, it also computes the maps."""

    def __init__(self, model: str, runtime: str, precision: str, batch_size: int, saliency: bool) -> None:
        self.batch_size, self.saliency = batch_size, saliency
        self.classifier = CheXpertClassifier.from_pretrained(model, runtime=runtime, precision=precision)
        self.workers = self.classifier.side_by_side()
        processor = self.classifier.processor
        gray = np.random.default_rng(0).integers(0, 256, (batch_size, 1, *processor.output_size), dtype=np.uint8)
        self._pixel_values = processor.pixel_values_of(torch.from_numpy(gray))

    def score(self, paths: Sequence[str]) -> NDArray[np.floating]:
        results = score_files(self.classifier, paths, saliency=self.saliency, batch_size=self.batch_size)
        unread = dict.fromkeys(self.classifier.observations, np.nan)
        scores = [result.prediction.probabilities if result.prediction else unread for result in results]
        return np.array([list(row.values()) for row in scores])

    def forward(self, count: int) -> None:
        logits, _ = self.classifier.runtime(self._pixel_values[:count], saliency=self.saliency)
        logits.cpu()

    def forward_batches(self, times: int) -> None:
        if len(self.workers) == 1:
            super().forward_batches(times)
            return
        free: SimpleQueue[CheXpertClassifier] = SimpleQueue()
        for worker in self.workers:
            free.put(worker)

        def forward_part(part: Tensor) -> None:
            worker = free.get()
            worker.runtime(part, saliency=self.saliency)
            free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(forward_part, self._pixel_values.split(ROWS_SIDE_BY_SIDE) * times))


def runtime_specs(model: Path, batch_size: int, saliency: bool) -> list[Spec]:
    """Return the specs of a model in each installed runtime and each precision to measure, such as torch in bf16.

    With `saliency`, each spec is followed by one that also computes maps. int8 is measured only if the model folder has
    an exported int8 graph.
    """
    has_openvino, has_onnx = find_spec("openvino") is not None, find_spec("onnxruntime") is not None
    openvino_graphs = [path.stem for path in (model / "openvino").glob("*.xml")]
    available = {
        ("torch", "fp32"): True,
        ("torch", "bf16"): True,
        ("onnx", "fp32"): has_onnx and find_spec("onnxscript") is not None,
        ("openvino", "fp32"): has_openvino,
        ("openvino", "bf16"): has_openvino,
        ("openvino", "int8"): has_openvino and any("int8" in name or "quantized" in name for name in openvino_graphs),
        ("onnx", "int8"): has_onnx and (model / "onnx" / "model_quantized.onnx").is_file(),
    }
    return [
        Spec(
            name=f"chexpert-hf, {runtime} {precision}",
            make=partial(RuntimeContender, str(model), runtime, precision, batch_size, with_maps),
            batch_size=batch_size,
            saliency=with_maps,
        )
        for (runtime, precision), is_available in available.items()
        for with_maps in ([False, True] if saliency else [False])
        if is_available
    ]


def untrained_model(folder: Path, image_size: int) -> Path:
    """Write a DenseNet121 with random weights as a model folder, and return the folder.

    Its BatchNorm statistics are measured on a few phantoms: with the initial ones, activations grow from layer to
    layer, and so do rounding errors.
    """
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig()).train()
    processor = CheXpertImageProcessor(size={"height": image_size, "width": image_size})
    from chexpert_hf.scoring.graphs.export import phantoms  # not in the measured processes: it takes memory

    pixel_values = processor(phantoms(8, seed=0), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        for _ in range(8):
            model(pixel_values)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def radiographs(folder: Path | None, limit: int, scratch: Path) -> list[str]:
    """Return the paths of the first `limit` radiographs in `folder`; if `folder` is None, of `limit` phantoms.

    The phantoms are JPEGs of 390 x 390 pixels. They are written to `scratch`, a folder that is created for them. Raises
    InputError if `folder` has no radiographs, or has them only in archives.
    """
    if folder is not None:
        files = [file for file in find_radiographs([folder]).files if not isinstance(file, ArchiveMember)]
        if not files:
            raise InputError(f"{folder} holds no radiographs but in archives; expected files.")
        return [str(file) for file in files[:limit]]
    scratch.mkdir()
    from chexpert_hf.scoring.graphs.export import phantoms

    drawn = [image.resize((390, 390), Image.Resampling.BILINEAR) for image in phantoms(min(limit, _DISTINCT), seed=0)]
    paths = [scratch / f"{number:05d}.jpg" for number in range(limit)]
    for path, image in zip(paths, cycle(drawn), strict=False):
        image.save(path, quality=90)
    return [str(path) for path in paths]


def machine() -> str:
    """Describe this machine in a line: processor, cores, GPU, versions of Python and torch."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{processor_name()}, {num_processors()} cores{gpu}, {versions}"
