"""Ensembles: folders with copies of their members, and a file that names them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from chexpert_hf.default_model import resolve_model
from chexpert_hf.errors import ModelFolderError
from chexpert_hf.files import write_json, write_text
from chexpert_hf.models.model_files import NEEDED_FILES

ENSEMBLE_FILE = "ensemble.json"

_ENSEMBLE_CARD = """# {name}

An ensemble of {count} models, in `members`: the mean of their probabilities.

**Research software, not a medical device.**

    CheXpertClassifier.from_pretrained("{name}")     # of the package chexpert-hf; `pipeline` takes one member

The cards in `run-1`, `run-2`, ... describe how the members were trained. `evaluation.json` has the metrics of the
ensemble on the split on which its members were chosen, so they are optimistic.
"""


def write_ensemble(folder: Path, members: Sequence[Path]) -> None:
    """Makes a folder an ensemble: copies the members into `members`, and names them in `ensemble.json`.

    Weights, configuration and code of each member, a model folder or checkpoint, are copied.
    """
    names = []
    for number, member in enumerate(members, start=1):
        copy = folder / "members" / f"{number:02d}"
        copy.mkdir(parents=True, exist_ok=True)
        for file in (*(member / name for name in NEEDED_FILES), *member.glob("*.py")):
            shutil.copy(file, copy)
        names.append(copy.relative_to(folder).as_posix())
    write_json(folder / ENSEMBLE_FILE, {"members": names})
    write_text(folder / "README.md", _ENSEMBLE_CARD.format(count=len(names), name=folder.resolve().name))


def ensemble_members(model: str | Path) -> list[str | Path]:
    """The members of an ensemble's folder; the model itself if it is no ensemble."""
    model = resolve_model(model)
    path = Path(model) / ENSEMBLE_FILE
    if not path.is_file():
        return [model]
    try:
        return [path.parent / name for name in json.loads(path.read_text(encoding="utf-8"))["members"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"{path} is damaged; expected a list 'members' of folders.") from error
