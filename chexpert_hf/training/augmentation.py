"""Random augmentation of whole batches of radiographs, on the accelerator.

There is no flip: it would move the heart to the right, which is a finding (dextrocardia), and mirror the side marker.
An image's random numbers depend on (seed, epoch, index) alone, so that a resumed run sees the same images, bit for bit.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from chexpert_hf.training.recipe import Recipe

_NUM_DRAWN = 13
_CHANCE_OF_BORDER = 0.3
_CHANCE_OF_WHITE = 0.3  # of frames; the others are black


class RadiographAugmentation:
    """Random rotation, shift, zoom, gamma, contrast, and black or white frames around images.

    The recipe's fields `rotation_degrees` to `border` set how large each may be; 0, the default, switches it off.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def is_active(self) -> bool:
        """Whether the recipe asks for any augmentation."""
        recipe = self.recipe
        moves = recipe.rotation_degrees or recipe.translation or recipe.scaling
        return bool(moves or recipe.contrast or recipe.gamma or recipe.border)

    def __call__(self, images: Tensor, *, epoch: int, indices: Tensor) -> Tensor:
        """Augment gray levels `(batch, 1, height, width)` in [0, 255]; return float32 in [0, 255], not rounded.

        The random numbers of an image depend on the recipe's seed, on `epoch`, which counts from 0, and on the image's
        position in the data set, in `indices` `(batch,)`.
        """
        drawn = self._draw(epoch, indices).to(images.device)  # (B, _NUM_DRAWN) in [-1, 1]
        changed = images.float()
        if self.recipe.rotation_degrees or self.recipe.translation or self.recipe.scaling:
            grid = functional.affine_grid(self._matrices(drawn, changed), list(changed.shape), align_corners=False)
            changed = functional.grid_sample(changed, grid, align_corners=False)  # black outside of the image
        if self.recipe.gamma:
            power = (self.recipe.gamma * drawn[:, 6]).exp()[:, None, None, None]
            changed = 255 * (changed / 255).clamp(0, 1) ** power
        if self.recipe.contrast:
            factor = (1 + self.recipe.contrast * drawn[:, 4])[:, None, None, None]
            shift = (self.recipe.contrast * 127.5 * drawn[:, 5])[:, None, None, None]
            changed = (changed - 127.5) * factor + 127.5 + shift
        if self.recipe.border:
            changed = self._framed(changed, (drawn[:, 7:] + 1) / 2)
        return changed.clamp(0, 255)

    def _framed(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Draw a black or white frame around some of the images.

        The columns of `drawn` `(batch, 6)`, in [0, 1], decide: whether there is a frame, its colour, its width at the
        left, right, top and bottom.
        """
        has_frame = drawn[:, 0] < _CHANCE_OF_BORDER
        level = 255.0 * (drawn[:, 1] < _CHANCE_OF_WHITE)[:, None, None, None]
        left, right, top, bottom = (self.recipe.border * drawn[:, 2:] * has_frame[:, None]).unbind(dim=1)
        rows = torch.arange(images.shape[-2], device=images.device) / images.shape[-2]
        columns = torch.arange(images.shape[-1], device=images.device) / images.shape[-1]
        is_row = (rows >= top[:, None]) & (rows < 1 - bottom[:, None])  # (B, height)
        is_column = (columns >= left[:, None]) & (columns < 1 - right[:, None])  # (B, width)
        return torch.where((is_row[:, :, None] & is_column[:, None, :])[:, None], images, level)

    def _draw(self, epoch: int, indices: Tensor) -> Tensor:
        generators = (np.random.default_rng((self.recipe.seed, epoch, index)) for index in indices.cpu().tolist())
        return torch.from_numpy(np.stack([one.uniform(-1, 1, size=_NUM_DRAWN) for one in generators])).float()

    def _matrices(self, drawn: Tensor, images: Tensor) -> Tensor:
        """Return the matrices `(batch, 2, 3)` for `affine_grid`, whose coordinates go from -1 to 1 along each side.

        The first four columns of `drawn`, in [-1, 1], decide: rotation, zoom, horizontal shift and vertical shift.
        """
        angle = drawn[:, 0] * math.radians(self.recipe.rotation_degrees)
        zoom = 1 / (1 + self.recipe.scaling * drawn[:, 1])
        aspect = images.shape[-1] / images.shape[-2]
        cosine, sine = angle.cos() * zoom, angle.sin() * zoom
        right, down = (2 * self.recipe.translation * drawn[:, 2:4]).unbind(dim=1)
        rows = [cosine, -sine / aspect, right, sine * aspect, cosine, down]
        return torch.stack(rows, dim=1).reshape(-1, 2, 3)
