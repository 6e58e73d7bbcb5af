"""Drawing primitives of the phantoms: antialiased shapes, smooth curves and clouds, as float arrays."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Floats = NDArray[np.float32]
Points = NDArray[np.floating]
Generator = np.random.Generator

_OVERSAMPLING = 2


class Layer:
    """An image of shapes with values in [0, 1]; each shape replaces those that were drawn before it.

    It is drawn at twice the resolution for antialiased edges. All positions and lengths are in pixels of the final
    image.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._image = Image.new("L", (shape[1] * _OVERSAMPLING, shape[0] * _OVERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Points, value: float) -> None:
        """Fill the polygon with the corners `points`, `(n, 2)` as x, y."""
        self._draw.polygon((points * _OVERSAMPLING).ravel().tolist(), fill=round(255 * value))

    def line(self, points: Points, width: float, value: float) -> None:
        """Draw a line of this width through `points`, `(n, 2)` as x, y."""
        if round(width * _OVERSAMPLING) > 4:  # Pillow leaves wedges open at the joints of wide lines
            self.polygon(ribbon(points, width), value)
        else:
            self.lines(points[None], width, value)

    def lines(self, segments: Points, width: float, value: float) -> None:
        """Draw thin lines, `(num_lines, num_points, 2)` as x, y, all of one width and value."""
        pixels = max(1, round(width * _OVERSAMPLING))
        for coordinates in (segments * _OVERSAMPLING).reshape(len(segments), -1).tolist():
            self._draw.line(coordinates, fill=round(255 * value), width=pixels)

    def tube(self, points: Points, width: float | Points, rim: float, core: float, cortex: float = 1.0) -> None:
        """Draw a tube or long bone along `points`, `(n, 2)` as x, y, as X-rays show it: two walls with space between.

        `width` is the outer width and `cortex` the thickness of each wall, in pixels. The walls have the value `rim`,
        the space the value `core`.
        """
        self.polygon(ribbon(points, width), rim)
        self.polygon(ribbon(points, np.maximum(np.asarray(width) - 2 * cortex, 0.5)), core)

    def disk(self, centre: Sequence[float] | Points, radius: float | tuple[float, float], value: float) -> None:
        """Fill an ellipse around `centre` (x, y); `radius` is one number, or two along x and y."""
        rx, ry = radius if isinstance(radius, tuple) else (radius, radius)
        x, y = float(centre[0]), float(centre[1])
        box = [side * _OVERSAMPLING for side in (x - rx, y - ry, x + rx, y + ry)]
        self._draw.ellipse(box, fill=round(255 * value))

    def array(self, softness: int = 1) -> Floats:
        """Return the layer, `(height, width)` in [0, 1], with edges softened over about `softness` pixels."""
        values = np.asarray(self._image.reduce(_OVERSAMPLING * softness), dtype=np.float32)
        values = values if softness == 1 else np.maximum(enlarge(values, self._shape), 0)
        return values * np.float32(1 / 255)


def ribbon(points: Points, width: float | Points) -> Points:
    """Return the outlines of bands around lines, as polygons with `(..., 2 n, 2)` corners.

    `points` are the lines, `(..., n, 2)` as x, y; `width` is one number or one per point.
    """
    padded = np.concatenate([points[..., :1, :], points, points[..., -1:, :]], axis=-2)
    tangents = padded[..., 2:, :] - padded[..., :-2, :]
    scale = np.asarray(width) / (2 * np.maximum(np.hypot(tangents[..., 0], tangents[..., 1]), 1e-6))
    offsets = tangents[..., ::-1] * scale[..., None] * np.array([-1.0, 1.0])
    return np.concatenate([points + offsets, (points - offsets)[..., ::-1, :]], axis=-2)


def smooth_path(points: Sequence[tuple[float, float]] | Points, num: int = 24) -> Points:
    """Return a smooth line, `(num, 2)`, near the given corners and through the first and last of them."""
    path = resampled(np.asarray(points, dtype=np.float64), num)
    rounded = ndimage.gaussian_filter1d(path, num / len(points) / 2.2, axis=0, mode="nearest")
    rounded[0], rounded[-1] = path[0], path[-1]
    return rounded


def resampled(points: Points, num: int) -> Points:
    """Return the line through `points` as `num` points, `(num, 2)`, equally many on each segment."""
    at = np.linspace(0, len(points) - 1, num)
    return np.stack([np.interp(at, np.arange(len(points)), points[:, axis]) for axis in (0, 1)], axis=1)


def curve(at: Points, knots: Sequence[tuple[float, float]], smoothing: float) -> Floats:
    """Return the values `(n,)` of a smooth curve at the positions `at`, which are equally spaced.

    The curve follows `knots`, pairs (position, value) with ascending positions: straight lines between them, whose
    corners are rounded by a Gaussian. `smoothing` is its standard deviation, in steps of `at`.
    """
    positions, values = zip(*knots, strict=True)
    return ndimage.gaussian_filter1d(np.interp(at, positions, values), smoothing, mode="nearest").astype(np.float32)


def cloud(rng: Generator, shape: tuple[int, int], scale: float) -> Floats:
    """Return smooth noise, `(height, width)`, of zero mean, unit variance and structures of about `scale` pixels."""
    coarse = (int(2 * shape[0] / scale) + 2, int(2 * shape[1] / scale) + 2)
    # Smoothed while it is small, so that interpolation leaves no visible grid; its deviation is 0.28 then.
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), 1.0, truncate=3.0)
    return enlarge(noise * np.float32(1 / 0.28), shape)


def enlarge(array: Floats, shape: tuple[int, int]) -> Floats:
    """Resize a float array to `shape` (height, width) by bilinear interpolation."""
    return np.asarray(Image.fromarray(array).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def distance_from(shape: tuple[int, int], centre: Points, radii: tuple[float, float], angle: float) -> Floats:
    """Return how far each pixel is from the centre of an ellipse, `(height, width)`: 0 there, 1 on the ellipse itself.

    `shape` is the (height, width) of the image and `centre` is (x, y). `radii` are the semi-axes along x and y, in
    pixels, before the ellipse is turned by `angle` radians.
    """
    x = np.arange(shape[1], dtype=np.float32)[None, :] - np.float32(centre[0])
    y = np.arange(shape[0], dtype=np.float32)[:, None] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = (x * cos + y * sin) / np.float32(radii[0]), (y * cos - x * sin) / np.float32(radii[1])
    return np.sqrt(along * along + across * across)


def smooth_step(array: Points, low: float, high: float) -> Floats:
    """Return 0 below `low`, 1 above `high`, smoothly between; if `high < low`, 1 below `high` and 0 above `low`."""
    t = np.clip((array - np.float32(low)) / np.float32(high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32, copy=False)
