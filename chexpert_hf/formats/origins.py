"""Origins of imported models, from `origins.yaml`: source, data, licence, limits and citations."""

from typing import Any

from chexpert_hf.files import data_beside
from chexpert_hf.publishing.data_terms import ImportedFrom


def origin_of(*names: str, **gaps: str) -> ImportedFrom:
    """Merge entries of `origins.yaml`, later ones overriding earlier; `gaps` fill the {placeholders} in their texts."""
    entries = data_beside(__file__)
    values: dict[str, Any] = {key: value for name in names for key, value in entries[name].items()}
    return ImportedFrom(
        **{key: value.format(**gaps) if isinstance(value, str) else value for key, value in values.items()}
    )
