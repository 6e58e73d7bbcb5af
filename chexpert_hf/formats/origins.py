"""The origins of models that others trained: sources, data, licences, limits and citations, from `origins.yaml`."""

from typing import Any

from chexpert_hf.files import data_beside
from chexpert_hf.publishing.data_terms import ImportedFrom


def origin_of(*names: str, **gaps: str) -> ImportedFrom:
    """Joins entries of the file, of which a later one prevails; `gaps` are the texts for the {gaps} in it."""
    entries = data_beside(__file__)
    values: dict[str, Any] = {key: value for name in names for key, value in entries[name].items()}
    return ImportedFrom(
        **{key: value.format(**gaps) if isinstance(value, str) else value for key, value in values.items()}
    )
