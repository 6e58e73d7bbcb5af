"""The image processor: the one statement of how a radiograph becomes `pixel_values`.

Grayscale, resize, rescale to [0, 1], normalise, repeat over channels. This file travels with saved models.
Files are better read with `chexpert_hf.data.radiograph.read_radiograph`, which knows DICOM and 16-bit images.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
    make_flat_list_of_images,
)

# ITU-R 601 luma in 16-bit fixed point, as in PIL's convert("L"): an RGB file gives the same gray from PIL and tensors.
_LUMA = (19595, 38470, 7471)

_EXPECTED = (
    "expected an 8-bit image: a PIL image, a uint8 array or tensor of shape (height, width), (channels, height, width) "
    "or (height, width, channels) with 1 or 3 channels, or a list of them"
)


class CheXpertImageProcessor(TorchvisionBackend):
    """Turns 8-bit radiographs into `pixel_values` of shape `(batch, channels, height, width)`.

    The number of channels is the length of `image_mean`: three for ImageNet statistics, one for a single-channel model.
    The defaults are the paper's 320 x 320 pixels, without keeping the aspect ratio.

    Raises:
        ValueError: If an image is not 8-bit, has 2, 4 or more channels as an array, or has no pixels. Values of 16-bit
            and float images are not guessed at.

    Source: Irvin et al. 2019, arXiv:1901.07031, section 3 (size); torchvision's DenseNet121 weights (mean and std).
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 320, "width": 320}  # noqa: RUF012 - the declarative form of transformers' processors
    do_resize = True
    do_rescale = True
    do_normalize = True

    @property
    def num_channels(self) -> int:
        """Channels of the resulting `pixel_values`."""
        return len(self.image_mean)

    @property
    def longest_side(self) -> int:
        """The larger side of `size`, in pixels: what a decoder that scales down must leave."""
        return max(side for side in dict(self.size).values() if side)

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the resulting `pixel_values`.

        Raises:
            ValueError: If it depends on the image.
        """
        size = self.crop_size if self.do_center_crop else self.size if self.do_resize else None
        if not size or not size["height"] or not size["width"]:
            raise ValueError(f"The size of pixel_values depends on the image with size {self.size}; set crop_size.")
        return size["height"], size["width"]

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image that the model sees, after every geometric step of this processor.

        Args:
            width: Of the image, in pixels.
            height: Of the image.

        Returns:
            Left, top, right and bottom in pixels of the image: all of it unless there is a crop. Where the crop is
            larger than the image, which is padded then, the box reaches beyond the image.

        Raises:
            ValueError: If the processor pads images of one batch to one size: what the model sees is then not a matter
                of one image.
        """
        if self.do_pad:
            raise ValueError("do_pad is set, expected a processor that resizes and crops only.")
        resized_height, resized_width = height, width
        if self.do_resize:
            # On the meta device nothing is computed but the shape.
            empty = torch.empty(1, height, width, dtype=torch.uint8, device="meta")
            resized_height, resized_width = self.resize(empty, self.size).shape[-2:]
        if not self.do_center_crop:
            return 0.0, 0.0, float(width), float(height)
        left, right = _cropped(resized_width, self.crop_size["width"])
        top, bottom = _cropped(resized_height, self.crop_size["height"])
        x, y = width / resized_width, height / resized_height
        return left * x, top * y, right * x, bottom * y

    def pixel_values_of(self, gray: torch.Tensor) -> torch.Tensor:
        """`pixel_values` of gray levels that are resized already.

        Args:
            gray: `(batch, 1, height, width)` uint8, what this processor gives without `do_rescale` and `do_normalize`.
        """
        return self.rescale_and_normalize(
            gray, self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        )

    def fetch_images(self, images: Any) -> Any:
        """Opens paths with PIL, so that a 16-bit file is seen as such and not saturated on the way."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str):
            with Image.open(images) as image:
                image.load()
                return image
        return images

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        images = self.fetch_images(images)
        if isinstance(images, (list, tuple)):
            return [_with_channel_axis(image) for image in images]
        return make_flat_list_of_images(_with_channel_axis(images), expected_ndims=expected_ndims)

    def process_image(
        self,
        image: Any,
        input_data_format: str | ChannelDimension | None = None,
        device: "torch.device | str | None" = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One image as a uint8 tensor of shape `(1, height, width)`."""
        gray = _gray_from_pil(image) if isinstance(image, Image.Image) else _gray_from_array(image, input_data_format)
        if gray.numel() == 0:
            raise ValueError(f"The image has no pixels: {_EXPECTED}.")
        return gray if device is None else gray.to(device)

    def rescale_and_normalize(
        self,
        images: torch.Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
    ) -> torch.Tensor:
        """Gray levels `(batch, 1, h, w)` to model input `(batch, channels, h, w)`; unchanged if neither step is on."""
        if not (do_rescale or do_normalize):
            return images
        images = images.repeat(1, len(image_mean), 1, 1)
        return super().rescale_and_normalize(images, do_rescale, rescale_factor, do_normalize, image_mean, image_std)


def _cropped(side: int, crop: int) -> tuple[int, int]:
    """First pixel, and that behind the last one, of a crop in the middle, as the base class takes it."""
    first = -((crop - side) // 2) if crop > side else (side - crop) // 2
    return first, first + crop


def _with_channel_axis(image: Any) -> Any:
    return image[None] if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 2 else image


def _gray_from_pil(image: Image.Image) -> torch.Tensor:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"The image has mode {image.mode}, more than 8 bits: {_EXPECTED}. "
            "chexpert_hf.data.radiograph.read_radiograph reads such files without clipping."
        )
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("L")))[None]


def _gray_from_array(image: Any, input_data_format: str | ChannelDimension | None) -> torch.Tensor:
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise ValueError(f"Got {type(image).__name__}; {_EXPECTED}.")
    tensor = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if tensor.dtype != torch.uint8:
        raise ValueError(f"Got values of type {image.dtype}; {_EXPECTED}.")
    if tensor.ndim != 3 or not {1, 3} & {tensor.shape[0], tensor.shape[-1]}:
        raise ValueError(f"Got an array of shape {tuple(tensor.shape)}; {_EXPECTED}.")
    layout = input_data_format or infer_channel_dimension_format(tensor, num_channels=(1, 3))
    if layout == ChannelDimension.LAST:
        tensor = tensor.permute(2, 0, 1)
    if tensor.shape[0] == 1:
        return tensor
    red, green, blue = tensor.to(torch.int32)
    gray = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16
    return gray.to(torch.uint8)[None]


CheXpertImageProcessor.register_for_auto_class()
