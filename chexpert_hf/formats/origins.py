"""Origins of imported models, from `origins.yaml`: source, data, licence, limits and citations."""

from typing import Any

from chexpert_hf.files import data_beside
from chexpert_hf.publishing.data_terms import ImportedFrom


def origin_of(*names: str, **gaps: str) -> ImportedFrom:
    """Merge the entries `names` of `origins.yaml`; a field that several of the entries have is taken from the last one.

    `gaps` gives the text for each {placeholder} in the entries, such as `source="weights.pth"` for {source}.
    """
    entries = data_beside(__file__)
    values: dict[str, Any] = {key: value for name in names for key, value in entries[name].items()}
    return ImportedFrom(
        **{key: value.format(**gaps) if isinstance(value, str) else value for key, value in values.items()}
    )
