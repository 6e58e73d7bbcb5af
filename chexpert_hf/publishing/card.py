"""Model cards: written from a run's metrics or an imported model's source, brought up to date, and checked."""

import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.evaluation.calibration.records import record_of
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS
from chexpert_hf.evaluation.reference_standard import OWN_LABELS
from chexpert_hf.files import text_beside
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.publishing.data_terms import CHEXPERT_CITATION, Terms, label_origins, labels_name

_BLANK_LINES = re.compile(r"\n{3,}")
_DECISIONS = re.compile(r"(?:^## Calibration\n.*?)?^## Operating points\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_REFERENCES = re.compile(r"^## Other reference standards\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_AFTER_EVALUATION = re.compile(r"^## (?:Calibration|Operating points|Limits)\n|\Z", re.MULTILINE)
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_MENTION = re.compile(r'(from_pretrained\(|pipeline\("image-classification", |--model |chexpert-hf check )"([^"\n]+)"')
_HOW_TO_USE = re.compile(r"^## How to use$", re.MULTILINE)
# The tag and the citation of each backbone; all other backbones are timm's.
_FAMILIES = {
    "densenet": ("densenet", "huang2017densely"),
    "resnet50": ("resnet", "he2016deep"),
    "convnext_tiny": ("convnext", "liu2022convnet"),
}
_TIMM = ("timm", "wightman2019timm")

MODEL_FIELDS = ("init", "teacher", "distillation_models", "calibration_models")
"""Fields of a recipe that name models, as paths or repositories."""

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_REQUIRED_FIELDS = ("license", "library_name", "pipeline_tag", "tags")
_REQUIRED_SECTIONS = (
    *("Intended use", "How to use", "Evaluation", "Calibration", "Operating points"),
    *("Limits", "Licence", "Citation"),
)
_WARNING = "not a medical device"
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_PLACEHOLDERS = re.compile(
    r"\{\{|\}\}|\{%|\bTODO\b|\bTBD\b|\bFIXME\b|\bXXX\b|\[?[Mm]ore [Ii]nformation [Nn]eeded\]?|[Ll]orem [Ii]psum|"
    r"\b[Yy]our[-_ ](?:name|model|username)\b|\bNone\b|\b[Nn]a[nN]\b|\bUndefined\b|<[A-Za-z_ -]*(?:name|id|here)>"
)
_HEADING = re.compile(r"^(#{1,6}) (.*)$", re.MULTILINE)
_TEXT_PROBLEMS = (
    (_PLACEHOLDERS, "a placeholder was left: {line}"),
    (re.compile(r"^- [^:\n]+:[ \t]*\.?$(?!\n +-)", re.MULTILINE), "nothing stands behind the colon: {line}"),
    (re.compile(r"^\|(?:.*\|)?[ \t]*\|", re.MULTILINE), "a cell is empty: {line}"),
    (re.compile(r"^\|(?: ?:?-+:? ?\|)+$(?!\n\|)", re.MULTILINE), "a table has no rows"),
)


def render_card(
    name: str,
    model: CheXpertForImageClassification,
    terms: Terms,
    *,
    model_id: str,
    image_size: tuple[int, int],
    recipe: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    best_step: int | None = None,
) -> ModelCard:
    """Render the model card of a trained model, or of an imported one, which has no recipe, record and step.

    Args:
        name: Name of the model, the card's title.
        model: Its config gives observations, policies for uncertain labels, and operating points.
        terms: Terms of the training data; `ImportedFrom` for an imported model.
        model_id: The path or repository id from which the card's examples load the model.
        image_size: Input (height, width) in pixels.
        recipe: All values of the training run's recipe, by field.
        record: From `model_folder.evaluation_record`. Its entry `data` has the data set's `name`, and for each of the
            splits `train` and `valid` a mapping such as `{"images": 90, "studies": 60, "patients": 50, "positives":
            {"Edema": 7}}`; `positives` may be missing.
        best_step: Optimizer step of the checkpoint that was kept.

    Raises:
        jinja2.UndefinedError: If a value that the template needs is missing.
    """
    is_ours, data = record is not None, (record or {}).get("data", {})
    family, citation = _FAMILIES.get(model.config.backbone, _TIMM)
    labels_tag = ["chexpert"] if {*model.config.observations} <= {*CHEXPERT.names} else []
    front_matter = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="image-classification",
        license=terms.license_id,
        license_name=terms.license_name if terms.license_id == "other" else None,
        tags=["chest-x-ray", "radiology", *labels_tag, family, "multi-label", "chexpert-hf"],
        eval_results=(_eval_results(record) or None) if record else None,
    )
    entries = text_beside(__file__, "citations.bib").strip().split("\n\n")
    known = {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}
    cited = (*terms.citations, *((CHEXPERT_CITATION,) if is_ours else ()), citation)
    text = read_template(project_path("model_card.md")).render(
        card_data=front_matter.to_yaml(),
        name=name,
        model_id=model_id,
        config=model.config,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        terms=terms,
        citations="\n\n".join(dict.fromkeys(known.get(each, each) for each in cited)),
        image_size=image_size,
        is_ours=is_ours,
        recipe=public_recipe(recipe or {}),
        record=record,
        data=data,
        reference_standard=_labels_name(data) if is_ours else None,
        label_origins=" and ".join(sorted(label_origins(data))) if is_ours else getattr(terms, "labels", OWN_LABELS),
        best_step=best_step,
    )
    return ModelCard(_BLANK_LINES.sub("\n\n", text))


def _labels_name(data: Mapping[str, Any]) -> str:
    valid = data["valid"]
    return labels_name(data["name"], "valid", valid["patients"], valid.get("labels_by", ()))


def project_path(name: str) -> Path:
    """Return the path of a file or folder at the top of the project, such as "model_card.md".

    In an installed package it is beside this module.
    """
    installed = Path(__file__).with_name(name)
    return installed if installed.exists() else Path(__file__).parents[2] / name


def read_template(path: Path) -> jinja2.Template:
    """Read the Jinja template of a card; rendering it raises `jinja2.UndefinedError` for missing values."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["yaml"] = lambda value: yaml.safe_dump(value, sort_keys=False).strip()
    environment.globals |= {"estimate": _estimate, "minimum": MIN_STUDIES_PER_CLASS, "record_of": record_of}
    environment.globals["unknown_origin"] = OWN_LABELS
    return environment.from_string(path.read_text(encoding="utf-8"))


def _estimate(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _section(name: str, **values: Any) -> str:
    """Render the block `name` of the template model_card.md with `values`, and an empty line after it.

    Returns "" if the rendered block is empty.
    """
    template = read_template(project_path("model_card.md"))
    text = "".join(template.blocks[name](template.new_context(values))).strip()
    return _BLANK_LINES.sub("\n\n", f"{text}\n\n") if text else ""


def _eval_results(record: Mapping[str, Any]) -> list[EvalResult]:
    """Return the Hub's model-index: the mean AUROC, and the AUROC of each observation with enough studies per class."""
    if not record["mean_over"]:
        return []
    values = {f"Mean AUROC per study over {len(record['mean_over'])} observations": record["mean_auroc"]}
    for entry in record["observations"]:
        if min(entry["num_positive"], entry["num_negative"]) >= MIN_STUDIES_PER_CLASS:
            values[f"AUROC per study, {entry['observation']}"] = entry["auroc"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="image-folder",
            dataset_name=f"{record['data']['name']} (validation split)",
            metric_type="roc_auc",
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in values.items()
    ]


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe for publication: local paths of models, as in the field `init`, are cut to their last part."""
    return {field: _public(value) if field in MODEL_FIELDS else value for field, value in recipe.items()}


def _public(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    return public_name(value) if value else value


def public_name(value: str) -> str:
    """Return the last part of a local path, e.g. "b" of "/a/b"; a repository's id, e.g. "me/model", unchanged."""
    is_local = value.startswith(("/", ".", "~")) or "\\" in value or value.count("/") > 1 or Path(value).exists()
    return Path(value).name if is_local else value


def refresh_card(text: str, config: CheXpertConfig, name: str, model_id: str | None = None) -> str:
    """Return a card with its sections on calibration and operating points written anew from the config.

    A card without these sections gets them at its end. The card is renamed to `name` and `model_id`, see `rename_card`.
    """
    sections = _section("decisions", config=config)
    refreshed, count = _DECISIONS.subn(lambda _: sections, text, count=1)
    return rename_card(refreshed if count else f"{text.rstrip()}\n\n{sections}", name, model_id)


def refresh_references(text: str, record: Mapping[str, Any]) -> str:
    """Return a card with its section on other reference standards written anew.

    A card without this section gets it after the section on the evaluation. `record` is the contents of
    `evaluation.json`.
    """
    section, rest = _section("references", record=record), _REFERENCES.sub("", text)
    return _AFTER_EVALUATION.sub(lambda found: f"{section}{found[0]}", rest, count=1)


def rename_card(text: str, name: str, model_id: str | None = None) -> str:
    """Return a card under another name: in its title, its model-index, and where it shows how to load the model.

    Args:
        text: The card.
        name: The new name; if it is a repository's id, its last part becomes the title.
        model_id: The path or repository id from which the card's examples load the model; `name` if None.
    """
    card = ModelCard(text)
    title = _TITLE.search(card.text)
    if title is None:
        return text
    section, short = _HOW_TO_USE.search(card.text), name.rpartition("/")[2]
    shown = _MENTION.search(card.text, section.end()) if section else None
    former = {title[1], shown[2] if shown else title[1]}  # a card may mention other models, too
    body = _MENTION.sub(lambda found: f'{found[1]}"{model_id or name}"' if found[2] in former else found[0], card.text)
    card.text = _TITLE.sub(lambda _: f"# {short}", body, count=1)
    if isinstance(card.data, ModelCardData) and card.data.model_name is not None:
        card.data.model_name = short
    return str(card)


def card_problems(text: str) -> list[str]:
    """Return one line per problem of a card, such as a missing section or a placeholder; empty for a complete card."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        return ["it has no front matter between two lines of ---"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return ["its front matter is no YAML"]
    if not isinstance(data, dict):
        return ["its front matter is no mapping of fields to values"]
    body = text[found.end() :]
    return [*_field_problems(data), *_section_problems(_FENCE.sub("code", body)), *_text_problems(body)]


def _field_problems(data: dict[str, Any]) -> list[str]:
    lines = [f"the field {name} is missing" for name in _REQUIRED_FIELDS if name not in data]
    for name, value in _leaves(data):
        if value in (None, "", [], {}):
            lines.append(f"the field {name} is empty")
        elif isinstance(value, str) and _PLACEHOLDERS.search(value):
            lines.append(f"the field {name} holds a placeholder: {value}")
    if data.get("license") == "other" and not data.get("license_name"):
        lines.append("license is other, which needs a license_name")
    return lines


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and value:
        return [leaf for item in value for leaf in _leaves(item, name)]
    return [(name, value)]


def _section_problems(body: str) -> list[str]:
    headings = list(_HEADING.finditer(body))
    names = [heading[2].strip() for heading in headings]
    lines = [f"the section {name} is missing" for name in _REQUIRED_SECTIONS if name not in names]
    for heading, following in zip_longest(headings, headings[1:]):
        has_parts = following is not None and len(following[1]) > len(heading[1])
        if not has_parts and not body[heading.end() : following.start() if following else None].strip():
            lines.append(f"the section {heading[2]} is empty")
    if _WARNING not in body:
        lines.append(f"it does not say that this is {_WARNING}")
    return lines


def _text_problems(body: str) -> list[str]:
    plain = _FENCE.sub("", body)
    text_lines = plain.split("\n")
    lines = [
        message.format(line=text_lines[plain.count("\n", 0, found.start())].strip()[:100])
        for pattern, message in _TEXT_PROBLEMS
        for found in pattern.finditer(plain)
    ]
    if any(not "".join(found[0].splitlines()[1:-1]).strip() for found in _FENCE.finditer(body)):
        lines.append("a block of code is empty")
    return list(dict.fromkeys(lines))
