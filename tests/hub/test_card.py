"""The card holds what was measured, and nothing that nobody filled in."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from datasets import Dataset
from huggingface_hub import ModelCard

from chexpert_hf import CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.evaluation.report.reporting import evaluate_predictions
from chexpert_hf.formats.imports import import_model
from chexpert_hf.models.model_files import differences
from chexpert_hf.publishing import data_terms
from chexpert_hf.publishing.card import card_problems, public_recipe, refresh_card, rename_card
from chexpert_hf.publishing.data_terms import ImportedFrom, labels_name, labels_name_of, terms_of
from chexpert_hf.publishing.model_folder import (
    add_reference_metrics,
    refresh_folder,
    save_imported_folder,
    save_trained_folder,
)
from chexpert_hf.training.recipe import Recipe

from .conftest import DATA, predictions


@pytest.fixture
def card(saved_folder: Path) -> str:
    return (saved_folder / "README.md").read_text()


def test_a_card_that_was_filled_is_complete(card: str) -> None:
    assert card_problems(card) == []


def test_figures_of_the_card_are_those_of_evaluation_json(card: str, saved_folder: Path) -> None:
    record = json.loads((saved_folder / "evaluation.json").read_text())
    edema = next(entry for entry in record["observations"] if entry["observation"] == "Edema")
    assert edema["auroc_low"] < edema["auroc"] < edema["auroc_high"]
    row = f"| Edema | {edema['num_positive']} | {edema['num_negative']} | {edema['auroc']:.3f} "
    assert f"{row}({edema['auroc_low']:.3f} to {edema['auroc_high']:.3f}) |" in card
    mean = f"{record['mean_auroc']:.3f} ({record['mean_auroc_low']:.3f} to {record['mean_auroc_high']:.3f})"
    assert f"Mean AUROC over {', '.join(record['mean_over'])}: {mean}." in card
    assert "| No Finding | 0 | 120 | not judged: one class only |" in card


def test_the_model_index_has_the_mean_and_each_observation_that_is_judged(card: str, saved_folder: Path) -> None:
    record = json.loads((saved_folder / "evaluation.json").read_text())
    results = ModelCard(card).data.eval_results
    values = {result.metric_name: result.metric_value for result in results}
    assert values["Mean AUROC per study over 5 observations"] == round(record["mean_auroc"], 4)
    assert len(values) == 14  # the mean, and all observations but No Finding
    assert "AUROC per study, No Finding" not in values


def test_subgroups_stand_beside_their_gap(card: str) -> None:
    rows = [line for line in card.splitlines() if line.startswith("| sex | Edema |")]
    assert len(rows) == 1
    assert "Female: " in rows[0]
    assert "Male: " in rows[0]
    assert rows[0].count(" to ") == 3


def test_the_card_says_what_was_never_learned_and_whose_terms_hold(card: str) -> None:
    assert "Never positive in training, so that their scores mean nothing: Fracture." in card
    assert "research use agreement" in card
    assert "license_name: chexpert-research-use-agreement" in card
    assert "step 12) was chosen on this same split, so these figures are optimistic" in card


def test_a_path_of_this_machine_is_shown_as_a_name(card: str, tmp_path: Path) -> None:
    assert "/home/somebody" not in card
    assert "those of the model base" in card
    recipe = {"init": str(tmp_path), "teacher": "me/model", "seed": 1}
    assert public_recipe(recipe) == {"init": tmp_path.name, "teacher": "me/model", "seed": 1}
    assert public_recipe({"init": "../x/y", "teacher": None}) == {"init": "y", "teacher": None}
    lists = {"distillation_models": ["/home/me/a", "me/b"], "calibration_models": []}
    assert public_recipe(lists) == {"distillation_models": ["a", "me/b"], "calibration_models": []}


@pytest.mark.parametrize(
    ("there", "instead", "problem"),
    [
        ("- Initial weights: those of the model base.", "- Initial weights: .", "nothing stands behind the colon"),
        ("| No Finding | 0 |", "| No Finding |  |", "a cell is empty: | No Finding |  | 120"),
        ("Research: as", "TODO: as", "a placeholder was left: TODO"),
        ("Research: as", "[More Information Needed]", "a placeholder was left"),
        ("Research: as", "{{ text }}", "a placeholder was left"),
        ("| Edema | 0.500 |", "| Edema | nan |", "a placeholder was left: | Edema | nan |"),
        ("## Limits\n", "## Bounds\n", "the section Limits is missing"),
        ("license_name: chexpert-research-use-agreement", "license_name: ''", "the field license_name is empty"),
        ("license: other", "", "the field license is missing"),
        ("pipeline_tag: image-classification", "pipeline_tag: TODO", "pipeline_tag holds a placeholder: TODO"),
        ("- radiology", "-", "the field tags is empty"),
        (
            "**Research software, not a medical device.**",
            "**Great.**",
            "does not say that this is not a medical device",
        ),
        ("---\nlibrary_name", "library_name", "it has no front matter"),
        ("license: other", "license: [", "its front matter is no YAML"),
    ],
)
def test_an_empty_field_or_a_placeholder_is_found(card: str, there: str, instead: str, problem: str) -> None:
    assert there in card
    assert problem in "; ".join(card_problems(card.replace(there, instead)))


def test_an_empty_section_table_or_block_is_found(card: str) -> None:
    start, end = card.index("## Intended use"), card.index("## How to use")
    assert "the section Intended use is empty" in card_problems(f"{card[:start]}## Intended use\n\n{card[end:]}")
    rows = card.index("| --- | ---: |\n| No Finding | 0.500") + len("| --- | ---: |\n")
    assert "a table has no rows" in card_problems(card[:rows] + card[card.index("## Limits") - 1 :])
    start = card.index("```bibtex\n") + len("```bibtex\n")
    assert "a block of code is empty" in card_problems(card[:start] + "\n```\n")


def test_a_renamed_card_names_the_model_where_it_is_loaded(card: str) -> None:
    renamed = rename_card(card, "me/fine")
    assert 'from_pretrained("me/fine")' in renamed
    assert 'pipeline("image-classification", "me/fine", trust_remote_code=True)' in renamed
    assert "# fine\n" in renamed
    assert ModelCard(renamed).data.model_name == "fine"
    assert "tiny-run" not in renamed
    assert ModelCard(renamed).data.eval_results == ModelCard(card).data.eval_results


def test_a_card_loads_the_model_from_its_folder_until_it_is_pushed(
    tiny_model: CheXpertForImageClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    card = trained_from("imagenet", Path("runs/tb"), tiny_model, {"name": "here"})
    code = re.findall(r"```python\n(from chexpert_hf.*?classifier = .*?)\n", card, re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code[0], shown)  # what a reader pastes
    assert shown["classifier"].observations == tiny_model.config.observations
    assert card.count('"runs/tb"') == 4
    assert "# tb\n" in card
    refresh_folder(Path("runs") / "tb")
    assert Path("runs/tb/README.md").read_text().count('"runs/tb"') == 4
    renamed = rename_card(card.replace("## Intended use", 'See from_pretrained("other").\n\n## Intended use'), "me/tb")
    assert renamed.count('"me/tb"') == 4
    assert "runs/tb" not in renamed
    assert 'from_pretrained("other")' in renamed
    assert ModelCard(renamed).data.model_name == "tb"


@pytest.mark.slow
def test_a_card_never_shows_an_absolute_path_and_an_imported_one_the_final_folder(
    tiny_model: CheXpertForImageClassification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert trained_from("imagenet", tmp_path / "runs" / "tb", tiny_model, {"name": "here"}).count('"tb"') == 4
    refresh_folder(tmp_path / "runs" / "tb")
    assert str(tmp_path) not in Path("runs/tb/README.md").read_text()
    torch.save(torchvision.models.densenet121(num_classes=1).state_dict(), "weights.pt")
    for output, shown in ((Path("runs/own"), "runs/own"), (tmp_path / "other", "other")):
        import_model("torchvision:weights.pt", output, labels=["TB"])
        assert (output / "README.md").read_text().count(f'"{shown}"') == 4


def test_the_tag_chexpert_is_for_models_of_its_observations(
    card: str, tiny_model: CheXpertForImageClassification, tmp_path: Path
) -> None:
    assert "chexpert" in ModelCard(card).data.tags
    tiny_model.config.id2label = {**tiny_model.config.id2label, 1: "TB"}
    origin = ImportedFrom(source="somebody", data="films", conversion="none", licence="None.")
    save_imported_folder(tmp_path, tiny_model, CheXpertImageProcessor(), origin)
    assert ModelCard((tmp_path / "README.md").read_text()).data.tags == [
        *("chest-x-ray", "radiology", "densenet", "multi-label", "chexpert-hf")
    ]


def test_calls_are_counted_at_the_operating_points_and_removed_with_other_weights(model_folder: Path) -> None:
    file = model_folder / "evaluation.json"
    record = json.loads(file.read_text())
    for entry in record["observations"]:
        calls = entry["operating_point"]
        assert calls["true_positives"] + calls["false_negatives"] == entry["num_positive"]
        assert calls["false_positives"] + calls["true_negatives"] == entry["num_negative"]
    refresh_folder(model_folder)
    left = json.loads(file.read_text())
    assert all(entry.pop("operating_point") is not None for entry in record["observations"])
    assert left == record


def test_a_refreshed_card_says_what_the_config_says(card: str, tiny_model: CheXpertForImageClassification) -> None:
    tiny_model.config.operating_points = dict.fromkeys(tiny_model.config.observations, 0.25)
    refreshed = refresh_card(card, tiny_model.config, "calibrated")
    assert "| Edema | 0.250 |" in refreshed
    assert "| Edema | 0.500 |" not in refreshed
    assert refreshed.count("## Calibration") == refreshed.count("## Operating points") == 1
    assert card_problems(refreshed) == []


def test_the_card_of_an_imported_model_is_complete(tiny_model: CheXpertForImageClassification, tmp_path: Path) -> None:
    origin = ImportedFrom(
        source="weights of somebody",
        data="radiographs of somewhere",
        conversion="labels by CheXpert's names",
        licence="The weights are Apache-2.0.",
        license_id="apache-2.0",
        limits=("They are old.",),
        citations=("@misc{somebody}",),
    )
    folder = tmp_path / "imported"
    save_imported_folder(folder, tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 96}), origin)
    text = (folder / "README.md").read_text()
    assert card_problems(text) == []
    for words in (
        "parameters, 64 x 96 pixels)",
        "weights of somebody",
        "radiographs of somewhere",
        "They are old.",
        "@misc{somebody}",
        "Not measured",
    ):
        assert words in text
    assert "license: apache-2.0" in text
    assert "## Training" not in text


KNOWN = [
    "CheXpert-v1.0-small",
    "NIH-mini",
    "mimic-cxr-jpg",
    "PadChest",
    "vindr-cxr",
    "vinbigdata-chest-xray",
    "phantoms",
]
KNOWN += ["rsna-pneumonia-detection-challenge", "siim-acr-pneumothorax", "google2019", "NLMCXR", "indiana", "openi"]


@pytest.mark.parametrize("name", KNOWN)
def test_known_data_have_terms_of_their_own_and_citations_that_are_there(name: str) -> None:
    terms = terms_of([name])
    assert terms != terms_of(["our-hospital"])
    entries = (Path(data_terms.__file__).parent / "citations.bib").read_text()
    assert [key for key in terms.citations if f"{{{key}," not in entries] == []


@pytest.mark.parametrize("name", [*KNOWN, "our-hospital"])
def test_terms_are_complete_sentences(name: str) -> None:
    terms = terms_of([name])
    assert terms.licence.endswith(".")
    assert (terms.license_id == "other") == bool(terms.license_name)
    assert name in terms.licence or name != "our-hospital"


def test_the_terms_of_several_data_sets_hold_together() -> None:
    nih, mimic = terms_of(["NIH"]), terms_of(["mimic-cxr-jpg"])
    both = terms_of(["NIH", "mimic-cxr-jpg"])
    assert nih.licence in both.licence
    assert mimic.licence in both.licence
    assert {*both.limits} == {*nih.limits, *mimic.limits}
    assert {*both.citations} == {*nih.citations, *mimic.citations}
    assert both.license_name == "terms-of-the-training-data"
    assert terms_of(["phantoms", "phantoms"]) == terms_of(["phantoms"])


def trained_from(init: str | Path, folder: Path, model: CheXpertForImageClassification, data: dict[str, Any]) -> str:
    """The card of a model that was fine-tuned from another one on these data."""
    probabilities, split = predictions(model.config.observations)
    save_trained_folder(
        folder,
        model,
        CheXpertImageProcessor(size={"height": 64, "width": 64}),
        recipe=Recipe(init=str(init)).to_dict(),
        data=DATA | data,
        evaluation=evaluate_predictions(probabilities, split, model.config),
        best_step=12,
    )
    return (folder / "README.md").read_text()


def test_the_terms_of_the_initial_models_data_go_along_through_every_fine_tuning(tiny_model, tmp_path: Path) -> None:
    """The data of nih, of the first and of the second hospital are each named once, with the licence of nih's."""
    first = trained_from("nih", tmp_path / "first", tiny_model, {"name": "here"})
    second = trained_from(tmp_path / "first", tmp_path / "second", tiny_model, {"name": "there"})
    again = trained_from(tmp_path / "second", tmp_path / "again", tiny_model, {"name": "there"})
    for card, names in ((first, ["here"]), (second, ["here", "there"]), (again, ["here", "there"])):
        assert card_problems(card) == []
        assert card.count("https://nihcc.app.box.com/v/ChestXray-NIHCC") == 1
        assert card.count("@inproceedings{wang2017chestxray8,") == 1
        assert [card.count(f"in a folder called {name}.") for name in names] == [1] * len(names)
        assert "license_name: terms-of-the-training-data" in card
        assert "one hospital" not in card  # a limit of nih's data, not of these
    assert "Its initial weights, those of nih, have terms that hold as well. The weights were" in first
    same = trained_from("nih", tmp_path / "same", tiny_model, {"name": "NIH"})
    assert "initial weights, those" not in same
    assert "license_name: nih-chestx-ray14" in same


def test_the_terms_of_an_imported_initial_model_go_along(tiny_model, tmp_path: Path) -> None:
    origin = ImportedFrom(
        source="weights of somebody",
        data="films",
        conversion="none",
        licence="Ask somebody.",
        citations=("@misc{some}",),
    )
    save_imported_folder(tmp_path / "base", tiny_model, CheXpertImageProcessor(), origin)
    card = trained_from(tmp_path / "base", tmp_path / "new", tiny_model, {"name": "here"})
    assert "those of base, have terms that hold as well. Ask somebody." in card
    assert "@misc{some}" in card
    gone = trained_from(tmp_path / "gone", tmp_path / "other", tiny_model, {"name": "here"})
    assert "those of gone, have terms that hold as well. They are in the card of gone." in gone


@pytest.mark.parametrize(
    ("data", "is_mined", "is_unknown"),
    [
        ({"name": "NIH"}, True, False),
        ({"name": "here"}, False, True),
        ({"name": "here", "train": DATA["train"] | {"labels_by": ["two readers"]}}, False, False),
        ({"name": "here", "train": DATA["train"] | {"labels_by": ["text-mined labels"]}}, True, False),
        ({"name": "rsna-pneumonia-detection-challenge"}, False, False),
        ({"name": "CheXpert-v1.0 and here", "sources": ["CheXpert-v1.0", "here"]}, True, False),
        ({"name": "phantoms"}, False, False),
    ],
)
def test_only_labels_mined_from_reports_are_said_to_carry_their_errors(
    tiny_model, tmp_path: Path, data: dict[str, Any], is_mined: bool, is_unknown: bool
) -> None:
    card = trained_from("imagenet", tmp_path / "model", tiny_model, data)
    assert ("- Labels mined from reports carry the reports' errors." in card) == is_mined
    assert ("The origin of the training labels is not recorded" in card) == is_unknown


def test_figures_against_another_reference_standard_replace_earlier_ones_in_card_and_record(tiny_folder):
    card = tiny_folder / "README.md"
    card.write_text("# tiny\n\n## Evaluation\n\nfigures\n\n## Calibration\n\nnone\n\n## Limits\n\nmany\n")
    figure = {
        "observation": "Edema", "reference": "two readers", "target": "Target", "against": "Class=Normal",
        "num_positive": 7, "num_negative": 9, "undefined": None, "auroc": {"value": 0.75, "low": 0.5, "high": 0.9},
    }  # fmt: skip
    result = {"reference": "two readers", "file": "r.csv", "images": 16, "patients": 12, "figures": [figure]}
    for value in (0.65, 0.75):
        figure["auroc"]["value"] = value
        add_reference_metrics(tiny_folder, result, "data, valid")
    add_reference_metrics(tiny_folder, result | {"figures": []}, "data, train")
    text = card.read_text()
    assert text.count("## Other reference standards") == 1
    assert "| Edema | two readers | Target, against Class=Normal | 7 | 9 | 0.750 (0.500 to 0.900) |" in text
    assert "0.650" not in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Evaluation", "## Other reference standards", "## Calibration", "## Limits",
    ]  # fmt: skip
    record = json.loads((tiny_folder / "evaluation.json").read_text())
    assert [item["data"] for item in record["second_reference_standards"]] == ["data, valid", "data, train"]
    assert differences(tiny_folder) == []
    few = figure | {"target": "Rare", "num_positive": 1}
    add_reference_metrics(tiny_folder, result | {"figures": [few]}, "data, valid")
    line = next(line for line in card.read_text().splitlines() if "| Rare, " in line)
    assert (
        line
        == "| Edema | two readers | Rare, against Class=Normal | 1 | 9 | not judged: fewer than 5 studies of a class |"
    )


def test_results_by_a_reference_standard_that_calibration_changes_are_removed_with_it(tiny_folder):
    names = ("operating_point", "brier", "scaled_brier", "ece")
    figure = {key: {"value": 0.75, "low": 0.5, "high": 0.9} for key in (*names, "auroc", "auprc")}
    result = {"reference": "two readers", "file": "r.csv", "images": 16, "patients": 12, "figures": [figure]}
    add_reference_metrics(tiny_folder, result, "data, valid")
    refresh_folder(tiny_folder)
    record = json.loads((tiny_folder / "evaluation.json").read_text())
    assert record["second_reference_standards"][0]["figures"] == [{name: figure[name] for name in ("auroc", "auprc")}]


@pytest.mark.parametrize(
    ("folder", "split", "patients", "expected"),
    [
        ("NIH", "valid", 198, "text-mined labels"),
        ("CheXpert-v1.0-small", "train", 64_534, "text-mined labels"),
        ("CheXpert-v1.0-small", "valid", 200, "majority of radiologists"),
        ("CheXpert-v1.0-small", "valid", 6453, "text-mined labels"),  # held out from train.csv
        ("rsna-pneumonia-detection-challenge", "valid", 2668, "labels by radiologists"),
        ("our-hospital", "valid", 200, "labels of the data set"),
    ],
)
def test_the_reference_standard_of_known_data_is_named(folder: str, split: str, patients: int, expected: str) -> None:
    assert labels_name(folder, split, patients) == expected


def test_the_reference_standards_of_several_sources_are_all_named() -> None:
    rows = [("NIH", "NIH/1", None), ("films", "films/1", None), ("rsna", "rsna/1", "two readers")]
    joined = Dataset.from_list([{"source": a, "patient": b, "labels_by": c} for a, b, c in rows])
    assert labels_name_of(joined, "NIH and films and rsna", "valid") == (
        "labels of the data set and text-mined labels and two readers"
    )
    single = Dataset.from_list([{"source": None, "patient": str(number), "labels_by": None} for number in range(200)])
    assert labels_name_of(single, "CheXpert-v1.0-small", "valid") == "majority of radiologists"
    assert labels_name_of(single.remove_columns(["source", "labels_by"]), "NIH", "valid") == "text-mined labels"
