"""The model card of a folder, filled from what its run measured."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.evaluation.metrics import Evaluation
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification

_TEMPLATE = "model_card.md"
_DECISIONS = re.compile(r"(?:^## Calibration\n.*?)?^## Operating points\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


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
    data: Mapping[str, Any],
    evaluation: Evaluation,
    best_step: int,
) -> ModelCard:
    """Fills the template.

    Args:
        name: Of the model.
        model: Gives observations, policies and operating points.
        image_size: Input height and width in pixels.
        recipe: All values of the run.
        data: `name`, and for `train` and `valid` the numbers of images, studies and patients.
        evaluation: On the validation split.
        best_step: The checkpoint that was kept.
    """
    config = model.config
    return ModelCard.from_template(
        ModelCardData(
            model_name=name,
            library_name="transformers",
            pipeline_tag="image-classification",
            license="other",
            license_name="terms-of-the-training-data",
            tags=["chest-x-ray", "radiology", "chexpert", "densenet", "multi-label", "chexpert-hf"],
            eval_results=_eval_results(evaluation, data),
        ),
        template_path=str(template_path()),
        name=name,
        observations=config.observations,
        policies=config.uncertainty_policies,
        policies_source=config.policies_source,
        hierarchy=config.label_parents,
        blank_labels=config.blank_labels,
        decisions=_decisions(config),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_size=image_size,
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False).strip(),
        init=recipe["init"],
        data=data,
        results=evaluation.observations,
        mean_over=evaluation.mean_over,
        mean_auroc=evaluation.mean_auroc,
        num_studies=evaluation.num_studies,
        best_step=best_step,
    )


def _eval_results(evaluation: Evaluation, data: Mapping[str, Any]) -> list[EvalResult]:
    """The model-index: the mean AUROC, where there is one."""
    if not evaluation.mean_over:
        return []
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type="image-folder",
            dataset_name=f"{data['name']} (validation split)",
            metric_type="roc_auc",
            metric_name=f"Mean AUROC per study over {len(evaluation.mean_over)} observations",
            metric_value=round(evaluation.mean_auroc, 4),
        )
    ]


def refresh_card(text: str, config: CheXpertConfig) -> str:
    """A card whose sections on calibration and operating points say what the config says.

    Args:
        text: The card; without these sections they come at its end.
        config: Of the model as it is now.
    """
    sections = _decisions(config)
    refreshed, count = _DECISIONS.subn(lambda _: sections, text, count=1)
    return refreshed if count else f"{text.rstrip()}\n\n{sections}"


def _decisions(config: CheXpertConfig) -> str:
    """The sections on calibration, if there is one, and operating points."""
    return _calibration_section(config) + _operating_points_section(config)


def _calibration_section(config: CheXpertConfig) -> str:
    record = config.calibration
    if record is None:
        return ""
    rows = [
        f"| {name} | {record['num_positive'][name]} | {record['num_negative'][name]} | {slope:.3f} | "
        f"{record['intercepts'][name]:+.3f} |"
        for name, slope in record["slopes"].items()
    ]
    left_out = [f"- {name} is not calibrated: {reason}." for name, reason in record["left_out"].items()]
    moved = [
        f"- {name} is calibrated for a prevalence of {prevalence:g}, which was given, not measured."
        for name, prevalence in record.get("prevalences", {}).items()
    ]
    return "\n".join(
        [
            "## Calibration",
            "",
            f"By {record['method']} on {record['num_studies']:,} studies of {record['data']} ({record['split']}), "
            f"{record['date']}. It is in the weights: the sigmoid of a logit is the calibrated probability. Figures on "
            "these same studies are optimistic, and other prevalences need another calibration.",
            "",
            "| observation | positive | negative | slope | intercept |",
            "| --- | ---: | ---: | ---: | ---: |",
            *rows,
            *(["", *moved, *left_out] if moved or left_out else []),
            *(["", *_calibration_check(record["check"])] if "check" in record else []),
            "",
            "",
        ]
    )


def _calibration_check(check: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {method} | {brier:.3f} | {check['calibration_error'][method]:.3f} |"
        for method, brier in check["scaled_brier"].items()
    ]
    return [
        f"On patients left out of the fit ({check['folds']} folds; means over {', '.join(check['observations'])}; "
        "isotonic regression is for comparison):",
        "",
        "| method | scaled Brier score | expected calibration error |",
        "| --- | ---: | ---: |",
        *rows,
    ]


def _operating_points_section(config: CheXpertConfig) -> str:
    source = config.operating_points_source
    chosen = "A probability from this value on is called positive; .5 where none was chosen on data."
    if source is not None:
        wanted = "" if source["wanted"] is None else f" of {source['wanted']:g}"
        chosen += (
            f" Chosen by {source['method']}{wanted} on {source['num_studies']:,} studies of {source['data']} "
            f"({source['split']}), {source['date']}."
        )
    points = [f"| {name} | {point:.3f} |" for name, point in (config.operating_points or {}).items()]
    left_out = [
        f"- None was chosen for {name}: {reason}." for name, reason in (source or {}).get("left_out", {}).items()
    ]
    return "\n".join(
        [
            "## Operating points",
            "",
            chosen,
            "",
            "| observation | operating point |",
            "| --- | ---: |",
            *points,
            *(["", *left_out] if left_out else []),
            "",
            "",
        ]
    )
