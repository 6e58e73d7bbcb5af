"""Commands that measure or adjust a model on labelled data: evaluate, calibrate, gate."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from chexpert_hf.cli import options
from chexpert_hf.cli.app import (
    MODEL,
    app,
    hide_bars,
    load_classifier,
    load_reference,
    load_split,
    progress_bar,
    say,
    show,
)
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError, ModelFolderError
from chexpert_hf.files import result_folder

if TYPE_CHECKING:
    import datasets

    from chexpert_hf.evaluation.metrics import FloatArray
    from chexpert_hf.scoring.classifier import CheXpertClassifier


_LABELS_NAME = "Who set the data set's own labels, such as 'text-mined labels'; by the folder's name if none."
_PREVALENCE = "Prevalences where the model will be used, if they differ: 'Pneumonia=.02,Edema=.05'."


@app.command(
    rich_help_panel=MODEL,
    epilog="Example: chexpert-hf evaluate MY-DATA --model runs/mine --output report/",
)
def evaluate(
    data: options.SeveralData,
    model: options.ComparedModels,
    output: Annotated[Path | None, options.output("Folder for a report: HTML, Markdown, JSON, CSV, plots.")] = None,
    split: Annotated[options.Split, Option(help="Split to evaluate on.")] = "valid",
    valid_fraction: options.ValidFraction = 0.1,
    ensemble: Annotated[bool, Option("--ensemble", help="Average several models instead of comparing them.")] = False,
    aggregation: Annotated[
        Literal["maximum", "mean"], Option(help="How the views of a study are combined.")
    ] = "maximum",
    replicates: options.Replicates = 1000,
    allow_calibration_patients: Annotated[
        bool, Option("--allow-calibration-patients", help="Evaluate even on calibration patients, with a warning.")
    ] = False,
    thumbnails: Annotated[int, Option(min=0, help="Worst errors of each kind and observation to show, with maps.")] = 0,
    sanity: Annotated[int, Option(min=0, help="Also check the maps, as sanity does, on this many radiographs.")] = 0,
    reference: options.ReferenceFile = None,
    reference_map: options.ReferenceMap = None,
    reference_against: Annotated[
        list[str] | None,
        Option(help="Also evaluate against only some negatives of --reference, such as 'Class=Normal'."),
    ] = None,
    reference_name: options.ReferenceName = None,
    update_card: Annotated[bool, Option("--update-card", help="Add metrics on --reference to the model card.")] = False,
    labels_name: Annotated[str | None, Option(help=_LABELS_NAME)] = None,
    layout: options.LayoutName = None,
    workers: options.NumWorkers = "auto",
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Measure the AUROC of each observation, per study, on a split of a data set; --output adds a full report."""
    if sanity and output is None:
        raise InputError("--sanity needs --output: the checks are a section of the report.")
    is_own_folder = len(model) == 1 and Path(model[0]).is_dir() and Path(model[0]) != DEFAULT_MODEL
    if update_card and (reference is None or output is None or not is_own_folder):
        raise InputError(
            "--update-card needs --reference, --output and, as --model, one local folder other than the bundled model."
        )
    if output is not None:
        result_folder(output)

    from chexpert_hf.datasets.loading import data_name
    from chexpert_hf.evaluation.reference_standard import SECOND_STANDARD
    from chexpert_hf.evaluation.report.report import write_report
    from chexpert_hf.evaluation.report.reporting import (
        assess_dataset,
        patient_warnings,
        reference_metrics,
        refuse_calibration_patients,
        shared_observations,
    )
    from chexpert_hf.folders.dataset import predict_dataset
    from chexpert_hf.publishing.data_terms import labels_name_of
    from chexpert_hf.publishing.model_folder import add_reference_metrics

    models = {"ensemble": model} if ensemble else _by_name(model)
    classifiers = {name: load_classifier(paths) for name, paths in models.items()}
    shared = shared_observations(classifiers)
    others = {name: [each for each in one.observations if each not in shared] for name, one in classifiers.items()}
    if further := [f"{name} scores {', '.join(each)}, too" for name, each in others.items() if each]:
        say(f"Evaluated are the observations that all models score: {', '.join(shared)}; {'; '.join(further)}.")
    blanks = {name: one.model.config.blank_labels for name, one in classifiers.items()}
    if len(set(blanks.values())) > 1:
        first = next(iter(blanks))
        say(f"Blank cells count as {blanks[first]} for all of these models, as {first} was trained.")
    settings: dict[str, Any] = {"layout": layout, "follow_links": follow_links, "valid_fraction": valid_fraction}
    dataset, name = load_split(data, split, shared, **settings), data_name(data)
    paths, patients = dataset["path"][:], dataset["patient"][:]
    standard = load_reference(reference, paths, shared, reference_map, reference_name, reference_against)
    if standard is not None:
        say(standard.coverage(paths))
    if labels_name is None:
        labels_name = labels_name_of(dataset, name, split)
    if not allow_calibration_patients:
        refuse_calibration_patients(model, patients)
    warnings = patient_warnings(model, patients)
    settings = {"labels_name": labels_name, "aggregation": aggregation, "replicates": replicates}
    with progress_bar(len(dataset) * len(classifiers), "images") as bar:
        if output is None:
            scores: Mapping[str, FloatArray] = {
                name: predict_dataset(one, dataset, bar.update, workers=workers, observations=shared)
                for name, one in classifiers.items()
            }
            second = reference_metrics(classifiers, scores, dataset, standard, **settings) if standard else None
        else:
            settings |= {"num_thumbnails": thumbnails, "num_sanity": sanity, "warnings": warnings, "workers": workers}
            settings |= {"title": f"{name}, {split}", "reference": standard, "progress": bar.update}
            report = assess_dataset(classifiers, dataset, **settings)
            write_report(output, report)
            scores, second = report.view_scores, report.metrics.get(SECOND_STANDARD)
            if update_card:
                add_reference_metrics(Path(model[0]), report.metrics[SECOND_STANDARD], report.title)
    result, text = _results(classifiers, scores, dataset, second, aggregation)
    for warning in warnings:
        say(f"Note: {warning}")
    show(result if output is None else dict(report.metrics), text, as_json)
    if output is not None:
        say(f"The report is in {output}: report.html, report.md, metrics.json, predictions.")
    else:
        differences = "differences between the models, " if len(models) > 1 else ""
        say(f"--output FOLDER adds {differences}intervals, calibration, operating points and subgroups.")


def _by_name(models: Sequence[str]) -> dict[str, list[str]]:
    """Return name -> [model]; the name is that of the model's folder.

    If several folders have the same name, each of these models is named by its path.
    """
    from chexpert_hf.evaluation.report.report import LABELS_PREFIX

    short = [Path(model).name or model for model in models]
    if LABELS_PREFIX in short:
        raise InputError(f"A model is named {LABELS_PREFIX!r}, as the labels are in tables of predictions: rename it.")
    return {name if short.count(name) == 1 else model: [model] for name, model in zip(short, models, strict=True)}


def _results(
    classifiers: "Mapping[str, CheXpertClassifier]",
    scores: "Mapping[str, FloatArray]",
    dataset: "datasets.Dataset",
    second: Mapping[str, Any] | None,
    aggregation: str,
) -> tuple[dict[str, Any], str]:
    """Evaluate each model; return (values for JSON, tables as one text).

    `scores` are the probabilities from each model. `second` holds the metrics of the same scores against the labels of
    --reference, None without that option. These metrics are added to the values and the tables.
    """
    from chexpert_hf.evaluation.reference_standard import SECOND_STANDARD
    from chexpert_hf.evaluation.report.report import as_table, reference_table
    from chexpert_hf.evaluation.report.reporting import evaluate_predictions, shared_observations

    shared, config = shared_observations(classifiers), next(iter(classifiers.values())).model.config
    values: dict[str, Any] = {}
    tables = []
    for name in classifiers:  # all are compared on the same labels, as in the report
        evaluation = evaluate_predictions(scores[name], dataset, config, aggregation, shared)
        values |= {name: evaluation.to_dict()} if len(classifiers) > 1 else evaluation.to_dict()
        tables += [name] if len(classifiers) > 1 else []
        tables.append(as_table(evaluation, aggregation))
    if second is not None:
        values[SECOND_STANDARD] = second
        tables.append(f"\n{reference_table(second)}")
    return values, "\n".join(tables)


@app.command(
    rich_help_panel=MODEL,
    epilog="Example: chexpert-hf calibrate MY-DATA --model runs/mine --output calibrated/",
)
def calibrate(
    data: options.Data,
    model: Annotated[str, options.model(f"{options.MODEL_HELP}; it is not changed.")],
    output: Annotated[Path, options.new_folder("New or empty folder for the calibrated model.")],
    split: Annotated[options.Split, Option(help="Split to fit on.")] = "valid",
    valid_fraction: options.ValidFraction = 0.1,
    method: Annotated[
        Literal["platt", "temperature"], Option(help="Slope and intercept per observation, or one temperature for all.")
    ] = "platt",
    operating_points: Annotated[
        str | None, Option(help="Choose operating points by youden, sensitivity=.9 or ppv=.5.")
    ] = None,
    prevalence: Annotated[str | None, Option(help=_PREVALENCE)] = None,
    other_people: Annotated[
        bool, Option("--other-people", help="Patients with the same ids as in training are other people.")
    ] = False,
    layout: options.LayoutName = None,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Calibrate a model's probabilities on a split and write the calibrated model to a new folder."""
    from chexpert_hf.api import calibrate as run
    from chexpert_hf.evaluation.calibration.calibration import OperatingRule

    folder, name = Path(model), data.resolve().name
    settings: dict[str, Any] = {"split": split, "method": method, "are_other_people": other_people}
    settings["operating_points"] = OperatingRule.parse(operating_points) if operating_points else None
    settings["prevalences"] = _parse_prevalences(prevalence) if prevalence else {}
    dataset = _split_of(folder, data, split, layout=layout, follow_links=follow_links, valid_fraction=valid_fraction)
    with progress_bar(len(dataset), "images") as bar:
        result = run(folder, dataset, output, **settings, data_name=name, progress=bar.update)
    text = (
        f"Fitted on {result.num_studies:,} studies of {name} ({split}); metrics on these same studies would be "
        f"optimistic. The calibrated model folder is {output}."
    )
    show({"folder": str(output), **result.to_dict()}, f"{result.as_table()}\n{text}", as_json)


@app.command(rich_help_panel=MODEL, epilog="Example: chexpert-hf gate MY-DATA --model runs/mine")
def gate(
    data: options.Data,
    model: Annotated[str, options.model("Model folder; gate.safetensors is written into it.")],
    split: Annotated[options.Split, Option(help="Split to fit on: that of training.")] = "train",
    valid_fraction: options.ValidFraction = 0.1,
    layout: options.LayoutName = None,
    follow_links: options.FollowLinks = True,
    as_json: options.AsJson = False,
) -> None:
    """Fit a gate, which tells chest radiographs from other images, on a model's training radiographs."""
    from chexpert_hf.gate import GATE_FILE
    from chexpert_hf.gate.fit import MAX_IMAGES, fit_folder_gate
    from chexpert_hf.models.model_files import ensemble_members

    folder = Path(model)
    if not folder.is_dir() or folder == DEFAULT_MODEL:
        raise ModelFolderError(
            f"--model is {model}; expected your own model folder, since {GATE_FILE} is written into it."
        )
    folder = Path(ensemble_members(folder)[0])  # an ensemble uses the gate of its first member
    dataset = _split_of(folder, data, split, layout=layout, follow_links=follow_links, valid_fraction=valid_fraction)
    with progress_bar(min(len(dataset), MAX_IMAGES), "images") as bar:
        fitted = fit_folder_gate(folder, dataset, f"{data.resolve().name} ({split})", bar.update)
    show(
        {"file": str(folder / GATE_FILE), "n": fitted.num_images, "limit": fitted.limit},
        f"Fitted on {fitted.num_images:,} radiographs of {fitted.data_name}; the limit of the distance is "
        f"{fitted.limit:.2f}, which 99.5 % of unseen radiographs like these should stay below. "
        f"Written: {folder / GATE_FILE}",
        as_json,
    )


def _split_of(model: Path, data: Path, split: str, **settings: Any) -> "datasets.Dataset":
    """Load one split of a data set with the labels that a model scores; `settings` are options of `load_dataset`."""
    from chexpert_hf.models.loading import load_model

    hide_bars()
    return load_split(data, split, load_model(model).config.observations, **settings)


def _parse_prevalences(text: str) -> dict[str, float]:
    pairs = [item.rpartition("=") for item in text.split(",")]
    try:
        return {name.strip(): float(value) for name, _, value in pairs}
    except ValueError as error:
        raise InputError(f"Expected prevalences as 'Pneumonia=.02,Edema=.05', got {text!r}.") from error
