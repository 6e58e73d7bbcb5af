"""`Prediction`: the scores of one radiograph, as values, text, HTML for notebooks, and a figure."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from PIL import Image

from chexpert_hf import DISCLAIMER
from chexpert_hf.gate import Verdict
from chexpert_hf.labels import CHEXPERT, LabelSet
from chexpert_hf.radiographs.radiograph import RadiographError, RadiographSource, read_radiograph
from chexpert_hf.scoring.saliency import NoMaps, SaliencyMaps, overlay, unknown_observation

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_SHOWN = 3  # observations in the repr, of the positive and of the other ones
_HTML_SIDE, _FIGURE_SIDE = 360, 1024
_POSITIVE, _BELOW = "#c2410c", "#64748b"


ValueT = TypeVar("ValueT")


class ByObservation(dict[str, ValueT]):
    """A dictionary by observation; the KeyError for an unknown name lists the observations."""

    def __missing__(self, observation: str) -> ValueT:
        raise unknown_observation(observation, self)


@dataclass(frozen=True, repr=False)
class Prediction:
    """The scores of one radiograph.

    Attributes:
        probabilities: Probability of each observation, in [0, 1], in the model's order.
        positives: Whether each probability is at least the observation's operating point.
        saliency: If requested, a map `(height, width)` of each observation, of the radiograph's size, in [0, 1]:
            1 is the strongest evidence for any observation in this radiograph, and a map without positive evidence is 0
            everywhere. Otherwise an empty mapping; looking up an observation raises ValueError.
        notes: A line for each part of the file that was replaced or ignored in reading it, such as an unusable window.
        gate: The gate's verdict on whether the image is a chest radiograph; None without a gate, or if the radiograph
            was not prepared for the gate.
        operating_points: Lowest probability at which each observation is called positive.
        labels: The model's observations with their definitions.
        source: The input of `predict`, to be read again for pictures; None if it cannot be (open file, member of an
            archive) or if prepared radiographs were scored.
    """

    probabilities: Mapping[str, float]
    positives: Mapping[str, bool]
    saliency: SaliencyMaps | NoMaps = field(default_factory=NoMaps)
    notes: tuple[str, ...] = ()
    gate: Verdict | None = None
    operating_points: Mapping[str, float] = field(default_factory=dict)
    labels: LabelSet = CHEXPERT
    source: RadiographSource | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("probabilities", "positives", "operating_points"):
            object.__setattr__(self, name, ByObservation(getattr(self, name)))

    def __repr__(self) -> str:
        parts = []
        for title, is_positive in (("positive", True), ("below", False)):
            chosen = [row for row in self._rows() if row.is_positive is is_positive]
            if chosen:
                more = f" and {len(chosen) - _SHOWN} more" if len(chosen) > _SHOWN else ""
                shown = ", ".join(f"{row.observation} {row.probability:.2f}" for row in chosen[:_SHOWN])
                parts.append(f"{title}: {shown}{more}")
        if self.gate is not None:
            parts += [f"warning: {text.removesuffix('.')}" for text in self.gate.messages]
        return f"Prediction({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        loader = FileSystemLoader(Path(__file__).with_name("templates"))
        template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(
            "prediction.html"
        )
        pictures = [(title, _data_url(picture)) for title, picture in self._pictures(None, _HTML_SIDE)]
        colors = {"positive_color": _POSITIVE, "below_color": _BELOW}
        return template.render(prediction=self, rows=self._rows(), pictures=pictures, disclaimer=DISCLAIMER, **colors)

    def display_order(self) -> list[str]:
        """Return the observations for display: first the positive ones, then the others, each by falling probability.

        The observation "No Finding", or its equivalent in other label sets, is excluded, since its map means nothing.
        If it is the only observation, it is returned.
        """
        names = sorted(by_probability(self.probabilities), key=lambda name: not self.positives[name])
        return [name for name in names if name != self.labels.none_of_these] or names

    def sorted_positives(self) -> list[str]:
        """Return the positive observations by falling probability, except No Finding or its equivalent."""
        without = self.labels.none_of_these
        return [name for name in by_probability(self.probabilities) if self.positives[name] and name != without]

    def plot(self, observation: str | None = None) -> "Figure":
        """Draw the radiograph, the map of an observation, and all scores with their operating points.

        If `source` cannot be read again, only the scores are drawn; without maps, only the radiograph and the scores.

        Args:
            observation: The observation whose map to show. If None, the most probable of the positive observations is
                chosen, or of all observations if none is positive; No Finding only if there is no other observation.

        Raises:
            ValueError: If an observation is given, and maps were not requested.
            KeyError: If the model has no such observation.
        """
        if observation is not None:
            self.maps.peak(observation)  # raises ValueError or KeyError
        return _figure(self._pictures(observation, _FIGURE_SIDE), self._rows()[::-1])

    def overlay(self, observation: str, opacity: float = 0.5) -> Image.Image:
        """Draw the map of an observation over the radiograph at its full size; warn if the map is empty.

        Raises:
            ValueError: If maps were not requested, or the source of the radiograph cannot be read again.
            KeyError: If the model has no such observation.
        """
        image = self._radiograph(None)
        if image is None:
            raise ValueError("The radiograph is not known any more; predict it again.")
        maps = self.maps.at_size(image.size)
        if maps.is_empty(observation):
            warnings.warn(f"The map of {observation} is empty: there is no positive evidence for it.", stacklevel=2)
        return overlay(image, maps[observation], opacity)

    def to_dict(self) -> dict[str, Any]:
        """Return all but maps, labels and source in plain types for JSON.

        JSON has no infinity: the `distance` of the gate's verdict is None if it was not computed.
        """
        verdict = None
        if self.gate is not None:
            verdict = asdict(self.gate) | {"distance": self.gate.distance if isfinite(self.gate.distance) else None}
        return {
            "probabilities": dict(self.probabilities),
            "positives": dict(self.positives),
            "operating_points": dict(self.operating_points),
            "notes": list(self.notes),
            "gate": verdict,
        }

    def to_pandas(self) -> "DataFrame":
        """Return a table indexed by observation: positive ones first, then by falling probability.

        Its columns are `probability`, `operating_point` and `is_positive`.
        """
        import pandas as pd

        return pd.DataFrame(self._rows()).set_index("observation")

    @property
    def maps(self) -> SaliencyMaps:
        """The saliency maps; raises ValueError if they were not requested."""
        if isinstance(self.saliency, NoMaps):
            raise ValueError(NoMaps.ERROR)
        return self.saliency

    def _rows(self) -> "list[_Row]":
        """Return a row per observation: positive ones first, then by falling probability."""
        rows = [
            _Row(name, probability, self.operating_points.get(name), self.positives[name])
            for name, probability in self.probabilities.items()
        ]
        return sorted(rows, key=lambda row: (not row.is_positive, -row.probability))

    def _pictures(self, observation: str | None, side: int) -> list[tuple[str, Image.Image]]:
        """Return (title, picture) for the radiograph, and for the radiograph with the map of an observation over it.

        If `observation` is None, the first in `display_order` is taken. Each picture's longer side is at most `side`
        pixels. Without maps, only the radiograph is returned; if the radiograph cannot be read again, nothing is.
        """
        image = self._radiograph(side)
        if image is None:
            return []
        if isinstance(self.saliency, NoMaps):
            return [("Radiograph", image)]
        name = observation or self.display_order()[0]
        title = f"Map of {name}" + (": empty, no positive evidence" if self.saliency.is_empty(name) else "")
        return [("Radiograph", image), (title, overlay(image, self.saliency.at_size(image.size)[name]))]

    def _radiograph(self, side: int | None) -> Image.Image | None:
        """Read the radiograph again, at most `side` pixels large; None if `source` is None or cannot be read."""
        if self.source is None:
            return None
        try:
            image = read_radiograph(self.source, target_size=side).copy()  # the source may be the image itself
        except RadiographError:
            return None
        if side is not None:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image


def by_probability(probabilities: Mapping[str, float]) -> list[str]:
    """Sort observations by falling probability; among equal ones, those of CheXpert come first, in CheXpert's order."""
    return sorted(CHEXPERT.in_order(probabilities), key=lambda name: -probabilities[name])


class _Row(NamedTuple):
    """The scores of one observation; `operating_point` is None if the prediction has none for it."""

    observation: str
    probability: float
    operating_point: float | None
    is_positive: bool


def _figure(pictures: Sequence[tuple[str, Image.Image]], rows: Sequence[_Row]) -> "Figure":
    """Draw the pictures side by side under their titles, then a bar for each row; the first row is at the bottom."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that notebooks show without pyplot."""

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream)
            return stream.getvalue()

    height = max(3.2, 0.28 * len(rows) + 0.9)
    figure = ShownFigure(figsize=(3.4 * len(pictures) + 4.6, height), dpi=110, layout="constrained")
    *shown, bars = figure.subplots(1, len(pictures) + 1, squeeze=False, width_ratios=[1] * len(pictures) + [1.1])[0]
    for axes, (title, picture) in zip(shown, pictures, strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    places = range(len(rows))
    colors = [_POSITIVE if row.is_positive else _BELOW for row in rows]
    bars.barh(places, [row.probability for row in rows], color=colors, height=0.62)
    for place, row in zip(places, rows, strict=True):
        bars.text(1.02, place, f"{row.probability:.2f}", va="center", fontsize=9)
        if row.operating_point is not None:
            bars.plot([row.operating_point] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.4)
    bars.set_yticks(places, [row.observation for row in rows], fontsize=9)
    bars.set_xlim(0, 1)
    bars.set_xlabel("Probability; the black mark is the operating point,\nbars that reach it are orange", fontsize=8)
    for side in ("top", "right"):
        bars.spines[side].set_visible(False)
    return figure


def _data_url(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
