"""The steps before the network: read a radiograph, resize its gray levels to the network's input, ask the gate."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from chexpert_hf.errors import printable
from chexpert_hf.gate import Gate, GateInput, Verdict
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.radiographs.archives import ArchiveMember, source_of
from chexpert_hf.radiographs.grey_levels import naming
from chexpert_hf.radiographs.radiograph import Radiograph, RadiographSource, open_radiograph


@dataclass(frozen=True)
class Prepared:
    """A radiograph at the network's input size; its gray levels are not yet normalised.

    Attributes:
        gray: Gray levels `(1, height, width)`, a tensor for each member of the classifier.
        size: (width, height) of the radiograph in pixels, before resizing.
        notes: A line for each part of the file that was replaced or ignored in reading it, such as an unusable window.
        gate_input: The image for the gate; None if the gate shall not check it, or has checked it already.
        verdict: The gate's verdict; None if it has not checked the image yet, or never will.
        source: The input that it was read from, such as a path, kept for drawing pictures later; None if not kept.
    """

    gray: tuple[Tensor, ...]
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    gate_input: GateInput | None = None
    verdict: Verdict | None = None
    source: RadiographSource | None = None


@dataclass(frozen=True)
class Preparation:
    """Reads and prepares radiographs for a classifier; it holds no model, so it can be sent to another process.

    Attributes:
        processors: The image processor of each member of the classifier.
        gate: The classifier's gate, if it has one.
    """

    processors: tuple[CheXpertImageProcessor, ...]
    gate: Gate | None = None

    def read(self, source: RadiographSource | ArchiveMember) -> Radiograph:
        """Read a radiograph; a large JPEG is scaled down while it is decoded, but not below the networks' input size.

        Raises:
            RadiographError: If it cannot be read; the message names the file without its folder.
        """
        sides = [processor.decoded_side for processor in self.processors]
        target = None if None in sides else max(filter(None, sides))
        with naming(name_of(source)):
            content = source_of(source) if isinstance(source, ArchiveMember) else source
            return open_radiograph(content, target_size=target, with_colour=self.gate is not None)

    def prepare(self, radiograph: Radiograph | Image.Image, *, for_gate: bool = False) -> Prepared:
        """Resize one radiograph for the networks; thread-safe.

        Args:
            radiograph: From `read`, or an image.
            for_gate: Whether to prepare the input of the gate, too, if there is one.
        """
        radiograph = open_radiograph(radiograph)
        gray = tuple(gray_levels(processor, radiograph.image) for processor in self.processors)
        gate_input = self.gate.prepare(radiograph) if for_gate and self.gate else None
        return Prepared(gray, radiograph.original_size, radiograph.notes, gate_input)

    def verdicts(self, radiographs: Sequence[Prepared]) -> list[Verdict | None]:
        """Return a verdict for each radiograph; None for those that the gate does not check.

        If a radiograph has a `gate_input`, the gate checks it now. Otherwise its stored `verdict` is returned.
        """
        inputs = [one.gate_input for one in radiographs if one.gate_input is not None]
        judged = iter(self.gate.judge_batch(inputs) if self.gate else ())
        return [one.verdict if one.gate_input is None else next(judged, None) for one in radiographs]


def gray_levels(processor: CheXpertImageProcessor, image: Image.Image) -> Tensor:
    """Return an image's gray levels `(1, height, width)` at the network's input size, not yet normalised."""
    return processor(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]


def name_of(source: object) -> str:
    """Return the file name of a source, without its folder; empty if it has none, such as an array."""
    path = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", "")
    return printable(Path(path).name) if isinstance(path, (str, os.PathLike)) else ""
