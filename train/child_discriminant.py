"""Fits the gate's discriminant of children's radiographs and writes `chexpert_hf/gate/children.json`.

    python -m train.child_discriminant NIH --children views/children

It separates children, of NIH's ChestX-ray14 (under 12 years) and in the folder of `--children`, from NIH's adults and
synthetic radiographs. Both are also shown cropped, framed, blurred, sharpened and with other gray levels, so that not
the scanner or the export of one hospital tells them apart. Prints how many children and adults exceed the limit in
cross-validation by patient, and how many children of one hospital do if those of the other were not fitted on.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.errors import InputError
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


class Samples(NamedTuple):
    """Gate features and origin of the radiographs and of their changed copies, a row each."""

    features: Floats  # (num_rows, NUM_FEATURES)
    source: NDArray[np.str_]  # "nih", "children" or "phantom"
    patient: NDArray[np.str_]
    is_child: NDArray[np.bool_]
    is_original: NDArray[np.bool_]

    @property
    def adults(self) -> NDArray[np.bool_]:
        """Which rows are NIH's radiographs of adults, unchanged."""
        return self.is_original & ~self.is_child & (self.source == "nih")


def radiographs(data: Path, children: Path) -> Iterator[tuple[Image.Image, str, str, bool]]:
    """Yield (image, source, patient, whether it is a child) of radiographs; InputError if `children` holds none."""
    train = load_dataset(data, frontal_only=True)["train"]
    for file, patient, age in zip(image_files(train), train["patient"][:], train["age"][:], strict=True):
        if age is not None and (age < CHILD_AGE or age >= ADULT):
            yield read_radiograph(file, target_size=SIDE), "nih", patient, age < CHILD_AGE
    files = find_radiographs([children]).files
    if not files:
        raise InputError(f"{children} holds no radiograph.")
    for file in map(Path, files):  # such as person1004_virus_1686.jpg and IM-0439-0001-0001.jpg
        patient = "-".join(file.stem.split("_")[0].split("-")[:2])
        yield read_radiograph(file, target_size=SIDE), "children", patient, True
    for seed in range(PHANTOMS):
        drawn = render_phantom(seed, projection="PA" if seed % 2 else "AP").image
        yield Image.fromarray(drawn), "phantom", f"phantom{seed}", False


def samples(data: Path, children: Path) -> Samples:
    """Return the features of all radiographs, and of changed copies of the real ones."""
    rng = np.random.default_rng(0)
    rows = []
    for image, source, patient, is_child in radiographs(data, children):
        copies = 0 if source == "phantom" else CHILD_COPIES if is_child else ADULT_COPIES
        for number in range(1 + copies):
            features = gate_features(gray_levels(changed(image, rng) if number else image)[None])[0]
            rows.append((features, source, patient, is_child, number == 0))
    return Samples(*(np.array(column) for column in zip(*rows, strict=True)))


def fitted(known: Samples, rows: NDArray[Any]) -> Pipeline:
    """Return the discriminant of children, fitted on the rows with indices `rows`."""
    regression = LogisticRegression(C=REGULARISATION, max_iter=5000, class_weight="balanced")
    return make_pipeline(StandardScaler(), regression).fit(known.features[rows], known.is_child[rows])


def cross_validated(known: Samples, used: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Return all rows' scores, by models fitted on `used` rows of other patients, and a quantile of adults' scores."""
    scores = np.empty(len(used))
    for others, held_out in GroupKFold(5, shuffle=True, random_state=0).split(scores, groups=known.patient):
        model = fitted(known, others[used[others]])
        scores[held_out] = model.decision_function(known.features[held_out])
    return scores, float(np.quantile(scores[known.adults], CHILD_QUANTILE))


def main() -> None:
    """Fit the discriminant, print its cross-validation and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="The folder NIH.")
    parser.add_argument("--children", type=Path, required=True, help="Folder of children's radiographs.")
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()

    known = samples(options.data, options.children)
    scores, limit = cross_validated(known, np.ones(len(known.features), dtype=bool))
    report("cross-validation", known, scores > limit, known.is_original)
    for left_out in ("nih", "children"):
        used = ~((known.source == left_out) & known.is_child)
        own, own_limit = cross_validated(known, used)
        report(f"children of {left_out} not fitted on", known, own > own_limit, known.is_original & ~used)

    model = fitted(known, np.arange(len(known.features)))
    scale, regression = model[0], model[1]
    weights = regression.coef_[0] / scale.scale_
    offset = float(regression.intercept_[0] - scale.mean_ @ weights)  # moved into the limit
    data = "NIH ChestX-ray14; Kermany et al. 2018, CC BY 4.0"
    save_discriminant(options.output, weights, limit - offset, data)


def report(title: str, known: Samples, exceeds: NDArray[np.bool_], counted: NDArray[np.bool_]) -> None:
    """Print how many children and adults of each source exceed the limit; `counted` marks the rows that count."""
    for name in np.unique(known.source):
        for is_child, who in ((True, "children"), (False, "adults")):
            group = counted & (known.source == name) & (known.is_child == is_child)
            if group.any():
                print(f"{title}: {exceeds[group].sum()} of {group.sum()} {who} of {name}")


if __name__ == "__main__":
    main()
