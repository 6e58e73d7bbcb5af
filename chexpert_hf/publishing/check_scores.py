"""Whether a model scores its reference phantom here as it did when it was saved, in every runtime that is installed."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chexpert_hf
from chexpert_hf.errors import InputError
from chexpert_hf.models.graph_files import GRAPH_FILES, Precision, RuntimeName
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.check_report import FailedCheckError, LeftOutError
from chexpert_hf.publishing.model_folder import REFERENCE_FILE, image_sum
from chexpert_hf.scoring.classifier import CheXpertClassifier

BOUNDS = {Precision.FP32: 1e-4, Precision.FP16: 0.01, Precision.INT8: 0.03}
"""Largest difference of a probability from `reference.json`, by the precision that computes it."""

PACKAGES = {RuntimeName.TORCH: "torch", RuntimeName.ONNX: "onnxruntime", RuntimeName.OPENVINO: "openvino"}


def score_checks(folder: Path) -> Iterator[tuple[str, Callable[[Path], str]]]:
    """Each runtime that is installed in float32, and the exported graphs in other precisions."""
    for runtime, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            continue
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
            graph = GRAPH_FILES.get((runtime, precision))
            if precision is Precision.FP32 or (graph is not None and (folder / graph).is_file()):
                yield f"{runtime.value} {precision.value}", _score_check(runtime, precision)


def _score_check(runtime: RuntimeName, precision: Precision) -> Callable[[Path], str]:
    def check(folder: Path) -> str:
        image, expected = _reference(folder)
        graph = GRAPH_FILES.get((runtime, precision))
        try:
            classifier = CheXpertClassifier.from_pretrained(
                folder, runtime=runtime.value, precision=precision.value, device="cpu"
            )
        except InputError as error:
            if runtime is RuntimeName.TORCH or (graph is not None and (folder / graph).is_file()):
                raise
            raise LeftOutError(str(error).splitlines()[0]) from error
        if (
            graph is not None
            and (folder / graph).is_file()
            and graph not in classifier.runtime.reason.partition("(")[0]
        ):
            raise FailedCheckError(f"the exported {graph} cannot be used: {classifier.runtime.reason}")
        found = classifier.predict(image).probabilities
        if found.keys() != expected.keys():
            raise FailedCheckError(f"{REFERENCE_FILE} has scores of other observations than the model")
        worst = max(found, key=lambda name: abs(found[name] - expected[name]))
        difference = abs(found[worst] - expected[worst])
        if not difference <= BOUNDS[precision]:
            raise FailedCheckError(
                f"{worst} scores {found[worst]:.4f}, and {expected[worst]:.4f} when it was saved "
                f"({BOUNDS[precision]:g} allowed)"
            )
        return f"within {difference:.1g} of {REFERENCE_FILE} (allowed {BOUNDS[precision]:g})"

    return check


def _reference(folder: Path) -> tuple[Any, dict[str, float]]:
    """The phantom of `reference.json` as this version draws it, and the scores that the model gave for it."""
    path = folder / REFERENCE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        image = render_phantom(**content["phantom"]).image
        expected = {str(name): float(value) for name, value in content["probabilities"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FailedCheckError(f"{REFERENCE_FILE} is missing or damaged") from error
    if image_sum(image) != content.get("image_sha256", image_sum(image)):
        raise FailedCheckError(
            f"chexpert-hf {chexpert_hf.__version__} draws the phantom of {REFERENCE_FILE} differently from the "
            "version that saved it, so its scores say nothing here"
        )
    return image, expected
