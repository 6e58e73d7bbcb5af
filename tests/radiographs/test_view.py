"""The view, as a DICOM header names it."""

import io
import logging
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from chexpert_hf.radiographs.radiograph import RadiographError, open_radiograph
from tests.radiographs.test_dicom import FILM, NAME, make_dicom, sample

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("view", "orientation", "expected"),
    [
        ("LL", None, True),
        ("RL", None, True),
        ("LATERAL", None, True),
        ("lat ", None, True),
        ("PA", None, False),
        ("AP", None, False),
        ("PA", ["A", "F"], False),  # the view position is the plainer word
        ("LLO", None, None),  # oblique
        ("RLD", None, None),  # the patient lies on the side, the view may be a frontal one
        ("MLO", ["A", "F"], None),  # of a breast, whose orientation is written like that of a lateral view
        (None, None, None),
        (None, ["A", "F"], True),
        ("", ["P", "FL"], True),
        (None, ["L", "F"], False),
        (None, ["L", "P"], None),  # a slice
        (None, ["A"], None),
        (None, "", None),
        (None, "AF", None),  # one value of two characters
    ],
)
def test_view_position_says_it_or_else_the_orientation(syntax, view, orientation, expected):
    elements = {"ViewPosition": view, "PatientOrientation": orientation}
    data = make_dicom(FILM, syntax, **{name: value for name, value in elements.items() if value is not None})
    assert open_radiograph(data).is_lateral is expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"BodyPartExamined": "BREAST", "Modality": "MG"}, "BodyPartExamined is BREAST"),
        ({"BodyPartExamined": "hip ", "Modality": "CR"}, "BodyPartExamined is HIP"),
        ({"BodyPartExamined": "", "Modality": "MG"}, "Modality is MG"),
        *(({"BodyPartExamined": part, "Modality": "DX"}, "") for part in ("CHEST", "THORAX", "RIB", "TSPINE", "")),
        ({"BodyPartExamined": NAME, "Modality": "XY"}, ""),  # unknown values decide nothing and are not repeated
        ({"Modality": "CR"}, ""),
        ({}, ""),
    ],
)
def test_a_header_that_names_another_subject_says_so(elements, expected):
    assert open_radiograph(make_dicom(FILM, **elements)).other_subject == expected


def test_a_file_without_preamble_and_a_deflated_one_say_it_too():
    data = make_dicom(FILM, DeflatedExplicitVRLittleEndian, ViewPosition="LL")
    assert open_radiograph(data).is_lateral is True
    assert open_radiograph(make_dicom(FILM, ViewPosition="LL")[132:]).is_lateral is True


def test_real_chest_is_said_to_be_frontal():
    assert open_radiograph(sample("RG1_UNCR")).is_lateral is False


def test_what_is_no_dicom_says_nothing(tmp_path):
    file = io.BytesIO()
    Image.fromarray(FILM).save(file, "PNG")
    (tmp_path / "view1_lateral.png").write_bytes(file.getvalue())
    for source in (file.getvalue(), tmp_path / "view1_lateral.png", FILM, Image.fromarray(FILM)):
        assert open_radiograph(source).is_lateral is None


def test_headers_that_cannot_be_read_say_nothing_and_nothing_of_them_is_logged(recwarn, caplog):
    data, named = make_dicom(FILM, ViewPosition="LL"), make_dicom(FILM, ViewPosition=NAME)
    caplog.clear()
    rng, views = np.random.default_rng(0), set()
    with caplog.at_level(logging.DEBUG):
        assert open_radiograph(named).is_lateral is None
        for _ in range(200):
            spoilt = bytearray(data)
            for place in rng.integers(132, len(data) - FILM.size, 3):
                spoilt[place] = rng.integers(256)
            with suppress(RadiographError):
                views.add(open_radiograph(bytes(spoilt)).is_lateral)
    assert views == {True, None}  # damage can hide the view, not turn it round
    assert not recwarn.list
    assert not caplog.records
