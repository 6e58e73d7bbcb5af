"""Licences, citations, limits and reference standards of known data sets, found by folder name in `data_terms.yaml`.

A model folder keeps the terms of its training data, and of the model it was fine-tuned from, in `terms.json`, so that
any model fine-tuned from it can name them all.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chexpert_hf.evaluation.reference_standard import OWN_LABELS
from chexpert_hf.files import data_beside, write_json
from chexpert_hf.models.model_files import EVALUATION_FILE, TERMS_FILE

if TYPE_CHECKING:
    import datasets

CHEXPERT_CITATION = "irvin2019chexpert"  # source of the observations and of the policies for uncertain labels, too


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The licence of a model's weights, and the limits and citations of its data.

    Attributes:
        licence: Sentences on the use of the weights.
        license_id: In the Hub's vocabulary, such as "apache-2.0", or "other".
        license_name: If `license_id` is "other": a short name with hyphens.
        limits: Sentences on known shortcomings of the data.
        citations: Keys of `citations.bib`, or BibTeX entries.
    """

    licence: str
    license_id: str = "other"
    license_name: str | None = "terms-of-the-training-data"
    limits: Sequence[str] = ()
    citations: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ImportedFrom(Terms):
    """The origin of a model that others trained, and its terms.

    Attributes:
        source: Where the weights come from. This and the two below are phrases, without a full stop.
        data: The training data, such as "CheXpert".
        conversion: The changes made by the import.
        labels: Who set the training labels, such as "text-mined labels".
    """

    source: str
    data: str
    conversion: str
    labels: str = OWN_LABELS
    license_name: str | None = "terms-of-the-source"


def labels_name(data_name: str, split: str, num_patients: int, labels_by: Iterable[str | None] = ()) -> str:
    """Return who set the labels of a data set, such as "text-mined labels" or "majority of radiologists".

    `labels_by` are the values in the data set's column `labels_by`, each of which says who set the labels of a row;
    they are joined by "and". If all are empty, the answer is looked up by the folder's name `data_name`, the split and
    its number of patients. For an unknown folder it is "labels of the data set".
    """
    if stated := sorted({name for name in labels_by if name}):
        return " and ".join(stated)
    entry = _entry(data_name)
    is_by_radiologists = entry.get("radiologists", {}).get(split) == num_patients
    return "majority of radiologists" if is_by_radiologists else str(entry.get("labels", OWN_LABELS))


def labels_name_of(dataset: "datasets.Dataset", data_name: str, split: str) -> str:
    """Return who set the labels of a split from `load_dataset`, such as "text-mined labels and one radiologist".

    The results of `labels_name` for each folder in the data set's column `source` are joined by "and". Without such a
    column, all rows count as those of the folder `data_name`.
    """

    def column(name: str) -> list[str | None]:
        return list(dataset[name][:]) if name in dataset.column_names else [None] * len(dataset)

    by_source: dict[str, list[tuple[str | None, str | None]]] = {}
    for source, *facts in zip(*map(column, ("source", "patient", "labels_by")), strict=True):
        by_source.setdefault(source or data_name, []).append((facts[0], facts[1]))
    names = set()
    for source, rows in by_source.items():
        patients, stated = zip(*rows, strict=True)
        names.add(labels_name(source, split, len(set(patients)), stated))
    return " and ".join(sorted(names))


def label_origins(data: Mapping[str, Any]) -> set[str]:
    """Return who set a model's training labels (see `labels_name`), from the entry `data` of its `evaluation.json`."""
    train = data["train"]
    stated = set(train.get("labels_by", ()))
    named = {labels_name(name, "train", train["patients"]) for name in data_names(data)}
    return stated | (named - {OWN_LABELS} if stated else named)


def data_names(data: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the folders that a model was trained on, from the entry `data` of its `evaluation.json`."""
    names: Sequence[str] = data.get("sources", [data["name"]])
    return names


def terms_of(names: Sequence[str]) -> Terms:
    """Return the terms of the data sets in folders of these names.

    If the data sets have different terms, the texts are joined, and `license_id` is "other". The terms of an unknown
    data set refer to its provider.
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
    """Return the terms of the data sets whose folders have these names, without duplicates."""
    found = {}
    for name in names:
        given = _entry(name)["terms"]
        licence = given["licence"].format(name=name)
        found[licence] = Terms(**given | {"licence": licence})
    return list(found.values())


def write_terms(folder: Path, terms: Sequence[Terms]) -> None:
    """Write `terms.json`: the terms of all data and models that the weights in a folder come from."""
    write_json(folder / TERMS_FILE, {"terms": [asdict(one) for one in terms]})


def read_terms(folder: Path) -> list[Terms]:
    """Read the terms (licence, citations, limits) of all data and models that the weights in a folder come from.

    They are read from `terms.json`. Older folders have no such file: the result is then the terms of the data sets
    named in `evaluation.json`. Empty if both files are missing, or the one that is read is damaged.
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
    """Join a fine-tuned model's terms: those of its training data, `own`, and those of its initial model, `initial`.

    Licences and citations are joined; the limits are those of `own`. `name` is what the joined licence calls the
    initial model. Returns `own` if `initial` is empty.
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
