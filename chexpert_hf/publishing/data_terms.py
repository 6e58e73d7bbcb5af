"""Terms, citations and reference standards of known data sets, recognised by their folder's name: `data_terms.yaml`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from chexpert_hf.evaluation.reference_standard import OWN_LABELS
from chexpert_hf.files import data_beside

CHEXPERT_CITATION = "irvin2019chexpert"  # source of the observations and of the policies for uncertain labels, too


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The licence of a model's weights, and the limits and citations of its data.

    Attributes:
        licence: Sentences on the use of the weights.
        license_id: In the Hub's vocabulary, such as "apache-2.0", or "other".
        license_name: For `license_id` "other": a short name with hyphens.
        limits: Sentences on known shortcomings.
        citations: Keys of `citations.bib`, or BibTeX entries.
    """

    licence: str
    license_id: str = "other"
    license_name: str | None = "terms-of-the-training-data"
    limits: Sequence[str] = ()
    citations: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ImportedFrom(Terms):
    """The source of a model that others trained: which weights, their training data, and changes made by the import.

    These three are phrases without a full stop.
    """

    source: str
    data: str
    conversion: str
    license_name: str | None = "terms-of-the-source"


def labels_name(data_name: str, split: str, num_patients: int, labels_by: Iterable[str | None] = ()) -> str:
    """The reference standard of a data set's own labels.

    It is what the rows say in their column `labels_by`; if they say nothing, it follows from the folder's name, the
    split and its number of patients.
    """
    if stated := sorted({name for name in labels_by if name}):
        return " and ".join(stated)
    entry = _entry(data_name)
    is_by_radiologists = entry.get("radiologists", {}).get(split) == num_patients
    return "majority of radiologists" if is_by_radiologists else str(entry.get("labels", OWN_LABELS))


def terms_of(data_names: Sequence[str]) -> Terms:
    """The terms of the data that folders' names stand for; an unknown name refers to the data's provider.

    Those of several hold together, without a common name of a licence.
    """
    found = [_entry(name)["terms"] for name in data_names]
    found = [
        Terms(**terms | {"licence": terms["licence"].format(name=name)})
        for terms, name in zip(found, data_names, strict=True)
    ]
    if len({terms.licence for terms in found}) == 1:
        return found[0]
    return Terms(
        licence=" ".join(dict.fromkeys(terms.licence for terms in found)),
        limits=list(dict.fromkeys(limit for terms in found for limit in terms.limits)),
        citations=list(dict.fromkeys(citation for terms in found for citation in terms.citations)),
    )


def _entry(data_name: str) -> dict[str, Any]:
    return next(entry for entry in data_beside(__file__) if data_name.lower().startswith(tuple(entry["folders"])))
