"""The model card of a folder, filled from what its run measured, or from where an imported model comes from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.publishing.card_sections import (
    decision_sections,
    evaluation_section,
    no_evaluation_section,
    reference_section,
)
from chexpert_hf.publishing.data_terms import DENSENET_CITATION, LABELS_CITATION, terms_of

_TEMPLATE = "model_card.md"
_DECISIONS = re.compile(r"(?:^## Calibration\n.*?)?^## Operating points\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_REFERENCES = re.compile(r"^## Other reference standards\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_AFTER_EVALUATION = re.compile(r"^## (?:Calibration|Operating points|Limits)\n|\Z", re.MULTILINE)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_MENTION = r'((?:from_pretrained\(|pipeline\("image-classification", |--model |chexpert-hf check ))"{name}"'
_TAGS = ["chest-x-ray", "radiology", "chexpert", "densenet", "multi-label", "chexpert-hf"]
_INITIAL_WEIGHTS = {"imagenet": "torchvision's DenseNet121, trained on ImageNet", "random": "random"}
_LIMITS = (
    "Performance on other hospitals, scanners, ages and views than those of the data above is unknown.",
    "Labels mined from reports carry the reports' errors.",
    "Radiographs show the hospital, the machine and the view, which a network may have learned instead of the finding.",
    "A map shows what the score is computed from, which is not where a finding ends, and may be nowhere near one.",
)


@dataclass(frozen=True)
class ImportedFrom:
    """Where a model comes from that others trained, for its card.

    Attributes:
        source: Which weights, by whom, with an address; a phrase without a full stop.
        data: What they were trained on; a phrase.
        conversion: What was done to bring them here: processor, labels, outputs dropped; a phrase.
        licence: Sentences on the use of the weights.
        license_id: In the Hub's vocabulary, such as "apache-2.0", or "other".
        license_name: For `license_id` "other": a short name with hyphens.
        limits: Sentences on what is known to go wrong.
        citations: BibTeX entries.
    """

    source: str
    data: str
    conversion: str
    licence: str
    license_id: str = "other"
    license_name: str | None = "terms-of-the-source"
    limits: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()


def template_path() -> Path:
    """The card's template: beside this module once installed, at the top of the project in a checkout."""
    installed = Path(__file__).with_name(_TEMPLATE)
    return installed if installed.exists() else Path(__file__).parents[2] / _TEMPLATE


def render_card(
    name: str,
    model: CheXpertForImageClassification,
    *,
    image_size: int,
    recipe: Mapping[str, Any],
    record: Mapping[str, Any],
    best_step: int,
) -> ModelCard:
    """The card of a model that was trained here.

    Args:
        name: Of the model.
        model: Gives observations, policies and operating points.
        image_size: Input height and width in pixels.
        recipe: All values of the run.
        record: See `measured.evaluation_record`. Its `data` has `name`, and for `train` and `valid` the
            numbers of `images`, `studies` and `patients`, and if they are known of `positives` by observation.
        best_step: The checkpoint that was kept.

    Raises:
        jinja2.UndefinedError: If a value is missing.
    """
    config, data = model.config, record["data"]
    terms, shown = terms_of(data["name"]), public_recipe(recipe)
    return _render(
        name,
        model,
        ModelCardData(
            model_name=name,
            library_name="transformers",
            pipeline_tag="image-classification",
            license=terms.license_id,
            license_name=terms.license_name,
            tags=_TAGS,
            eval_results=_eval_results(record),
        ),
        image_size=image_size,
        origin=None,
        data=data,
        recipe=shown,
        recipe_text=yaml.safe_dump(shown, sort_keys=False).strip(),
        initial_weights=_INITIAL_WEIGHTS.get(shown["init"], f"those of the model {shown['init']}"),
        blank_labels=config.blank_labels,
        policies=_by_policy(config),
        policies_source=config.policies_source,
        hierarchy=config.label_parents,
        evaluation_section=evaluation_section(record, best_step),
        limits=(*_never_positive(data), *terms.limits, *_LIMITS),
        licence=terms.licence,
        citations="\n\n".join(dict.fromkeys((*terms.citations, LABELS_CITATION, DENSENET_CITATION))),
    )


def render_import_card(
    name: str, model: CheXpertForImageClassification, *, image_size: int, origin: ImportedFrom
) -> ModelCard:
    """The card of a model that others trained, whose figures this package has not measured.

    Args:
        name: Of the model.
        model: Gives observations and operating points.
        image_size: Input height and width in pixels.
        origin: Where it comes from.
    """
    return _render(
        name,
        model,
        ModelCardData(
            model_name=name,
            library_name="transformers",
            pipeline_tag="image-classification",
            license=origin.license_id,
            license_name=origin.license_name if origin.license_id == "other" else None,
            tags=_TAGS,
        ),
        image_size=image_size,
        origin=origin,
        evaluation_section=no_evaluation_section(),
        limits=(*origin.limits, *_LIMITS),
        licence=origin.licence,
        citations="\n\n".join(dict.fromkeys((*origin.citations, DENSENET_CITATION))),
    )


def _render(name: str, model: CheXpertForImageClassification, front_matter: ModelCardData, **values: Any) -> ModelCard:
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(
        template_path().read_text(encoding="utf-8")
    )
    text = template.render(
        card_data=front_matter.to_yaml(),
        name=name,
        observations=model.config.observations,
        warnings=model.config.warnings or (),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        decisions=decision_sections(model.config),
        **values,
    )
    return ModelCard(text)


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as others may see it: of models and files on this machine the name alone."""
    return {
        field: Path(value).name if field in ("init", "teacher") and value is not None and _is_local(value) else value
        for field, value in recipe.items()
    }


def _is_local(value: str) -> bool:
    return value.startswith(("/", ".", "~")) or "\\" in value or value.count("/") > 1 or Path(value).exists()


def _never_positive(data: Mapping[str, Any]) -> list[str]:
    """What the model cannot have learned, if the numbers of positive labels are known."""
    never = [name for name, count in data["train"].get("positives", {}).items() if not count]
    return [f"Never positive in training, so that their scores mean nothing: {', '.join(never)}."] if never else []


def _by_policy(config: CheXpertConfig) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = {}
    for name, policy in (config.uncertainty_policies or {}).items():
        chosen.setdefault(policy, []).append(name)
    return chosen


def _eval_results(record: Mapping[str, Any]) -> list[EvalResult]:
    """The model-index: the mean AUROC, and that of each observation that the split can judge."""
    dataset = f"{record['data']['name']} (validation split)"

    def result(metric: str, value: float) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type="image-folder",
            dataset_name=dataset,
            metric_type="roc_auc",
            metric_name=metric,
            metric_value=round(value, 4),
        )

    if not record["mean_over"]:
        return []
    judged = [entry for entry in record["observations"] if entry["observation"] in _judged_in(record)]
    return [
        result(f"Mean AUROC per study over {len(record['mean_over'])} observations", record["mean_auroc"]),
        *(result(f"AUROC per study, {entry['observation']}", entry["auroc"]) for entry in judged),
    ]


def _judged_in(record: Mapping[str, Any]) -> set[str]:
    return {
        entry["observation"]
        for entry in record["observations"]
        if min(entry["num_positive"], entry["num_negative"]) >= MIN_STUDIES_PER_CLASS
    }


def refresh_card(text: str, config: CheXpertConfig, name: str) -> str:
    """A card whose sections on calibration and operating points say what the config says, under a new name.

    Args:
        text: The card; without these sections they come at its end.
        config: Of the model as it is now.
        name: Of the model.
    """
    sections = decision_sections(config)
    refreshed, count = _DECISIONS.subn(lambda _: sections, text, count=1)
    return rename_card(refreshed if count else f"{text.rstrip()}\n\n{sections}", name)


def refresh_references(text: str, record: Mapping[str, Any]) -> str:
    """A card whose section on other reference standards says what the record says, after its evaluation.

    Args:
        text: The card.
        record: See `chexpert_hf.publishing.card_sections.reference_section`.
    """
    section, rest = reference_section(record), _REFERENCES.sub("", text)
    return _AFTER_EVALUATION.sub(lambda found: f"{section}\n\n{found[0]}", rest, count=1)


def rename_card(text: str, name: str) -> str:
    """A card under another name: in its title, its model-index, and where it shows how to load the model.

    Args:
        text: The card.
        name: Of a folder, or the id of a repository, whose last part becomes the title.
    """
    card = ModelCard(text)
    title = _TITLE.search(card.text)
    if title is None:
        return text
    mention, short = re.compile(_MENTION.replace("{name}", re.escape(title[1]))), name.rpartition("/")[2]
    body = mention.sub(lambda found: f'{found[1]}"{name}"', card.text)
    card.text = _TITLE.sub(lambda _: f"# {short}", body, count=1)
    if isinstance(card.data, ModelCardData) and card.data.model_name is not None:
        card.data.model_name = short
    return str(card)
