"""Fits the gate's discriminant of children's radiographs and writes `chexpert_hf/gate/children.json`.

    python -m train.child_discriminant NIH --children views/children

It separates children, of NIH's ChestX-ray14 (under 12 years) and in the folder of `--children`, from NIH's adults and
synthetic radiographs. Both are also shown cropped, framed, blurred, sharpened and with other gray levels, so that not
the scanner or the export of one hospital tells them apart. Prints how many children and adults exceed the limit in
cross-validation by patient, and how many children of one hospital do if those of the other were not fitted on.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.gate.children import CHILD_AGE, CHILD_QUANTILE, FILE, save_discriminant
from chexpert_hf.gate.features import Floats, gate_features, gray_levels
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.radiograph import read_radiograph

SIDE = 192  # pixels, to which radiographs are read
ADULT = 18  # years; those between CHILD_AGE and this are left out
CHILD_COPIES, ADULT_COPIES = 6, 2  # changed copies of each radiograph
PHANTOMS = 200
REGULARISATION = 0.1  # `C` of the logistic regression


def changed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a copy with other borders, sharpness and gray levels, as another hospital may export it."""
    width, height = image.size
    left, top, right, bottom = rng.uniform(-0.06, 0.08, 4)
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    image = image.transform(image.size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    scale = width / 390
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5) * scale))
    elif rng.random() < 0.5:
        sharpen = ImageFilter.UnsharpMask(rng.uniform(1, 8) * scale, int(rng.uniform(50, 200)), 0)
        image = image.filter(sharpen)
    if rng.random() < 0.3:
        image = ImageOps.autocontrast(image, cutoff=rng.uniform(0, 3))
    if rng.random() < 0.3:
        image = Image.blend(image, ImageOps.equalize(image), rng.uniform(0.2, 1))
    levels = (np.asarray(image) / 255) ** (2 ** rng.uniform(-1, 1))
    return Image.fromarray((255 * levels).astype(np.uint8))


def features_of(image: Image.Image) -> Floats:
    """Return the gate's features `(NUM_FEATURES,)` of an image."""
    return gate_features(gray_levels(image)[None])[0]


def discriminant() -> Pipeline:
    """Return the unfitted discriminant."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=5000, class_weight="balanced"))


def main() -> None:
    """Fit the discriminant, print its cross-validation and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder NIH.")
    parser.add_argument("--children", type=Path, required=True, help="Folder of children's radiographs.")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    features: list[Floats] = []
    rows: list[tuple[str, str, bool]] = []  # source, patient, whether it is a child
    is_original: list[bool] = []

    def add(image: Image.Image, row: tuple[str, str, bool], copies: int) -> None:
        for number in range(1 + copies):
            features.append(features_of(changed(image, rng) if number else image))
            rows.append(row)
            is_original.append(not number)

    train = load_dataset(options.data, frontal_only=True)["train"]
    for file, patient, age in zip(image_files(train), train["patient"][:], train["age"][:], strict=True):
        if age is not None and (age < CHILD_AGE or age >= ADULT):
            row = ("nih", patient, age < CHILD_AGE)
            add(read_radiograph(file, target_size=SIDE), row, CHILD_COPIES if row[2] else ADULT_COPIES)
    children = find_radiographs([options.children]).files
    if not children:
        parser.error(f"{options.children} holds no radiograph")
    for file in map(Path, children):
        add(
            read_radiograph(file, target_size=SIDE),
            ("children", "-".join(file.stem.split("_")[0].split("-")[:2]), True),
            CHILD_COPIES,
        )
    for seed in range(PHANTOMS):
        drawn = render_phantom(seed, projection="PA" if seed % 2 else "AP").image
        add(Image.fromarray(drawn), ("phantom", f"phantom{seed}", False), 0)

    x, first = np.array(features), np.array(is_original)
    source, patient, y = (np.array(column) for column in zip(*rows, strict=True))
    adults = first & ~y & (source == "nih")

    def cross_validated(used: NDArray[np.bool_]) -> tuple[Floats, float]:
        """Return scores of all rows by models fitted on `used` rows of other patients, and the limit for adults."""
        scores = np.empty(len(y))
        for others, held_out in GroupKFold(5, shuffle=True, random_state=0).split(x, groups=patient):
            fitted = others[used[others]]
            scores[held_out] = discriminant().fit(x[fitted], y[fitted]).decision_function(x[held_out])
        return scores, float(np.quantile(scores[adults], CHILD_QUANTILE))

    scores, limit = cross_validated(np.ones(len(y), dtype=bool))
    report("cross-validation", scores > limit, source, y, first)
    for left_out in ("nih", "children"):
        used = ~((source == left_out) & y)
        own, own_limit = cross_validated(used)
        report(f"children of {left_out} not fitted on", own > own_limit, source, y, first & ~used)

    model = discriminant().fit(x, y)
    scale, coefficients = model[0], model[1].coef_[0]
    weights = coefficients / scale.scale_
    offset = float(model[1].intercept_[0] - scale.mean_ @ weights)  # moved into the limit
    data = "NIH ChestX-ray14; Kermany et al. 2018, CC BY 4.0"
    save_discriminant(options.output, weights, limit - offset, data)


def report(title: str, exceeds: NDArray[np.bool_], source: NDArray, y: NDArray, counted: NDArray[np.bool_]) -> None:
    """Print how many children and others of each source exceed the limit."""
    for name in np.unique(source):
        for is_child in (True, False):
            group = counted & (source == name) & (y == is_child)
            if group.any():
                who = "children" if is_child else "adults"
                print(f"{title}: {exceeds[group].sum()} of {group.sum()} {who} of {name}")


if __name__ == "__main__":
    main()
