"""The texts of the page, such as the meaning of a map."""

from collections.abc import Mapping
from typing import Any

FORMATS = "DICOM, JPEG, PNG (8 or 16 bits), TIFF, BMP or WebP, with or without a suffix."
EXPIRED = "The radiographs of this page have been deleted after a while without use; upload them again."
NO_GATE = "This model cannot tell whether an image is a chest radiograph: it gives scores for any image."
RADIOGRAPHS_NOTE = "RG1 is a public sample radiograph of NEMA, from the package pydicom-data."
DRAWINGS_NOTE = "Drawings are synthetic and show no patient; only those whose finding this model detects are here."
NO_METRICS = "No metrics come with this model."
PRIVACY = "Uploaded files are deleted after ten minutes, results within an hour; nothing is recorded."


def describe_map_evaluation(evaluation: Mapping[str, Any] | None) -> str:
    """States whether the maps point at findings, from `CheXpertConfig.map_evaluation`; empty without one."""
    if not evaluation:
        return ""
    hits, constant = (f"{evaluation[name]:.0%}".replace("%", " %") for name in ("hit_rate", "constant_point"))
    measured = (
        f"the maximum of the map lay in {hits} of {evaluation['n']:,} marked findings, the best constant point in "
        f"{constant} (reference: {evaluation['reference']})."
    )
    if evaluation["hit_rate"] > evaluation["constant_point"]:
        return f"When these maps were tested, {measured}"
    return f"These maps did not point at findings when tested: {measured}"


def only_first(name: str, num_others: int) -> str:
    """A note that only one of several files was scored, and where to upload the others."""
    others = "1 other file was" if num_others == 1 else f"{num_others:,} other files were"
    return (
        f"This tab scores one image: {name}. {others} not read; give all of them to “Many images”, or to “A study” if "
        "they are views of one study."
    )


def describe_map(observation: str, peak: float) -> str:
    """Describes an observation's map by its peak in [0, 1], where 1 is the strongest evidence for any observation."""
    if peak <= 0:
        return f"The map is empty: nothing in this radiograph is evidence for {observation}."
    if peak >= 1:
        return "The strongest evidence for any observation in this radiograph is in this map."
    share = "under 1 %" if peak < 0.01 else f"{min(round(peak * 100), 99)} %"
    return (
        f"At its brightest, the map reaches {share} of the strongest evidence for any observation in this radiograph."
    )
