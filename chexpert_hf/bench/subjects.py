"""The subjects of a benchmark: a model, radiographs, and a description of the machine."""

import os
import platform
from pathlib import Path

import torch
from PIL import Image

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.errors import InputError
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.radiographs.archives import ArchiveMember
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.scoring.graphs.export import phantoms

_DISTINCT = 32  # phantoms that are drawn; more files are copies of them


def untrained_model(folder: Path, image_size: int) -> Path:
    """A DenseNet121 with random weights as a model folder, with statistics from a few phantoms.

    Without these the activations of an untrained network grow from layer to layer, and so do rounding errors.
    """
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig()).train()
    processor = CheXpertImageProcessor(size={"height": image_size, "width": image_size})
    pixel_values = processor(phantoms(8, seed=0), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        for _ in range(8):
            model(pixel_values)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def radiographs(folder: Path | None, limit: int, scratch: Path) -> list[str]:
    """Paths of radiographs: those of a folder, or phantoms as JPEGs of 390 pixels."""
    if folder is None:
        scratch.mkdir()
        drawn = [
            image.resize((390, 390), Image.Resampling.BILINEAR) for image in phantoms(min(limit, _DISTINCT), seed=0)
        ]
        paths = [scratch / f"{number:05d}.jpg" for number in range(limit)]
        for number, path in enumerate(paths):
            drawn[number % len(drawn)].save(path, quality=90)
        return [str(path) for path in paths]
    files = [file for file in find_radiographs([folder]).files if not isinstance(file, ArchiveMember)]
    if not files:
        raise InputError(f"{folder} holds no radiographs but in archives; expected files.")
    return [str(file) for file in files[:limit]]


def machine() -> str:
    """Processor, cores and versions in a line."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = [platform.processor()]
    processor = next(filter(None, models), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor}, {cores} cores{gpu}, Python {platform.python_version()}, torch {torch.__version__}"
