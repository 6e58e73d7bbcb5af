"""Augmentation that is valid for radiographs, on whole batches and on the accelerator.

Small rotation, shift, change of size, contrast and brightness. No flip: it would move the heart to the right, which is
a finding (dextrocardia), and mirror the side marker. What is drawn for an image depends on (seed, epoch, index) alone,
so that a run that was interrupted goes on with the same images, bit for bit.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RadiographAugmentation:
    """Random changes of an image; 0 everywhere changes nothing.

    Attributes:
        rotation_degrees: Largest rotation, either way.
        translation: Largest shift in each direction, as a share of the image.
        scaling: Largest change of size, as a share.
        contrast: Largest change of contrast, and of brightness, as a share.
        seed: Of everything that is drawn.
    """

    rotation_degrees: float = 0.0
    translation: float = 0.0
    scaling: float = 0.0
    contrast: float = 0.0
    seed: int = 0

    @property
    def is_active(self) -> bool:
        """Whether it changes anything."""
        return any((self.rotation_degrees, self.translation, self.scaling, self.contrast))

    def __call__(self, images: Tensor, *, epoch: int, indices: Tensor) -> Tensor:
        """Changes a batch.

        Args:
            images: `(batch, 1, height, width)` gray levels, uint8.
            epoch: Counted from 0.
            indices: `(batch,)` positions of the images in the data set.

        Returns:
            float32 gray levels in [0, 255] of the same shape, not rounded.
        """
        drawn = self._draw(epoch, indices).to(images.device)  # (B, 6) in [-1, 1]
        changed = images.float()
        if self.rotation_degrees or self.translation or self.scaling:
            grid = functional.affine_grid(self._matrices(drawn, changed), list(changed.shape), align_corners=False)
            changed = functional.grid_sample(changed, grid, align_corners=False)  # outside is black, as beyond the film
        if self.contrast:
            factor = (1 + self.contrast * drawn[:, 4])[:, None, None, None]
            shift = (self.contrast * 127.5 * drawn[:, 5])[:, None, None, None]
            changed = (changed - 127.5) * factor + 127.5 + shift
        return changed.clamp(0, 255)

    def _draw(self, epoch: int, indices: Tensor) -> Tensor:
        rows = [
            np.random.default_rng((self.seed, epoch, index)).uniform(-1, 1, size=6) for index in indices.cpu().tolist()
        ]
        return torch.from_numpy(np.stack(rows)).float()

    def _matrices(self, drawn: Tensor, images: Tensor) -> Tensor:
        """`(batch, 2, 3)` in affine_grid's coordinates, in which both sides are 2 long whatever the aspect ratio."""
        angle = drawn[:, 0] * math.radians(self.rotation_degrees)
        zoom = 1 / (1 + self.scaling * drawn[:, 1])
        aspect = images.shape[-1] / images.shape[-2]
        cosine, sine = angle.cos() * zoom, angle.sin() * zoom
        return torch.stack(
            [
                torch.stack([cosine, -sine / aspect, 2 * self.translation * drawn[:, 2]], dim=1),
                torch.stack([sine * aspect, cosine, 2 * self.translation * drawn[:, 3]], dim=1),
            ],
            dim=1,
        )
