"""A second reference standard: what a file says about images, and what scores are worth against it."""

import itertools

import numpy as np
import pytest

from chexpert_hf.datasets.layouts.nih import NIH
from chexpert_hf.datasets.reference import ReferenceFileError, read_reference
from chexpert_hf.evaluation.assessment import ModelScores
from chexpert_hf.evaluation.intervals import delong_interval
from chexpert_hf.evaluation.reference_standard import assess_reference
from chexpert_hf.labels import OBSERVATIONS

HEADER = "Path,Class,Target,x,y,width,height"
JUDGED = ("Lung Opacity", "Pneumonia", "Edema")


def image(number: int, split: str = "valid") -> str:
    return f"{split}/patient{number:05d}/study1/view1_frontal.jpg"


def write(folder, header, *rows):
    file = folder / "reference.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def readings(tmp_path):
    """As RSNA's: 12 images, of which every third is normal and every third has an opacity; the fourth has two boxes."""
    rows = []
    for number in range(1, 13):
        kind = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")[number % 3]
        box = f"{number},2,3,4" if kind == "Lung Opacity" else ",,,"
        rows += [f"NIH/{image(number)},{kind},{int(kind == 'Lung Opacity')},{box}"]
    return write(tmp_path, HEADER, *rows, f"NIH/{image(2)},Lung Opacity,1,9,9,1,1")


def test_one_column_may_be_compared_with_several_scores_and_against_some_negatives_only(readings):
    mapping, against = ["Target=Lung Opacity, Target=Pneumonia"], ["Class=Normal"]
    reference = read_reference(readings, JUDGED, mapping=mapping, against=against, name="RSNA radiologists")
    again = read_reference(readings, JUDGED, mapping=["Target=Lung Opacity", "Target=Pneumonia"], against=against)
    assert reference.targets == again.targets
    assert [(target.observation, target.against) for target in reference.targets] == [
        ("Lung Opacity", None), ("Pneumonia", None), ("Lung Opacity", "Class=Normal"), ("Pneumonia", "Class=Normal"),
    ]  # fmt: skip
    labels = reference.labels([image(number) for number in range(1, 14)])
    rest = [0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, np.nan]
    normal = [np.nan, 1, 0, np.nan, 1, 0, np.nan, 1, 0, np.nan, 1, 0, np.nan]
    np.testing.assert_array_equal(labels, np.array([rest, rest, normal, normal]).T)
    assert reference.targets[0].boxes[image(2)] == [(2, 2, 3, 4), (9, 9, 1, 1)]
    assert list(reference.targets[0].boxes) == [image(number) for number in (2, 5, 8, 11)]


@pytest.mark.parametrize("mapping", ["Class=Lung Opacity", "Class:Lung Opacity=Lung Opacity"])
def test_a_value_of_a_column_of_text_can_be_the_finding(readings, mapping):
    (target,) = read_reference(readings, JUDGED, mapping=[mapping]).targets
    assert [target.labels[image(number)] for number in range(1, 13)] == [0, 1, 0] * 4


def test_capitals_make_no_other_reading(tmp_path):
    file = write(tmp_path, "Path,Class", "a,Sick", "b,sick", "c,Normal", "d,normal", "e,Other", "f,")
    options = {"mapping": ["Class:SICK=Edema"], "against": ["Class=Normal"]}
    every, normal = read_reference(file, JUDGED, **options).labels([*"abcdef"]).T
    np.testing.assert_array_equal(every, [1, 1, 0, 0, 0, np.nan])
    np.testing.assert_array_equal(normal, [1, 1, 0, 0, np.nan, np.nan])
    found = read_reference(write(tmp_path, "Path,Observation", "a,Edema", "b,edema", "c,Pneumonia"), JUDGED)
    assert [target.observation for target in found.targets] == ["Edema", "Pneumonia"]
    np.testing.assert_array_equal(found.labels([*"abc"])[:, 0], [1, 1, np.nan])


def test_columns_named_like_observations_stand_for_themselves_and_others_are_skipped(tmp_path):
    file = write(
        tmp_path, "Path;Infiltration;Edema;Fracture;Remark",
        f"{image(1)};1,0;-1;1;seen", f"{image(2).replace('/', chr(92))};0;nan;0;", f"/data/{image(3)};;1;0;",
    )  # fmt: skip
    reference = read_reference(file, JUDGED)
    assert [(target.name, target.observation) for target in reference.targets] == [
        ("Infiltration", "Lung Opacity"), ("Edema", "Edema"),
    ]  # fmt: skip
    labels = reference.labels([image(number) for number in (1, 2, 3)])
    np.testing.assert_array_equal(labels, [[1, -1], [0, np.nan], [np.nan, 1]])
    assert reference.skipped == ("Fracture",)
    assert "Not judged by the model: Fracture." in reference.coverage([image(1)])


def test_the_highest_of_several_boxes_decides_and_rows_without_boxes_must_agree(tmp_path):
    header = "Path,Edema,x,y,width,height"
    rows = [f"{image(1)},0,1,1,2,2", f"{image(1)},1,3,3,2,2", f"{image(2)},0,1,1,2,2", f"{image(2)},-1,3,3,2,2"]
    (target,) = read_reference(write(tmp_path, header, *rows), JUDGED).targets
    assert target.labels[image(1)] == 1
    assert target.labels[image(2)] == -1
    assert target.boxes == {image(1): [(3, 3, 2, 2)]}
    file = write(tmp_path, header, f"{image(1)},0,1,1,2,2", f"{image(1)},1,,,,")
    with pytest.raises(
        ReferenceFileError, match=r"column Edema: rows 2, 3 say different things of 'valid/patient00001"
    ):
        read_reference(file, JUDGED)


def test_a_row_that_names_one_finding_says_nothing_about_another(tmp_path):
    rows = [f"{image(1)},Effusion,1,1,2,2", f"{image(2)},Edema,1,1,2,2"]
    reference = read_reference(write(tmp_path, "Path,Observation,x,y,width,height", *rows), OBSERVATIONS)
    assert [target.observation for target in reference.targets] == ["Pleural Effusion", "Edema"]
    np.testing.assert_array_equal(reference.labels([image(1), image(2)]), [[1, np.nan], [np.nan, 1]])


def test_names_of_another_label_set_stand_for_the_observations_that_the_model_has(tmp_path):
    rows = [f"{image(1)},{name}" for name in ("Effusion", "Nodule", "Infiltrate")]
    file = write(tmp_path, "Path,Observation", *rows)
    for judged, expected in (
        (NIH.names, ["Effusion", "Nodule", "Infiltration"]),
        (OBSERVATIONS, ["Pleural Effusion", "Lung Lesion", "Lung Opacity"]),
        (("Pleural effusion", "Nodule/Mass"), ["Pleural effusion", "Nodule/Mass"]),  # of VinDr-CXR
    ):
        assert [target.observation for target in read_reference(file, judged).targets] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"say which score stands for which of its columns \(Class, Target\), such as --reference-map"),
        ({"mapping": ["Target"]}, r"--reference-map: expected 'Target=Lung Opacity'.* got 'Target'"),
        ({"mapping": ["Target=Fracture"]}, r"one of Lung Opacity, Pneumonia, Edema; got 'Target=Fracture'"),
        ({"mapping": ["Goal=Edema"]}, r"has no column 'Goal' for --reference-map; it has Path, Class, Target, x, y"),
        ({"mapping": ["Class=Edema"]}, r"row 2: Class is 'No Lung .*--reference-map 'Class:No Lung Opacity / Not"),
        ({"mapping": ["Class:Ill=Edema"]}, r"no cell of Class is 'Ill'; it has Lung Opacity, No Lung Opacity"),
        ({"mapping": ["Target=Edema"], "against": ["Class=Healthy"]}, r"no row fits --reference-against 'Class=Health"),
        ({"mapping": ["Target=Edema"], "against": ["Kind=Normal"]}, r"'Kind=Normal'.*it has the columns Path, Class"),
    ],
)
def test_a_choice_that_does_not_fit_the_file_is_refused(readings, options, message):
    with pytest.raises(ReferenceFileError, match=message):
        read_reference(readings, JUDGED, **options)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Path,Edema"], r"expected rows with the column Path .* got no row"),
        (["File,Edema", "a,1"], r"expected rows with the column Path .* got the columns File, Edema"),
        (["Path,Edema,x", "a,1,1"], r"expected the columns x, y, width, height of boxes, missing: y, width, height"),
        (["Path,Edema", "a,2"], r"reference\.csv row 2: Edema is '2', expected 1, 0, -1 or blank"),
        (["Path,Edema,x,y,width,height", "a,1,1,,2,2"], r"row 2: '1, , 2, 2' is no box"),
        (["Path,Edema,Edema", "a,1,0", "b,0,1"], r"has the column 'Edema' more than once"),
        (["Path,remark,Edema", 'a,"open,1', "b,,0", 'c,"closed",1', "d,,0"], r"line 2: a cell .* that is not closed"),
    ],
)
def test_a_file_that_is_no_reference_is_refused(tmp_path, lines, message):
    with pytest.raises(ReferenceFileError, match=message):
        read_reference(write(tmp_path, *lines), JUDGED)


def test_scores_are_judged_on_the_images_of_the_file_beside_the_labels_of_the_data_set(readings):
    rng = np.random.default_rng(0)
    paths = [image(number) for number in range(3, 33)]  # 3 to 12 are in the file
    patients = [f"p{number // 2}" for number in range(30)]
    probabilities, labels = rng.random((30, 3)), rng.integers(0, 2, (30, 3)).astype(float)
    reference = read_reference(
        readings, JUDGED, mapping=["Target=Pneumonia"], against=["Class=Normal"], name="RSNA radiologists"
    )
    assert reference.coverage(paths) == (
        "RSNA radiologists: 10 of the 30 images of this split are in reference.csv; 2 other images of the file are not "
        "in this split."
    )
    result = assess_reference(
        [ModelScores("model", probabilities, {"Pneumonia": 0.5, "Edema": 0.1}, {"Pneumonia": "youden"})],
        paths, paths, patients, JUDGED, reference, labels=labels, labels_name="text-mined labels", replicates=100,
    )  # fmt: skip
    assert (result["images"], result["images_only_in_split"], result["images_only_in_reference"]) == (10, 20, 2)
    scores, truth = probabilities[:10, 1], np.array([0, 0, 1, 0, 0, 1, 0, 0, 1, 0], dtype=float)
    normal = np.array([0, np.nan, 1, 0, np.nan, 1, 0, np.nan, 1, 0])
    expected = [
        ("RSNA radiologists", "Target", None, truth),
        ("RSNA radiologists", "Target", "Class=Normal", normal),
        ("text-mined labels", "Pneumonia", None, labels[:10, 1]),
    ]
    for figure, (name, target, against, values) in zip(result["figures"], expected, strict=True):
        assert (figure["reference"], figure["target"], figure["against"]) == (name, target, against)
        assert (figure["model"], figure["observation"]) == ("model", "Pneumonia")
        assert figure["num"] == np.isfinite(values).sum()
        interval = delong_interval(scores, values, patients[:10])
        assert figure["auroc"] == {
            "value": interval.value, "low": interval.low, "high": interval.high, "method": "DeLong",
        }  # fmt: skip
        assert figure["operating_point"]["true_positives"] == ((scores >= 0.5) & (values == 1)).sum()
        assert figure["operating_point"]["chosen_by"] == "youden"


def test_only_the_views_of_a_study_that_were_read_count(tmp_path):
    rows = [f"{image(number)},{number % 2}" for number in range(10)]
    reference = read_reference(write(tmp_path, "Path,Edema", *rows), ["Edema"])
    paths = [image(number) for number in range(10)]
    others = [path.replace("view1", "view2") for path in paths]  # not read, and misleading
    scores = np.array([[number % 2] for number in range(10)] + [[1]] * 10, dtype=float)
    patients = [path.split("/")[1] for path in paths + others]
    studies = [path.rpartition("/")[0] for path in paths + others]
    result = assess_reference(
        [ModelScores("m", scores)], paths + others, studies, patients, ["Edema"], reference, replicates=100
    )
    assert result["studies"] == 10
    assert result["figures"][0]["auroc"]["value"] == 1


def test_a_study_of_which_one_view_is_uncertain_is_negative_by_no_other_view(tmp_path):
    readings = [(0, 0), (0, -1), (1, -1), (-1, -1), ("", 0), ("", -1), (1, 0)]
    paths = [f"valid/patient{n}/study1/view{v}_frontal.jpg" for n in range(len(readings)) for v in (1, 2)]
    rows = [f"{path},{value}" for path, value in zip(paths, itertools.chain(*readings), strict=True)]
    reference = read_reference(write(tmp_path, "Path,Edema", *rows), ["Edema"])
    patients = [path.split("/")[1] for path in paths]
    models = [ModelScores("m", np.full((len(paths), 1), 0.5))]
    result = assess_reference(models, paths, patients, patients, ["Edema"], reference, replicates=100)
    assert [result["figures"][0][f"num_{kind}"] for kind in ("positive", "negative", "unknown")] == [2, 2, 3]


@pytest.mark.parametrize("stated", ["{}", "T3/{}", "C:\\films\\T3\\{}", "d/e/{name}", "{name}"])
def test_images_of_any_data_set_are_found_by_the_end_of_their_paths(tmp_path, stated):
    images = [f"a/b/c/d/e/{number}.png" for number in range(3)]
    rows = [
        f"{stated.format(image, name=image.rpartition('/')[2])},{number % 2}" for number, image in enumerate(images)
    ]
    reference = read_reference(write(tmp_path, "Path,Edema", *rows), ["Edema"], images=images)
    assert reference.labels(images).ravel().tolist() == [0, 1, 0]


def test_a_path_that_could_be_several_images_is_refused(tmp_path):
    file = write(tmp_path, "Path,Edema", "a/1.png,1", "2.png,1")
    with pytest.raises(ReferenceFileError, match=r"row 3: Path is '2.png', which could be a/2.png, b/2.png; expected"):
        read_reference(file, ["Edema"], images=["a/1.png", "b/1.png", "a/2.png", "b/2.png"])


def test_two_paths_that_could_be_one_image_are_refused(tmp_path):
    file = write(tmp_path, "Path,Edema", "hospitalA/1.png,1", "hospitalB/1.png,", "hospitalB/2.png,0")
    with pytest.raises(ReferenceFileError, match=r"'hospitalA/1.png' and 'hospitalB/1.png' could both be '1.png'"):
        read_reference(file, JUDGED, images=["1.png", "2.png"])
    assert read_reference(file, JUDGED, images=["hospitalA/1.png", "2.png"]).targets[0].labels["hospitalA/1.png"] == 1
    file = write(tmp_path, "Path,Edema,x,y,width,height", "a/1.png,1,1,1,2,2", r"a\1.png,1,5,5,2,2")
    assert len(read_reference(file, JUDGED, images=["1.png"]).targets[0].boxes["1.png"]) == 2


def test_studies_are_those_of_the_data_set_wherever_its_images_are(tmp_path):
    paths = [f"films/{number}.png" for number in range(6)]
    rows = [f"{path},{number % 2}" for number, path in enumerate(paths)]
    reference = read_reference(write(tmp_path, "Path,Edema", *rows), ["Edema"], images=paths)
    scores = [ModelScores("m", np.array([[0.1], [0.2], [0.3], [0.4], [0.5], [0.6]]))]
    studies = ["p1/a", "p1/b", "p1/b", "p2/a", "p2/a", "p3/a"]
    patients = [study.partition("/")[0] for study in studies]
    result = assess_reference(scores, paths, studies, patients, ["Edema"], reference, replicates=100)
    assert (result["images"], result["studies"], result["patients"]) == (6, 4, 3)


def test_a_file_about_other_images_is_refused(readings):
    reference = read_reference(readings, JUDGED, mapping=["Target=Edema"])
    with pytest.raises(
        ReferenceFileError, match=r"none of its 12 images \(such as 'valid/patient00001.*another --split"
    ):
        assess_reference([ModelScores("m", np.zeros((1, 3)))], [image(1, "train")], ["s"], ["p"], JUDGED, reference)
