import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from chexpert_hf.evaluation.intervals import NAN, Estimate
from chexpert_hf.evaluation.sanity.sanity import (
    SanityChecks,
    Verdict,
    check_region,
    check_removal,
    check_weights,
    frame,
    judge,
    mass_inside,
    outside_body,
    removal_steps,
    side_marker,
)
from chexpert_hf.evaluation.sanity.sanity_report import as_dictionary, as_text, sanity_tables, write_sanity
from chexpert_hf.phantoms import rendering
from chexpert_hf.phantoms.rendering import render_phantom

PATIENTS = [f"patient{number}" for number in range(8)]


@pytest.fixture
def maps() -> np.ndarray:
    """Of 8 radiographs and 3 observations."""
    return np.random.default_rng(0).normal(size=(8, 3, 5, 6))


@pytest.mark.parametrize(
    ("low", "value", "high", "below", "above"),
    [
        (0.2, 0.3, 0.4, Verdict.PASSED, Verdict.FAILED),
        (0.3, 0.4, 0.6, Verdict.UNCLEAR, Verdict.FAILED),
        (0.4, 0.5, 0.6, Verdict.FAILED, Verdict.FAILED),  # an even map has exactly what is to be expected
        (0.6, 0.7, 0.8, Verdict.FAILED, Verdict.PASSED),
        (0.6, 0.4, 0.7, Verdict.UNCLEAR, Verdict.FAILED),  # a skewed bootstrap, whose interval misses the value
        (0.2, 0.6, 0.4, Verdict.FAILED, Verdict.UNCLEAR),
        (NAN, 0.4, NAN, Verdict.UNCLEAR, Verdict.FAILED),  # of one patient
        (NAN, NAN, NAN, Verdict.NOT_JUDGED, Verdict.NOT_JUDGED),
    ],
)
def test_a_check_passes_if_the_whole_interval_is_on_the_good_side(low, value, high, below, above):
    assert judge(Estimate(value, low, high), 0.5, is_good_below=True) == below
    assert judge(Estimate(value, low, high), 0.5, is_good_below=False) == above


def test_maps_that_do_not_depend_on_the_weights_fail(maps):
    for others in (maps, np.exp(maps), -maps):  # the order is what counts, and a head is as likely as its negative
        check = check_weights("head", maps, others, PATIENTS)
        assert check.similarity.value == pytest.approx(1)
        assert check.verdict == Verdict.FAILED
    np.testing.assert_allclose(check.signed, -1)


def test_one_map_for_every_radiograph_and_every_network_fails(maps):
    same = np.broadcast_to(maps[:1], maps.shape)
    check = check_weights("head", same, same, PATIENTS)
    np.testing.assert_allclose(check.other_image, 1)
    assert check.verdict == Verdict.FAILED


def test_the_correlation_is_spearmans(maps):
    first, second = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 3.0], [2.0, 4.0]])
    by_hand = check_weights("head", first[None, None], second[None, None], PATIENTS[:1])
    assert by_hand.similarity.value == pytest.approx(1 - 6 * 2 / (4 * 15))
    coarse = maps.round()  # with ties
    check = check_weights("head", coarse, maps[::-1], PATIENTS)
    one = [spearmanr(coarse[row, 1].ravel(), maps[::-1][row, 1].ravel()).statistic for row in range(8)]
    assert check.signed[1] == pytest.approx(np.mean(one))
    assert check.by_observation[1] == pytest.approx(np.mean(np.abs(one)))


def test_baselines_are_all_other_radiographs_and_all_other_places(maps):
    others = np.random.default_rng(1).normal(size=maps.shape)
    check = check_weights("head", maps, others, PATIENTS)

    def size(first, second):
        return abs(spearmanr(first.ravel(), second.ravel()).statistic)

    crossed = [size(maps[i, 0], others[j, 0]) for i in range(8) for j in range(8) if i != j]
    shifts = [(y, x) for y in range(5) for x in range(6) if y or x]
    shifted = [size(maps[i, 0], np.roll(others[i, 0], shift, (0, 1))) for i in range(8) for shift in shifts]
    assert check.other_image[0] == pytest.approx(np.mean(crossed))
    assert check.by_chance[0] == pytest.approx(np.mean(shifted))


def test_a_bright_centre_that_all_share_shows_in_the_baseline_of_other_radiographs(maps):
    y, x = np.mgrid[-1:1:5j, -1:1:6j]
    centre = 4 * np.exp(-2 * (x**2 + y**2))
    others = np.random.default_rng(1).normal(size=maps.shape)
    check = check_weights("all weights", maps + centre, others + centre, PATIENTS)
    assert check.similarity.value == pytest.approx(check.other_image.mean(), abs=0.05)
    assert check.other_image.mean() > check.by_chance.mean() + 0.2


def test_flat_maps_and_maps_of_four_places_are_not_judged(maps):
    flat = check_weights("head", np.zeros_like(maps), maps, PATIENTS)
    assert np.isnan(flat.by_observation).all()
    assert flat.verdict == Verdict.NOT_JUDGED
    coarse = check_weights("head", maps[..., :1, :2], maps[::-1, :, :1, :2], PATIENTS)  # 1 or -1 whatever happens
    assert coarse.by_chance.mean() == pytest.approx(1)
    assert coarse.verdict == Verdict.NOT_JUDGED


def test_mass_is_counted_where_the_map_is_positive():
    region = np.array([[True, False], [True, False]])
    maps = np.array([[[1.0, 3.0], [-5.0, 0.0]], [[-1.0, -1.0], [-1.0, 0.0]]])
    np.testing.assert_allclose(mass_inside(maps, region), [0.25, NAN])


def region_check(saliency, region):
    masses = np.array([mass_inside(np.stack([saliency, -saliency]), region)] * 8)
    return check_region("frame", masses, np.full(8, region.mean()), PATIENTS)


def test_an_even_map_looks_everywhere_as_much_as_by_chance():
    check = region_check(np.ones((40, 60)), frame((40, 60)))
    assert check.ratio.value == pytest.approx(1)
    assert np.isnan(check.by_observation[1])  # nothing positive in it


def test_a_map_that_lies_on_the_border_is_caught_and_one_in_the_middle_is_not():
    edge, middle = np.ones((40, 60)), np.zeros((40, 60))
    edge[4:-4, 6:-6], middle[10:30, 20:40] = 0, 1
    assert region_check(edge, frame((40, 60))).verdict == Verdict.FAILED
    assert region_check(edge, frame((40, 60))).ratio.value == pytest.approx(1 / (1 - 0.8 * 0.8), rel=1e-6)
    assert region_check(middle, frame((40, 60))).verdict == Verdict.PASSED
    masses = np.array([mass_inside(np.stack([middle, -middle]), frame((40, 60)))] * 8)
    assert check_region("frame", masses, np.full(8, 0.36), ["the same"] * 8).verdict == Verdict.UNCLEAR
    assert region_check(middle, frame((40, 60))).mass == 0


def test_radiographs_without_the_region_or_a_map_do_not_count():
    masses = np.array([[0.5, 0.1], [0.9, 0.9], [NAN, NAN], [NAN, 0.2]])
    check = check_region("marker", masses, np.array([0.1, 0.0, 0.1, 0.2]), PATIENTS[:4])
    assert check.num_images == 2
    assert check.ratio.value == pytest.approx((0.3 + 0.2) / 0.3)
    np.testing.assert_allclose(check.by_observation, [5, (0.1 + 0.2) / (0.1 + 0.2)])
    nothing = check_region("marker", masses, np.zeros(4), PATIENTS[:4])
    assert nothing.verdict == Verdict.NOT_JUDGED
    assert nothing.num_images == 0


def test_the_frame_is_the_outer_twentieth_of_each_side():
    mask = frame((40, 100))
    assert mask.mean() == pytest.approx(1 - 0.9 * 0.9)
    assert not mask[2:-2, 5:-5].any()


def test_places_go_in_order_and_in_even_steps():
    is_gone, fractions = removal_steps(np.array([2, 0, 3, 1]), 2)
    np.testing.assert_array_equal(is_gone, [[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(fractions, [0, 0.5, 1])
    is_gone, fractions = removal_steps(np.arange(7), 3)
    np.testing.assert_array_equal(is_gone.sum(axis=1), [0, 2, 5, 7])
    np.testing.assert_allclose(fractions, np.array([0, 2, 5, 7]) / 7)


def test_areas_and_gains_are_those_worked_out_by_hand():
    fractions = np.array([0, 0.5, 1])
    deletion, insertion, random = np.array([[[1, 0.2, 0]], [[0, 0.9, 1]], [[1, 0.6, 0]]])
    check = check_removal(["Edema"], fractions, deletion, insertion, random, ["a"])
    assert check.deletion_gain.value == pytest.approx(0.2)
    assert check.insertion_gain.value == pytest.approx(0.7 - 0.55)


def test_lungs_are_inside_the_body_and_the_corners_are_not():
    picture = np.full((120, 100), 5.0)
    picture[20:, 10:90] = 200
    picture[40:90, 20:45] = picture[40:90, 55:80] = 6  # lungs as dark as the air outside
    outside = outside_body(picture)
    expected = np.ones_like(outside)
    expected[20:, 10:90] = False
    assert (outside == expected).mean() > 0.94  # the smoothing moves edges by a pixel or two
    assert not outside[45:85, 22:78].any()


def test_nothing_is_outside_where_the_body_fills_the_picture():
    picture = np.full((100, 100), 200.0)
    picture[30:80, 15:40] = picture[30:80, 60:85] = 20
    assert not outside_body(picture).any()
    assert not outside_body(np.full((64, 64), 7.0)).any()
    assert not side_marker(np.full((320, 320), 7.0)).any()


def test_a_letter_is_a_side_marker_near_an_upper_corner_only():
    for row, column, is_marker in ((40, 290, True), (40, 30, True), (40, 160, False), (250, 290, False)):
        picture = np.full((320, 320), 60.0)
        picture[row : row + 18, column : column + 4] = picture[row + 14 : row + 18, column : column + 12] = 250
        marker = side_marker(picture)
        assert marker.any() == is_marker
        assert not is_marker or (marker[row : row + 18, column : column + 4].all() and marker.mean() < 0.01)


def test_the_side_marker_is_found_on_phantoms(monkeypatch):
    stamp, found, wrong = rendering.stamp_marker, [], []
    for seed in range(24):
        projection = ("PA", "AP", "Lateral")[seed % 3]
        findings = [[], ["Support Devices"], ["Pleural Effusion"], ["Cardiomegaly", "Edema"]][seed % 4]
        pictures = []
        for function in (stamp, lambda grey, rng, projection: grey):
            monkeypatch.setattr(rendering, "stamp_marker", function)
            picture = Image.fromarray(render_phantom(seed, findings, projection=projection).image)
            pictures.append(np.asarray(picture.resize((320, 320)), dtype=float))
        ink = pictures[0] - pictures[1] > 15
        marker = side_marker(pictures[0])
        found.append((marker & ink).sum() > 0.3 * ink.sum())
        wrong.append(marker.any() and not (marker & ink).any())
    assert np.mean(found) >= 0.8
    assert np.mean(wrong) <= 0.1


@pytest.fixture
def checks(maps) -> SanityChecks:
    rng = np.random.default_rng(0)
    fractions = np.linspace(0, 1, 5)
    curves = np.sort(rng.random((3, 4, 5)))
    return SanityChecks(
        observations=["Edema", "Pneumonia", "Fracture"],
        num_images=8,
        map_size=(5, 6),
        seed=0,
        weights=[
            check_weights("head", maps, maps, PATIENTS),
            check_weights("all weights", maps, rng.normal(size=maps.shape), PATIENTS),
        ],
        regions=[check_region("side marker", np.full((8, 3), NAN), np.zeros(8), PATIENTS)],
        removal=check_removal(["Edema"] * 4, fractions, 0.1 * curves[0, :, ::-1], curves[1], curves[2], ["a"] * 4),
    )


def test_a_failure_is_said_in_words(checks):
    weights, regions, _ = sanity_tables(checks)
    assert (weights.verdict, regions.verdict) == ("FAILED", "nothing to judge")
    assert [row[-1] for row in weights.rows] == ["FAILED", "yes"]
    text = as_text(checks)
    assert "The maps change when the weights do: FAILED" in text
    assert "At or over the bound (head): Edema 1.00, Pneumonia 1.00, Fracture 1.00." in text
    assert "nan" not in text


def test_results_are_json_without_nan_and_a_picture(checks, tmp_path):
    write_sanity(tmp_path / "new", checks)
    written = json.loads((tmp_path / "new" / "sanity.json").read_text())
    assert written == as_dictionary(checks)
    assert {each["redrawn"]: each["verdict"] for each in written["weights"]} == {
        "head": "failed",
        "all weights": "passed",
    }
    assert written["regions"][0]["ratio"] == {"value": None, "low": None, "high": None}
    with Image.open(tmp_path / "new" / "sanity.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
