"""What the viewer and the report say, as text."""

import base64
import json
import re
from dataclasses import replace
from datetime import datetime, timezone
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chexpert_hf import OBSERVATIONS, CheXpertClassifier
from chexpert_hf.app.page.html import (
    Order,
    clinical_order,
    not_judged_html,
    refusal_html,
    scores_html,
    sort_observations,
)
from chexpert_hf.app.page.model_facts import ModelFacts, facts_of
from chexpert_hf.app.page.panel import delivery_html
from chexpert_hf.app.page.reading import Study, read_study
from chexpert_hf.app.page.report import report_html
from chexpert_hf.app.page.result import result_html
from chexpert_hf.app.page.text import DEFINITIONS, NO_GATE
from chexpert_hf.app.server.words import DISCLAIMER
from tests.app.page.conftest import EMPTY, JUDGED, NOT_JUDGED, REFUSAL, WARNING


def rows_of(html: str) -> list[dict[str, str]]:
    """What each row of the scores says."""
    pattern = (
        r'<li data-place="(?P<place>\d+)"><button type="button" class="score is-(?P<kind>\w+)" '
        r'data-index="(?P<index>\d+)" aria-pressed="(?P<pressed>\w+)" title="(?P<title>[^"]*)">'
        r'<span class="score-name">(?P<name>.*?)</span><span class="score-value">(?P<value>.*?)</span>'
        r'<span class="score-call">(?P<call>\w+) <span class="for-readers">operating point </span>(?P<point>.*?)</span>'
        r'(?:<span class="score-view">(?P<view>.*?)</span>)?'
        r'.*?score-fill" style="width: (?P<width>.*?)%.*?score-point" style="left: (?P<left>.*?)%'
    )
    return [match.groupdict() for match in re.finditer(pattern, html)]


@pytest.fixture
def study(classifier: CheXpertClassifier, files: dict[str, Path]) -> Study:
    study, _ = read_study(classifier, [files[name] for name in ("phantom", "broken", "other", "warned", "blank")])
    assert study is not None
    return study


@pytest.fixture
def single(classifier: CheXpertClassifier, files: dict[str, Path]) -> Study:
    study, _ = read_study(classifier, [files["phantom"]])
    assert study is not None
    return study


# Scores


def test_scores_are_sorted_by_probability_and_ties_keep_the_clinical_order() -> None:
    scores = {"Hernia": 0.2, "Fracture": 0.2, "Edema": 0.9, "Lung Opacity": 0.2, "Pneumonia": 0.95}
    by_probability = ["Pneumonia", "Edema", "Lung Opacity", "Fracture", "Hernia"]
    assert sort_observations(scores, Order.BY_PROBABILITY) == by_probability
    assert sort_observations(scores, Order.CLINICAL) == ["Lung Opacity", "Edema", "Pneumonia", "Fracture", "Hernia"]


def test_clinical_order_is_that_of_chexperts_files() -> None:
    assert clinical_order(reversed(OBSERVATIONS)) == list(OBSERVATIONS)


def test_row_shows_probability_operating_point_and_call() -> None:
    html = scores_html(
        {"Fracture": 0.0306, "Edema": 0.7312},
        {"Fracture": 0.6, "Edema": 0.25},
        {"Fracture": False, "Edema": True},
        "Fracture",
        {"Fracture": 3, "Edema": 1},
    )
    edema, fracture = rows_of(html)
    assert edema == {
        "place": "0",
        "kind": "above",
        "index": "1",
        "pressed": "false",
        "title": DEFINITIONS["Edema"],
        "name": "Edema",
        "value": "0.731",
        "call": "above",
        "point": "0.250",
        "view": "View 1",
        "width": "73.12",
        "left": "25.00",
    }
    assert (fracture["call"], fracture["pressed"], fracture["view"], fracture["left"]) == (
        "below",
        "true",
        "View 3",
        "60.00",
    )


def test_names_are_escaped_in_scores() -> None:
    name = '<img src=x onerror="alert(1)"> & "co"'
    html = scores_html({name: 0.5}, {name: 0.5}, {name: True}, name)
    assert "<img" not in html
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt; &amp; &quot;co&quot;" in html


def test_what_is_not_judged_is_named() -> None:
    assert not_judged_html(OBSERVATIONS) == ""
    assert "Not judged by this model: Pleural Other, Fracture." in not_judged_html(JUDGED)


def test_refusal_is_escaped_and_offers_to_score_anyway() -> None:
    html = refusal_html([REFUSAL], [WARNING])
    assert "it is &lt;blank&gt;" in html
    assert WARNING in html
    assert 'data-action="override">Score it anyway' in html


# The viewer


def payload(html: str) -> dict[str, Any]:
    match = re.search(r'data-result="([^"]*)"', html)
    assert match is not None
    content: dict[str, Any] = json.loads(unescape(match[1]))
    return content


def test_viewer_gets_the_maps_of_every_view_in_256_levels(classifier: CheXpertClassifier, study: Study) -> None:
    content = payload(result_html(study, classifier.operating_points, "", is_study=True))
    assert [view["label"] for view in content["views"]] == ["View 1", "View 3", "View 4"]
    for view, reading in zip(content["views"], study.views.values(), strict=True):
        levels = np.frombuffer(base64.b64decode(view["maps"]), np.uint8).reshape(len(JUDGED), *view["grid"])
        np.testing.assert_allclose(levels / 255, reading.maps.positive, atol=0.5 / 255 + 1e-6)
        assert view["empty"][JUDGED.index(EMPTY)] is True
        assert tuple(view["size"]) == reading.image().size
        assert base64.b64decode(view["image"].split(",")[1]) == reading.jpeg
    view_of = study.view_of()
    numbers = list(study.views)
    assert [numbers[place] for place in content["viewOf"]] == [view_of[name] for name in JUDGED]


def test_result_says_disclaimer_figures_what_is_not_judged_and_what_is_missing(
    classifier: CheXpertClassifier, study: Study
) -> None:
    html = result_html(study, classifier.operating_points, "Trained on <x>.", is_study=True)
    assert DISCLAIMER in html
    assert "Trained on &lt;x&gt;." in html
    assert f"Not judged by this model: {', '.join(NOT_JUDGED)}" in html
    assert "View 2 has no scores: The PNG image is damaged" in html
    assert "View 5 has no scores: This does not look like a chest radiograph: it is &lt;blank&gt;." in html
    assert "Score them anyway" in html
    assert f"View 4: {WARNING}" in html
    assert NO_GATE not in html


def test_warnings_stand_above_the_scores(classifier: CheXpertClassifier, study: Study) -> None:
    html = result_html(study, classifier.operating_points, "", is_study=True)
    assert html.index(WARNING) < html.index('class="scores')


def test_model_without_a_gate_says_so_quietly(classifier: CheXpertClassifier, single: Study) -> None:
    (reading,) = single.views.values()
    object.__setattr__(reading.prediction, "gate", None)
    html = result_html(single, classifier.operating_points, "", is_study=False)
    assert f'<p class="no-gate">{NO_GATE}</p>' in html
    assert 'role="status"' not in html


def test_single_radiograph_has_no_numbers_of_views(classifier: CheXpertClassifier, single: Study) -> None:
    html = result_html(single, classifier.operating_points, "", is_study=False)
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


def test_every_control_of_the_viewer_has_a_label(classifier: CheXpertClassifier, study: Study) -> None:
    controls = Controls()
    controls.feed(result_html(study, classifier.operating_points, "", is_study=True))
    assert set(controls.bare) <= controls.labelled
    assert controls.labelled == {"study-observation", "study-opacity"}


# The report


NOW = datetime(2026, 11, 23, 9, 5, tzinfo=timezone.utc)


def test_report_says_all_that_it_must(classifier: CheXpertClassifier, single: Study) -> None:
    facts = facts_of(classifier)
    html = report_html(single, facts, classifier.operating_points, is_study=False, chosen=EMPTY, now=NOW)
    for name in JUDGED:
        row = html.split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0]
        call = "above" if single.positives[name] else "below"
        assert f"<td>{single.probabilities[name]:.3f}</td>" in row
        assert f"<td>{call} {classifier.operating_points[name]:.3f}</td>" in row
    assert DISCLAIMER in html
    assert "2026-11-23 09:05 UTC" in html
    assert f"<figcaption>Map of {EMPTY}: empty</figcaption>" in html
    assert html.count("<figure>") == 5  # the radiograph, the chosen map, the three most probable others
    assert "chexpert-hf 0." in html
    assert f"weights {facts.weights}" in html


def test_viewer_and_report_say_under_the_maps_whether_they_point_at_findings(
    classifier: CheXpertClassifier, single: Study
) -> None:
    note = "These maps did not point at <findings>."
    points, facts = classifier.operating_points, facts_of(classifier)
    html = result_html(single, points, "", is_study=False, maps_note=note)
    expected = '<p class="maps-note">These maps did not point at &lt;findings&gt;.</p>'
    assert '<p class="map-text" aria-live="polite"></p>' + expected in html
    assert "</figure></div>" + expected in report_html(single, replace(facts, maps_note=note), points, is_study=False)
    for silent in (result_html(single, points, "", is_study=False), report_html(single, facts, points, is_study=False)):
        assert 'class="maps-note"' not in silent


def test_report_is_complete_in_itself_and_runs_nothing(classifier: CheXpertClassifier, study: Study) -> None:
    html = report_html(study, facts_of(classifier), classifier.operating_points, is_study=True)
    assert re.findall(r'(?:src|href)="(?!data:)', html) == []
    assert "<script" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_report_of_a_study_says_where_each_maximum_is(classifier: CheXpertClassifier, study: Study) -> None:
    html = report_html(study, facts_of(classifier), classifier.operating_points, is_study=True)
    for name, view in study.view_of().items():
        assert f"<td>View {view}</td>" in html.split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0]
    assert "View 2 has no scores" in html
    assert "<figcaption>View 4</figcaption>" in html


def test_report_names_neither_file_nor_folder(classifier: CheXpertClassifier, single: Study) -> None:
    html = report_html(single, facts_of(classifier), classifier.operating_points, is_study=False)
    (reading,) = single.views.values()
    assert "phantom.png" not in html
    assert str(Path(str(reading.file)).parent) not in html


def test_names_are_escaped_in_the_report(single: Study) -> None:
    facts = ModelFacts("<b>model</b>", "w", 1, (8, 8), None)
    points = dict.fromkeys(JUDGED, 0.5)
    (reading,) = single.views.values()
    object.__setattr__(reading.prediction, "gate", SimpleNamespace(messages=(REFUSAL,)))
    html = report_html(single, facts, points, is_study=False)
    assert "<b>" not in html
    assert "it is &lt;blank&gt;" in html


def test_delivered_file_is_whole_and_never_the_same_twice() -> None:
    first, second = (delivery_html(b"a,b\n", "scores.csv", "text/csv") for _ in range(2))
    assert f'data-file="{base64.b64encode(b"a,b").decode()[:3]}' in first
    assert first != second
