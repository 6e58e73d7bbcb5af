"""From water-equivalent thickness to an 8-bit radiograph: tone curve, blur, noise, collimation and markers."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from chexpert_hf.phantoms.drawing import Floats, Generator, enlarge

_font = lru_cache(maxsize=16)(ImageFont.load_default)


def expose(thickness: Floats, rng: Generator, projection: str, fat: float) -> Floats:
    """Turns thickness, `(height, width)` in cm of water, into grey levels in [0, 255].

    The exposure is drawn from `rng`; it follows the patient's build (`fat`), as automatic exposure control does, and
    portable AP views are noisier, softer and flatter.
    """
    is_ap, is_lateral = projection == "AP", projection == "Lateral"
    centre = float(12.4 + 4.4 * fat + 2.2 * is_lateral + rng.normal(0, 0.55))  # shown as mid grey
    latitude = float(rng.uniform(2.6, 3.3) + 0.45 * is_ap + 0.3 * is_lateral)
    noise = float(rng.uniform(1.6, 3.6) + 1.2 * is_ap + 2.0 * fat)  # standard deviation at mid grey, in grey levels
    blur = float(rng.uniform(0.45, 0.75) + 0.2 * is_ap)  # of focal spot and motion, in pixels
    detail = float(rng.uniform(0.25, 0.6))  # strength of the unsharp masking that computed radiography applies
    noise_rng = np.random.default_rng(int(rng.integers(2**31)))
    grey = 1 / (1 + np.exp((np.float32(centre) - thickness) / np.float32(latitude))) * np.float32(255)
    small = np.asarray(Image.fromarray(grey).reduce(6))
    grey += np.float32(detail) * (grey - enlarge(ndimage.gaussian_filter(small, 3.0), (grey.shape[0], grey.shape[1])))
    # Fewer photons reach the detector where the patient is thick; blurring below halves the deviation.
    sigma = np.float32(2.0 * noise) * (0.35 + grey * np.float32(0.65 / 255))
    # Uniform noise is four times as fast to draw, and Gaussian enough once it is blurred.
    grey += sigma * np.float32(12**0.5) * (noise_rng.random(grey.shape, dtype=np.float32) - np.float32(0.5))
    return ndimage.gaussian_filter(grey, blur, truncate=3.0)


def collimate(grey: Floats, rng: Generator) -> Floats:
    """Blackens what the collimator's blades covered: on some images a border, now and then slanted."""
    if rng.random() < 0.55:
        return grey
    height, width = grey.shape
    inset = rng.uniform(0, 0.045, 4) * (rng.random(4) < 0.7)
    slant = rng.normal(0, 0.008, 4)
    left, right = inset[0] * width, (1 - inset[1]) * width
    top, bottom = inset[2] * height, (1 - inset[3]) * height
    corners = [
        (left + slant[0] * height, top), (right + slant[1] * height, top + slant[2] * width),
        (right, bottom), (left, bottom + slant[3] * width),
    ]  # fmt: skip
    field = Image.new("L", (width, height), 8)
    ImageDraw.Draw(field).polygon(corners, fill=255)
    return grey * (np.asarray(field, dtype=np.float32) * np.float32(1 / 255))


def stamp_marker(grey: Floats, rng: Generator, projection: str) -> Floats:
    """Places the side marker, an L on the patient's left or an R on the right, and perhaps the projection beside it."""
    height, width = grey.shape
    is_left = projection == "Lateral" or rng.random() < 0.75
    size = int(rng.integers(15, 23))
    plate = Image.new("L", (96, 96))
    draw = ImageDraw.Draw(plate)
    style = rng.choice(["plain", "ring", "initials"])
    if style == "ring":
        draw.circle((48, 48), size * 0.75, outline=255, width=2)
    draw.text((48, 48), "L" if is_left else "R", fill=255, font=_font(size), anchor="mm")
    if style == "initials":
        letters = "".join(rng.choice(list("ABCDEFGHJKMNPSTVW"), 2))
        draw.text((48, 48 + size), letters, fill=235, font=_font(9), anchor="mm")
    if projection == "AP" and rng.random() < 0.7:
        text = str(rng.choice(["AP", "PORTABLE", "AP PORTABLE", "SUPINE", "UPRIGHT"]))
        draw.text((48, 48 + 1.9 * size), text, fill=245, font=_font(9), anchor="mm")
    plate = plate.rotate(float(rng.normal(0, 5)), Image.Resampling.BILINEAR)
    x = rng.uniform(0.87, 0.92) * width if is_left else rng.uniform(0.08, 0.13) * width
    y = rng.uniform(0.08, 0.3) * height
    left, top = round(x) - 48, round(y) - 48
    rows, columns = slice(max(top, 0), min(top + 96, height)), slice(max(left, 0), min(left + 96, width))
    ink = np.asarray(plate, dtype=np.float32) * np.float32(1 / 255)
    part = ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    grey[rows, columns] = grey[rows, columns] * (1 - part) + 248 * part
    return grey
