"""The gate of a model folder, fitted on the split that the model was trained on."""

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import datasets
from PIL import Image

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.gate.fit import evenly_spaced, fit_gate
from chexpert_hf.gate.gate import GATE_FILE, Gate
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.models.model_files import renew_checksums
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import read_radiograph


def fit_folder_gate(
    folder: Path, dataset: datasets.Dataset, data_name: str, progress: Callable[[int], None] | None = None
) -> Gate:
    """Fits a gate for the model of a folder and writes it there.

    Args:
        folder: Model folder; its checksums are renewed.
        dataset: The training split from `load_chexpert`.
        data_name: For the record.
        progress: Called with the number of radiographs that were read.

    Raises:
        InputError: If there are too few radiographs.
        ModelFolderError: If the folder holds no model.
        RadiographError: If a radiograph cannot be read; it says which.
    """
    processor = CheXpertImageProcessor.from_pretrained(folder)

    def images() -> Iterator[Image.Image]:
        for file in evenly_spaced(image_files(dataset)):
            with naming(file):
                image = read_radiograph(file, target_size=processor.decoded_side)
            yield image
            if progress:
                progress(1)

    gate = fit_gate(
        images(),
        data_name=data_name,
        date=date.today().isoformat(),
        knows_laterals=not all(dataset["is_frontal"][:]),
    )
    gate.save(folder)
    renew_checksums(folder, [GATE_FILE])
    return gate
