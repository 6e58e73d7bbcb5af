"""The contenders of `bench`: this package in each runtime and precision."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chexpert_hf.bench.measure import Contender, Spec
from chexpert_hf.folders.scoring import ROWS_SIDE_BY_SIDE, score_files
from chexpert_hf.scoring.classifier import CheXpertClassifier


class RuntimeContender(Contender):
    """A model folder in one runtime and precision, with or without maps of all observations."""

    def __init__(self, model: str, runtime: str, precision: str, batch_size: int, saliency: bool) -> None:
        self.batch_size, self.saliency = batch_size, saliency
        self.classifier = CheXpertClassifier.from_pretrained(model, runtime=runtime, precision=precision)
        self.workers = self.classifier.side_by_side()
        processor = self.classifier.processor
        gray = np.random.default_rng(0).integers(0, 256, (batch_size, 1, *processor.output_size), dtype=np.uint8)
        self._pixel_values = processor.pixel_values_of(torch.from_numpy(gray))

    def score(self, paths: Sequence[str]) -> NDArray[np.floating]:
        results = score_files(self.classifier, paths, saliency=self.saliency, batch_size=self.batch_size)
        return np.array([list(result.prediction.probabilities.values()) for result in results if result.prediction])

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

        def pass_through(part: Tensor) -> None:
            worker = free.get()
            worker.runtime(part, saliency=self.saliency)
            free.put(worker)

        with ThreadPoolExecutor(len(self.workers)) as pool:
            list(pool.map(pass_through, self._pixel_values.split(ROWS_SIDE_BY_SIDE) * times))


def runtime_specs(model: Path, batch_size: int, saliency: bool) -> list[Spec]:
    """The runtimes and precisions that are installed, each with maps, too, if `saliency`.

    int8 takes part where the model folder has such a graph.
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
