"""Loads the training and validation data of a recipe; a recipe without observations gets those of its data."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np

from chexpert_hf.datasets.label_sets import read_label_set, same_label
from chexpert_hf.datasets.loading import data_name, label_set_of, load_dataset
from chexpert_hf.labels import CHEXPERT, IGNORED, UNCERTAIN, BlankPolicy, UncertaintyPolicy
from chexpert_hf.training.cross_fitting import hold_out_fold
from chexpert_hf.training.recipe import Recipe, RecipeError

Roots: TypeAlias = Path | Sequence[Path]
"""The folder of a data set, or several folders whose data sets are trained on as one."""


def with_labels(recipe: Recipe, roots: Roots) -> Recipe:
    """Return a recipe in which `observations` and `label_set` are set.

    They are taken from the label set that the recipe's field `labels` names; if it is None or "union", from the label
    set of the data in the folders `roots`. A recipe that already names observations keeps them, and its label set is
    reduced to them.

    Raises:
        InputError: If `labels` is not a label set, or the layout of the data is not recognised.
    """
    if recipe.observations and recipe.label_set and recipe.labels is None:
        return recipe
    is_given = recipe.labels not in (None, "union")
    labels = read_label_set(str(recipe.labels)) if is_given else label_set_of(roots, recipe.layout)
    chosen = labels.among(recipe.observations or labels.names)
    if chosen.none_of_these is None:  # "Normal" of a user's table is not a finding
        chosen = replace(chosen, none_of_these=same_label("No Finding", chosen.names))
    # An empty `label_set` means CheXpert's, so a set without further properties gets its headline in writing.
    known = {} if chosen == CHEXPERT.among(chosen.names) else chosen.to_dict() or {"headline": list(chosen.names)}
    return recipe.override(observations=chosen.names, label_set=known)


def with_stated_labels(recipe: Recipe, train: datasets.Dataset, say: Callable[[str], None]) -> Recipe:
    """Return the recipe without the observations for which no training image has a usable label.

    These labels are not usable: -100 (not stated); blank, if the recipe treats blanks as unknown; uncertain, under the
    policy U-Ignore, or under U-SelfTrained if the recipe names no teacher.

    `say` is called with a line that names the removed observations, if any. Another line names kept observations that
    are neither positive nor uncertain in any training image: the model only learns to deny them.

    A recipe with a `held_out_fold` is returned unchanged. It trains one of the models for cross-fitting, and all of
    these must score the same observations.

    Raises:
        RecipeError: If no observation is left.
    """
    if recipe.held_out_fold is not None:
        return recipe
    labels, policies = np.asarray(train["labels"][:]), recipe.policies
    # Without a given teacher, one is trained on the certain labels of U-SelfTrained, as U-Ignore does.
    from_others = [UncertaintyPolicy.U_IGNORE, *([] if recipe.teacher else [UncertaintyPolicy.U_SELF_TRAINED])]
    learns_others = [policies[name] in from_others for name in recipe.observations]
    is_unknown = (labels == IGNORED) | ((labels == UNCERTAIN) & learns_others)
    if recipe.blank_labels == BlankPolicy.UNKNOWN:
        is_unknown |= np.isnan(labels)
    can_be_present = ((labels > 0) | (labels == UNCERTAIN)).any(axis=0)
    unstated = [name for name, column in zip(recipe.observations, is_unknown.T, strict=True) if column.all()]
    if len(unstated) == len(recipe.observations):
        raise RecipeError(f"No training image has a label for {', '.join(unstated)}; choose other --labels.")
    if unstated:
        say(f"The model has no output for {', '.join(unstated)}, which no training image has a label for.")
    found = dict(zip(recipe.observations, can_be_present.tolist(), strict=True))
    if absent := [name for name, is_found in found.items() if not is_found and name not in unstated]:
        say(
            f"No training image has {', '.join(absent)}: the model only learns to deny it. --observations with the "
            "other labels leaves it out."
        )
    return recipe.override(observations=tuple(name for name in recipe.observations if name not in unstated))


def load_data(
    recipe: Recipe,
    roots: Roots,
    *,
    follow_links: bool = True,
    check_files: bool = True,
    say: Callable[[str], None] | None = None,
) -> datasets.DatasetDict:
    """Load the splits `train` and `valid` for a recipe; first call `with_labels`, which sets its observations.

    `roots` is the folder of the data, or several. The options and errors are those of `load_dataset`. If the recipe has
    a `held_out_fold`, that fold of the training images becomes `valid`. Which patients are held out does not depend
    on the seed.
    """
    names = ("layout", "frontal_only", "observations", "num_patients", "valid_fraction")
    options = {name: getattr(recipe, name) for name in names}
    data = load_dataset(roots, follow_links=follow_links, check_files=check_files, say=say, **options)
    return data if recipe.held_out_fold is None else hold_out_fold(data["train"], recipe)


def describe_data(data: datasets.DatasetDict, roots: Roots, observations: Sequence[str]) -> dict[str, Any]:
    """Return what the model card says about the data: their `name`, `sources` if several, and an entry per split.

    A split's entry counts `images`, `studies`, `patients` and `positives` (by observation); `labels_by` lists the
    reference standards of the labels if they are known. `observations` names the columns of the labels.
    """
    folders = [roots] if isinstance(roots, Path) else roots
    described: dict[str, Any] = {"name": data_name(roots)}
    if len(folders) > 1:
        described["sources"] = [folder.resolve().name for folder in folders]
    for name, split in data.items():
        positives = (np.asarray(split["labels"][:]) == 1).sum(axis=0).tolist()
        described[name] = {
            "images": len(split),
            "studies": len(set(split["study"][:])),
            "patients": len(set(split["patient"][:])),
            "positives": dict(zip(observations, positives, strict=True)),
        }
        if stated := sorted({each for each in split["labels_by"][:] if each}):
            described[name]["labels_by"] = stated
    return described
