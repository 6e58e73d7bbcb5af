"""What is done to copies of model folders: tampered weights, and what would run if somebody read it or asked for it."""

import io
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from chexpert_hf.models.model_files import CODE_FILES

WEIGHTS, CONFIG, GATE = "model.safetensors", "config.json", "gate.safetensors"


@dataclass(frozen=True)
class Planted:
    """A pickle that makes a folder where it is loaded as pickles usually are."""

    marker: str

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.marker,)


class Storage:
    """What torch.load would run if it were not told to load weights only."""

    def __init__(self, planted: Planted) -> None:
        self._planted = planted

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        stream = io.BytesIO()
        torch.save(self._planted, stream, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (stream.getvalue(),)


def flip_bit(name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-len(content) // 4] ^= 1
    (folder / name).write_bytes(content)


def zero_tail(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-4096] + bytes(4096))


def drop_key(folder: Path) -> None:
    _change_weights(folder, lambda tensors: tensors.pop("classifier.bias"))


def add_key(folder: Path) -> None:
    _change_weights(folder, lambda tensors: tensors.update(surplus=torch.ones(1)))


def change_shape(folder: Path) -> None:
    _change_weights(folder, lambda tensors: tensors.update({"classifier.bias": torch.ones(99)}))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def break_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + (folder / WEIGHTS).read_bytes()[8:])


def plant(marker: Path, name: str, folder: Path) -> None:
    torch.save({"state_dict": Planted(str(marker))}, folder / name)


def plant_weights(marker: Path, name: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    plant(marker, name, folder)


def plant_code(marker: Path, model_type: str, folder: Path) -> None:
    """Code under the names that the configuration and the processor give for it."""
    code = f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\n"
    for name in (*CODE_FILES, "planted.py"):
        (folder / name).write_text(code)
    values = json.loads((folder / CONFIG).read_text())
    planted = {kind: f"planted.{kind}" for kind in ("AutoConfig", "AutoModelForImageClassification")}
    auto_map = values.get("auto_map", {}) if model_type == "chexpert" else planted
    (folder / CONFIG).write_text(json.dumps(values | {"model_type": model_type, "auto_map": auto_map}))
