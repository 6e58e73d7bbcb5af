"""Rows of a CheXpert data set as training examples: gray levels at the model's size, and labels as targets."""

from collections.abc import Callable

import datasets
import numpy as np
import torch
from torch import Tensor

from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import read_radiograph


class RadiographDataset(torch.utils.data.Dataset):
    """The radiographs of a split, read on demand, or once with `cache`; augmentation happens later, on whole batches.

    `to_targets` makes the targets of raw labels `(num_labels,)` and their row's position.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: CheXpertImageProcessor,
        to_targets: Callable[[Tensor, int], dict[str, Tensor]],
        *,
        cache: bool = False,
    ) -> None:
        self.files = image_files(dataset)
        self.names: list[str] = dataset["path"][:]
        self.labels = torch.from_numpy(np.asarray(dataset["labels"][:], dtype=np.float32))
        self.processor = processor
        self.to_targets = to_targets
        self.cache: dict[int, Tensor] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        """`pixel_values` (1, height, width) uint8, `index`, and what `to_targets` gives.

        Raises:
            RadiographError: If the file cannot be read; names the row.
        """
        gray = None if self.cache is None else self.cache.get(index)
        if gray is None:
            with naming(self.names[index]):
                image = read_radiograph(self.files[index], target_size=self.processor.decoded_side)
            gray = self.processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
            if self.cache is not None:
                self.cache[index] = gray
        return {"pixel_values": gray, "index": index, **self.to_targets(self.labels[index], index)}
