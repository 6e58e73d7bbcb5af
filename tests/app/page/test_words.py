"""The words of the page: definitions, what a map says, what the model is."""

import json
import re
import shutil
from hashlib import sha256
from html import escape
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError

from chexpert_hf import OBSERVATIONS, CheXpertClassifier, CheXpertConfig
from chexpert_hf.app.model_facts import NO_METRICS, ModelFacts, describe_map_evaluation, facts_of
from chexpert_hf.app.page.html import asset, render
from chexpert_hf.app.page.text import describe_map, describe_strength
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import ModelFolderError
from chexpert_hf.evaluation.intervals import delong_interval, newcombe_interval, wilson_interval
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.models.model_files import write_ensemble


def hero_html(facts: ModelFacts, count: int) -> str:
    return render("hero.html", facts=facts, count=count)


EVALUATION = {
    "split": "valid",
    "data": {"name": "phantoms <1>", "train": {"images": 4800, "studies": 4800, "patients": 4000}},
    "observations": [
        {"observation": "Edema", "num_positive": 20, "num_negative": 80, "auroc": 0.9},
        {"observation": "Fracture", "num_positive": 2, "num_negative": 98, "auroc": 0.6},
        {"observation": "Pneumonia", "num_positive": 0, "num_negative": 100, "auroc": None},
    ],
    "num_studies": 100,
    "mean_over": ["Edema"],
    "mean_auroc": 0.9,
}


def test_every_observation_has_a_definition_of_its_own() -> None:
    assert tuple(CHEXPERT.definitions) == OBSERVATIONS
    assert len(set(CHEXPERT.definitions.values())) == len(OBSERVATIONS)
    assert all(text.endswith(".") and "\n" not in text for text in CHEXPERT.definitions.values())


@pytest.mark.parametrize(
    ("observation", "word"),
    [
        ("No Finding", "None"),
        ("Enlarged Cardiomediastinum", "mediastinum"),
        ("Cardiomegaly", "heart is enlarged"),
        ("Lung Opacity", "whiter"),
        ("Lung Lesion", "nodule"),
        ("Edema", "too much fluid"),
        ("Consolidation", "air spaces filled"),
        ("Pneumonia", "infection"),
        ("Atelectasis", "lost volume"),
        ("Pneumothorax", "air between"),
        ("Pleural Effusion", "fluid between"),
        ("Pleural Other", "pleura other than"),
        ("Fracture", "bone"),
        ("Support Devices", "tube"),
    ],
)
def test_definition_belongs_to_its_observation(observation: str, word: str) -> None:
    assert word.lower() in CHEXPERT.definitions[observation].lower()


def test_no_rule_has_the_whole_list_styled_anew_when_a_text_beside_it_changes() -> None:
    assert not re.search(r"(#workspace|#list|\.list|\.gradio-container|body|main)[^\s,{]*:has\(", asset("page.css"))


def test_map_that_is_nowhere_positive_is_said_to_be_empty() -> None:
    assert describe_map("Edema", 0.0, (6, 6)) == "The map is empty: nothing in this radiograph is evidence for Edema."


@pytest.mark.parametrize(("peak", "share"), [(1e-6, "under 1 %"), (0.01, "1 %"), (0.345, "34 %"), (0.999, "99 %")])
def test_map_says_how_strong_its_evidence_is(peak: float, share: str) -> None:
    text = describe_map("Edema", peak, (6, 7))
    assert f"reaches {share} of" in text
    assert text.endswith(" It was enlarged from 6 x 7 values.")


# What the model folder says


@pytest.fixture
def folder(tiny_folder: Path) -> Path:
    (tiny_folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return tiny_folder


def test_figures_are_those_of_the_model_folder(folder: Path) -> None:
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    assert facts.metrics is not None
    edema = facts.metrics.of("Edema")
    assert edema is not None
    assert edema.estimate == newcombe_interval(0.9, 20, 80)
    assert facts.metrics.of("Pneumonia") is None  # one class only: nothing was measured
    assert facts.metrics_line == (
        "Trained on phantoms <1> (4,800 images). Mean AUROC 0.900 over Edema, on 100 studies of its valid split."
    )


def test_intervals_and_the_choice_of_the_checkpoint_are_those_of_the_model_folder(folder: Path) -> None:
    edema = {**EVALUATION["observations"][0], "auroc_low": 0.81, "auroc_high": 0.95}
    record = {**EVALUATION, "observations": [edema], "intervals": "95 %: DeLong", "was_chosen_on_it": False}
    (folder / "evaluation.json").write_text(json.dumps(record))
    html = render(
        "about.html", facts=facts_of(CheXpertClassifier.from_pretrained(folder)), operating_points={"Edema": 0.25}
    )
    assert "<td>0.900 (0.81 to 0.95)</td>" in html
    assert "Intervals: 95 %: DeLong. No checkpoint was chosen on this split;" in html
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))  # does not say
    html = render(
        "about.html", facts=facts_of(CheXpertClassifier.from_pretrained(folder)), operating_points={"Edema": 0.25}
    )
    assert (
        "from the numbers of studies. The checkpoint was chosen on this split, so these metrics are optimistic;" in html
    )


def test_interval_from_counts_is_that_of_perfect_separation_and_narrows_with_studies() -> None:
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0.0, 1.0, 1.0])
    assert newcombe_interval(1.0, 2, 2) == delong_interval(scores, labels)
    few, many = newcombe_interval(0.8, 10, 10), newcombe_interval(0.8, 1000, 1000)
    assert few.low < many.low < 0.8 < many.high < few.high
    # Hanley & McNeil's standard error for .8 with 1,000 of each is .0099.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.0099, rel=0.03)


def test_table_of_the_model_says_figures_intervals_and_what_is_too_few(folder: Path) -> None:
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    html = render(
        "about.html", facts=facts, operating_points={"Edema": 0.25, "Fracture": 0.5, "Pneumonia": 0.5, "Hernia": 0.5}
    )
    edema, fracture, pneumonia, hernia = (
        html.split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0]
        for name in ("Edema", "Fracture", "Pneumonia", "Hernia")
    )
    low, high = newcombe_interval(0.9, 20, 80).low, newcombe_interval(0.9, 20, 80).high
    assert f"<td>0.900 ({low:.2f} to {high:.2f})</td><td></td><td></td><td>20 / 80</td>" in edema
    assert CHEXPERT.definitions["Edema"] in edema
    assert "too few studies" in fracture
    assert "too few" not in edema
    assert "not measured" in pneumonia
    assert '<td class="meaning"></td>' in hernia
    assert "phantoms &lt;1&gt;" in html
    assert "Not scored" not in html  # CheXpert's names are not those of a model with labels of its own


def test_calls_are_those_of_the_model_folder_at_the_operating_point_in_use(folder: Path) -> None:
    calls = {"true_positives": 15, "false_negatives": 5, "false_positives": 8, "true_negatives": 72}
    config = json.loads((folder / "config.json").read_text())
    config["operating_points"] = {"Edema": 0.25, "Fracture": 0.4}
    (folder / "config.json").write_text(json.dumps(config))
    entries = [
        {**entry, "operating_point": {"threshold": threshold, **calls}}
        for entry, threshold in zip(EVALUATION["observations"], (0.25, 0.5), strict=False)
    ]
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, "observations": entries}))
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    low, high = wilson_interval(15, 20).low, wilson_interval(15, 20).high
    assert f"Called above: 15 of those with it (sensitivity 0.75, {low:.2f} to {high:.2f}) and 8 of those without " in (
        facts.evidence("Edema")
    )
    assert "; 15 of 23 such calls were right." in facts.evidence("Edema")
    about = render("about.html", facts=facts, operating_points={"Edema": 0.25})
    assert "<td>0.75</td><td>0.90</td>" in re.sub(r">\s+<", "><", about)
    assert "Called above" not in facts.evidence("Fracture")  # counted at another threshold
    assert facts.right_calls(["Fracture"]) == facts.right_calls([]) == ()
    assert facts.right_calls(["Fracture", "Edema"]) == (
        "When tested on 100 studies, 65 of 100 such calls of Edema were right; where findings are rarer, fewer are.",
    )


@pytest.mark.parametrize(
    ("peak", "is_above", "note"),
    [
        (1.0, True, ""),
        (0.6, True, "60 % of the strongest map"),
        (0.02, True, "weak evidence: 2 % of the strongest map"),
        (0.02, False, "below its operating point, weak evidence: 2 % of the strongest map"),
        (0.0, False, "below its operating point, no evidence"),
    ],
)
def test_film_says_what_is_weak_or_below_its_operating_point(peak: float, is_above: bool, note: str) -> None:
    assert describe_strength(peak, is_above) == note


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"data": 3}', '{"split": "valid", "data": {"name": "a"}}'])
def test_folder_without_usable_figures_is_said_to_have_none(tiny_folder: Path, content: str | None) -> None:
    if content is not None:
        (tiny_folder / "evaluation.json").write_text(content)
    facts = facts_of(CheXpertClassifier.from_pretrained(tiny_folder))
    assert facts.metrics is None
    assert facts.metrics_line == NO_METRICS


def test_weights_are_told_by_their_sum_and_the_path_stays_here(folder: Path) -> None:
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert facts.short_checksums == f"SHA-256 {digest[:12]}"
    html = hero_html(facts, 14) + render("about.html", facts=facts, operating_points={"Edema": 0.5})
    assert str(folder.parent) not in html


def test_name_and_warnings_are_those_in_the_config_wherever_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    assert (facts.name, facts.warnings) == (None, ())
    assert '<p class="hero-text">This model scores chest radiographs for 14 observations' in hero_html(facts, 14)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = config | {"model_name": "lungs <1>", "warnings": ["Trained on drawings.", "Not for patients."]}
    (folder / "config.json").write_text(json.dumps(named), encoding="utf-8")
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    facts = facts_of(CheXpertClassifier.from_pretrained(moved))
    assert (facts.name, facts.warnings) == ("lungs <1>", ("Trained on drawings.", "Not for patients."))
    assert "The model lungs &lt;1&gt; scores chest" in hero_html(facts, 14)
    for html in (hero_html(facts, 14), render("about.html", facts=facts, operating_points={"Edema": 0.5})):
        assert "Trained on drawings. Not for patients." in html


@pytest.mark.parametrize("change", [{"model_name": "a\nb"}, {"model_name": " "}, {"warnings": ["\x1b[31m"]}])
def test_name_and_warnings_are_lines_of_text(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="must be one line of text"):
        CheXpertClassifier.from_pretrained(folder)


def test_ensemble_has_its_own_figures_and_the_weights_of_all_members(folder: Path, tmp_path: Path) -> None:
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    write_ensemble(ensemble, [folder, folder])
    classifier = CheXpertClassifier.from_pretrained(ensemble)
    assert facts_of(classifier).metrics is None  # those of a member are not the ensemble's
    shutil.copy(folder / "evaluation.json", ensemble)
    facts = facts_of(classifier)
    assert facts.metrics is not None
    assert facts.name == "of 2 members"
    assert facts.short_checksums.count("SHA-256") == 2


def test_split_that_judges_nothing_gives_no_mean(folder: Path) -> None:
    record = {**EVALUATION, "data": {"name": "d"}, "mean_over": [], "mean_auroc": None}
    (folder / "evaluation.json").write_text(json.dumps(record))
    line = facts_of(CheXpertClassifier.from_pretrained(folder)).metrics_line
    assert line == "Trained on d. Its valid split is too small to evaluate any observation."


def test_names_of_models_are_escaped() -> None:
    facts = ModelFacts("<b>x</b>", ("<i>",), 1, (8, 8), None)
    html = hero_html(facts, 1) + render("about.html", facts=facts, operating_points={"<u>": 0.5})
    assert not any(tag in html for tag in ("<b>", "<i>", "<u>"))
    assert "for 1 observation." in html


def test_page_says_that_a_copy_of_the_bundled_model_is_no_clinical_one(tmp_path: Path) -> None:
    copy = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    html = hero_html(facts_of(CheXpertClassifier.from_pretrained(copy)), 5)
    assert "The model nih scores chest radiographs for 5 observations" in html
    assert "not a clinical model." in html


MAPS = {"hit_rate": 0.06, "constant_point": 0.19, "n": 1036, "reference": "boxes of <radiologists>"}
MEASURED = (
    "the maximum of the map lay in 6\u00a0% of 1,036 marked findings, the best constant point in 19\u00a0% "
    "(reference: boxes of <radiologists>)."
)


def test_what_is_known_of_the_maps_is_data_of_the_folder_and_belongs_to_its_head(folder: Path) -> None:
    assert facts_of(CheXpertClassifier.from_pretrained(folder)).maps_note == ""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"map_evaluation": MAPS}), encoding="utf-8")
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    assert facts.maps_note == f"These maps did not point at findings when tested: {MEASURED}"
    assert escape(facts.maps_note) in render("about.html", facts=facts, operating_points={"Edema": 0.5})
    assert CheXpertConfig.from_pretrained(folder, num_labels=3).map_evaluation is None


def test_maps_are_judged_by_their_numbers_beside_chance() -> None:
    assert describe_map_evaluation(MAPS | {"hit_rate": 0.19}).startswith("These maps did not point at findings")
    better = describe_map_evaluation(MAPS | {"hit_rate": 0.4})
    assert better == "When these maps were tested, " + MEASURED.replace("6\u00a0%", "40\u00a0%", 1)
    # Of 119, Wilson's interval of 24 % begins at 18 %, of 29 % at 21 %.
    few = MAPS | {"n": 119}
    hardly = "When tested, these maps hit findings hardly more often than chance: "
    assert describe_map_evaluation(few | {"hit_rate": 0.244}).startswith(hardly)
    assert describe_map_evaluation(few | {"hit_rate": 0.29}).startswith("When these maps were tested, ")
    both = describe_map_evaluation(MAPS | {"hit_rate": 0.4, "further": [MAPS | {"n": 190}]})
    assert both.startswith(
        "These maps did not point at findings when tested: the maximum of the map lay in 40\u00a0% of 1,036"
    )
    assert both.count("(reference: ") == 2
    assert "; the maximum of the map lay in 6\u00a0% of 190 marked findings" in both


def test_start_says_what_the_model_was_evaluated_against(folder: Path) -> None:
    html = hero_html(facts_of(CheXpertClassifier.from_pretrained(folder)), 14)
    standard = "the findings that were drawn (phantoms &lt;1&gt;)"
    assert f"evaluated against {standard} on 100 studies: mean AUROC 0.90 over 1 of them." in html
    assert 'data-dialog="about"' in html


def test_footer_has_links_to_the_api_and_the_card_where_they_are_served(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A card\n", encoding="utf-8")
    facts = facts_of(CheXpertClassifier.from_pretrained(folder))
    assert facts.card == "# A card\n"
    html = render("footer.html", facts=facts, operating_points={"Edema": 0.5}, has_api=True)
    assert 'href="api/v1/card"' in html
    assert 'href="docs"' in html
    assert "curl -F files=@radiograph.dcm ADDRESS/api/v1/predict" in html
    assert "Client(&#34;ADDRESS&#34;)" in html
    alone = render("footer.html", facts=facts, operating_points={"Edema": 0.5}, has_api=False)
    assert "api/v1" not in alone
    assert 'href="docs"' not in alone


@pytest.mark.parametrize(
    "change", [{"hit_rate": 1.1}, {"constant_point": None}, {"n": 0}, {"reference": "a\nb"}, {"further": [{"n": 3}]}]
)
def test_an_evaluation_of_maps_that_cannot_be_one_is_refused(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"map_evaluation": MAPS | change}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="map_evaluation must have hit_rate"):
        CheXpertClassifier.from_pretrained(folder)


@pytest.mark.parametrize("further", [5, None, {"a": 1}, "abc", [5]])
def test_further_evaluations_of_maps_are_dictionaries(further: object) -> None:
    with pytest.raises(StrictDataclassError, match=r"map_evaluation"):
        CheXpertConfig(map_evaluation=MAPS | {"further": further})


def test_right_calls_are_not_stated_of_a_few_studies_and_negative_counts_are_no_metrics(folder: Path) -> None:
    calls = {"threshold": 0.5, "true_positives": 3, "false_positives": 1, "true_negatives": 0, "false_negatives": 2}
    entry = {**EVALUATION["observations"][0], "num_positive": 5, "num_negative": 1}

    def facts(changes: dict[str, int]) -> ModelFacts:
        record = {**EVALUATION, "observations": [{**entry, "operating_point": calls | changes}]}
        (folder / "evaluation.json").write_text(json.dumps(record))
        return facts_of(CheXpertClassifier.from_pretrained(folder))

    assert facts({}).metrics is not None
    assert facts({}).right_calls([entry["observation"]]) == ()
    assert facts({"true_positives": -1}).metrics is None
