"""A model that is calibrated in its weights: fitted on logits that it gives, recorded in its config."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from chexpert_hf.configuration_chexpert import DEFAULT_OPERATING_POINT, CheXpertConfig
from chexpert_hf.evaluation.calibration.calibration import Calibration, CalibrationError, Method, fit_calibration
from chexpert_hf.evaluation.calibration.calibration_check import CalibrationCheck, check_calibration
from chexpert_hf.evaluation.calibration.fold import fold_calibration
from chexpert_hf.evaluation.calibration.operating_points import OperatingPoint, OperatingRule, choose_operating_point
from chexpert_hf.evaluation.metrics import evaluation_labels, maximum_per_study
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification


@dataclass(frozen=True)
class Origin:
    """What a calibration is fitted on, for the record.

    Attributes:
        data: Name of the data set.
        split: Of it.
        date: ISO 8601.
    """

    data: str
    split: str
    date: str


@dataclass(frozen=True)
class CalibratedModel:
    """What `calibrate_folder` did.

    Attributes:
        calibration: The lines, which are in the weights, and the observations that were left out.
        operating_points: Of the observations for which one was chosen.
        without_point: The other observations, if operating points were asked for, and why.
        num_studies: On which it was all fitted.
        check: What each method is worth on patients left out of its fit, at this split's own prevalences; None if there
            are too few studies to say.
    """

    calibration: Calibration
    operating_points: Mapping[str, OperatingPoint]
    without_point: Mapping[str, str]
    num_studies: int
    check: CalibrationCheck | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """A line per observation: slope, intercept and operating point, or why there is none."""
        width = max(map(len, (*self.calibration.lines, *self.calibration.left_out)))
        table = [f"{'observation':<{width}}  slope  intercept  operating point"]
        for name, line in self.calibration.lines.items():
            point = self.operating_points.get(name)
            chosen = self.without_point.get(name, "") if point is None else _described(point)
            table.append(f"{name:<{width}}  {line.slope:5.3f}  {line.intercept:+9.3f}  {chosen}".rstrip())
        table += [f"{name:<{width}}  as it was: {reason}" for name, reason in self.calibration.left_out.items()]
        if self.check is not None:
            table += [
                "",
                f"Mean over {len(self.check.observations)} observations, {self.check.folds} folds of patients:",
            ]
            table.append(self.check.as_table())
        return "\n".join(table)


def _described(point: OperatingPoint) -> str:
    return (
        f"{point.threshold:.3f} (sensitivity {point.sensitivity:.3f}, specificity {point.specificity:.3f}, "
        f"PPV {point.ppv:.3f})"
    )


def calibrate_model(
    model: CheXpertForImageClassification,
    logits: NDArray[np.floating],
    dataset: datasets.Dataset,
    origin: Origin,
    *,
    method: Method = Method.PLATT,
    rule: OperatingRule | None = None,
    prevalences: Mapping[str, float] | None = None,
) -> CalibratedModel:
    """Calibrates a model in place: head, operating points, and the record of both in its config.

    Args:
        model: Without a label hierarchy.
        logits: `(num_views, num_labels)` of the dataset's images; the model's own, or, under cross-validation, those of
            the models that did not see the image.
        dataset: A split from `load_chexpert` with the labels of the model's observations, in its order.
        origin: What it is, for the record.
        method: How to calibrate.
        rule: How to choose operating points on the calibrated probabilities; if None, those that differ from the
            default keep their meaning: they move with the probabilities.
        prevalences: Of observations, in (0, 1), where the model will be used; see `Platt.at_prevalence`.

    Raises:
        CalibrationError: If the model has a label hierarchy, no observation can be calibrated, or a prevalence is given
            that cannot be used.
    """
    config = model.config
    prevalences = _checked_prevalences(prevalences or {}, config.observations, method)
    labels = evaluation_labels(np.asarray(dataset["labels"][:]), config.blank_labels)
    truth, studies = maximum_per_study(labels, dataset["study"][:])
    logits, _ = maximum_per_study(logits, dataset["study"][:])
    calibration = fit_calibration(logits, truth, config.observations, method)
    if not calibration.lines:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in calibration.left_out.items())
        raise CalibrationError(f"No observation can be calibrated on {origin.data} ({origin.split}): {reasons}.")
    patient_of = dict(zip(dataset["study"][:], dataset["patient"][:], strict=True))
    check = check_calibration(logits, truth, [patient_of[study] for study in studies], config.observations)
    calibration = _at_prevalences(calibration, prevalences, truth, config.observations)
    points, without = _operating_points(calibration, logits, truth, config.observations, rule, prevalences)

    fold_calibration(model, calibration.lines)
    _record_calibration(config, calibration, truth, origin, prevalences)
    if check is not None and config.calibration is not None:
        config.calibration["check"] = asdict(check)
    _record_operating_points(config, calibration, points, without, rule, origin, len(studies))
    return CalibratedModel(calibration, points, without, len(studies), check)


def _operating_points(
    calibration: Calibration,
    logits: NDArray[np.floating],
    truth: NDArray[np.floating],
    observations: tuple[str, ...],
    rule: OperatingRule | None,
    prevalences: Mapping[str, float],
) -> tuple[dict[str, OperatingPoint], dict[str, str]]:
    """The points of the calibrated observations, and the reasons why the others have none."""
    if rule is None:
        return {}, {}
    points, without = {}, dict(calibration.left_out)
    for name, line in calibration.lines.items():
        column = observations.index(name)
        try:
            points[name] = choose_operating_point(
                line.probabilities(logits[:, column]), truth[:, column], rule, prevalences.get(name)
            )
        except CalibrationError as error:
            without[name] = str(error)
    return points, without


def _checked_prevalences(
    prevalences: Mapping[str, float], observations: tuple[str, ...], method: Method
) -> Mapping[str, float]:
    if prevalences and method is not Method.PLATT:
        raise CalibrationError(f"A prevalence moves the intercept, which {method.value} scaling has not; use platt.")
    for name, prevalence in prevalences.items():
        if name not in observations:
            raise CalibrationError(
                f"A prevalence is given for {name!r}, which is not among: {', '.join(observations)}."
            )
        if not 0 < prevalence < 1:
            raise CalibrationError(f"The prevalence of {name} is {prevalence:g}, expected a share above 0 and below 1.")
    return prevalences


def _at_prevalences(
    calibration: Calibration,
    prevalences: Mapping[str, float],
    truth: NDArray[np.floating],
    observations: tuple[str, ...],
) -> Calibration:
    without = [f"{name} ({reason})" for name, reason in calibration.left_out.items() if name in prevalences]
    if without:
        raise CalibrationError(f"A prevalence is given for what cannot be calibrated: {'; '.join(without)}.")
    moved = {
        name: calibration.lines[name].at_prevalence(wanted, float(np.nanmean(truth[:, observations.index(name)])))
        for name, wanted in prevalences.items()
    }
    return replace(calibration, lines={**calibration.lines, **moved})


def _record_calibration(
    config: CheXpertConfig,
    calibration: Calibration,
    truth: NDArray[np.floating],
    origin: Origin,
    prevalences: Mapping[str, float],
) -> None:
    counts = {
        key: dict(zip(config.observations, (truth == value).sum(axis=0).tolist(), strict=True))
        for key, value in (("num_positive", 1), ("num_negative", 0))
    }
    record = {
        "method": calibration.method.value,
        "data": origin.data,
        "split": origin.split,
        "date": origin.date,
        "num_studies": len(truth),
        **counts,
        "slopes": {name: line.slope for name, line in calibration.lines.items()},
        "intercepts": {name: line.intercept for name, line in calibration.lines.items()},
        "left_out": dict(calibration.left_out),
    }
    if prevalences:
        record["prevalences"] = dict(prevalences)
    if config.calibration is not None:  # these lines are on top of earlier ones
        record["earlier"] = config.calibration
    config.calibration = record


def _record_operating_points(
    config: CheXpertConfig,
    calibration: Calibration,
    points: Mapping[str, OperatingPoint],
    without: Mapping[str, str],
    rule: OperatingRule | None,
    origin: Origin,
    num_studies: int,
) -> None:
    earlier = config.operating_points or {}
    moved = {
        name: float(line.probabilities(logit(earlier[name])))
        for name, line in calibration.lines.items()
        if earlier[name] != DEFAULT_OPERATING_POINT
    }
    config.operating_points = earlier | moved | {name: point.threshold for name, point in points.items()}
    if rule is not None:
        config.operating_points_source = {
            "method": rule.criterion.value,
            "wanted": rule.wanted,
            "data": origin.data,
            "split": origin.split,
            "date": origin.date,
            "num_studies": num_studies,
            "left_out": dict(without),
        }
