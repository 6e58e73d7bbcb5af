"""The sections of a card that hold figures: evaluation with subgroups, calibration, operating points."""

from collections.abc import Iterable, Mapping
from typing import Any

from chexpert_hf.configuration_chexpert import CheXpertConfig
from chexpert_hf.evaluation.metrics import MIN_STUDIES_PER_CLASS
from chexpert_hf.publishing.data_terms import labels_name

SECOND_STANDARDS = "second_reference_standards"
"""Key of `evaluation.json`."""


def evaluation_section(record: Mapping[str, Any], best_step: int) -> str:
    """AUROC of each observation, their mean, and subgroups.

    Args:
        record: See `chexpert_hf.publishing.measured.evaluation_record`.
        best_step: The checkpoint that was kept.
    """
    data, has_intervals = record["data"], "intervals" in record
    chosen = (
        f"The checkpoint (step {best_step}) was chosen on this same split, so these figures are optimistic."
        if record["was_chosen_on_it"]
        else f"The checkpoint is the last one (step {best_step}); nothing was chosen on this split."
    )
    heading = "AUROC (95 % interval)" if has_intervals else "AUROC"
    rows = [
        f"| {entry['observation']} | {entry['num_positive']} | {entry['num_negative']} | {_judged(entry)} |"
        for entry in record["observations"]
    ]
    method = f" The intervals are {record['intervals']}." if has_intervals else ""
    mean = (
        f"Mean AUROC over {', '.join(record['mean_over'])}: "
        f"{_estimate(record['mean_auroc'], record.get('mean_auroc_low'), record.get('mean_auroc_high'))}."
        if record["mean_over"]
        else "The split can judge no observation."
    )
    return _section(
        "## Evaluation",
        f"On the validation split of {data['name']}: {record['num_studies']:,} studies of "
        f"{data['valid']['patients']:,} patients, scored by the maximum over the views of a study. Uncertain labels "
        f"are left out. {chosen}{method} Reference standard: "
        f"{labels_name(data['name'], 'valid', data['valid']['patients'])}.",
        _table(("observation", "positive", "negative", heading), rows),
        mean,
        *_subgroups(record),
        reference_section(record),
    )


def reference_section(record: Mapping[str, Any]) -> str:
    """Figures against other reference standards than the split's own labels; empty without any.

    Args:
        record: What `evaluation.json` holds; `second_reference_standards` are results of `assess_reference`, each with
            the `data` that was scored, in words.
    """
    parts = []
    for result in record.get(SECOND_STANDARDS, ()):
        rows = [
            f"| {item['observation']} | {item['reference']} | {item['target']}{_against(item)} | "
            f"{item['num_positive']} | {item['num_negative']} | {_reference_auroc(item)} |"
            for item in result["figures"]
        ]
        parts += [
            f"{result['data']}: {result['images']:,} images of {result['patients']:,} patients that "
            f"{result['reference']} ({result['file']}) judged, beside the data set's own labels of these images.",
            _table(
                ("score", "reference standard", "finding", "positive", "negative", "AUROC (95 % interval)"), rows, 3
            ),
        ]
    return _section("## Other reference standards", *parts) if parts else ""


def _against(item: Mapping[str, Any]) -> str:
    return f", against {item['against']}" if item["against"] else ""


def _reference_auroc(item: Mapping[str, Any]) -> str:
    auroc = item["auroc"]
    return item["undefined"] or _estimate(auroc["value"], auroc["low"], auroc["high"])


def no_evaluation_section() -> str:
    """Of a model that others trained and this package has not measured."""
    return _section(
        "## Evaluation",
        "Not measured here. `chexpert-hf evaluate DATA --model MODEL --output REPORT` gives its figures on your own "
        "data; what its authors report holds for their data and their preparation of it.",
    )


def _judged(entry: Mapping[str, Any]) -> str:
    if entry["auroc"] is None:
        return "not judged: one class only"
    if min(entry["num_positive"], entry["num_negative"]) < MIN_STUDIES_PER_CLASS:
        return f"not judged: fewer than {MIN_STUDIES_PER_CLASS} studies of a class"
    return _estimate(entry["auroc"], entry.get("auroc_low"), entry.get("auroc_high"))


def _estimate(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _subgroups(record: Mapping[str, Any]) -> list[str]:
    """Where two groups of a column can both be judged: the best, the worst, and the gap between them."""
    if "gaps" not in record:
        return ["Subgroups were not measured."]
    groups = {(entry["column"], entry["group"], entry["observation"]): entry for entry in record["subgroups"]}
    rows = []
    for gap in record["gaps"]:
        highest = groups[gap["column"], gap["highest"], gap["observation"]]
        lowest = groups[gap["column"], gap["lowest"], gap["observation"]]
        difference = gap["difference"]
        rows.append(
            f"| {gap['column']} | {gap['observation']} | {_group(highest)} | {_group(lowest)} | "
            f"{_estimate(difference['value'], difference['low'], difference['high'])} |"
        )
    columns = ", ".join(dict.fromkeys(entry["column"] for entry in record["subgroups"]))
    if not rows:
        return [
            "### Subgroups",
            f"Looked at: {columns or 'none, as the table has no such columns'}. No two groups of one have "
            f"{MIN_STUDIES_PER_CLASS} positive and {MIN_STUDIES_PER_CLASS} negative studies of an observation each, "
            "so that nothing can be said of differences.",
        ]
    return [
        "### Subgroups",
        f"By {columns}, where at least two groups have {MIN_STUDIES_PER_CLASS} positive and {MIN_STUDIES_PER_CLASS} "
        "negative studies each: the groups of the highest and the lowest AUROC, with positive and negative studies. "
        "Since these two are picked for being the extremes, some gap is to be expected where there is none.",
        _table(("column", "observation", "highest", "lowest", "gap (95 % interval)"), rows, num_texts=4),
    ]


def _group(entry: Mapping[str, Any]) -> str:
    estimate = _estimate(entry["auroc"], entry["auroc_low"], entry["auroc_high"])
    return f"{entry['group']}: {estimate}; {entry['num_positive']}, {entry['num_negative']}"


def decision_sections(config: CheXpertConfig) -> str:
    """The sections on calibration and operating points, as the config says; they end in an empty line."""
    return f"{_calibration(config)}\n\n{_operating_points(config)}\n\n"


def _calibration(config: CheXpertConfig) -> str:
    record = config.calibration
    if record is None:
        return _section(
            "## Calibration",
            "Not calibrated: a probability of .8 does not mean that 8 of 10 such radiographs show the observation. "
            "`chexpert-hf calibrate` does that on radiographs of your own.",
        )
    rows = [
        f"| {name} | {record['num_positive'][name]} | {record['num_negative'][name]} | {slope:.3f} | "
        f"{record['intercepts'][name]:+.3f} |"
        for name, slope in record["slopes"].items()
    ]
    notes = [
        f"- {name} is calibrated for a prevalence of {prevalence:g}, which was given, not measured."
        for name, prevalence in record.get("prevalences", {}).items()
    ]
    notes += [f"- {name} is not calibrated: {reason}." for name, reason in record["left_out"].items()]
    return _section(
        "## Calibration",
        f"By {record['method']} on {record['num_studies']:,} studies of {record['data']} ({record['split']}), "
        f"{record['date']}. It is in the weights: the sigmoid of a logit is the calibrated probability. Figures on "
        "these same studies are optimistic, and other prevalences need another calibration.",
        _table(("observation", "positive", "negative", "slope", "intercept"), rows),
        "\n".join(notes),
        *(_calibration_check(record["check"]) if "check" in record else ()),
    )


def _calibration_check(check: Mapping[str, Any]) -> tuple[str, str]:
    rows = [
        f"| {method} | {brier:.3f} | {check['calibration_error'][method]:.3f} |"
        for method, brier in check["scaled_brier"].items()
    ]
    return (
        f"On patients left out of the fit ({check['folds']} folds; means over {', '.join(check['observations'])}; "
        "isotonic regression is for comparison):",
        _table(("method", "scaled Brier score", "expected calibration error"), rows),
    )


def _operating_points(config: CheXpertConfig) -> str:
    source, points = config.operating_points_source, config.operating_points or {}
    chosen = "A probability from this value on is called positive; .5 where no value was chosen on data."
    if source is not None and source.get("num_studies"):
        wanted = f" of {source['wanted']:g}" if source.get("wanted") is not None else ""
        chosen += (
            f" Chosen by {source['method']}{wanted} on {source['num_studies']:,} studies of {source['data']} "
            f"({source['split']}), {source['date']}."
        )
    elif source is not None:
        chosen += f" They come from {source['data']}: {source['method']}."
    left_out = [
        f"- No operating point was chosen for {name}: {reason}."
        for name, reason in (source or {}).get("left_out", {}).items()
    ]
    return _section(
        "## Operating points",
        chosen,
        _table(("observation", "operating point"), [f"| {name} | {point:.3f} |" for name, point in points.items()]),
        "\n".join(left_out),
    )


def _table(heading: tuple[str, ...], rows: Iterable[str], num_texts: int = 1) -> str:
    lines = [
        f"| {' | '.join(heading)} |",
        f"| {' | '.join(['---'] * num_texts + ['---:'] * (len(heading) - num_texts))} |",
    ]
    return "\n".join([*lines, *rows])


def _section(*paragraphs: str) -> str:
    return "\n\n".join(text for text in paragraphs if text)
