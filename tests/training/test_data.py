"""Labels of a recipe: those of the data, of a built-in set, of a file, and of several data sets at once."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml

from chexpert_hf import CheXpertClassifier, evaluate
from chexpert_hf.datasets.cells import DatasetError
from chexpert_hf.datasets.layouts.nih import NIH
from chexpert_hf.datasets.layouts.vindr import VINDR
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import split_labels
from chexpert_hf.evaluation.patients import seen_patients
from chexpert_hf.labels import CHEXPERT, IGNORED, OBSERVATIONS
from chexpert_hf.models.loading import load_model
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.training.data import load_data, with_labels, with_stated_labels
from chexpert_hf.training.initial_model import build_model
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.run import train
from tests.commands import run

from ..conftest import TINY

SMALL = Recipe(
    init="random", architecture=TINY, num_channels=1, image_size=32, epochs=1, batch_size=16, workers=0, policy="u-ones"
)


def as_nih(phantoms: Path, folder: Path) -> Path:
    """Some phantoms in the columns and folders of ChestX-ray14: effusions and masses, by CheXpert's labels of them."""
    table = pd.read_csv(phantoms / "train.csv").query("`Frontal/Lateral` == 'Frontal'").head(40)
    (folder / "images").mkdir(parents=True)
    with (folder / "Data_Entry_2017_v2020.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender"])
        for number, row in enumerate(table.to_dict("records")):
            found = ["Effusion"] * (row["Pleural Effusion"] == 1) + ["Mass"] * (row["Lung Lesion"] == 1)
            writer.writerow([f"{number:08}_000.jpg", "|".join(found) or "No Finding", number, "41", "F"])
            source = phantoms / Path(*Path(row["Path"]).parts[-4:])
            (folder / "images" / f"{number:08}_000.jpg").symlink_to(source)
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=66, seed=5, valid_fraction=0.4)
    return root


@pytest.fixture(scope="module")
def nih(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_nih(phantoms, tmp_path_factory.mktemp("data") / "ChestX-ray14")


def test_labels_are_those_of_the_data(phantoms: Path, nih: Path) -> None:
    assert with_labels(SMALL, phantoms).observations == OBSERVATIONS
    assert with_labels(SMALL, phantoms).label_set == {}
    of_nih = with_labels(SMALL, nih)
    assert of_nih.observations == NIH.names
    assert of_nih.known_labels == NIH
    assert with_labels(of_nih, nih) == of_nih  # stages of a run take it again
    assert with_labels(SMALL.override(observations=("Edema", "Effusion")), nih).observations == ("Edema", "Effusion")


def test_labels_come_from_a_set_a_file_or_names(phantoms: Path, tmp_path: Path) -> None:
    assert with_labels(SMALL.override(labels="vindr"), phantoms).known_labels == VINDR
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"names": ["TB", "Normal"], "none_of_these": "Normal"}))
    own = with_labels(SMALL.override(labels=str(tmp_path / "own.yaml")), phantoms)
    assert (own.observations, own.known_labels.none_of_these) == (("TB", "Normal"), "Normal")
    assert with_labels(SMALL.override(labels="Edema, TB"), phantoms).observations == ("Edema", "TB")
    by_names = with_labels(SMALL.override(labels="TB, Normal"), phantoms).known_labels
    assert (by_names.names, by_names.none_of_these) == (("TB", "Normal"), "Normal")
    for word in ("Healthy", "no_abnormality", "No findings"):
        assert with_labels(SMALL.override(labels=f"TB, {word}"), phantoms).known_labels.none_of_these == word
    (tmp_path / "bad.yaml").write_text("names: [TB]\nheadline: [Edema]\n")
    for text, message in (("bad.yaml", "names 'Edema'"), ("missing.yaml", "No such file")):
        with pytest.raises(InputError, match=message):
            with_labels(SMALL.override(labels=str(tmp_path / text)), phantoms)


def test_the_model_knows_its_label_set(nih: Path) -> None:
    config = build_model(with_labels(SMALL, nih)).config
    assert config.labels == NIH
    assert config.observations == NIH.names


def test_labels_of_another_set_are_answered_or_unknown_but_never_negative(nih: Path) -> None:
    lines: list[str] = []
    names = ("Pleural Effusion", "Lung Lesion", "Fracture", "No Finding", "Lung Opacity")
    options = {"observations": names, "splits": ["train"], "valid_fraction": 0}
    labels = np.array(load_dataset(nih, say=lines.append, **options)["train"]["labels"][:])
    table = pd.read_csv(nih / "Data_Entry_2017_v2020.csv")["Finding Labels"]
    np.testing.assert_array_equal(labels[:, 0], table.str.contains("Effusion"))
    np.testing.assert_array_equal(labels[:, 1], table.str.contains("Mass"))
    assert (labels[:, 2] == IGNORED).all()
    np.testing.assert_array_equal(labels[:, 3], table == "No Finding")
    np.testing.assert_array_equal(labels[:, 4], table.str.contains("Mass"))  # a mass is an opacity
    assert any("has no labels for Fracture" in line for line in lines)
    for blank in ("negative", "unknown"):
        truth = split_labels(load_dataset(nih, **options)["train"], blank)
        assert np.isnan(truth[:, 2]).all()
        assert not np.isnan(truth[:, 0]).any()
    with pytest.raises(DatasetError, match="no labels for Fracture, Support Devices; it has Atelectasis"):
        load_dataset(nih, observations=["Fracture", "Support Devices"])


def test_several_data_sets_are_one_with_the_union_of_their_labels(phantoms: Path, nih: Path) -> None:
    recipe = with_labels(SMALL, [phantoms, nih])
    further = [name for name in NIH.names if name in ("Infiltration", "Mass", "Nodule", "Emphysema", "Fibrosis")]
    assert recipe.observations == (*OBSERVATIONS, *further, "Pleural_Thickening", "Hernia")
    assert recipe.known_labels.headline == CHEXPERT.headline
    data = load_data(recipe, [phantoms, nih])
    train_split = data["train"].remove_columns("image").to_pandas()
    labels = pd.DataFrame(np.stack(train_split["labels"]), columns=recipe.observations)
    is_nih = train_split["source"] == "ChestX-ray14"
    assert is_nih.any()
    assert (~is_nih).any()
    assert (labels.loc[is_nih, "Support Devices"] == IGNORED).all()
    assert (labels.loc[~is_nih, "Hernia"] == IGNORED).all()
    assert set(labels.loc[is_nih, "Pleural Effusion"]) == {0, 1}  # NIH's Effusion
    assert not set(data["train"]["patient"][:]) & set(data["valid"]["patient"][:])
    assert train_split.loc[is_nih, "patient"].str.startswith("NIH/").all()
    assert train_split["path"].is_unique


def test_the_checkpoint_is_chosen_by_the_headline_of_the_label_set(phantoms: Path, tmp_path: Path) -> None:
    labels = {"names": ["Edema", "Pleural Effusion", "Lung Opacity"], "headline": ["Lung Opacity"]}
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(labels))
    recipe = SMALL.override(labels=str(tmp_path / "labels.yaml"))
    result = train(recipe, phantoms, tmp_path / "model", say=lambda _line: None)
    assert result.evaluation.mean_over == ("Lung Opacity",)  # CheXpert's would be the two others
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    chosen = next(entry for entry in history if "eval_mean_auroc" in entry)
    assert chosen["eval_mean_auroc"] == chosen["eval_auroc/Lung Opacity"], chosen


@pytest.mark.slow
def test_a_model_of_two_data_sets_is_trained_and_evaluated_on_both_and_on_each(
    phantoms: Path,
    nih: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(SMALL, [phantoms, nih], tmp_path / "model", say=lambda _line: None)
    record = json.loads((tmp_path / "model" / "evaluation.json").read_text())
    assert {entry["group"] for entry in record["subgroups"] if entry["column"] == "source"} == {
        phantoms.name,
        "ChestX-ray14",
    }
    classifier = CheXpertClassifier.from_pretrained(tmp_path / "model")
    assert len(classifier.observations) == 21
    assert f"{phantoms.name} and ChestX-ray14" in (tmp_path / "model" / "README.md").read_text()
    command = ["evaluate", phantoms, nih, "--model", tmp_path / "model", "--output", tmp_path / "report", "--json"]
    code, out, err = run(monkeypatch, capsys, *command, "--replicates", "100")
    assert code == 0, err
    report = json.loads(out)
    assert report["data"]["views"] == len(load_data(with_labels(SMALL, [phantoms, nih]), [phantoms, nih])["valid"])
    assert f"{phantoms.name} and ChestX-ray14, valid" in (tmp_path / "report" / "report.md").read_text()
    groups = {each["group"] for each in report["models"][0]["subgroups"] if each["column"] == "source"}
    assert groups == {phantoms.name, "ChestX-ray14"}
    of_nih = {each.observation: each for each in evaluate(classifier, nih, split="train").observations}
    assert of_nih["Fracture"].num_positive == of_nih["Fracture"].num_negative == 0  # NIH cannot state it
    assert of_nih["Pleural Effusion"].num_positive > 0


def test_patients_of_a_joint_training_are_noticed_in_each_data_set(phantoms: Path, nih: Path, tmp_path: Path) -> None:
    train(SMALL.override(num_patients=30), [phantoms, nih], tmp_path / "model", say=lambda _line: None)
    for folder in (phantoms, nih):
        seen = load_dataset(folder, splits=["train"], valid_fraction=0)["train"]["patient"][:]
        assert any("used to train the model" in line for line in seen_patients(tmp_path / "model", seen))
    assert not seen_patients(tmp_path / "model", ["nobody"])


def test_a_label_set_without_a_headline_has_all_of_its_labels_in_the_mean(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("names: [Edema, Cardiomegaly, TB]\n")
    known = with_labels(SMALL.override(labels=str(tmp_path / "own.yaml")), phantoms).known_labels
    assert set(known.headline) == {"Edema", "Cardiomegaly", "TB"}  # CheXpert's would be the first two
    assert known.parents == {}


def test_observations_and_labels_override_those_of_a_finished_run(nih: Path) -> None:
    finished = with_labels(SMALL, nih)
    fewer = with_labels(finished.override(observations=("Effusion", "Mass")), nih)
    assert fewer.known_labels == NIH.among(("Effusion", "Mass"))
    other = finished.override(labels="chexpert", observations=(), label_set={})  # as `--labels` does
    assert with_labels(other, nih).observations == OBSERVATIONS


def test_labels_that_teach_nothing_have_no_output_and_absent_ones_are_named() -> None:
    names = ("Fracture", "Edema", "Cardiomegaly", "Pneumonia")
    rows = [[np.nan, -1, 0, 1], [IGNORED, np.nan, 0, 0]]
    train_split = datasets.Dataset.from_dict({"labels": rows})
    lines: list[str] = []

    def outputs(**values: object) -> tuple[str, ...]:
        lines.clear()
        return with_stated_labels(SMALL.override(observations=names, **values), train_split, lines.append).observations

    assert outputs(policy="u-ignore", blank_labels="unknown") == names[2:]
    assert "no output for Fracture, Edema," in lines[0]
    assert "No training image has Cardiomegaly: the model only learns to deny it." in lines[1]
    assert outputs(policy="u-ones", blank_labels="unknown") == names[1:]
    assert outputs(policy="u-self-trained", blank_labels="unknown") == names[2:]
    assert outputs(policy="u-self-trained", blank_labels="unknown", teacher="model") == names[1:]
    mixed = "Pneumonia=u-self-trained"  # the others are ignored
    assert outputs(policy=mixed, blank_labels="unknown", teacher="model") == names[2:]
    fold = {"checkpoint": "last", "calibration_folds": 2, "held_out_fold": 0}
    assert outputs(policy="u-ignore", blank_labels="unknown", **fold) == names
    assert outputs(policy="u-ignore", blank_labels="negative") == names
    assert [line.partition(":")[0] for line in lines] == ["No training image has Fracture, Cardiomegaly"]


def test_a_model_has_no_output_that_its_training_data_could_not_state(nih: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = SMALL.override(labels="chexpert", unconditional=True, num_patients=30)
    train(recipe, nih, tmp_path / "model", say=lines.append)
    unstated = ("Enlarged Cardiomediastinum", "Fracture", "Support Devices")
    config = load_model(tmp_path / "model").config
    assert config.observations == tuple(name for name in OBSERVATIONS if name not in unstated)
    assert "Cardiomegaly" not in (config.label_parents or {})  # its parent has no output
    assert config.label_parents == CHEXPERT.among(config.observations).parents
    assert sum("no output for Enlarged Cardiomediastinum" in line for line in lines) == 1
    assert any("the last checkpoint will be used" in line for line in lines)
    assert not (tmp_path / "model" / "selection_patients.json").exists()  # since no patient chose it
    with pytest.raises(RecipeError, match="No training image has a label for Fracture"):
        with_stated_labels(
            SMALL.override(observations=("Fracture",)),
            datasets.Dataset.from_dict({"labels": [[IGNORED]]}),
            lines.append,
        )
