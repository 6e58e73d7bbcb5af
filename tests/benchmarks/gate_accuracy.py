"""What the gate accepts, refuses and warns of: `python -m tests.benchmarks.gate_accuracy NIH`.

Fits a gate on the train split (nothing is written). Prints a table of the valid split and, where they lie beside the
data, of films of other hospitals (`external`) and of laterals, frontal films, turned ones, children and other images
(`views`). Then judges the valid split turned and inverted, the chest DICOM of pydicom-data, and images that are no
chest radiographs: those bundled with scikit-image and scikit-learn, the other DICOM files of pydicom and pydicom-data,
those bundled with gradio and matplotlib, and drawn ones. Photographs count as they are and in gray.

The features, the margin for lateral views and the ridge of their discriminant were chosen with `external` and `views`
in sight, so the results on them are optimistic. No weight was fitted on any of their images but those of children, on
which the discriminant of children was (`python -m train.child_discriminant` prints its cross-validation). `--phantoms`
also judges phantoms of both projections.
"""

import argparse
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.gate.fit import fit_gate
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.models.loading import load_model
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.radiograph import RadiographError, open_radiograph, read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier

WORDS = ("lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "do", "tempor", "magna")
FINDINGS = ([], ["Edema"], ["Pleural Effusion"], ["Cardiomegaly"], ["Support Devices"], ["Consolidation"])
SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".dcm", ".webp"}


def folder_of(package, *parts):
    spec = find_spec(package)
    return Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None


def bundled(*places):
    folders = [folder_of(*place) for place in places]
    found = [file for folder in folders if folder and folder.is_dir() for file in sorted(folder.rglob("*"))]
    return [file for file in found if file.suffix.lower() in SUFFIXES]


def page(rng, width, height, size, is_dark):
    image = Image.new("L", (width, height), 255)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for top in range(40, height - 40, int(1.5 * size)):
        draw.text((40, top), " ".join(rng.choice(WORDS, 14))[: int(1.9 * (width - 80) / size)], fill=0, font=font)
    return ImageOps.invert(image) if is_dark else image


def screen(rng, background):
    image = Image.new("L", (1280, 720), background)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 1280, 40), fill=90)
    for row in range(14):
        draw.text((20, 60 + 40 * row), str(rng.choice(WORDS)), fill=128, font=ImageFont.load_default(18))
    for left in (260, 590, 920):
        draw.rectangle((left, 100, left + 300, 380), fill=int(rng.integers(40, 220)))
    return image


def chart(rng, kind):
    image = Image.new("L", (500, 400), 255)
    draw = ImageDraw.Draw(image)
    draw.rectangle((60, 30, 470, 360), outline=0)
    values = rng.uniform(40, 350, 40)
    for place, value in enumerate(values):
        left = 65 + 10 * place
        if kind == "bars":
            draw.rectangle((left, value, left + 7, 360), fill=90)
        elif kind == "points":
            draw.ellipse((left, value, left + 6, value + 6), fill=60)
        elif place:
            draw.line((left - 10, values[place - 1], left, value), fill=50, width=2)
    return image


def drawn():
    """Name and gray image."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:400, 0:400] / 400
    radius = np.hypot(x - 0.5, y - 0.5)
    arrays = {"white noise": rng.uniform(0, 255, (400, 400)), "normal noise": rng.normal(128, 30, (400, 400))}
    for width in (3, 10, 30):
        cloud = gaussian_filter(rng.normal(size=(400, 400)), width)
        arrays[f"cloud {width}"] = (cloud - cloud.min()) / np.ptp(cloud) * 255
    arrays |= {f"blank {level}": np.full((400, 400), level) for level in (0, 128, 255)}
    arrays |= {"gradient down": 255 * y, "gradient right": 255 * x, "gradient out": 350 * radius}
    arrays |= {"gradient in": 255 - 350 * radius, "stripes": 127 + 127 * np.sin(60 * x)}
    arrays |= {"checker": ((8 * x).astype(int) + (8 * y).astype(int)) % 2 * 255}
    for name, array in arrays.items():
        yield name, Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))
    for number, (width, height, size) in enumerate(((600, 800, 14), (800, 600, 18), (600, 800, 12), (1000, 1400, 20))):
        yield f"page {number}", page(rng, width, height, size, number == 2)
    for background in (240, 30, 200):
        yield f"screen {background}", screen(rng, background)
    for kind in ("bars", "points", "line"):
        yield f"chart {kind}", chart(rng, kind)


def cropped(image):
    width, height = image.size
    return image.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4))


TRANSFORMS = {
    "as they are": lambda image: image,
    "inverted": ImageOps.invert,
    "turned left": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "turned right": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "cropped to half": cropped,
}


def judge(gate, image):
    return gate.judge_batch([gate.prepare(open_radiograph(image))])[0]


def quantiles(distances):
    if not distances:
        return "-"
    return " ".join(f"{value:.2f}" for value in np.quantile(distances, (0, 0.05, 0.5, 0.95, 1), method="nearest"))


def report(title, verdicts, *, rows):
    """Prints a group, and the share that was accepted."""
    accepted = [verdict.is_chest_radiograph for _, verdict in verdicts]
    print(f"\n{title}: {sum(accepted)} of {len(accepted)} accepted; distance (0, 5, 50, 95, 100 %): ", end="")
    print(quantiles([verdict.distance for _, verdict in verdicts]))
    for name, verdict in verdicts:
        if rows or verdict.warnings or not verdict.is_chest_radiograph:
            answer = "ACCEPTED" if verdict.is_chest_radiograph else "refused"
            print(
                f"  {answer:8s} {verdict.distance:7.2f}  {name[:40]:40s} {verdict.reason or ' '.join(verdict.warnings)}"
            )
    return accepted


def judge_files(classifier, files, *, gray=False):
    """Verdicts by name; what the reader refuses is counted and left out."""
    verdicts, unread = [], 0
    for file in files:
        try:
            source = read_radiograph(file, target_size=512) if gray else file
            verdicts.append((file.name, classifier.predict(source).gate))
        except RadiographError:
            unread += 1
    if unread:
        print(f"({unread} files of the next group are refused by the reader already)")
    return verdicts


def phantoms(projection):
    for number in range(90):
        findings = FINDINGS[number % len(FINDINGS)]
        yield Image.fromarray(render_phantom(700_000 + number, findings, projection=projection).image)


def table(classifier, data):
    """Prints for each set of real films how many are accepted, and of how many a lateral view is warned."""
    sets = {"valid split": sorted((data / "valid").glob("**/*.jpg"))}
    for folder in sorted([*data.parent.glob("external/*/"), *data.parent.glob("views/*/")]):
        sets[f"{folder.parent.name}/{folder.name}"] = sorted(file for file in folder.glob("**/*") if file.is_file())
    print(f"\n{'set':28s} {'n':>5s} {'accepted':>9s} {'lateral':>8s} {'child':>6s} {'other warnings':>15s}")
    for name, files in sets.items():
        verdicts = [verdict for _, verdict in judge_files(classifier, files)]
        lateral = sum("lateral" in " ".join(one.warnings) for one in verdicts)
        child = sum("child" in " ".join(one.warnings) for one in verdicts)
        other = sum(bool(one.warnings) for one in verdicts) - lateral - child
        accepted = sum(one.is_chest_radiograph for one in verdicts)
        print(f"{name:28s} {len(verdicts):5d} {accepted:9d} {lateral:8d} {child:6d} {other:15d}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL, type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="Radiographs to fit on at most, and to judge.")
    parser.add_argument("--phantoms", action="store_true", help="Also phantoms of both projections.")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    model = load_model(options.model).eval()
    processor = CheXpertImageProcessor.from_pretrained(options.model)
    splits = load_dataset(options.data, frontal_only=True)
    train, valid = (image_files(splits[split])[: options.limit] for split in ("train", "valid"))
    ages = splits["train"]["age"][: options.limit]
    originals = sorted((options.data.parent / "NIH-originals").glob("**/*.png"))
    images = (read_radiograph(file, target_size=processor.decoded_side) for file in train)
    gate = fit_gate(images, ages=ages, data_name=options.data.name, date="-")
    classifier = CheXpertClassifier(model, processor, gate=gate)
    print(f"Fitted on {gate.num_images} radiographs, limit {gate.limit:.2f}; distances are multiples of it.")

    table(classifier, options.data)
    report("valid split", [(file, classifier.predict(file).gate) for file in valid], rows=False)
    chests = [file for file in bundled(("data_store", "data")) if file.name.startswith("RG1")]
    report("NIH-originals", judge_files(classifier, originals), rows=False)
    report("chest DICOM of pydicom-data", judge_files(classifier, chests), rows=True)

    print("\nwarnings on the valid split, transformed")
    for name, transform in TRANSFORMS.items():
        verdicts = [judge(gate, transform(classifier.read(file).image)) for file in valid]
        count = {text: sum(text in verdict.warnings for verdict in verdicts) for v in verdicts for text in v.warnings}
        accepted = sum(verdict.is_chest_radiograph for verdict in verdicts)
        print(f"  {name:16s} {accepted} of {len(verdicts)} accepted; {count or 'no warnings'}")

    dicom = bundled(("data_store", "data"), ("pydicom", "data", "test_files"))
    photographs = bundled(("skimage", "data"), ("sklearn", "datasets", "images"))
    unseen = bundled(("gradio", "media_assets"), ("gradio", "test_data"), ("matplotlib", "mpl-data", "sample_data"))
    groups = {
        "scikit-image, scikit-learn": judge_files(classifier, photographs),
        "the same in gray": judge_files(classifier, photographs, gray=True),
        "pydicom, pydicom-data": judge_files(classifier, [file for file in dicom if file not in chests]),
        "gradio, matplotlib": judge_files(classifier, unseen),
        "gradio, matplotlib in gray": judge_files(classifier, unseen, gray=True),
        "drawn": [(name, judge(gate, image)) for name, image in drawn()],
    }
    everything = [answer for title, verdicts in groups.items() for answer in report(title, verdicts, rows=True)]
    refused = len(everything) - sum(everything)
    print(f"\nno chest radiographs: {refused} of {len(everything)} refused ({refused / len(everything):.1%})")
    if options.phantoms:
        for projection in ("PA", "AP", "Lateral"):
            drawn_ones = [render_phantom(seed, projection=projection).image for seed in range(900_000, 900_040)]
            verdicts = [(str(place), judge(gate, Image.fromarray(one))) for place, one in enumerate(drawn_ones)]
            report(f"phantoms, {projection}", verdicts, rows=False)


if __name__ == "__main__":
    main()
