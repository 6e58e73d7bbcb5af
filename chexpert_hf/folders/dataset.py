"""Scores the images of a data set."""

from collections.abc import Callable, Sequence
from contextlib import closing

import datasets
import numpy as np
from numpy.typing import NDArray

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.folders.processes import ReadFile
from chexpert_hf.folders.readers import Workers, read_prepared
from chexpert_hf.radiographs.archives import RadiographFile, source_of
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import Radiograph
from chexpert_hf.scoring.classifier import CheXpertClassifier


def read_file(classifier: CheXpertClassifier, file: RadiographFile) -> Radiograph:
    """Read a radiograph with the classifier's `read`; a RadiographError names the file with its folder."""
    with naming(file):
        return classifier.read(source_of(file))


def predict_dataset(
    classifier: CheXpertClassifier,
    dataset: datasets.Dataset,
    progress: Callable[[int], None] | None = None,
    *,
    workers: Workers = 0,
    observations: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Return the probabilities `(num_images, num_labels)` of the images of a split from `load_dataset`.

    `progress` is called with 1 after each image. `workers` is the number of processes that read the images: 0 for
    threads, "auto" to let `readers.read_prepared` choose. `observations` are the columns; None: all that are scored.
    Raises RadiographError, which names the image, if one cannot be read.
    """
    rows, files = [], image_files(dataset)
    with closing(read_prepared(classifier, files, workers=workers)) as images:
        for prediction in classifier.predict_prepared(map(ReadFile.prepared, images)):
            rows.append([prediction.probabilities[name] for name in observations or classifier.observations])
            if progress:
                progress(1)
    return np.array(rows)
