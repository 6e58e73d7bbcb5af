"""G15: tampered weights, pickles that would run code, code that nobody asked for, a missing key.

What is done to a model is done to copies of it; every command that loads one gets them. Nothing may run: whatever the
planted code does, it leaves a folder behind that is looked for.
"""

import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from unittest.mock import patch

import torch
from PIL import Image

from chexpert_hf import cli
from chexpert_hf.errors import InputError
from chexpert_hf.models.model_files import write_checksums
from chexpert_hf.phantoms import render_phantom, write_phantoms
from chexpert_hf.training.durable.intact import read_manifest, seal
from tests.hostile.plants import (
    CONFIG,
    GATE,
    WEIGHTS,
    Planted,
    Storage,
    add_key,
    break_header,
    change_shape,
    drop_key,
    flip_bit,
    plant,
    plant_code,
    plant_weights,
    zero_tail,
)
from tests.hostile.promises import Figure, Settings, judged
from tests.hostile.runs import SmallRun, checkpoints_of


@dataclass(frozen=True)
class Scene:
    """Where the attacks take place.

    Attributes:
        scratch: A folder for copies.
        model: The model that copies are made of.
        film: A radiograph.
        data: A data set.
        marker: The folder that planted code makes.
    """

    scratch: Path
    model: Path
    film: Path
    data: Path
    marker: Path


def tampered_files(settings: Settings) -> Iterator[Figure]:
    """G15."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scene = _scene(Path(name), Path(settings.model))
        outcomes = {
            what: outcome(scene, attempt)
            for attacks in (model_attacks, import_attacks, checkpoint_attacks)
            for what, attempt in attacks(scene)
        }
        ignored = {what: outcome(scene, attempt) for what, attempt in ignored_plants(scene)}
        is_dangerous = _is_dangerous(scene)
    refused = sum(text.startswith("refused") for text in outcomes.values())
    harmless = sum(text == "accepted" for text in ignored.values())
    for what, text in (outcomes | ignored).items():
        print(f"G15 {what}: {text}", file=sys.stderr)
    executed = sum(text.startswith("RAN") for text in (*outcomes.values(), *ignored.values()))
    yield judged(
        f"{len(outcomes)} tampered weights, hostile pickles, foreign code and missing keys, and {len(ignored)} plants "
        "that no one reads, through the commands that load them",
        {
            "refused in one line": f"{refused} of {len(outcomes)}",
            "ignored, as nobody reads them": f"{harmless} of {len(ignored)}",
            "executed": executed,
        },
        {
            "all refused in one line": refused == len(outcomes),
            "the others ignored": harmless == len(ignored),
            "nothing executed": executed == 0,
            "the plants would run": is_dangerous,
        },
    )


def outcome(scene: Scene, attempt: Callable[[], None]) -> str:
    """What comes of an attempt: "refused: ...", "accepted", "RAN", or what is wrong with the refusal."""
    try:
        attempt()
        text = "accepted"
    except InputError as error:
        lines = str(error).strip().splitlines()
        text = f"refused: {lines[0]}" if len(lines) == 1 else f"{len(lines)} lines: {lines}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        text = f"a traceback: {type(error).__name__}: {str(error)[:200]}"
    if scene.marker.exists():
        scene.marker.rmdir()
        return f"RAN, then {text}"
    return text


def command(*arguments: object) -> None:
    """A command line in this process, whose refusal is all that it says.

    Raises:
        InputError: With what it said, if it said no with exit code 2.
        RuntimeError: If it ended otherwise.
    """
    with TemporaryFile("w+") as errors:
        before = os.dup(2)
        os.dup2(errors.fileno(), 2)  # a library's logger keeps the standard error that it began with
        try:
            with patch.object(sys, "argv", ["chexpert-hf", *map(str, arguments)]), redirect_stdout(StringIO()):
                cli.main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
        errors.seek(0)
        said = errors.read().strip()
    if code == 2:
        raise InputError(said)
    if code:
        raise RuntimeError(f"exit code {code}: {said[-300:]}")


# Model folders


def model_attacks(scene: Scene) -> Iterator[tuple[str, Callable[[], None]]]:
    """Copies of the model through each command that loads one.

    Where sums are kept, they find a change; where they are made anew, the folder's content must be refused for itself.
    """
    sealed: dict[str, Callable[[Path], None]] = {
        "one bit of the weights flipped": partial(flip_bit, WEIGHTS),
        "one bit of the gate flipped": partial(flip_bit, GATE),
        "the weights' tail zeroed": zero_tail,
    }
    renewed: dict[str, Callable[[Path], None]] = {
        "a missing key": drop_key,
        "a key too many": add_key,
        "another shape": change_shape,
        "a header beyond the file": break_header,
        "a pickle as weights": partial(plant_weights, scene.marker, WEIGHTS),
        "a pickle instead of weights": partial(plant_weights, scene.marker, "pytorch_model.bin"),
        "a pickle as gate": partial(plant, scene.marker, GATE),
        "another model's code": partial(plant_code, scene.marker, "another"),
    }
    for name, damage in {**sealed, **renewed}.items():
        folder = _copy(scene, f"model-{name}")
        damage(folder)
        if name in renewed:
            write_checksums(folder)
        loads = {
            "predict": ("predict", scene.film, "--model", folder),
            "evaluate": ("evaluate", scene.data, "--model", folder),
            "export": (
                "export",
                "--model",
                folder,
                "--runtime",
                "onnx",
                "--output",
                scene.scratch / f"exported-{name}",
            ),
        }
        for what, arguments in loads.items():
            if what == "export" and name == "a pickle as gate":
                continue  # it does not read the gate
            yield f"{name}, {what}", partial(command, *arguments)
    folder = _copy(scene, "pushed")
    flip_bit(WEIGHTS, folder)
    yield "one bit of the weights flipped, push", partial(command, "push", "me/it", "--model", folder, "--dry-run")


def ignored_plants(scene: Scene) -> Iterator[tuple[str, Callable[[], None]]]:
    """Beside a good model: what would run if somebody read it."""
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        folder = _copy(scene, f"beside-{name}")
        plant(scene.marker, name, folder)
        yield f"{name} beside the weights, predict", partial(command, "predict", scene.film, "--model", folder)
    folder = _copy(scene, "its-code")
    plant_code(scene.marker, "chexpert", folder)
    write_checksums(folder)
    yield "hostile code in the folder, predict", partial(command, "predict", scene.film, "--model", folder)
    yield "hostile code in the folder, evaluate", partial(command, "evaluate", scene.data, "--model", folder)
    timed = ("bench", scene.film.parent, "--model", folder, "--only", "torch fp32", "--limit", 8, "--rounds", 1)
    yield "hostile code in the folder, bench", partial(command, *timed)
    yield "training_args.bin in a checkpoint, resumed", partial(_resume, scene, "training_args.bin")


# What is imported, resumed from, or compared with


def import_attacks(scene: Scene) -> Iterator[tuple[str, Callable[[], None]]]:
    """Pickles of others, in both of torch's formats, and plain."""
    for source in ("student", "stanford", "torchxrayvision"):
        for kind in ("since 1.6", "before 1.6", "plain"):
            file = scene.scratch / f"{source}-{kind}.pth"
            planted = {"state_dict": {"classifier.weight": torch.ones(2)}, "epoch": Planted(str(scene.marker))}
            if kind == "plain":
                file.write_bytes(pickle.dumps(Planted(str(scene.marker))))
            else:
                torch.save(planted, file, _use_new_zipfile_serialization=kind == "since 1.6")
            out = scene.scratch / f"imported-{source}-{kind}"
            arguments: Sequence[object] = ("import", f"{source}:{file}", "--output", out)
            if source == "torchxrayvision":
                arguments = ("import", "torchxrayvision:densenet121-res224-chex", "--output", out, "--file", file)
            yield f"{source}, a pickle of torch {kind}", partial(command, *arguments)
    folder = scene.scratch / "timm"
    folder.mkdir()
    prepared = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / CONFIG).write_text(json.dumps({"architecture": "densenet121", "pretrained_cfg": prepared}))
    plant(scene.marker, "pytorch_model.bin", folder)
    yield (
        "timm, a pickle of torch",
        partial(command, "import", f"timm:{folder}", "--output", scene.scratch / "imported-timm"),
    )


def checkpoint_attacks(scene: Scene) -> Iterator[tuple[str, Callable[[], None]]]:
    """Pickles in a checkpoint whose sums were made anew."""
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        yield f"{name} of a checkpoint, sealed", partial(_resume, scene, name)


def _resume(scene: Scene, name: str) -> None:
    folder = scene.scratch / f"run-{name}"
    run = SmallRun()
    with redirect_stdout(StringIO()):
        run.train(folder, workers=0, resume=False)
        *_, newest, last = checkpoints_of(folder)
        shutil.rmtree(last)
        plant(scene.marker, name, newest)
        values = read_manifest(newest) or {}
        seal(newest, {key: value for key, value in values.items() if key not in ("files", "sha256")})
        run.train(folder, workers=0, resume=True, say=lambda line: None)


# The scene


def _scene(scratch: Path, model: Path) -> Scene:
    film, data = scratch / "films" / "film.png", scratch / "data"
    film.parent.mkdir()
    Image.fromarray(render_phantom(1, ["Edema"]).image).save(film)
    write_phantoms(data, num_studies=8, seed=1, valid_fraction=0.5)
    complete = scratch / "complete"
    shutil.copytree(model, complete)
    write_checksums(complete)
    return Scene(scratch, complete, film, data, scratch / "MARKER")


def _copy(scene: Scene, name: str) -> Path:
    folder = scene.scratch / name
    shutil.copytree(scene.model, folder)
    return folder


def _is_dangerous(scene: Scene) -> bool:
    """Whether the plants do what they are feared for where they are read carelessly."""
    file = scene.scratch / "careless.pt"
    torch.save({"state_dict": Planted(str(scene.marker))}, file)
    readers: tuple[Callable[[], object], ...] = (
        lambda: torch.load(file, weights_only=False),
        lambda: pickle.loads(pickle.dumps(Storage(Planted(str(scene.marker))))),
    )
    for read in readers:
        read()
        if not scene.marker.exists():
            return False
        scene.marker.rmdir()
    return True
