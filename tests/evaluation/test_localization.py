import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

from chexpert_hf.evaluation.intervals import PatientBootstrap, wilson_interval
from chexpert_hf.evaluation.localization.localization import (
    PRIORS,
    MapScore,
    box_mask,
    find_peak,
    indicate,
    iou,
    mean_interval,
    otsu_threshold,
    prior_map,
    saliency_mask,
    score_indication,
    summarize,
)


def upsampled(cells: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """As cheXlocalize and this package resize maps."""
    return functional.interpolate(torch.from_numpy(cells)[None, None], shape, mode="bilinear")[0, 0].numpy()


def random_maps(count: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(32, 39), (57, 40), (64, 64)]
    return [
        upsampled(rng.gamma(rng.uniform(0.2, 3), size=(4, 5)).astype(np.float32), shapes[number % 3])
        for number in range(count)
    ]


def histograms() -> list[np.ndarray]:
    """8-bit images of many kinds: random, of a few levels, symmetric (several levels equally good), constant."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (31, 17), dtype=np.uint8) for _ in range(50)]
    images += [rng.choice(rng.integers(0, 256, 4, dtype=np.uint8), (20, 20)) for _ in range(200)]
    images += [np.repeat(np.array(levels, dtype=np.uint8), 6).reshape(-1, 3) for levels in ([0, 128, 255], [7, 7], [0])]
    images += [np.tile(np.arange(0, 256, step, dtype=np.uint8), (3, 1)) for step in (1, 5, 17, 51, 85)]
    return images


# Otsu


def test_otsu_is_that_of_opencv_also_where_several_levels_are_equally_good():
    cv2 = pytest.importorskip("cv2")
    for image in histograms():
        assert otsu_threshold(image) == cv2.threshold(image, 0, 255, cv2.THRESH_OTSU)[0]


def test_a_class_of_fewer_pixels_than_a_float_can_tell_is_none_as_in_opencv():
    cv2 = pytest.importorskip("cv2")
    image = np.full((3000, 3000), 10, dtype=np.uint8)
    image[0, 0] = 200
    assert otsu_threshold(image) == cv2.threshold(image, 0, 255, cv2.THRESH_OTSU)[0] == 0


def test_otsu_separates_as_scikit_image_does():
    filters = pytest.importorskip("skimage.filters")
    for saliency in random_maps():
        levels = (saliency / saliency.max() * 255).astype(np.uint8)
        assert np.array_equal(levels > otsu_threshold(levels), levels > filters.threshold_otsu(levels))


def test_otsu_by_hand():
    # Two values: everything from the lower one up to below the upper one separates them, and the first is taken.
    assert otsu_threshold(np.array([[10, 10, 10, 50]], dtype=np.uint8)) == 10
    # 0, 0, 100, 110: parted as 2 + 2 the variance is 1/4 * 105^2, as 3 + 1 only 3/16 * (110 - 100/3)^2.
    assert otsu_threshold(np.array([0, 0, 100, 110], dtype=np.uint8)) == 0


# Masks


def chexlocalize_mask(saliency: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """What the paper describes, with OpenCV and torch."""
    cv2 = pytest.importorskip("cv2")
    scaled = torch.from_numpy(saliency) - saliency.min()
    scaled = scaled.div(scaled.max()).numpy()
    if threshold is not None:
        return scaled > threshold
    return cv2.threshold(np.uint8(255 * scaled), 0, 255, cv2.THRESH_OTSU)[1] > 0


@pytest.mark.parametrize("threshold", [None, 0.2, 0.5, 0.8])
def test_masks_are_those_of_opencv_on_the_scaled_map(threshold):
    for saliency in random_maps():
        mask = saliency_mask(saliency, threshold)
        assert np.array_equal(mask, chexlocalize_mask(saliency, threshold))
        assert 0 < mask.sum() < mask.size


def test_what_speaks_against_an_observation_marks_no_place():
    saliency = random_maps(1)[0] - 1
    assert saliency.min() < 0 < saliency.max()
    assert np.array_equal(saliency_mask(saliency), saliency_mask(np.maximum(saliency, 0)))
    assert find_peak(saliency) == find_peak(np.maximum(saliency, 0))
    only_against = np.minimum(saliency, 0)
    assert not saliency_mask(only_against).any()
    assert not saliency_mask(only_against, 0.3).any()
    assert find_peak(only_against) is None


def test_a_constant_map_marks_nothing_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (0.0, 0.7):
            assert not saliency_mask(np.full((4, 5), value, dtype=np.float32)).any()
            assert not saliency_mask(np.full((4, 5), value, dtype=np.float32), 0.5).any()


def test_a_positive_factor_changes_neither_peak_nor_mask():
    for saliency in random_maps(20):
        assert find_peak(saliency * 8) == find_peak(saliency)
        assert np.array_equal(saliency_mask(saliency * 8), saliency_mask(saliency))


# Peaks


def test_the_peak_is_the_maximum_where_there_is_one():
    for saliency in random_maps():
        row, column = find_peak(saliency)
        assert saliency[row, column] >= saliency.max() * (1 - 1e-6)
        if (saliency > saliency.max() * (1 - 1e-5)).sum() == 1:
            assert (row, column) == np.unravel_index(saliency.argmax(), saliency.shape)
    assert find_peak(np.eye(3)[:, ::-1] * [[1], [2], [1]]) == (1, 1)


def test_of_tied_pixels_it_is_the_one_in_their_middle():
    saliency = np.zeros((9, 9))
    saliency[2:7, 1:4] = 1
    assert find_peak(saliency) == (4, 2)
    # The mean of two separate ones lies between them: the first of those nearest to it, and never what is not tied.
    saliency = np.zeros((1, 9))
    saliency[0, [1, 7]] = 1
    assert find_peak(saliency) == (0, 1)


def test_the_peak_of_a_mirrored_map_is_the_mirrored_peak_also_in_the_outermost_cells():
    # What the first pixel in reading order would not give: the plateau of an outer cell reaches to the edge.
    for row in range(4):
        for column in range(4):
            cells = np.full((4, 4), 0.1, dtype=np.float32)
            cells[row, column] = 1
            y, x = find_peak(upsampled(cells, (39, 39)))
            mirrored_y, mirrored_x = find_peak(upsampled(cells[::-1, ::-1].copy(), (39, 39)))
            assert abs((38 - y) - mirrored_y) <= 1
            assert abs((38 - x) - mirrored_x) <= 1
            assert (y // 9.75, x // 9.75) == (row, column)


# IoU, hits and boxes


def test_iou_is_that_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(2)
    for _ in range(50):
        one, other = (rng.random((2, 13, 29)) < rng.uniform(0.05, 0.95, (2, 1, 1))).astype(np.uint8)
        encoded = [coco.encode(np.asfortranarray(mask)) for mask in (one, other)]
        assert iou(one > 0, other > 0) == pytest.approx(coco.iou(encoded[:1], encoded[1:], [0])[0, 0])


def test_iou_by_hand_with_empty_masks_on_both_slices():
    one = np.array([[1, 1, 0], [0, 0, 0]], dtype=bool)
    other = np.array([[0, 1, 1], [0, 1, 0]], dtype=bool)
    empty = np.zeros((2, 3), dtype=bool)
    assert iou(one, other) == iou(one, other, true_positives_only=False) == 1 / 4
    for predicted, truth in ((one, empty), (empty, one)):
        assert np.isnan(iou(predicted, truth))
        assert iou(predicted, truth, true_positives_only=False) == 0
    assert np.isnan(iou(empty, empty))
    assert np.isnan(iou(empty, empty, true_positives_only=False))


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"The map is \(2, 3\), the ground truth \(3, 2\)"):
        iou(np.ones((2, 3), dtype=bool), np.ones((3, 2), dtype=bool))


def test_a_hit_is_a_peak_in_the_truth_and_an_empty_map_is_a_miss():
    saliency = np.zeros((5, 5))
    saliency[1, 3] = 1
    truth = np.zeros((5, 5), dtype=bool)
    truth[0:2, 2:5] = True
    assert score_indication(indicate(saliency), truth) == MapScore(1.0, 1 / 6, (1, 3))
    assert score_indication(indicate(saliency), ~truth).hit == 0
    empty = score_indication(indicate(saliency * 0), truth)
    assert (empty.hit, empty.peak) == (0, None)
    assert np.isnan(empty.iou)
    assert np.isnan(score_indication(indicate(saliency), np.zeros((5, 5), dtype=bool)).hit)


def test_a_box_holds_the_pixels_whose_centres_lie_in_it():
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:4, 2:5] = True
    assert np.array_equal(box_mask([[2, 1, 3, 3]], (5, 6)), expected)
    # Centres are at .5, 1.5, ...; one on the left edge is inside, one on the right edge is not.
    for x, y in ((2.4, 1.4), (1.6, 0.6), (2.5, 1.5)):
        assert np.array_equal(box_mask([[x, y, 3.0, 3.0]], (5, 6)), expected)
    both = box_mask([[0, 0, 1, 1], [-3, 4, 100, 100]], (5, 6))
    assert both.sum() == 1 + 6
    assert both[0, 0]
    assert both[4].all()


# Baselines


def test_fixed_places_peak_where_they_say_and_the_right_lung_is_on_the_images_left():
    for prior in PRIORS.values():
        for shape in ((101, 77), (64, 80)):
            row, column = find_peak(prior_map(prior, shape))
            assert abs((row + 0.5) / shape[0] - prior.y) <= 0.5 / shape[0] + 1e-9
            assert abs((column + 0.5) / shape[1] - prior.x) <= 0.5 / shape[1] + 1e-9
    assert PRIORS["right lung"].x < 0.5 == PRIORS["centre"].x == PRIORS["centre"].y


# Figures and intervals


def scores_of(hits, ious=None) -> list[MapScore]:
    ious = np.full(len(hits), 0.5) if ious is None else ious
    return [MapScore(float(hit), float(value), (0, 0)) for hit, value in zip(hits, ious, strict=True)]


def test_the_mean_and_its_interval_are_those_of_resampled_patients_without_what_is_undefined():
    rng = np.random.default_rng(3)
    values, patients = rng.random(30), [f"p{number}" for number in rng.integers(0, 12, 30)]
    values[rng.random(30) < 0.4] = np.nan
    means = []
    for weights in PatientBootstrap(patients, 200).weights():
        for column in weights.T.astype(int):
            means.append(np.nanmean(np.repeat(values, column)))
    estimate = mean_interval(values, patients, replicates=200)
    assert estimate.value == pytest.approx(np.nanmean(values))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_resamples_without_a_defined_value_are_left_out_and_counted():
    values = [np.nan] * 9 + [0.3]
    estimate = mean_interval(values, [str(number) for number in range(10)])
    assert estimate.value == 0.3
    assert np.isnan([estimate.low, estimate.high]).all()  # one value does not show how uncertain it is
    assert estimate.left_out / 1000 == pytest.approx(0.9**10, abs=0.05)


def test_figures_without_a_defined_value_are_undefined():
    estimate = mean_interval([np.nan, np.nan], ["a", "b"])
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
    nothing = summarize([], [])
    assert np.isnan([nothing.hit_rate.value, nothing.hit_rate.low, nothing.miou.value, nothing.miou.high]).all()
    assert nothing.num_images == 0


def test_the_hit_rate_has_wilsons_interval_where_each_patient_has_one_image():
    result = summarize(scores_of([1, 0, 0, 1, 1]), list("abcde"))
    assert (result.hit_rate, result.hit_interval) == (wilson_interval(3, 5), "wilson")


def test_the_hit_rate_is_bootstrapped_over_patients_where_one_has_several_images():
    hits, patients = [1, 1, 1, 0, 0, 1], list("aaabbc")
    result = summarize(scores_of(hits), patients, replicates=300)
    assert (result.num_images, result.num_patients) == (6, 3)
    assert result.hit_interval == "bootstrap"
    assert result.hit_rate == mean_interval(hits, patients, replicates=300)


@pytest.mark.parametrize("hit", [0, 1])
def test_where_all_images_are_alike_the_interval_is_wilsons_for_the_number_of_patients(hit):
    result = summarize(scores_of([hit] * 6), list("aaabbc"))
    assert (result.hit_rate, result.hit_interval) == (wilson_interval(3 * hit, 3), "wilson")
    assert result.hit_rate.low < result.hit_rate.high


def test_empty_maps_are_counted_and_are_misses_but_not_in_the_miou():
    scores = [*scores_of([1, 1], [0.2, 0.4]), MapScore(0.0, np.nan, None)]
    result = summarize(scores, list("abc"))
    assert result.num_empty == 1
    assert result.hit_rate.value == pytest.approx(2 / 3)
    assert result.miou.value == pytest.approx(0.3)
