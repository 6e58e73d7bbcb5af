"""The image processor, which turns a radiograph into `pixel_values`.

Its steps: grayscale, upright by EXIF, crop, resize, gray range, rescale to [0, 1], normalise, repeat over channels.
Unless `resize_like` is set, gray levels are computed in 8 bits by Pillow or this file, so that every machine gives the
same pixel values. This file is copied into saved models. To read DICOM and 16-bit files, use
`chexpert_hf.radiographs.radiograph.read_radiograph` first.
"""

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    infer_channel_dimension_format,
    make_flat_list_of_images,
)
from transformers.processing_utils import ImagesKwargs

# ITU-R 601 luma in 16-bit fixed point, as in PIL's convert("L"): an RGB file gives the same gray from PIL and tensors.
_LUMA = (19595, 38470, 7471)

_EXPECTED = (
    "expected an 8-bit image: a PIL image, a uint8 array or tensor of shape (height, width), (channels, height, width) "
    "or (height, width, channels) with 1 or 3 channels, or a list of them"
)

SCIKIT_IMAGE = "scikit-image"
# scikit-image pads an image with 0, the middle gray of torchxrayvision's scale of [-1024, 1024].
_OUTSIDE = 127.5
_TRUNCATE = 4.0  # radius of scipy's Gaussian filter, in standard deviations

# Fraction of each side that is ignored for the gray range: borders, collimators and side markers lie there.
_MARGIN = 0.1
_WHITE = 255
_EXPONENTS = (1 / 3, 3.0)  # bounds: a stronger gamma would turn noise in nearly uniform images into structure


class CheXpertImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """The options of this processor in addition to those of all image processors of transformers.

    Attributes:
        do_square_crop: Whether to crop the longer side to the shorter one, in the middle, before resizing.
        resize_like: "scikit-image" for resizing as `skimage.transform.resize` does, without rounding the gray levels;
            None for Pillow's antialiased resizing of 8-bit images.
        gray_range: The arguments `low`, `high` and `median` of `to_gray_range`, which brings every image to one gray
            range; None leaves the gray levels as they are.
    """

    do_square_crop: bool | None
    resize_like: str | None
    gray_range: dict[str, float] | None


class CheXpertImageProcessor(TorchvisionBackend):
    """Turns 8-bit radiographs into `pixel_values` of shape `(batch, channels, height, width)`.

    The number of channels is the length of `image_mean`: three for ImageNet statistics, one for a single-channel model.
    The defaults are the paper's 320 x 320 pixels, without keeping the aspect ratio. `gray_range` is for models that
    have to generalise to other scanners and exports, `do_square_crop` and `resize_like` for models that were trained
    with torchxrayvision (see `CheXpertImageProcessorKwargs`).

    Raises:
        ValueError: If an image is not 8-bit, has 2, 4 or more channels as an array, or has no pixels.

    Source: Irvin et al. 2019, arXiv:1901.07031, section 3 (size); torchvision's DenseNet121 weights (mean and std).
    """

    valid_kwargs = CheXpertImageProcessorKwargs
    do_square_crop = False
    resize_like: str | None = None
    gray_range: dict[str, float] | None = None
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
        """The larger side of `size`, in pixels."""
        return max(side for side in dict(self.size).values() if side)

    @property
    def decoded_side(self) -> int | None:
        """The `target_size` for `read_radiograph`: the side in pixels to which images are resized.

        None if `resize_like` is set, for which images must be read at full size.
        """
        return None if self.resize_like else self.longest_side

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of the resulting `pixel_values`.

        Raises:
            ValueError: If the size depends on the image.
        """
        size = self.crop_size if self.do_center_crop else self.size if self.do_resize else None
        if not size or not size["height"] or not size["width"]:
            raise ValueError(f"The size of pixel_values depends on the image with size {self.size}; set crop_size.")
        return size["height"], size["width"]

    def seen_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of an image of `width` x `height` pixels that the model sees.

        Returns:
            Left, top, right and bottom in pixels of the image: all of it unless the processor crops. If the crop is
            larger than the image, the processor pads the image, and the box reaches beyond its edges.

        Raises:
            ValueError: If `do_pad` is set: the part would depend on the other images of the batch.
        """
        if self.do_pad:
            raise ValueError("do_pad is set, expected a processor that resizes and crops only.")
        square = _square(width, height) if self.do_square_crop else (0, 0, width, height)
        width, height = square[2] - square[0], square[3] - square[1]
        if not self.do_center_crop:
            return tuple(map(float, square))  # type: ignore[return-value]  # it has four values
        resized_height, resized_width = height, width
        if self.do_resize:
            resized_height, resized_width = self._resized_shape(height, width, self.size)
        left, right = _cropped(resized_width, self.crop_size["width"])
        top, bottom = _cropped(resized_height, self.crop_size["height"])
        x, y = width / resized_width, height / resized_height
        return square[0] + left * x, square[1] + top * y, square[0] + right * x, square[1] + bottom * y

    def pixel_values_of(self, gray: torch.Tensor) -> torch.Tensor:
        """Turn gray levels that are already resized into `pixel_values`: repeat over channels, rescale, normalise.

        Args:
            gray: `(batch, 1, height, width)`, the output of this processor if called with `do_rescale=False` and
                `do_normalize=False`: uint8, or float32 in [0, 255] if `resize_like` is set.
        """
        return self.rescale_and_normalize(
            gray, self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        )

    def fetch_images(self, images: Any) -> Any:
        """Open paths with PIL, so that 16-bit files are refused, not clipped to 8 bits; keep inputs of other types."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, (str, os.PathLike)):
            with Image.open(images) as image:
                image.load()
                return image
        return images

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        images = self.fetch_images(images)
        if isinstance(images, (list, tuple)):
            if not images:
                raise ValueError(f"Got an empty list; {_EXPECTED}.")
            return [one for image in images for one in self._prepare_images_structure(image, expected_ndims)]
        if not isinstance(images, (Image.Image, np.ndarray, torch.Tensor)):
            raise ValueError(f"Got {type(images).__name__}; {_EXPECTED}.")
        if not isinstance(images, Image.Image) and images.ndim == 2:
            images = images[None]  # the channel axis
        return make_flat_list_of_images(images, expected_ndims=expected_ndims)

    def process_image(
        self,
        image: Any,
        input_data_format: str | ChannelDimension | None = None,
        device: "torch.device | str | None" = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Convert one image to gray levels, a uint8 tensor of shape `(1, height, width)`."""
        gray = _gray_from_pil(image) if isinstance(image, Image.Image) else _gray_from_array(image, input_data_format)
        if gray.numel() == 0:
            raise ValueError(f"The image has no pixels: {_EXPECTED}.")
        return gray if device is None else gray.to(device)

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: Any,
        do_square_crop: bool = False,
        resize_like: str | None = None,
        gray_range: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> Any:
        if do_square_crop:
            boxes = [_square(image.shape[-1], image.shape[-2]) for image in images]
            images = [image[..., y0:y1, x0:x1] for image, (x0, y0, x1, y1) in zip(images, boxes, strict=True)]
        if resize_like not in (None, SCIKIT_IMAGE):
            raise ValueError(f"resize_like is {resize_like!r}, expected {SCIKIT_IMAGE!r} or none.")
        if do_resize and resize_like:
            if not size["height"] or not size["width"]:
                raise ValueError(f"resize_like needs a size of height and width, got {size}.")
            images = [_resize_like_scikit_image(image, size["height"], size["width"]) for image in images]
        elif do_resize and gray_range:
            images = [self.resize(image, size, kwargs.get("resample")) for image in images]
        if gray_range:
            images = [to_gray_range(image, **gray_range) for image in images]
        do_resize = do_resize and not (resize_like or gray_range)
        return super()._preprocess(images, do_resize=do_resize, size=size, **kwargs)

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, **kwargs: Any) -> torch.Tensor:
        """Resize uint8 gray levels `(..., height, width)` with Pillow, which rounds alike on every CPU.

        torchvision's antialiased resizing of 8-bit images differs by a level between instruction sets and versions.
        """
        height, width = self._resized_shape(image.shape[-2], image.shape[-1], size)
        method = PILImageResampling.BILINEAR if resample is None else _pil_method(resample)
        planes = [
            np.array(Image.fromarray(plane).resize((width, height), method))
            for plane in image.cpu().reshape(-1, *image.shape[-2:]).numpy()
        ]
        return torch.from_numpy(np.stack(planes)).reshape(*image.shape[:-2], height, width).to(image.device)

    def _resized_shape(self, height: int, width: int, size: Any) -> tuple[int, int]:
        """Return (height, width) after resizing to `size`, which may also be `shortest_edge` and the like."""
        if size["height"] and size["width"]:
            return size["height"], size["width"]
        # The meta device computes shapes only.
        empty = torch.empty(1, height, width, dtype=torch.uint8, device="meta")
        return tuple(super().resize(empty, size).shape[-2:])

    def rescale_and_normalize(
        self,
        images: torch.Tensor,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
    ) -> torch.Tensor:
        """Turn gray levels `(batch, 1, h, w)` into `pixel_values`; return them unchanged if both steps are off."""
        if not (do_rescale or do_normalize):
            return images
        images = images.repeat(1, len(image_mean), 1, 1)
        return super().rescale_and_normalize(images, do_rescale, rescale_factor, do_normalize, image_mean, image_std)


def to_gray_range(gray: torch.Tensor, low: float, high: float, median: float | None = None) -> torch.Tensor:
    """Stretch the gray levels of an image to a common range, since scanners and exports use different ones.

    The percentiles `low` and `high` become black and white; then a gamma gives the image the median `median`. All three
    are measured on the middle of the image, without the outer tenth on each side, where borders, collimators and
    markers lie. A uniform image stays as it is.

    Args:
        gray: `(..., height, width)` gray levels, uint8, of one image.
        low: Percentile that becomes black, such as .5.
        high: Percentile that becomes white, such as 99.5.
        median: New median, in (0, 1); None for no gamma.

    Raises:
        ValueError: If `low`, `high` or `median` is out of range, or the image is not uint8.
    """
    if not 0 <= low < high <= 100 or not (median is None or 0 < median < 1):
        raise ValueError(
            f"gray_range is low {low}, high {high}, median {median}; expected percentiles with low below high, and a "
            "median between 0 and 1 or none."
        )
    if gray.dtype != torch.uint8:
        raise ValueError(f"gray_range needs gray levels in uint8, got {gray.dtype}; leave out resize_like.")
    height, width = gray.shape[-2:]
    down, across = int(height * _MARGIN), int(width * _MARGIN)
    middle = gray[..., down : height - down, across : width - across]
    counts = np.bincount(middle.cpu().numpy().ravel(), minlength=_WHITE + 1).cumsum()
    ranks = np.maximum(counts[-1] * np.array([low, high, 50]) / 100, 1)
    darkest, brightest, typical = np.searchsorted(counts, ranks).tolist()
    if brightest <= darkest:
        return gray
    levels = np.clip((np.arange(_WHITE + 1) - darkest) / (brightest - darkest), 0, 1)
    if median is not None and 0 < levels[typical] < 1:
        levels = levels ** np.clip(np.log(median) / np.log(levels[typical]), *_EXPONENTS)
    table = (levels * _WHITE).round().astype(np.uint8)
    return torch.from_numpy(table[gray.cpu().numpy()]).to(gray.device)


def _resize_like_scikit_image(gray: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize `(1, h, w)` gray levels in [0, 255] to float32, like `skimage.transform.resize` in the mode "constant".

    That is a Gaussian filter, then bilinear interpolation. Both are linear in each axis, so a matrix per axis does it.
    Pixels outside the image are middle gray, which is 0 on torchxrayvision's scale of [-1024, 1024].
    """
    centred = gray.float() - _OUTSIDE
    rows, columns = (
        _resampling(old, new).to(centred.device) for old, new in zip(gray.shape[-2:], (height, width), strict=True)
    )
    resized = rows @ centred @ columns.T
    low, high = centred.min(), centred.max()
    if resized.min() <= 0 <= resized.max():  # pixels outside the image, which are 0, may contribute
        low, high = low.clamp(max=0), high.clamp(min=0)
    return resized.clamp(low, high) + _OUTSIDE


@lru_cache(maxsize=32)
def _resampling(old: int, new: int) -> torch.Tensor:
    """Return the matrix `(new, old)` that filters and interpolates along one axis, from `old` to `new` pixels.

    Source: scikit-image 0.26, `transform.resize`; scipy 1.17, `ndimage.gaussian_filter1d` and `ndimage.zoom` (with
    `grid_mode`, order 1 and mode "grid-constant").
    """
    factor = old / new
    sigma = max(0.0, (factor - 1) / 2)
    radius = int(_TRUNCATE * sigma + 0.5)
    gaussian = torch.exp(-0.5 * (torch.arange(radius + 2, dtype=torch.float64) / max(sigma, 1e-9)) ** 2)
    gaussian[-1] = 0  # beyond the radius
    gaussian /= 2 * gaussian[1:].sum() + 1
    places = (torch.arange(new, dtype=torch.float64) + 0.5) * factor - 0.5
    before = places.floor()
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for neighbour, weight in ((before, 1 - places + before), (before + 1, places - before)):
        weight = torch.where((neighbour >= 0) & (neighbour < old), weight, 0)  # the outside is not filtered
        distance = (torch.arange(old)[None, :] - neighbour.long()[:, None]).abs()
        matrix += weight[:, None] * gaussian[distance.clamp(max=radius + 1)]
    return matrix.float()


def _square(width: int, height: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the largest square in the middle, as torchxrayvision's `XRayCenterCrop`."""
    side = min(width, height)
    left, top = width // 2 - side // 2, height // 2 - side // 2
    return left, top, left + side, top + side


def _cropped(side: int, crop: int) -> tuple[int, int]:
    """Return start and end of a crop in the middle of a side, exactly as transformers' centre crop."""
    first = -((crop - side) // 2) if crop > side else (side - crop) // 2
    return first, first + crop


def _pil_method(resample: Any) -> PILImageResampling:
    """Return Pillow's resampling method, given its number, its name, or torchvision's `InterpolationMode`."""
    if isinstance(resample, int):
        return PILImageResampling(resample)
    name = str(getattr(resample, "value", resample)).upper()
    if name not in PILImageResampling.__members__:
        known = ", ".join(sorted(PILImageResampling.__members__)).lower()
        raise ValueError(f"resample is {resample!r}, expected a method of Pillow: {known}, or its number.")
    return PILImageResampling[name]


def _gray_from_pil(image: Image.Image) -> torch.Tensor:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"The image has mode {image.mode}, more than 8 bits: {_EXPECTED}. "
            "chexpert_hf.radiographs.radiograph.read_radiograph reads such files without clipping."
        )
    opaque = image
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        opaque = Image.alpha_composite(black, image.convert("RGBA"))
    return torch.from_numpy(np.array(_upright(opaque.convert("L"), image)))[None]


def _upright(gray: Image.Image, image: Image.Image) -> Image.Image:
    """Turn `gray`, the gray levels of `image`, upright by the EXIF orientation of `image`.

    transformers' pipelines do the same before they call the processor. Raises ValueError for damaged EXIF data.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except SyntaxError as error:
        raise ValueError(f"The image has damaged EXIF data ({error}): {_EXPECTED}; save it again.") from error
    if orientation not in range(2, 9):
        return gray
    gray.info = {}  # else `exif_transpose` would write damaged EXIF data back
    gray.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(gray)


def _gray_from_array(
    image: np.ndarray | torch.Tensor, input_data_format: str | ChannelDimension | None
) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if tensor.dtype != torch.uint8:
        raise ValueError(f"Got values of type {image.dtype}; {_EXPECTED}.")
    if tensor.ndim != 3 or not {1, 3} & {tensor.shape[0], tensor.shape[-1]}:
        raise ValueError(f"Got an array of shape {tuple(tensor.shape)}; {_EXPECTED}.")
    layout = input_data_format or infer_channel_dimension_format(tensor, num_channels=(1, 3))
    if layout == ChannelDimension.LAST:
        tensor = tensor.permute(2, 0, 1)
    if tensor.shape[0] not in (1, 3):
        raise ValueError(f"Got an array of shape {tuple(image.shape)} with {layout}; {_EXPECTED}.")
    if tensor.shape[0] == 1:
        return tensor
    red, green, blue = tensor.to(torch.int32)
    gray = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16
    return gray.to(torch.uint8)[None]


CheXpertImageProcessor.register_for_auto_class()
