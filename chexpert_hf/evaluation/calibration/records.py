"""Looks up in a model's config how an observation was calibrated, or how its operating point was chosen."""

from collections.abc import Mapping
from typing import Any


def record_of(records: Mapping[str, Any] | None, observation: str) -> Mapping[str, Any] | None:
    """Return the latest record about an observation, or None if there is none.

    Args:
        records: The field `calibration` or `operating_points_source` of a model's config. It is the record of the last
            run; its key `earlier`, if any, holds the record of the run before, and so on. Records with the
            observation in their `left_out` are skipped.
        observation: The name of one of the model's observations.
    """
    while records and observation in records.get("left_out", ()):
        records = records.get("earlier")
    return records
