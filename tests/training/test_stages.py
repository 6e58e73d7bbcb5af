"""Runs of several stages: a teacher, conditional training, ensembles; each resumes where it was killed."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from chexpert_hf import CheXpertClassifier
from chexpert_hf.cli.app import app
from chexpert_hf.evaluation.patients import SELECTION_PATIENTS_FILE
from chexpert_hf.models.model_files import ChecksumError, renew_checksums
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.publishing.check import check_folder
from chexpert_hf.scoring.classifier import ModelFolderError
from chexpert_hf.training.checkpoints import best_checkpoints, checkpoints_by_step
from chexpert_hf.training.data import load_data
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.run import train

from ..conftest import TINY
from .processes import run_until_killed
from .test_run import assert_equal_to_the_last_bit

NAMES = ("Lung Opacity", "Consolidation", "Atelectasis", "Edema", "Cardiomegaly", "Support Devices")
RECIPE = Recipe(
    observations=NAMES,
    policy={"Consolidation": "u-self-trained", "Atelectasis": "u-self-trained", "Cardiomegaly": "u-multiclass"},
    init="random",
    architecture=TINY,
    num_channels=1,
    image_size=32,
    frontal_only=True,
    epochs=2,
    batch_size=4,
    images_per_checkpoint=8,
    learning_rate=3e-3,
    workers=0,
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A folder with 19 frontal radiographs for training: too few for a gate, whose fit takes longer than a run."""
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=48, seed=18, valid_fraction=0.6)
    return root


@pytest.fixture(scope="module")
def self_trained(phantoms, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    train(RECIPE, phantoms, output, say=lambda line: None)
    return output


def quiet(recipe, phantoms, output, **options):
    return train(recipe, phantoms, output, say=lambda line: None, **options)


def test_soft_labels_are_the_teachers_probabilities_of_the_uncertain_cells(phantoms, self_trained):
    table = pd.read_csv(self_trained / "soft_labels.csv").set_index("path")
    assert list(table.columns) == ["Consolidation", "Atelectasis"]
    dataset = load_data(RECIPE, phantoms)["train"]
    raw = pd.DataFrame(np.asarray(dataset["labels"][:]), index=dataset["path"][:], columns=NAMES)
    uncertain = raw[["Consolidation", "Atelectasis"]] == -1
    assert uncertain.to_numpy().sum() > 10
    assert (table.notna() == uncertain.loc[table.index]).all(axis=None)
    assert not uncertain.drop(table.index).any(axis=None)
    teacher = CheXpertClassifier.from_pretrained(self_trained / "teacher")
    path = next(path for path in table.index if not np.isnan(table.loc[path, "Consolidation"]))
    expected = teacher.predict(phantoms / path).probabilities["Consolidation"]
    assert table.loc[path, "Consolidation"] == pytest.approx(expected, abs=1e-6)


def test_the_teacher_ignores_uncertain_labels_of_what_it_teaches_and_the_student_says_self_trained(self_trained):
    teacher = json.loads((self_trained / "teacher" / "config.json").read_text())["uncertainty_policies"]
    student = json.loads((self_trained / "config.json").read_text())["uncertainty_policies"]
    assert (teacher["Consolidation"], teacher["Cardiomegaly"]) == ("u-ignore", "u-multiclass")
    assert (student["Consolidation"], student["Cardiomegaly"]) == ("u-self-trained", "u-multiclass")


@pytest.mark.parametrize("where", ["step 3", "saving 6"])
@pytest.mark.slow
def test_a_kill_in_the_first_or_second_stage_resumes_to_the_same_bits(phantoms, self_trained, tmp_path, where):
    output = tmp_path / "model"
    RECIPE.save(tmp_path / "recipe.yaml")
    if where == "saving 6":  # the first stage is done, and the second one's third checkpoint is being written
        shutil.copytree(self_trained / "teacher", output / "teacher")
        shutil.copy(self_trained / "soft_labels.csv", output)
        RECIPE.save(output / "recipe.yaml")
        run_until_killed(phantoms, output, tmp_path / "recipe.yaml", where, resume=True)
    else:
        run_until_killed(phantoms, output, tmp_path / "recipe.yaml", where, resume=False)
        assert not (output / "soft_labels.csv").exists()
    quiet(RECIPE, phantoms, output, resume=True)
    assert_equal_to_the_last_bit(output, self_trained)
    assert (output / "soft_labels.csv").read_bytes() == (self_trained / "soft_labels.csv").read_bytes()


@pytest.mark.parametrize("given", ["soft_labels.csv", "teacher"])
def test_a_given_teacher_or_file_skips_the_first_stage_and_gives_the_same_model(
    phantoms, self_trained, tmp_path, given
):
    result = quiet(RECIPE.override(teacher=str(self_trained / given)), phantoms, tmp_path / "model")
    assert not (result.folder / "teacher").exists()
    assert_equal_to_the_last_bit(result.folder, self_trained)


def test_a_recipe_that_was_saved_repeats_its_run_to_the_last_bit(phantoms, self_trained, tmp_path):
    quiet(Recipe.load(self_trained / "recipe.yaml"), phantoms, tmp_path / "again")
    assert_equal_to_the_last_bit(tmp_path / "again", self_trained)


def test_the_card_and_the_config_say_which_policies_and_from_where(self_trained):
    card = (self_trained / "README.md").read_text()
    config = json.loads((self_trained / "config.json").read_text())
    assert "- u-self-trained: Consolidation, Atelectasis" in card
    assert config["policies_source"] in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="Atelectasis"), "has no column Atelectasis"),
        (lambda table: table.iloc[1:], "lacks .* uncertain labels of the training data"),
        (lambda table: table.assign(Consolidation=table["Consolidation"] + 1), "outside"),
        (lambda table: table.drop(columns="path"), "No soft labels could be read"),
    ],
)
def test_soft_labels_of_something_else_are_refused(phantoms, self_trained, tmp_path, change, message):
    file = tmp_path / "other.csv"
    change(pd.read_csv(self_trained / "soft_labels.csv")).to_csv(file, index=False)
    with pytest.raises(RecipeError, match=message):
        quiet(RECIPE.override(teacher=str(file)), phantoms, tmp_path / "model")


def test_conditional_training_comes_first_and_the_product_is_in_the_model(phantoms, tmp_path):
    recipe = RECIPE.override(policy="u-ones", conditional_epochs=1, unconditional=True, freeze_backbone=True, epochs=1)
    output = quiet(recipe, phantoms, tmp_path / "model").folder
    config = json.loads((output / "config.json").read_text())
    assert config["label_parents"] == {
        "Consolidation": "Lung Opacity",
        "Atelectasis": "Lung Opacity",
        "Edema": "Lung Opacity",
    }
    first, second = (load_file(folder / "model.safetensors") for folder in (output / "conditional", output))
    backbone = [name for name in first if name.startswith("features.")]
    assert all(torch.equal(first[name], second[name]) for name in backbone)
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    scores = CheXpertClassifier.from_pretrained(output).predict(next(phantoms.glob("valid/*/*/*.jpg"))).probabilities
    assert scores["Consolidation"] < scores["Lung Opacity"]


def test_conditional_training_goes_with_a_given_teacher(phantoms, self_trained, tmp_path):
    recipe = RECIPE.override(conditional_epochs=1, epochs=1, teacher=str(self_trained / "soft_labels.csv"))
    output = quiet(recipe, phantoms, tmp_path / "model").folder
    config = json.loads((output / "config.json").read_text())
    assert config["label_parents"] is None  # the second stage learns every label, whatever its parent
    assert config["uncertainty_policies"]["Consolidation"] == "u-self-trained"
    assert json.loads((output / "conditional" / "config.json").read_text())["label_parents"]


@pytest.fixture(scope="module")
def ensemble(phantoms, tmp_path_factory):
    recipe = RECIPE.override(policy="u-zeros", runs=2, keep_checkpoints=2)
    return quiet(recipe, phantoms, tmp_path_factory.mktemp("several") / "model").folder


def test_several_runs_make_an_ensemble_of_their_best_checkpoints(phantoms, ensemble):
    members = json.loads((ensemble / "ensemble.json").read_text())["members"]
    assert members == ["members/01", "members/02", "members/03", "members/04"]
    assert {path.suffix for path in (ensemble / "members").rglob("*") if path.is_file()} == {
        ".json",
        ".py",
        ".safetensors",
    }
    assert "not a medical device" in (ensemble / "README.md").read_text()
    record = json.loads((ensemble / "evaluation.json").read_text())
    assert record["data"]["name"] == phantoms.name  # without which the page shows no metrics
    assert record["data"]["train"]["images"] > 0
    for run in ("run-1", "run-2"):
        kept = checkpoints_by_step(ensemble / run / "checkpoints")
        assert len(kept) in (2, 3)  # the best two, and the newest if it is not one of them
        history = json.loads((ensemble / run / "history.json").read_text())
        scores = {entry["step"]: entry["eval_mean_auroc"] for entry in history if "eval_mean_auroc" in entry}
        best = sorted(scores, key=scores.get, reverse=True)[:2]
        chosen = best_checkpoints(ensemble / run / "checkpoints", 2)
        assert {path.name for path in chosen} == {f"checkpoint-{step}" for step in best}
        first = 1 if run == "run-1" else 3
        for number, checkpoint in enumerate(chosen, start=first):
            assert_equal_to_the_last_bit(ensemble / "members" / f"{number:02d}", checkpoint)
    one, two = (json.loads((ensemble / run / "config.json").read_text()) for run in ("run-1", "run-2"))
    assert one == two
    assert not torch.equal(
        *(load_file(ensemble / run / "model.safetensors")["classifier.weight"] for run in ("run-1", "run-2"))
    )


def test_several_runs_make_an_ensemble_of_their_last_checkpoints_if_the_recipe_says_so(phantoms, tmp_path):
    recipe = RECIPE.override(policy="u-zeros", runs=2, checkpoint="last")
    result = quiet(recipe, phantoms, tmp_path / "model")
    assert result.chosen == "the mean of 2 checkpoints, the last of each run"
    for number in (1, 2):
        last = checkpoints_by_step(result.folder / f"run-{number}" / "checkpoints")[-1]
        assert_equal_to_the_last_bit(result.folder / "members" / f"{number:02d}", last)
    assert not json.loads((result.folder / "evaluation.json").read_text())["was_chosen_on_it"]
    assert not (result.folder / SELECTION_PATIENTS_FILE).exists()


def test_an_ensemble_has_a_gate_and_is_checked_like_any_folder(tmp_path):
    root = tmp_path / "phantoms"
    write_phantoms(root, num_studies=48, seed=18, valid_fraction=0.4)
    folder = quiet(RECIPE.override(policy="u-zeros", runs=2, keep_checkpoints=1, epochs=1), root, tmp_path / "m").folder
    gate, image = folder / "members" / "01" / "gate.safetensors", next(root.glob("valid/*/*/*.jpg"))
    fitted = CheXpertClassifier.from_pretrained(folder / "run-2").predict(image).gate
    assert CheXpertClassifier.from_pretrained(folder).predict(image).gate == fitted
    report = check_folder(folder)
    assert report.is_ok
    parts = ["files", "checksums", "code", "model"]
    assert [line.subject for line in report.lines[:4]] == [f"members/01, {part}" for part in parts]
    assert "with a gate" in report.lines[3].text
    (gate.parent / "evil.pkl").write_bytes(b"")
    assert "evil.pkl: may run code" in check_folder(folder).lines[0].text
    (gate.parent / "evil.pkl").unlink()
    content = gate.read_bytes()
    gate.write_bytes(content[:-1] + b"?")
    assert "gate.safetensors is not as it was saved" in check_folder(folder).lines[1].text
    with pytest.raises(ChecksumError, match=r"gate\.safetensors is not as it was saved"):
        CheXpertClassifier.from_pretrained(folder)
    gate.unlink()
    renew_checksums(gate.parent, [gate.name])
    assert not CheXpertClassifier.from_pretrained(folder).has_gate
    assert CliRunner().invoke(app, ["gate", str(root), "--model", str(folder)]).exit_code == 0
    assert gate.is_file()
    assert check_folder(folder).is_ok
    (gate.parent / "checksums.json").unlink()  # as in ensembles of earlier versions
    assert CliRunner().invoke(app, ["check", "--model", str(folder)]).exit_code == 1
    assert CliRunner().invoke(app, ["check", "--model", str(folder), "--accept"]).exit_code == 0


def test_an_ensembles_probabilities_and_maps_are_the_means_of_its_members(phantoms, ensemble):
    members = [ensemble / name for name in json.loads((ensemble / "ensemble.json").read_text())["members"]]
    image = next(phantoms.glob("valid/*/*/*.jpg"))
    together = CheXpertClassifier.from_pretrained(ensemble)
    singles = [CheXpertClassifier.from_pretrained(member).predict(image) for member in members]
    prediction = together.predict(image, saliency=True)
    for name in NAMES:
        mean = np.mean([single.probabilities[name] for single in singles])
        assert prediction.probabilities[name] == pytest.approx(mean, abs=1e-6)
    raw = [
        member.model(
            member.processor(member.read(image).image, return_tensors="pt")["pixel_values"].to(member.model.device),
            output_saliency=True,
        ).saliency
        for member in together.members
    ]
    strongest = torch.stack(raw).mean(dim=0)[0].clamp(min=0).amax(dim=(1, 2))
    expected = (strongest / strongest.max()).tolist()
    for name, value in zip(NAMES, expected, strict=True):
        assert prediction.saliency[name].max() == pytest.approx(value, abs=0.05)
    listed = CheXpertClassifier.from_pretrained(members).predict(image)
    assert listed.probabilities == prediction.probabilities


def test_models_of_other_observations_make_no_ensemble(self_trained, tiny_folder):
    with pytest.raises(ModelFolderError, match="judge the same observations in the same order"):
        CheXpertClassifier.from_pretrained([self_trained, tiny_folder])


def test_a_damaged_list_of_members_is_refused(tmp_path):
    (tmp_path / "ensemble.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="is damaged; expected a list 'members'"):
        CheXpertClassifier.from_pretrained(tmp_path)


def test_class_weights_and_the_auc_margin_loss_train(phantoms, tmp_path):
    plain = quiet(RECIPE.override(policy="u-ones", epochs=1), phantoms, tmp_path / "plain").folder
    for number, option in enumerate([{"class_weights": True}, {"loss": "auc-margin"}]):
        output = quiet(RECIPE.override(policy="u-ones", epochs=1, **option), phantoms, tmp_path / str(number)).folder
        one, other = (load_file(folder / "model.safetensors")["classifier.weight"] for folder in (plain, output))
        assert one.isfinite().all()
        assert not torch.equal(one, other)


def test_a_student_learns_what_its_teachers_say_and_resumes_to_the_same_bits(phantoms, tmp_path):
    recipe = RECIPE.override(policy="u-ones", distillation=1.0, epochs=1)
    student = quiet(recipe, phantoms, tmp_path / "student").folder
    teachers = [student / "teachers" / f"teacher-{number}" for number in (1, 2)]
    seeds = [Recipe.load(folder / "recipe.yaml").seed for folder in teachers]
    assert seeds == [1, 2]
    given = recipe.override(distillation_models=[str(folder) for folder in teachers])
    assert_equal_to_the_last_bit(quiet(given, phantoms, tmp_path / "given").folder, student)
    # With weight 1 the labels themselves do not count.
    unlabelled = tmp_path / phantoms.name
    shutil.copytree(phantoms, unlabelled)
    table = pd.read_csv(unlabelled / "train.csv")
    table[list(NAMES)] = table[list(NAMES)].iloc[::-1].to_numpy()
    table.to_csv(unlabelled / "train.csv", index=False)
    assert_equal_to_the_last_bit(quiet(given, unlabelled, tmp_path / "other").folder, student)
    half = quiet(given.override(distillation=0.5), unlabelled, tmp_path / "half").folder
    with pytest.raises(AssertionError):
        assert_equal_to_the_last_bit(half, student)
    mixed = quiet(recipe.override(mixup=True), phantoms, tmp_path / "mixed").folder
    with pytest.raises(AssertionError):
        assert_equal_to_the_last_bit(mixed, student)
    again = quiet(given.override(mixup=True), phantoms, tmp_path / "again").folder  # of the same two teachers
    assert_equal_to_the_last_bit(again, mixed)


def test_teachers_of_other_observations_are_refused(phantoms, tiny_folder, tmp_path):
    recipe = RECIPE.override(policy="u-ones", distillation=0.5, distillation_models=[str(tiny_folder)])
    with pytest.raises(RecipeError, match="expected the observations of the recipe"):
        quiet(recipe, phantoms, tmp_path / "student")


def test_teachers_whose_processor_makes_other_pixel_values_are_refused(phantoms, tmp_path):
    other = RECIPE.override(policy="u-ones", epochs=1, gray_range=False)
    teacher = quiet(other, phantoms, tmp_path / "teacher").folder
    recipe = RECIPE.override(policy="u-ones", distillation=0.5, distillation_models=[str(teacher)])
    with pytest.raises(RecipeError, match="whose image processor has gray_range None instead of"):
        quiet(recipe, phantoms, tmp_path / "student")


def test_images_that_are_kept_in_memory_give_the_same_model(phantoms, tmp_path):
    recipe = RECIPE.override(policy="u-ones")
    read_again = quiet(recipe, phantoms, tmp_path / "read").folder
    kept = quiet(recipe.override(cache="ram"), phantoms, tmp_path / "kept").folder
    assert_equal_to_the_last_bit(kept, read_again)
