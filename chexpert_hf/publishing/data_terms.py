"""Terms, citations and reference standards of known data sets, recognised by their folder's name: `data_terms.yaml`.

A model folder has the terms of its training data in `terms.json`, with those of its initial model's, so that a model
that is fine-tuned from it, and every further one, can name them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from chexpert_hf.evaluation.reference_standard import OWN_LABELS
from chexpert_hf.files import data_beside, write_json
from chexpert_hf.models.model_files import EVALUATION_FILE, TERMS_FILE

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

    These three are phrases without a full stop. `labels` says who set the training labels, such as "text-mined labels".
    """

    source: str
    data: str
    conversion: str
    labels: str = OWN_LABELS
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


def label_origins(data: Mapping[str, Any]) -> set[str]:
    """The reference standards of a model's training labels, by `data` of `evaluation.json`; `OWN_LABELS` if unknown."""
    train = data["train"]
    stated = set(train.get("labels_by", ()))
    named = {labels_name(name, "train", train["patients"]) for name in data_names(data)}
    return stated | (named - {OWN_LABELS} if stated else named)


def data_names(data: Mapping[str, Any]) -> Sequence[str]:
    """The names of the folders that a model was trained on, from `data` of `evaluation.json`."""
    names: Sequence[str] = data.get("sources", [data["name"]])
    return names


def terms_of(names: Sequence[str]) -> Terms:
    """The terms of the data that folders' names stand for; an unknown name refers to the data's provider.

    Those of several hold together, without a common name of a licence.
    """
    found = each_terms(names)
    if len(found) == 1:
        return found[0]
    return Terms(
        licence=" ".join(terms.licence for terms in found),
        limits=list(dict.fromkeys(limit for terms in found for limit in terms.limits)),
        citations=list(dict.fromkeys(citation for terms in found for citation in terms.citations)),
    )


def each_terms(names: Sequence[str]) -> list[Terms]:
    """The terms of each of these folders' data, those that are the same once."""
    found = {}
    for name in names:
        given = _entry(name)["terms"]
        licence = given["licence"].format(name=name)
        found[licence] = Terms(**given | {"licence": licence})
    return list(found.values())


def write_terms(folder: Path, terms: Sequence[Terms]) -> None:
    """Writes the terms of all data and models that the weights of a folder come from."""
    write_json(folder / TERMS_FILE, {"terms": [asdict(one) for one in terms]})


def read_terms(folder: Path) -> list[Terms]:
    """The terms of all data and models that the weights of a folder come from; empty if it does not say.

    A folder of an earlier version has no `terms.json`; it names its training data in `evaluation.json`.
    """
    names = [item.name for item in fields(Terms)]
    try:
        if (folder / TERMS_FILE).is_file():
            entries = json.loads((folder / TERMS_FILE).read_text(encoding="utf-8"))["terms"]
            return [Terms(**{name: entry[name] for name in names}) for entry in entries]
        return each_terms(data_names(json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))["data"]))
    except (OSError, ValueError, KeyError, TypeError):
        return []


def with_initial_terms(own: Terms, initial: Sequence[Terms], name: str) -> Terms:
    """The terms of a fine-tuned model: those of its data, with licences and citations of the initial model, `name`.

    The limits of the initial model's data are not the fine-tuned model's.
    """
    if not initial:
        return own
    licences = " ".join(one.licence for one in initial)
    joined = Terms(
        licence=f"{own.licence} Its initial weights, those of {name}, have terms that hold as well. {licences}",
        limits=own.limits,
        citations=list(dict.fromkeys([*own.citations, *(each for one in initial for each in one.citations)])),
    )
    is_named = any(one.license_name or one.license_id != "other" for one in initial)
    return joined if is_named else replace(joined, license_id=own.license_id, license_name=own.license_name)


def _entry(data_name: str) -> dict[str, Any]:
    return next(entry for entry in data_beside(__file__) if data_name.lower().startswith(tuple(entry["folders"])))
