"""A prediction as notebooks and scripts show it."""

import json
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from chexpert_hf import (
    CheXpertClassifier,
    CheXpertConfig,
    CheXpertForImageClassification,
    CheXpertImageProcessor,
    Prediction,
    RadiographError,
)
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError
from chexpert_hf.gate import Gate, Verdict
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.scoring.saliency import overlay
from tests.conftest import TINY

SCORES = {"No Finding": 0.9, "Edema": 0.6, "Fracture": 0.2, "Pneumonia": 0.55}
POINTS = {"No Finding": 0.5, "Edema": 0.5, "Fracture": 0.5, "Pneumonia": 0.6}


@pytest.fixture
def prediction() -> Prediction:
    positives = {name: score >= POINTS[name] for name, score in SCORES.items()}
    return Prediction(SCORES, positives, operating_points=POINTS, labels=CHEXPERT.among(SCORES))


@pytest.fixture
def classifier(tiny_model) -> CheXpertClassifier:
    return CheXpertClassifier(tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))


@pytest.fixture
def file(tmp_path) -> Path:
    Image.fromarray(render_phantom(1, ["Edema"]).image).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_text_is_one_readable_line(prediction):
    assert repr(prediction) == (
        "Prediction(positive: No Finding 0.90, Edema 0.60; below: Pneumonia 0.55, Fracture 0.20)"
    )


def test_text_counts_what_it_does_not_name(classifier, file):
    assert re.fullmatch(r"Prediction\(.* and \d+ more.*\)", repr(classifier.predict(file)))
    assert "\n" not in repr(classifier.predict(file))


@pytest.mark.parametrize("verdict", [Verdict(True, "", ("It is turned.",), 0.5), Verdict(False, "It is noise.", (), 9)])
def test_text_and_view_show_the_messages_of_the_gate(prediction, verdict):
    judged = replace(prediction, gate=verdict)
    (message,) = verdict.messages
    assert repr(judged) == f"{repr(prediction)[:-1]}; warning: {message[:-1]})"
    assert message in judged._repr_html_()


def test_an_unknown_name_is_answered_with_the_known_ones(prediction, classifier, file):
    for values in (prediction.probabilities, prediction.positives, prediction.operating_points):
        with pytest.raises(KeyError, match="'edema'; expected one of No Finding, Edema, Fracture, Pneumonia"):
            values["edema"]
        assert "edema" not in values
        assert values.get("edema") is None
    with pytest.raises(KeyError, match="'edema'; expected one of No Finding, "):
        classifier.predict(file, saliency=True).maps["edema"]
    with pytest.raises(ValueError, match="saliency=True"):
        classifier.predict(file).maps["Edema"]


def test_what_is_called_positive_is_shown_first_and_no_finding_is_not():
    scores = {"No Finding": 0.9, "Pneumonia": 0.3, "Edema": 0.2, "Fracture": 0.4}
    prediction = Prediction(scores, {name: name == "Edema" for name in scores})
    assert prediction.display_order() == ["Edema", "Fracture", "Pneumonia"]
    assert Prediction({"No Finding": 0.9}, {"No Finding": True}).display_order() == ["No Finding"]


def test_positives_are_sorted_by_probability_without_no_finding():
    scores = {"No Finding": 0.9, "Pneumonia": 0.3, "Edema": 0.2, "Fracture": 0.4}
    positives = {name: name != "Pneumonia" for name in scores}
    assert Prediction(scores, positives).sorted_positives() == ["Fracture", "Edema"]


def test_table_has_what_is_called_positive_first(prediction):
    expected = pd.DataFrame(
        {
            "probability": [0.9, 0.6, 0.55, 0.2],
            "operating_point": [0.5, 0.5, 0.6, 0.5],
            "is_positive": [True, True, False, False],
        },
        index=pd.Index(["No Finding", "Edema", "Pneumonia", "Fracture"], name="observation"),
    )
    pd.testing.assert_frame_equal(prediction.to_pandas(), expected)


def test_dictionary_is_json(classifier, file):
    values = json.loads(json.dumps(classifier.predict(file).to_dict()))
    assert values["probabilities"] == classifier.predict(file).probabilities
    assert values["operating_points"] == classifier.operating_points


def test_html_has_both_pictures_every_score_and_runs_nothing(classifier, file):
    html = classifier.predict(file, saliency=True)._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 2
    assert all(name in html for name in classifier.observations)
    assert "not a medical device" in html
    assert "<script" not in html
    assert not re.search(r"https?://", html)


def test_names_are_escaped_in_html():
    config = CheXpertConfig(**TINY, id2label={0: "<b>TB</b>"})
    model = CheXpertForImageClassification(config)
    classifier = CheXpertClassifier(model, CheXpertImageProcessor(size={"height": 64, "width": 64}))
    assert "<b>TB" not in classifier.predict(render_phantom(1).image)._repr_html_()


def test_map_of_the_first_observation_that_has_a_place_is_shown(prediction, classifier, file):
    assert "Map of" not in prediction._repr_html_()
    shown = classifier.predict(file, saliency=True)
    first = max((name for name in shown.probabilities if name != "No Finding"), key=shown.probabilities.get)
    assert f"Map of {first}" in shown._repr_html_()
    assert [axes.get_title() for axes in shown.plot().axes] == ["Radiograph", f"Map of {first}", ""]
    assert shown.plot("Fracture").axes[1].get_title() == "Map of Fracture"


def test_plot_works_without_maps_and_without_the_radiograph(prediction, classifier, file):
    assert isinstance(prediction.plot(), Figure)
    assert prediction.plot()._repr_png_().startswith(b"\x89PNG")
    assert len(prediction.plot().axes) == 1
    assert len(classifier.predict(file).plot().axes) == 2


def test_overlay_is_at_full_size_and_equals_that_of_the_command(classifier, file):
    shown = classifier.predict(file, saliency=True)
    expected = overlay(Image.open(file), shown.maps["Edema"])
    np.testing.assert_array_equal(np.asarray(shown.overlay("Edema")), np.asarray(expected))


def test_overlay_without_maps_or_file_says_what_to_do(classifier, file):
    with pytest.raises(ValueError, match="saliency=True"):
        classifier.predict(file).overlay("Edema")
    shown = classifier.predict(file, saliency=True)
    file.unlink()
    with pytest.raises(ValueError, match="predict it again"):
        shown.overlay("Edema")
    assert "Edema" in shown._repr_html_()


def test_prediction_survives_pickling(classifier, file):
    shown = classifier.predict(file, saliency=True)
    again = pickle.loads(pickle.dumps(shown))
    assert (again.probabilities, again.operating_points, repr(again)) == (
        shown.probabilities,
        shown.operating_points,
        repr(shown),
    )


def test_classifier_says_what_it_is(classifier):
    assert repr(classifier) == "CheXpertClassifier(unnamed model; 14 observations, 64 pixels, torch in fp32)"


def test_folder_is_a_table_with_a_row_for_each_file(classifier, file):
    (file.parent / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    table = classifier.predict_folder(file.parent)
    assert list(table.columns) == ["path", *classifier.observations, "note", "error"]
    assert [Path(path).name for path in table["path"]] == ["a.png", "broken.png"]
    assert table.loc[0, "Edema"] == classifier.predict(file).probabilities["Edema"]
    assert pd.isna(table.loc[1, "Edema"])
    assert pd.isna(table.loc[0, "error"])
    assert "PNG" in table.loc[1, "error"]
    with pytest.raises(RadiographError, match=r"broken\.png: "):
        classifier.predict_folder(file.parent, errors="raise")


def test_a_picture_leaves_the_callers_image_as_it_is(classifier):
    image = Image.fromarray(np.tile(render_phantom(1).image, (3, 3)))
    for source in (image, classifier.read(image)):
        shown = classifier.predict(source, saliency=True)
        assert "Radiograph" in shown._repr_html_()
        assert shown.plot().axes[0].get_title() == "Radiograph"
        assert image.size == shown.overlay("Edema").size == shown.maps.size


def test_an_open_file_is_not_kept_and_leaves_a_prediction_that_can_be_pickled(classifier, file):
    with file.open("rb") as stream:
        shown = classifier.predict(stream, saliency=True)
    assert pickle.loads(pickle.dumps(shown)).probabilities == classifier.predict(file).probabilities
    assert "Edema" in shown._repr_html_()


def test_a_refused_image_is_valid_json(classifier):
    gated = CheXpertClassifier(classifier.model, classifier.processor, gate=Gate.load(DEFAULT_MODEL))
    values = json.loads(json.dumps(gated.predict(np.full((99, 99), 7, np.uint8)).to_dict(), allow_nan=False))
    assert values["gate"]["distance"] is None
    assert not values["gate"]["is_chest_radiograph"]


def test_a_map_that_was_not_asked_for_cannot_be_plotted(classifier, file):
    with pytest.raises(ValueError, match="saliency=True"):
        classifier.predict(file).plot("Edema")
    with pytest.raises(KeyError, match="expected one of"):
        classifier.predict(file, saliency=True).plot("Edma")


def test_calls_are_columns_of_a_folder_if_asked_for(classifier, file):
    table, prediction = classifier.predict_folder(file.parent, positives=True), classifier.predict(file)
    for name, call in prediction.positives.items():
        assert table[f"{name} positive"].tolist() == [int(call)]
    assert not any(column.endswith(" positive") for column in classifier.predict_folder(file.parent))


def test_an_empty_map_says_so(classifier, file):
    prediction = classifier.predict(file, saliency=True)
    maps = prediction.maps
    blank = replace(prediction, saliency=replace(maps, positive=maps.positive * 0))
    with pytest.warns(UserWarning, match="The map of Edema is empty"):
        blank.overlay("Edema")
    assert "Map of Edema: empty" in blank.plot("Edema").axes[1].get_title()
    assert "empty" not in _titles(prediction)
    assert "bars that reach it are orange" in blank.plot("Edema").axes[-1].get_xlabel()


def _titles(prediction: Prediction) -> str:
    first = max(prediction.maps, key=prediction.maps.peak)  # has a map that is not empty
    return prediction.plot(first).axes[1].get_title()


def test_verdicts_of_the_gate_are_columns_of_a_folder(classifier, file):
    Image.new("L", (99, 99), 7).save(file.parent / "blank.png")
    gated = CheXpertClassifier(classifier.model, classifier.processor, gate=Gate.load(DEFAULT_MODEL))
    table = gated.predict_folder(file.parent)
    assert table["gate"].tolist() == ["pass", "flagged"]
    assert "same brightness" in table["gate_reason"][1]


def test_a_damaged_member_of_an_archive_is_a_row(classifier, file):
    with zipfile.ZipFile(file.parent / "two.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(file, "bad.png")
        archive.write(file, "good.png")
    data = bytearray((file.parent / "two.zip").read_bytes())
    data[500:550] = bytes(50)
    (file.parent / "two.zip").write_bytes(data)
    table = classifier.predict_folder(file.parent / "two.zip")
    assert table["path"].str.endswith(("bad.png", "good.png")).all()
    assert "damaged" in table["error"][0]
    assert table["Edema"][1] == classifier.predict(file).probabilities["Edema"]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}, {"errors": "ignore"}])
def test_options_out_of_range_are_refused(classifier, file, options):
    with pytest.raises(InputError, match=r"batch_size of at least 1|errors='raise' or"):
        classifier.predict_folder(file.parent, **options)


def test_predictions_with_maps_are_compared_by_value(classifier, file):
    one, same = (classifier.predict(file, saliency=True) for _ in range(2))
    assert one == same
    assert one != classifier.predict(file)
    assert one.maps != one.maps.at_size((9, 9))


@pytest.mark.parametrize("names", [("Edema", "error"), ("path", "Edema"), ("Edema", "Edema positive")])
def test_an_observation_with_the_name_of_another_column_is_no_lost_column(classifier, file, names):
    model = CheXpertForImageClassification(CheXpertConfig(**TINY, id2label=dict(enumerate(names))))
    other = CheXpertClassifier(model, classifier.processor)
    with pytest.raises(InputError, match="is an observation of the model and another column of the table"):
        other.predict_folder(file, positives=True)
