"""Write the example images of the page: a real radiograph, and phantoms in which the model finds the observation.

    python -m train.page_examples space/examples

The real radiograph is RG1 of pydicom-data, a public sample of NEMA, as read by `read_radiograph`. A phantom shows one
observation in one of a few synthetic patients; it is kept if the model finds the observation there, and not in the same
patient without findings.
"""

import argparse
import io
from pathlib import Path

from PIL import Image
from pydicom.data import get_testdata_file

from chexpert_hf.app.page.start import DRAWINGS, drawing_of, finds
from chexpert_hf.default_model import DEFAULT_NAME, resolve_model
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.radiographs.radiograph import read_radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier

SIZE = 1024  # longest side of the radiograph in pixels
SEEDS = range(5)  # of the patients, in the order in which they are tried
_QUALITY = 92


def main() -> None:
    """Write the example images of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="Folder of the examples; its drawings are replaced.")
    parser.add_argument("--model", default=DEFAULT_NAME, help="Model that must find the observations.")
    options = parser.parse_args()
    classifier = CheXpertClassifier.from_pretrained(resolve_model(options.model))
    (options.output / DRAWINGS).mkdir(parents=True, exist_ok=True)
    for path in (options.output / DRAWINGS).glob("*.jpg"):
        path.unlink()
    (options.output / "RG1.jpg").write_bytes(radiograph())
    for observation in classifier.observations:
        image = drawing(classifier, observation)
        if image is not None:
            drawing_of(observation, options.output).write_bytes(image)
        print(f"{observation:<28}{'not found' if image is None else 'found'}")


def radiograph() -> bytes:
    """Return RG1 as a JPEG, reduced to the size of the page."""
    image = read_radiograph(get_testdata_file("RG1_UNCR.dcm", download=False)).copy()
    image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    return _jpeg(image)


def drawing(classifier: CheXpertClassifier, observation: str) -> bytes | None:
    """Return a phantom in which the model finds an observation, as a JPEG; None if it finds it in none."""
    for seed in SEEDS:
        image, normal = (_jpeg(Image.fromarray(render_phantom(seed, planted).image)) for planted in ([observation], []))
        is_distinct = observation == classifier.labels.none_of_these or not finds(classifier, observation, normal)
        if is_distinct and finds(classifier, observation, image):
            return image
    return None


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    main()
