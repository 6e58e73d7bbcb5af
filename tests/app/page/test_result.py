"""What the viewer and the report say, as text."""

import base64
import io
import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf import DISCLAIMER, OBSERVATIONS, CheXpertClassifier, Prediction
from chexpert_hf.app.model_facts import Metrics, ModelFacts, facts_of
from chexpert_hf.app.page.html import delivery_html, message_html, render
from chexpert_hf.app.page.reading import Item, Study
from chexpert_hf.app.page.result import report_html, result_html
from chexpert_hf.app.page.text import NO_GATE, describe_calls
from chexpert_hf.evaluation.intervals import newcombe_interval
from chexpert_hf.gate import Verdict
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.scoring.prediction import by_probability
from chexpert_hf.scoring.saliency import SaliencyMaps
from tests.app.page.conftest import EMPTY, JUDGED, NOT_JUDGED, REFUSAL, WARNING, read_study


def rows_of(html: str) -> list[dict[str, str]]:
    """What each row of the scores says."""
    pattern = (
        r'<li data-rank="(?P<rank>\d+)" data-place="(?P<place>\d+)"><button type="button" '
        r'class="score is-(?P<kind>\w+)(?: is-none)?" data-index="(?P<index>\d+)" aria-pressed="(?P<pressed>\w+)" '
        r'aria-describedby="about-(?P=index)">'
        r'<span class="score-name">(?P<name>.*?)</span><span class="score-value">(?P<value>.*?)</span>'
        r'<span class="score-call">(?P<call>\w+) <span class="for-readers">operating point </span>(?P<point>.*?)</span>'
        r'<span class="score-bar" style="--score: (?P<width>.*?)%; --point: (?P<left>.*?)%"></span>'
        r'(?:<span class="score-view">(?P<view>.*?)</span>)?'
        r'.*?<p class="score-about" id="about-(?P=index)">(?P<title>.*?)<span>(?P<evidence>.*?)</span>'
    )
    return [match.groupdict() for match in re.finditer(pattern, html)]


@pytest.fixture
def study(classifier: CheXpertClassifier, files: dict[str, Path]) -> Study:
    names = ("phantom", "broken", "other", "warned", "blank")
    return read_study(classifier, [files[name] for name in names])


@pytest.fixture
def single(classifier: CheXpertClassifier, files: dict[str, Path]) -> Study:
    return read_study(classifier, [files["phantom"]])


@pytest.fixture
def facts(classifier: CheXpertClassifier) -> ModelFacts:
    return facts_of(classifier)


# Scores


def test_scores_are_sorted_by_probability_and_ties_keep_the_clinical_order() -> None:
    scores = {"Hernia": 0.2, "Fracture": 0.2, "Edema": 0.9, "Lung Opacity": 0.2, "Pneumonia": 0.95}
    assert by_probability(scores) == ["Pneumonia", "Edema", "Lung Opacity", "Fracture", "Hernia"]
    assert CHEXPERT.in_order(scores) == ["Lung Opacity", "Edema", "Pneumonia", "Fracture", "Hernia"]


def test_clinical_order_is_that_of_chexperts_files() -> None:
    assert CHEXPERT.in_order(reversed(OBSERVATIONS)) == list(OBSERVATIONS)


def study_of(*views: dict[str, float], point: float = 0.5) -> Study:
    """A study of views of 8 x 8 pixels without evidence; Prediction, maps and image are the real ones."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    items = []
    for scores in views:
        maps = SaliencyMaps(torch.zeros(len(scores), 2, 2), tuple(scores), (8, 8), (0, 0, 8, 8))
        positives = {name: score >= point for name, score in scores.items()}
        prediction = Prediction(scores, positives, maps, labels=CHEXPERT.among(scores))
        items.append(Item(Path("a.png"), prediction, jpeg=stream.getvalue()))
    return Study(items)


def test_row_shows_probability_operating_point_and_call(facts: ModelFacts) -> None:
    first, second = {"Fracture": 0.0306, "Edema": 0.4}, {"Fracture": 0.02, "Edema": 0.7312}
    study = study_of(first, second)
    edema, fracture = rows_of(result_html(study, facts, {"Fracture": 0.6, "Edema": 0.25}))
    assert edema == {
        "rank": "0",
        "place": "0",
        "evidence": "Not evaluated.",
        "kind": "above",
        "index": "1",
        "pressed": "true",
        "title": CHEXPERT.definitions["Edema"],
        "name": "Edema",
        "value": "0.731",
        "call": "above",
        "point": "0.250",
        "view": "View 2",
        "width": "73.12",
        "left": "25.00",
    }
    assert (fracture["call"], fracture["pressed"], fracture["view"], fracture["left"]) == (
        "below",
        "false",
        "View 1",
        "60.00",
    )


def test_names_are_escaped_in_scores(facts: ModelFacts) -> None:
    name = '<img src=x onerror="alert(1)"> & "co"'
    html = result_html(study_of({name: 0.5}), facts, {name: 0.5})
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=&#34;alert(1)&#34;&gt; &amp; &#34;co&#34;" in html


def test_what_is_not_judged_is_named(facts: ModelFacts) -> None:
    assert "Not scored" not in render("about.html", facts=facts, operating_points=dict.fromkeys(OBSERVATIONS, 0.5))
    html = render("about.html", facts=facts, operating_points=dict.fromkeys(JUDGED, 0.5))
    assert "Not scored by this model: Pleural Other, Fracture." in html


def test_refusal_is_escaped_and_offers_to_score_anyway() -> None:
    html = message_html(REFUSAL, WARNING, can_score=True)
    assert "it is &lt;blank&gt;" in html
    assert WARNING in html
    assert 'data-action="override">Score it anyway' in html


# The viewer


def payload(html: str) -> dict[str, Any]:
    match = re.search(r'data-result="([^"]*)"', html)
    assert match is not None
    content: dict[str, Any] = json.loads(unescape(match[1]))
    return content


def test_viewer_opens_on_the_observation_that_is_asked_for(
    classifier: CheXpertClassifier, facts: ModelFacts, single: Study
) -> None:
    for chosen, expected in (("Cardiomegaly", "Cardiomegaly"), (None, single.prediction.display_order()[0])):
        html = result_html(single, facts, classifier.operating_points, chosen=chosen)
        assert JUDGED[payload(html)["chosen"]] == expected
        assert [row["name"] for row in rows_of(html) if row["pressed"] == "true"] == [expected]


def test_viewer_gets_the_maps_of_every_view_in_256_levels(
    classifier: CheXpertClassifier, facts: ModelFacts, study: Study
) -> None:
    content = payload(result_html(study, facts, classifier.operating_points))
    assert [view["label"] for view in content["views"]] == ["View 1", "View 3", "View 4"]
    for view, item in zip(content["views"], [item for item in study.items if item.prediction], strict=True):
        levels = np.frombuffer(base64.b64decode(view["maps"]), np.uint8).reshape(len(JUDGED), *view["grid"])
        np.testing.assert_allclose(levels / 255, item.prediction.maps.positive, atol=0.5 / 255 + 1e-6)
        assert not levels[JUDGED.index(EMPTY)].any()
        assert tuple(view["size"]) == Image.open(io.BytesIO(item.jpeg)).size
        assert base64.b64decode(view["image"].split(",")[1]) == item.jpeg
    numbers = list(study.views)
    assert [numbers[place] for place in content["viewOf"]] == [study.view_of[name] for name in JUDGED]


def test_result_says_disclaimer_figures_what_is_not_judged_and_what_is_missing(
    classifier: CheXpertClassifier, facts: ModelFacts, study: Study
) -> None:
    data = {"name": "<x>", "valid": {"patients": 3, "labels_by": ["radiologists"]}}
    record = {"data": data, "split": "valid", "num_studies": 3, "mean_auroc": 0.9, "mean_over": ["Edema"]}
    metrics = Metrics.model_validate({**record, "observations": []})
    html = result_html(study, replace(facts, metrics=metrics), classifier.operating_points)
    assert "Trained on &lt;x&gt;. Mean AUROC 0.900 over Edema," in html
    assert f"Not scored by this model: {', '.join(NOT_JUDGED)}" in html
    assert "View 2 (broken.png) has no scores: The PNG image is damaged" in html
    assert "View 5 (blank.png) has no scores: This does not look like a chest radiograph: it is &lt;blank&gt;." in html
    assert "Score them anyway" in html
    assert f"View 4: {WARNING}" in html
    assert NO_GATE not in html


def test_each_row_says_how_well_its_observation_is_told(
    classifier: CheXpertClassifier, facts: ModelFacts, single: Study
) -> None:
    rows = {"Edema": (20, 80, 0.9), "Pneumonia": (3, 97, 0.7)}
    data = {"name": "<x>", "valid": {"patients": 3, "labels_by": ["radiologists"]}}
    record = {"data": data, "split": "valid", "num_studies": 3, "mean_auroc": 0.9, "mean_over": ["Edema"]}
    observations = [
        {"observation": name, "num_positive": positive, "num_negative": negative, "auroc": auroc}
        for name, (positive, negative, auroc) in rows.items()
    ]
    metrics = Metrics.model_validate({**record, "observations": observations})
    html = result_html(single, replace(facts, metrics=metrics), classifier.operating_points)
    shown = {row["name"]: row["evidence"] for row in rows_of(html)}
    interval = newcombe_interval(0.9, 20, 80)
    assert shown["Edema"] == (
        f"AUROC 0.90 (95 % interval {interval.low:.2f} to {interval.high:.2f}) on 20 studies with it and 80 without. "
        "Reference standard: radiologists (&lt;x&gt;)."
    )
    assert shown["Pneumonia"].endswith("Too few to mean much.")
    assert shown["Cardiomegaly"] == "Not evaluated."


# The verdict


@pytest.mark.parametrize(
    ("scores", "sentences"),
    [
        (
            {"No Finding": 0.1, "Edema": 0.6, "Pleural Effusion": 0.9},
            ("Above their thresholds: Pleural Effusion, Edema.", "No Finding: below."),
        ),
        (
            {"No Finding": 0.8, "Edema": 0.6},
            ("Above its threshold: Edema.", "No Finding: above.", "This contradicts the findings."),
        ),
        ({"No Finding": 0.8, "Edema": 0.1}, ("No finding is above its threshold.", "No Finding: above.")),
        (
            {"No Finding": 0.2, "Edema": 0.1},
            ("No finding is above its threshold.", "No Finding: below.", "The model is undecided."),
        ),
        ({"Edema": 0.5}, ("Above its threshold: Edema.",)),
        (
            {"Edema": 0.9, "Fracture": 0.8, "Pneumonia": 0.7, "Lung Lesion": 0.6, "Consolidation": 0.55},
            ("5 findings are above their thresholds: Edema, Fracture, Pneumonia and 2 more.",),
        ),
    ],
)
def test_verdict_says_what_is_above_and_where_the_calls_contradict_each_other(
    facts: ModelFacts, scores: dict[str, float], sentences: tuple[str, ...]
) -> None:
    study = study_of(scores)
    assert describe_calls(study.prediction) == sentences
    html = result_html(study, facts, dict.fromkeys(scores, 0.5))
    text = f'<p class="verdict" role="status"><strong>{sentences[0]}</strong> {" ".join(sentences[1:])}</p>'
    assert text in html
    assert html.index(text) < html.index('class="scores')


def test_no_finding_stands_apart_and_is_the_least_of_the_views(facts: ModelFacts) -> None:
    study = study_of({"No Finding": 0.9, "Edema": 0.1}, {"No Finding": 0.2, "Edema": 0.7})
    assert study.prediction.probabilities == {"No Finding": 0.2, "Edema": 0.7}
    assert study.prediction.positives == {"No Finding": False, "Edema": True}
    html = result_html(study, facts, {"No Finding": 0.5, "Edema": 0.5})
    first, apart = html.split('<ul class="scores of-none">')
    assert ("Edema</span>" in first, "No Finding</span>" in first) == (True, False)
    assert "No Finding</span>" in apart
    assert "of No Finding the minimum" in apart


def test_warnings_stand_above_the_scores(classifier: CheXpertClassifier, facts: ModelFacts, study: Study) -> None:
    html = result_html(study, facts, classifier.operating_points)
    assert html.index(WARNING) < html.index('class="verdict"') < html.index('class="scores')
    report = report_html(study, facts, classifier.operating_points)
    assert report.index(WARNING) < report.index('class="verdict"')


def test_model_without_a_gate_says_so_quietly(classifier: CheXpertClassifier, facts: ModelFacts, single: Study) -> None:
    (item,) = single.items
    html = result_html(Study([replace(item, gate=None)]), facts, classifier.operating_points)
    assert f'<p class="no-gate">{NO_GATE}</p>' in html
    assert 'class="notes"' not in html


def test_single_radiograph_has_no_numbers_of_views(
    classifier: CheXpertClassifier, facts: ModelFacts, single: Study
) -> None:
    html = result_html(single, facts, classifier.operating_points)
    assert "View 1" not in html
    assert 'class="view"' not in html


class Controls(HTMLParser):
    """Collects controls that have no label: no text, no `aria-label`, no `label` around or for them."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.labelled: set[str] = set()
        self.depth = 0
        self.bare: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.depth += tag == "label"
        if tag == "label" and values.get("for"):
            self.labelled.add(str(values["for"]))
        if tag in ("input", "select") and not self.depth and "aria-label" not in values:
            self.bare.append(str(values.get("id")))

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "label"


def test_every_control_of_the_viewer_has_a_label(
    classifier: CheXpertClassifier, facts: ModelFacts, study: Study
) -> None:
    controls = Controls()
    controls.feed(result_html(study, facts, classifier.operating_points))
    assert set(controls.bare) <= controls.labelled
    assert controls.bare == []


# The report


def test_report_says_all_that_it_must(classifier: CheXpertClassifier, facts: ModelFacts, single: Study) -> None:
    html = report_html(single, facts, classifier.operating_points, chosen=EMPTY)
    for name in JUDGED:
        row = html.split(f'<span class="score-name">{name}</span>')[1].split("</li>")[0]
        call = "above" if single.prediction.positives[name] else "below"
        assert f'<span class="score-value">{single.prediction.probabilities[name]:.3f}</span>' in row
        assert f'{call} <span class="for-readers">operating point </span>{classifier.operating_points[name]:.3f}' in row
    assert DISCLAIMER in html
    assert re.search(datetime.now(timezone.utc).strftime(r"radiograph, %Y-%m-%d \d\d:\d\d UTC"), html)
    assert f"Map of {EMPTY}" not in html  # it would repeat the radiograph
    assert html.count("<figure>") == 5  # the radiograph, and four maps
    assert 'Colours of the maps: 0 <img src="data:image/png;base64,' in html
    assert escape(describe_calls(single.prediction)[0]) in html
    assert "chexpert-hf 0." in html
    assert f"weights {facts.short_checksums}" in html


def test_viewer_and_report_say_under_the_maps_whether_they_point_at_findings(
    classifier: CheXpertClassifier, facts: ModelFacts, single: Study
) -> None:
    note = "These maps did not point at <findings>."
    points = classifier.operating_points
    html = result_html(single, replace(facts, maps_note=note), points)
    expected = '<p class="maps-note">These maps did not point at &lt;findings&gt;.</p>'
    assert '<p class="map-text" aria-live="polite"></p>' + expected in html
    report = report_html(single, replace(facts, maps_note=note), points)
    assert '<p class="map-text" aria-live="polite"></p>' + expected in report
    for silent in (result_html(single, facts, points), report_html(single, facts, points)):
        assert 'class="maps-note"' not in silent


def test_report_is_complete_in_itself_and_runs_its_own_script_only(
    classifier: CheXpertClassifier, facts: ModelFacts, study: Study
) -> None:
    html = report_html(study, facts, classifier.operating_points)
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert re.findall(r"url\((?!#)", html) == []
    (nonce,) = re.findall(r'<script nonce="(\w+)">', html)
    assert html.count("<script") == 1
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html
    assert nonce not in report_html(study, facts, classifier.operating_points)
    assert "data-action=" not in html  # there is no server to ask


def test_report_of_a_study_says_where_each_maximum_is(
    classifier: CheXpertClassifier, facts: ModelFacts, study: Study
) -> None:
    html = report_html(study, facts, classifier.operating_points)
    for name, view in study.view_of.items():
        row = html.split(f'<span class="score-name">{name}</span>')[1].split("</li>")[0]
        assert f'<span class="score-view">View {view}</span>' in row
    assert "View 2 has no scores" in html
    assert "<figcaption>View 4</figcaption>" in html


def test_report_names_neither_file_nor_folder(classifier: CheXpertClassifier, facts: ModelFacts, single: Study) -> None:
    html = report_html(single, facts, classifier.operating_points)
    assert "phantom.png" not in html
    assert str(Path(str(single.items[0].path)).parent) not in html


def test_names_are_escaped_in_the_report(single: Study) -> None:
    facts = ModelFacts("<b>model</b>", ("w",), 1, (8, 8), None)
    points = dict.fromkeys(JUDGED, 0.5)
    (item,) = single.items
    html = report_html(Study([replace(item, gate=Verdict(False, REFUSAL, (), 2.0))]), facts, points)
    assert "<b>" not in html
    assert "it is &lt;blank&gt;" in html


def test_delivered_file_is_whole_and_never_the_same_twice() -> None:
    first, second = (delivery_html(b"a,b\n", "scores.csv", "text/csv") for _ in range(2))
    assert f'href="data:text/csv;base64,{base64.b64encode(b"a,b").decode()[:3]}' in first
    assert 'download="scores.csv"' in first
    assert first != second
