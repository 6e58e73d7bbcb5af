"""Ways to damage a checkpoint, as data: what is done to the newest one, given the one before it."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chexpert_hf.training.durable.intact import MANIFEST_FILE, seal

FILES = (
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    MANIFEST_FILE,
)

Damage = Callable[[Path, Path], None]


def _delete(name: str, newest: Path, _previous: Path) -> None:
    (newest / name).unlink()


def _halve(name: str, newest: Path, _previous: Path) -> None:
    os.truncate(newest / name, (newest / name).stat().st_size // 2)


def _zero_tail(name: str, newest: Path, _previous: Path) -> None:
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(
        content[: -len(content) // 4] + bytes(len(content) - len(content[: -len(content) // 4]))
    )


def _flip_bit(name: str, newest: Path, _previous: Path) -> None:
    content = bytearray((newest / name).read_bytes())
    content[len(content) * 3 // 4] ^= 1
    (newest / name).write_bytes(content)


def _swap(name: str, newest: Path, previous: Path) -> None:
    if name == "config.json":  # that of another model: those of one run are equal
        values = json.loads((newest / name).read_text())
        (newest / name).write_text(json.dumps(values | {"architectures": ["Another"]}))
    else:
        shutil.copyfile(previous / name, newest / name)


def _edit_manifest(change: Callable[[dict], None], newest: Path, _previous: Path) -> None:
    values = json.loads((newest / MANIFEST_FILE).read_text())
    change(values)
    (newest / MANIFEST_FILE).write_text(json.dumps(values, indent=1))


def _drop_optimizer(newest: Path, previous: Path) -> None:
    _delete("optimizer.pt", newest, previous)
    _edit_manifest(lambda values: values["files"].pop("optimizer.pt"), newest, previous)


def _plant(name: str, newest: Path, _previous: Path) -> None:
    (newest / name).write_bytes(pickle.dumps(Planted()))


class Planted:
    """A pickle that leaves a file behind where it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("planted",)


def _plant_and_seal(name: str, newest: Path, previous: Path) -> None:
    _plant(name, newest, previous)
    values = json.loads((newest / MANIFEST_FILE).read_text())
    seal(newest, {key: value for key, value in values.items() if key not in ("files", "sha256")})


def _empty(newest: Path, _previous: Path) -> None:
    shutil.rmtree(newest)
    newest.mkdir()


def _replace_by_previous(newest: Path, previous: Path) -> None:
    shutil.rmtree(newest)
    shutil.copytree(previous, newest)


def _pipe(newest: Path, _previous: Path) -> None:
    (newest / "optimizer.pt").unlink()
    os.mkfifo(newest / "optimizer.pt")


DAMAGES: dict[str, Damage] = {
    **{f"{name} deleted": partial(_delete, name) for name in FILES},
    **{f"{name} cut to half": partial(_halve, name) for name in FILES},
    **{f"{name} with its tail zeroed": partial(_zero_tail, name) for name in FILES},
    **{f"{name} with one bit flipped": partial(_flip_bit, name) for name in FILES},
    **{f"{name} of another checkpoint": partial(_swap, name) for name in FILES},
    "manifest: another step": partial(_edit_manifest, lambda values: values.update(step=99)),
    "manifest: other threads": partial(_edit_manifest, lambda values: values.update(torch_threads=99)),
    "manifest: no files": partial(_edit_manifest, lambda values: values.update(files={})),
    "manifest: another sum": partial(_edit_manifest, lambda v: v["files"].update({"optimizer.pt": "0" * 64})),
    "manifest: optimizer deleted here and there": _drop_optimizer,
    "a file more": partial(_plant, "pytorch_model.bin"),
    "a pickle as optimizer": partial(_plant, "optimizer.pt"),
    "a pickle as optimizer, sealed": partial(_plant_and_seal, "optimizer.pt"),
    "a pickle as generators' state, sealed": partial(_plant_and_seal, "rng_state.pth"),
    "a named pipe as optimizer": _pipe,
    "nothing in it": _empty,
    "the one before under its name": _replace_by_previous,
}
