"""Calibrates a model: fits slopes and intercepts on a split, folds them into the head, and records them in the config.

Calibration replaces a logit z by slope * z + intercept. Since this only changes rows of the head's last layer, a plain
sigmoid then gives calibrated probabilities in every runtime.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit

from chexpert_hf.configuration_chexpert import DEFAULT_OPERATING_POINT, CheXpertConfig
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.evaluation.calibration import calibration as fits
from chexpert_hf.evaluation.calibration.calibration import CalibrationError, Method, OperatingRule
from chexpert_hf.evaluation.metrics import per_study, split_labels
from chexpert_hf.evaluation.patients import (
    CALIBRATION_PATIENTS_FILE,
    TRAINING_PATIENTS_FILE,
    overlapping_patients,
    write_patient_hashes,
)
from chexpert_hf.evaluation.tables import aligned
from chexpert_hf.files import make_readable, new_folder
from chexpert_hf.folders.dataset import read_file
from chexpert_hf.folders.readers import batched
from chexpert_hf.gate import GATE_FILE
from chexpert_hf.modeling_chexpert import CheXpertForImageClassification
from chexpert_hf.models.graph_files import RECORD_FILE
from chexpert_hf.models.model_files import CHECKSUMS_FILE
from chexpert_hf.scoring.classifier import BATCH_SIZE, CheXpertClassifier

_OF_OLD_WEIGHTS = ("reference.json", RECORD_FILE, CHECKSUMS_FILE)
_COPIED_SUFFIXES = {"", ".csv", ".json", ".md", ".png", ".txt", ".yaml"}
"""Suffixes of files that are copied to a calibrated model's folder; exported graphs have others."""


@dataclass(frozen=True)
class Origin:
    """The data on which a calibration was fitted, and the day of the fit, as the config records them."""

    data: str  # name of the data set
    split: str
    date: str  # ISO 8601


@dataclass(frozen=True)
class CalibratedModel:
    """The result of `calibrate_model`: the calibration, and the operating points chosen with it.

    `check` compares each calibration method with uncalibrated scores, by cross-validation on the same split. Its
    metrics hold for the split's own prevalences: it ignores the argument `prevalences` of `calibrate_model`.
    """

    calibration: fits.Calibration  # its slopes and intercepts are already part of the weights
    operating_points: Mapping[str, fits.OperatingPoint]  # observation -> the point chosen for it
    without_point: Mapping[str, str]  # observation -> why no point was chosen; empty if none was asked for
    num_studies: int  # number of studies in the split
    check: fits.CalibrationCheck | None = None  # None if there are too few studies

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain types for JSON."""
        return asdict(self)

    def as_table(self) -> str:
        """Format a line per observation (slope, intercept, operating point or why it has none).

        A table follows that compares the calibration methods by cross-validation, if there were enough studies for it.
        """
        cells = [["observation", "slope", "intercept", "operating point"]]
        for name, line in self.calibration.lines.items():
            chosen = self.without_point.get(name, "")
            if point := self.operating_points.get(name):
                chosen = (
                    f"{point.threshold:.3f} (sensitivity {point.sensitivity:.3f}, specificity "
                    f"{point.specificity:.3f}, PPV {point.ppv:.3f})"
                )
            cells.append([name, f"{line.slope:.3f}", f"{line.intercept:+.3f}", chosen])
        cells += [[name, f"as it was: {reason}"] for name, reason in self.calibration.left_out.items()]
        table = aligned(cells, right=(1, 2))
        if self.check is None:
            return table
        over = f"Mean over {len(self.check.observations)} observations, {self.check.folds} folds of patients:"
        text = f"{table}\n\n{over}\n{self.check.as_table()}"
        method = self.calibration.method.value
        if all(score[method] >= score["raw"] for score in (self.check.scaled_brier, self.check.calibration_error)):
            text += (
                f"\nOn held-out patients {method} is no better than raw by either score: the model may need no "
                "calibration here, or more studies for one."
            )
        return text


def load_uncalibrated(source: Path) -> CheXpertClassifier:
    """Load a model folder that is to be calibrated, for the first time or again.

    Raises:
        CalibrationError: If `source` is not a folder, or its model is an ensemble or has a label hierarchy.
    """
    if not source.is_dir():
        raise CalibrationError(f"Expected a model folder, got {str(source)!r}; download a repository of the Hub first.")
    classifier = CheXpertClassifier.from_pretrained(source)
    if len(classifier.members) > 1:
        raise CalibrationError(
            f"The model is an ensemble of {len(classifier.members)}, whose mean no head can calibrate; calibrate its "
            "members one by one."
        )
    _refuse_hierarchy(classifier.model.config)
    return classifier


def refuse_training_patients(source: Path, patients: Sequence[str]) -> None:
    """Raise CalibrationError if any of `patients` is among the training patients whose hashed ids are in `source`."""
    trained_on = source / TRAINING_PATIENTS_FILE
    if trained_on.exists() and (shared := overlapping_patients(trained_on, patients)):
        raise CalibrationError(
            f"By their ids, {len(shared):,} of these {len(set(patients)):,} patients were used to train the model, "
            "whose scores are surer of them than of others: calibrate on others, or pass --other-people (in Python "
            "are_other_people=True) if these ids name other people."
        )


def write_calibrated(classifier: CheXpertClassifier, source: Path, output: Path, patients: Sequence[str]) -> None:
    """Write a calibrated model to `output`, a new or empty folder, with the other files of its folder `source`.

    Subfolders of `source` are not copied, nor are the files of the old weights: exported graphs, `reference.json` and
    checksums. Call `refresh_folder` for new reference scores and checksums. The hashed ids of `patients`, on whom the
    model was calibrated, are added to those of earlier calibrations in `calibration_patients.json`.
    """
    with new_folder(output) as folder:
        for path in source.iterdir():
            is_kept = (
                path.suffix in _COPIED_SUFFIXES or path.name == GATE_FILE
            )  # it judges by features, which do not change
            if path.is_file() and is_kept and path.name not in _OF_OLD_WEIGHTS:
                shutil.copy2(path, folder)
        classifier.model.save_pretrained(folder)
        classifier.processor.save_pretrained(folder)
        make_readable(folder / "model.safetensors")
        write_patient_hashes(folder / CALIBRATION_PATIENTS_FILE, patients, source / CALIBRATION_PATIENTS_FILE)


@torch.inference_mode()
def dataset_logits(
    classifier: CheXpertClassifier, dataset: datasets.Dataset, progress: Callable[[int], None] | None = None
) -> NDArray[np.float64]:
    """Return a model's logits `(num_views, num_labels)` for the images of a split from `load_dataset`, in float64.

    They come from the network itself: logits computed from float32 probabilities near 1 would be inexact. `progress`
    is called with the size of each batch.
    """
    model, rows = classifier.model, []
    images = (read_file(classifier, file).image for file in image_files(dataset))
    for batch in batched(images, BATCH_SIZE):
        pixel_values = classifier.processor(batch, return_tensors="pt")["pixel_values"]
        rows.append(model(pixel_values.to(model.device, model.dtype)).logits.double().cpu().numpy())
        if progress:
            progress(len(batch))
    return np.concatenate(rows)


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
    """Calibrate a model in place: change its head and operating points, and record both in its config.

    Args:
        model: A model without a label hierarchy.
        logits: `(num_views, num_labels)` of the dataset's images; with cross-fitting, each from a model not trained on
            that image.
        dataset: A split from `load_dataset` whose labels are the model's observations, in its order.
        origin: Where the dataset comes from, for the record.
        method: Platt scaling, or one temperature.
        rule: How operating points are chosen on the calibrated probabilities; None: none are chosen. Earlier
            operating points that are not replaced are converted like the scores, so that the same views stay positive;
            the default point, .5, stays .5.
        prevalences: Observation -> prevalence where the model will be used, in (0, 1), if it differs from that of this
            split; with Platt scaling only.

    Raises:
        CalibrationError: If the model has a label hierarchy, no observation can be calibrated, or a prevalence is
            outside (0, 1), belongs to an observation that is not calibrated, or is given without Platt scaling.
    """
    config, observations = model.config, model.config.observations
    prevalences = prevalences or {}
    if prevalences and method is not Method.PLATT:
        raise CalibrationError(f"A prevalence moves the intercept, which {method.value} scaling has not; use platt.")
    for name, prevalence in prevalences.items():
        if name not in observations:
            known = ", ".join(observations)
            raise CalibrationError(f"A prevalence is given for {name!r}, which is not among: {known}.")
        if not 0 < prevalence < 1:
            raise CalibrationError(f"The prevalence of {name} is {prevalence:g}, expected a share above 0 and below 1.")
    truth, studies = per_study(split_labels(dataset, config.blank_labels), dataset["study"][:])
    logits, _ = per_study(logits, dataset["study"][:])
    calibration = fits.fit_calibration(logits, truth, observations, method)
    if not calibration.lines:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in calibration.left_out.items())
        raise CalibrationError(f"No observation can be calibrated on {origin.data} ({origin.split}): {reasons}.")
    patient_of = dict(zip(dataset["study"][:], dataset["patient"][:], strict=True))
    check = fits.check_calibration(logits, truth, [patient_of[study] for study in studies], observations)
    if without := [f"{name} ({reason})" for name, reason in calibration.left_out.items() if name in prevalences]:
        raise CalibrationError(f"A prevalence is given for what cannot be calibrated: {'; '.join(without)}.")
    lines = dict(calibration.lines)
    for name, wanted in prevalences.items():
        lines[name] = lines[name].at_prevalence(wanted, float(np.nanmean(truth[:, observations.index(name)])))
    points, without_point = {}, {}
    if rule is not None:
        without_point = dict(calibration.left_out)
        for name, line in lines.items():
            column = observations.index(name)
            probabilities = line.probabilities(logits[:, column])
            try:
                points[name] = fits.choose_operating_point(probabilities, truth[:, column], rule, prevalences.get(name))
            except CalibrationError as error:
                without_point[name] = str(error)
    result = CalibratedModel(replace(calibration, lines=lines), points, without_point, len(studies), check)
    fold_calibration(model, lines)
    _record(config, result, truth, origin, rule, prevalences)
    return result


@torch.no_grad()
def fold_calibration(model: CheXpertForImageClassification, lines: Mapping[str, fits.Platt]) -> None:
    """Change the head's last layer in place: the logit z of each observation in `lines` becomes slope * z + intercept.

    Under the policy U-MultiClass, an observation has three outputs: positive, negative and uncertain. Its z is the
    positive minus the negative output. Therefore the slope scales all three outputs, and half of the intercept is added
    to the positive output and half subtracted from the negative one. This also changes the probability of uncertain,
    which is not calibrated.

    Raises CalibrationError if the model has a label hierarchy.
    """
    _refuse_hierarchy(model.config)
    parameters = model.last_layer.weight, model.last_layer.bias
    weight, bias = (parameter.double() for parameter in parameters)
    num_labels, multiclass = model.config.num_labels, model.config.multiclass_observations
    for name, line in lines.items():
        positive = model.config.observations.index(name)
        rows, shifts = [positive], [line.intercept]
        if name in multiclass:
            negative = num_labels + multiclass.index(name)
            rows = [positive, negative, negative + len(multiclass)]
            shifts = [line.intercept / 2, -line.intercept / 2, 0.0]
        weight[rows] *= line.slope
        bias[rows] = bias[rows] * line.slope + bias.new_tensor(shifts)
    parameters[0].copy_(weight)
    parameters[1].copy_(bias)


def _refuse_hierarchy(config: CheXpertConfig) -> None:
    if config.label_parents:
        raise CalibrationError(
            "The model multiplies probabilities along a label hierarchy (label_parents), and no line on a factor "
            "calibrates the product; calibrate a model without hierarchy."
        )


def _record(
    config: CheXpertConfig,
    result: CalibratedModel,
    truth: NDArray[np.floating],
    origin: Origin,
    rule: OperatingRule | None,
    prevalences: Mapping[str, float],
) -> None:
    lines = result.calibration.lines
    record = {
        "method": result.calibration.method.value,
        **asdict(origin),
        "num_studies": len(truth),
        "num_positive": dict(zip(config.observations, (truth == 1).sum(axis=0).tolist(), strict=True)),
        "num_negative": dict(zip(config.observations, (truth == 0).sum(axis=0).tolist(), strict=True)),
        "slopes": {name: line.slope for name, line in lines.items()},
        "intercepts": {name: line.intercept for name, line in lines.items()},
        "left_out": dict(result.calibration.left_out),
    }
    if prevalences:
        record["prevalences"] = dict(prevalences)
    if config.calibration is not None:  # these slopes and intercepts are on top of earlier ones
        record["earlier"] = config.calibration
    if result.check is not None:
        record["check"] = asdict(result.check)
    config.calibration = record
    earlier = config.operating_points or {}
    moved = {
        name: float(line.probabilities(logit(earlier[name])))
        for name, line in lines.items()
        if earlier[name] != DEFAULT_OPERATING_POINT
    }
    chosen = {name: point.threshold for name, point in result.operating_points.items()}
    config.operating_points = earlier | moved | chosen
    if rule is not None:
        source = {
            "method": rule.criterion.value,
            "wanted": rule.wanted,
            **asdict(origin),
            "num_studies": len(truth),
            "left_out": dict(result.without_point),
        }
        if config.operating_points_source is not None and result.without_point:
            source["earlier"] = config.operating_points_source  # of the points that stay
        config.operating_points_source = source
