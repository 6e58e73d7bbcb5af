"""Train the bundled model on a folder of radiographs of ChestX-ray14 in CheXpert's layout, in one command.

    python -m train.bundled_model NIH --work runs/nih --output chexpert_hf/nih

1. A DenseNet121 is trained on phantoms, which are synthetic radiographs (recipe `nih_pretraining`).
2. Starting from its weights, three networks are trained, each without one third of the patients, on the labels and the
   probabilities of two networks trained before them (recipe `nih`); a fourth network is trained on the labels of all
   patients.
3. The fourth network is trained further with itself and the three others as teachers (`FINAL`). The scores of the three
   for patients that they have not seen calibrate it and choose its operating points.

Interrupted stages are resumed. The validation split and the radiologists' readings influence no choice.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chexpert_hf.default_model import DEFAULT_NAME
from chexpert_hf.models.model_files import CODE_FILES, RECIPE_FILE, write_checksums
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.card import public_recipe, rename_card
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.run import train
from train.bundled_model_card import Sources, describe

NUM_PHANTOMS = 5300
PHANTOM_SEED = 2026
FINAL = {"epochs": 6, "learning_rate": 3e-4, "distillation": 0.8}  # where the last stage differs from the recipe `nih`

_BUNDLED = (
    f"It comes with the package chexpert-hf, which uses it where no model is named, and calls it `{DEFAULT_NAME}`. In "
    f"transformers alone, `{DEFAULT_NAME}` stands for the path of a copy of this folder."
)


def main() -> None:
    """Train the bundled model and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder NIH.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for the runs.")
    parser.add_argument("--output", type=Path, required=True, help="Becomes the model folder of the package.")
    parser.add_argument("--external", type=Path, help="Films of other hospitals, with index.csv; for the card.")
    parser.add_argument("--rsna", type=Path, help="RSNA's readings and boxes of these images; for the card.")
    parser.add_argument("--google", type=Path, help="Google's adjudicated readings of these images; for the card.")
    options = parser.parse_args()

    folds, final = train_all(options.data, options.work)
    sources = Sources(options.data, options.external, options.rsna, options.google)
    section, map_evaluation = describe(final, folds, sources)
    pack(final, options.output, section, map_evaluation)
    print(section)


def train_all(data: Path, work: Path) -> tuple[list[Path], Path]:
    """Train or resume all networks in subfolders of `work`; return the three networks' folders and the final one's."""
    phantoms = work / "phantoms"
    if not phantoms.exists():
        write_phantoms(
            phantoms, num_studies=NUM_PHANTOMS, seed=PHANTOM_SEED, valid_fraction=0.02, workers=os.cpu_count() or 1
        )
    pretrained = _trained(Recipe.load(Path("nih_pretraining")), phantoms, work / "pretrained")
    recipe = Recipe.load(Path("nih")).override(init=str(pretrained))
    folds = [
        _trained(recipe.override(held_out_fold=fold), data, work / f"fold-{fold + 1}")
        for fold in range(recipe.calibration_folds)
    ]
    alone = recipe.override(distillation=0.0, calibration_folds=0, seed=1)
    first = _trained(alone, data, work / "first")
    final = recipe.override(
        **FINAL,
        init=str(first),
        distillation_models=[str(first), *map(str, folds)],
        calibration_models=[str(folder) for folder in folds],
    )
    return folds, _trained(final, data, work / "final")


def _trained(recipe: Recipe, data: Path, folder: Path) -> Path:
    return train(recipe, data, folder, resume=(folder / RECIPE_FILE).exists()).folder


def pack(model: Path, output: Path, section: str, map_evaluation: Mapping[str, Any]) -> None:
    """Write the bundled model's folder from a trained one: only the files that the package ships, and its own card.

    Code files become links, so that the folder is complete and the repository holds the code once; wheels hold files.

    Args:
        model: The trained model's folder.
        output: The bundled model's folder, which is deleted first.
        section: Text from `describe` for the card.
        map_evaluation: Record from `describe` for the config.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    for name in (
        "model.safetensors",
        "preprocessor_config.json",
        "reference.json",
        "evaluation.json",
        "terms.json",
        "gate.safetensors",
        "training_patients.json",
    ):
        shutil.copy(model / name, output)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["map_evaluation"] = dict(map_evaluation)
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    recipe = Recipe.load(model / RECIPE_FILE)
    recipe.override(**public_recipe(recipe.to_dict())).save(output / RECIPE_FILE)
    for name in CODE_FILES:
        (output / name).symlink_to(f"../{name}")
    card = (model / "README.md").read_text(encoding="utf-8")
    before, limits, after = card.partition("## Limits\n")
    card = rename_card(f"{before}{section}\n{limits}{after}", DEFAULT_NAME)
    heading, ways, rest = card.partition("## How to use\n")
    card = f"{heading}{ways}\n{_BUNDLED}\n{rest}"
    (output / "README.md").write_text(card, encoding="utf-8")
    write_checksums(output)


if __name__ == "__main__":
    main()
