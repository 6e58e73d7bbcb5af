"""Look-up in the records that a model's config keeps of its calibrations and of the choices of its operating points."""

from collections.abc import Mapping
from typing import Any


def record_of(records: Mapping[str, Any] | None, observation: str) -> Mapping[str, Any] | None:
    """The latest record that covers an observation, or None if there is none.

    Args:
        records: `calibration` or `operating_points_source` of a config. Its `left_out` names the observations that it
            does not cover; for these, the record in its `earlier` holds.
        observation: One of the model's.
    """
    while records and observation in records.get("left_out", ()):
        records = records.get("earlier")
    return records
