"""Look-up in a model's config of how an observation was calibrated, or its operating point chosen."""

from collections.abc import Mapping
from typing import Any


def record_of(records: Mapping[str, Any] | None, observation: str) -> Mapping[str, Any] | None:
    """Return the latest record about an observation, or None if there is none.

    Args:
        records: `calibration` or `operating_points_source` of a config: the latest record, which may hold the previous
            one as `earlier`. Records with the observation in their `left_out` are passed over.
        observation: One of the model's.
    """
    while records and observation in records.get("left_out", ()):
        records = records.get("earlier")
    return records
