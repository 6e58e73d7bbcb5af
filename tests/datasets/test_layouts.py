"""Layouts: small data sets in the folders and columns of the real ones are recognised and read, traps and all."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import chexpert_hf
from chexpert_hf.datasets.cells import DatasetError
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.layouts import nih
from chexpert_hf.datasets.layouts.table import table_layout
from chexpert_hf.datasets.loading import BadFilesError, label_set_of, load_dataset
from chexpert_hf.datasets.sources import find_layout, has_dataset
from chexpert_hf.evaluation.metrics import split_labels
from chexpert_hf.labels import CHEXPERT
from chexpert_hf.radiographs.radiograph import read_radiograph
from tests.datasets.layout_trees import TREES, film, write_csv, write_films


@pytest.fixture
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The data set of the layout that a test names."""
    folder = tmp_path / "data"
    folder.mkdir()
    TREES[request.param][0](folder)
    return folder


def named(*layouts: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tree", layouts, indirect=True)


def as_frame(folder: Path, splits: Sequence[str] = ("train",), **options: object) -> pd.DataFrame:
    """All rows of some splits with a column for each label, by the names of the image files."""
    data = load_dataset(folder, **{"splits": splits, "valid_fraction": 0.0} | options)  # type: ignore[arg-type]
    frames = []
    for split, dataset in data.items():
        facts = dataset.remove_columns(["image", "labels"]).to_pandas()
        names = dataset.info.description.partition(": ")[2].split(", ")
        frames.append(facts.join(pd.DataFrame(dataset["labels"][:], columns=names)).assign(split=split))
    frame = pd.concat(frames)
    return frame.set_index(frame["path"].str.rpartition("/")[2].rename(None))


def stated(frame: pd.DataFrame, name: str) -> list[float]:
    return [float(value) for value in frame[name]]


# All layouts


@named(*TREES)
def test_each_layout_is_recognised_and_reads_its_eight_radiographs(tree: Path, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["tree"]
    splits = TREES[name][1]
    assert find_layout(tree)[0].name == name
    data = load_dataset(tree, splits=splits, valid_fraction=0)
    files = [file for dataset in data.values() for file in image_files(dataset)]
    assert len(set(files)) == 8
    assert {read_radiograph(file).size for file in files} == {(12, 16)}


@named(*TREES)
def test_an_image_that_is_not_there_is_named_before_anything_is_returned(
    tree: Path, request: pytest.FixtureRequest
) -> None:
    splits = TREES[request.node.callspec.params["tree"]][1]
    data = load_dataset(tree, splits=splits, valid_fraction=0)
    file = Path(image_files(data[splits[0]])[0])
    file.write_bytes(b"")
    with pytest.raises(BadFilesError, match=rf"1 of 8 files cannot be used: .*{file.name} \(empty\)"):
        load_dataset(tree, splits=splits, valid_fraction=0)


@named(*(name for name in TREES if name != "imagefolder"))
def test_labels_load_without_any_image(tree: Path, request: pytest.FixtureRequest) -> None:
    splits = TREES[request.node.callspec.params["tree"]][1]
    expected = as_frame(tree, splits).drop(columns="path").reset_index(drop=True)
    for file in tree.rglob("*"):
        if file.suffix in (".png", ".jpg", ".dcm", ".dicom"):
            file.unlink()
    pd.testing.assert_frame_equal(
        as_frame(tree, splits, check_files=False).drop(columns="path").reset_index(drop=True), expected
    )


@named("rsna", "google", "padchest", "vinbigdata")
def test_a_split_that_the_data_set_does_not_have_is_named_with_those_it_has(tree: Path) -> None:
    missing = "train" if (tree / "images").is_dir() else "test"
    with pytest.raises(DatasetError, match=rf"No table of the {missing} split .*choose from (train|valid, test)\.$"):
        load_dataset(tree, splits=[missing])


@named("rsna", "siim", "vindr", "imagefolder")
def test_where_no_patients_are_named_a_warning_says_that_splits_may_share_them(tree: Path) -> None:
    lines: list[str] = []
    for file in [*tree.rglob("validation/*/*"), *tree.rglob("test/*/*")]:
        file.unlink()
    load_dataset(tree, splits=["train"], valid_fraction=0.3, say=lines.append)
    assert "data names no patients: train and valid may hold studies of the same one." in lines


@named("mimic", "padchest", "nih", "table")
def test_where_patients_are_named_there_is_no_such_warning(tree: Path) -> None:
    lines: list[str] = []
    load_dataset(tree, splits=["train"], valid_fraction=0.3, say=lines.append)
    assert not [line for line in lines if "names no patients" in line]


@named("nih", "siim")
def test_images_in_another_format_are_found_and_masks_are_not(tree: Path) -> None:
    for number, file in enumerate([*tree.rglob("*.png"), *tree.rglob("*.dcm")]):
        file.unlink()
        file.with_suffix(".jpg").write_bytes(film(number, "JPEG"))
        write_films(tree, [f"a_masks/{file.stem}.jpg"], "JPEG")
    paths = as_frame(tree, ["train"])["path"]
    assert paths.str.endswith(".jpg").all()
    assert not paths.str.contains("masks").any()


@pytest.mark.parametrize("path", ["../film.png", "/etc/film.png", "a/../../film.png", "C:/film.png"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    write_csv(tmp_path / "train.csv", "path,TB", "a.png,1", f"{path},1")
    with pytest.raises(DatasetError, match=r"1 image paths lead out of the data set: row 3"):
        as_frame(tmp_path, check_files=False)


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no layout 'mimik'; expected nih, google, mimic, .*vindr-votes"):
        load_dataset(tmp_path, layout="mimik")


# NIH and Google


@named("nih")
def test_nihs_header_with_commas_and_impossible_ages_are_read(tree: Path) -> None:
    frame = as_frame(tree, ["train", "test"])
    assert frame["age"].isna().sum() == 1
    assert frame["age"].iloc[1] == 51
    assert frame.loc["00000001_000.png", ["Cardiomegaly", "Effusion", "Hernia"]].tolist() == [1, 1, 0]
    assert frame["split"].value_counts().to_dict() == {"train": 6, "test": 2}


@pytest.mark.parametrize(
    ("text", "years"), [("58", 58), ("058Y", 58), ("011M", 0), ("030M", 2), ("024D", 0), ("414", None)]
)
def test_ages_of_nih_in_months_and_days_are_of_infants(text: str, years: int | None) -> None:
    parse, _ = nih.PARSERS["Patient Age"]
    assert parse(text) == years


@named("nih")
def test_without_its_lists_all_of_nih_is_train(tree: Path) -> None:
    for file in tree.glob("*.txt"):
        file.unlink()
    assert len(as_frame(tree)) == 8


@named("google")
def test_googles_sets_are_the_splits_and_its_findings_are_chexperts(tree: Path) -> None:
    frame = as_frame(tree, ["valid", "test"], observations=["Lung Opacity", "Lung Lesion", "Pneumothorax", "Edema"])
    assert frame["split"].tolist() == ["valid"] * 5 + ["test"] * 3
    assert stated(frame, "Lung Opacity") == [1] * 8
    assert stated(frame, "Lung Lesion") == [0] * 8
    assert stated(frame, "Pneumothorax") == [0, 1] * 4
    assert stated(frame, "Edema") == [-100] * 8
    assert set(frame["labels_by"]) == {"adjudicated by radiologists"}


# MIMIC


@named("mimic")
def test_mimics_labels_are_those_of_the_study_and_a_study_without_any_has_none(tree: Path) -> None:
    frame = as_frame(tree, ["train", "valid", "test"], observations=CHEXPERT.names).set_index("study")
    assert frame.loc["10000032/50414267", "No Finding"].tolist() == [1, 1]
    assert frame.loc["10000032/50414267", "view"].tolist() == [1, 2]
    assert frame.loc["10000032/53189527", ["Edema", "Fracture"]].tolist() == [-1, 0]
    assert frame.loc["10000764/57375967", list(CHEXPERT.names)].isna().all()
    assert frame["split"].tolist() == ["train"] * 5 + ["valid"] * 2 + ["test"]


@named("mimic")
def test_mimics_frontal_views_are_those_stated_to_be(tree: Path) -> None:
    frame = as_frame(tree, ["train", "valid", "test"])
    views = {"02aa804e-bde0afdd.jpg": "PA", "2a2277a9-b0ded155.jpg": "AP", "096052b7-d256dc40.jpg": "AP"}
    views |= {"10a8b8d4-5fb1c0d5.jpg": "PA", "dd4fd3e7-7b1c1d3a.jpg": "PA"}
    assert frame.loc[frame["is_frontal"], "projection"].to_dict() == views
    assert frame.loc[~frame["is_frontal"], "projection"].isna().all()


@named("mimic")
def test_mimics_labels_of_negbio_are_read_by_name_or_where_there_are_no_others(tree: Path) -> None:
    file = tree / "mimic-cxr-2.0.0-negbio.csv"
    file.write_text(file.read_text().replace("-1.0", "1.0"))
    assert stated(as_frame(tree), "Edema")[2] == -1
    assert stated(as_frame(tree, layout="mimic-negbio"), "Edema")[2] == 1
    (tree / "mimic-cxr-2.0.0-chexpert.csv").unlink()
    assert stated(as_frame(tree), "Edema")[2] == 1


@named("mimic")
def test_a_study_with_two_rows_of_labels_is_refused(tree: Path) -> None:
    file = tree / "mimic-cxr-2.0.0-chexpert.csv"
    file.write_text(file.read_text() + "10000032,50414267" + "," * 14 + "\n")
    with pytest.raises(
        DatasetError, match=r"chexpert\.csv row 8: study_id is '10000032/50414267', expected each study"
    ):
        load_dataset(tree, splits=["train"])


# PadChest


@named("padchest")
def test_padchests_blanks_inside_of_labels_and_words_on_the_report_are_no_labels(tree: Path) -> None:
    frame = as_frame(tree, observations=["pleural effusion", "pneumonia", "normal", "nodule"])
    assert stated(frame, "pleural effusion")[:4] == [1, 1, 0, 0]
    assert stated(frame, "normal")[2] == 1
    assert stated(frame, "nodule")[5] == 1  # "exclude" stands beside it
    assert np.isnan(stated(frame, "pneumonia")).tolist() == [False] * 4 + [True, False, True, True]
    assert frame["labels_by"].value_counts().to_dict() == {"physicians": 4, "text-mined labels": 4}


@named("padchest")
def test_padchest_answers_for_chexperts_names_where_its_labels_cover_them(tree: Path) -> None:
    lines: list[str] = []
    frame = as_frame(tree, observations=CHEXPERT.names, say=lines.append)
    for name in ("Support Devices", "Fracture", "Atelectasis", "Lung Opacity"):
        assert frame.loc["film3.png", name] == 1, name
    assert frame.loc["film5.png", ["Lung Lesion", "Pneumothorax"]].tolist() == [1, 0]
    assert lines[0] == "data has no labels for Enlarged Cardiomediastinum: unknown there, not negative."


@named("padchest")
def test_padchests_ages_are_those_at_the_study_and_views_of_ribs_are_not_frontal(tree: Path) -> None:
    frame = as_frame(tree)
    assert frame["age"].tolist()[:6] == [84] * 6
    assert frame["age"].isna().sum() == 2
    assert frame["is_frontal"].tolist() == [True, False, True, True, False, False, False, True]
    assert frame["projection"].dropna().tolist() == ["PA", "AP", "AP", "PA"]


@named("padchest")
def test_padchests_images_may_be_in_one_folder(tree: Path) -> None:
    for file in tree.rglob("*.png"):
        file.rename(tree / file.name)
    assert as_frame(tree)["path"].tolist() == [f"film{i}.png" for i in range(8)]


@named("padchest")
def test_a_label_that_padchest_does_not_have_is_named_with_its_row(tree: Path) -> None:
    file = next(tree.glob("*.csv"))
    file.write_text(file.read_text().replace("'normal'", "'nromal'"))
    with pytest.raises(DatasetError, match=r"row 4: Labels is 'nromal', expected some of normal, COPD signs"):
        load_dataset(tree, splits=["train"])


# VinDr-CXR


@named("vindr")
def test_vindr_is_the_majority_in_train_and_the_consensus_in_test(tree: Path) -> None:
    frame = as_frame(tree, ["train", "test"])
    assert len(frame.columns) - 11 == 28
    assert stated(frame, "Edema") == [1] * 6 + [0] * 2
    assert stated(frame, "No finding") == [0] * 8
    assert stated(frame, "Other disease") == [0] * 6 + [1] * 2  # the two tables spell it in two ways
    assert frame["labels_by"].unique().tolist() == ["majority of three radiologists", "consensus of radiologists"]


@named("vindr")
def test_shares_of_vindrs_readers_are_chosen_by_name_and_metrics_take_their_majority(tree: Path) -> None:
    data = load_dataset(tree, layout="vindr-votes", splits=["train"], observations=["Edema", "No finding"])
    np.testing.assert_allclose(data["train"]["labels"][:], [[2 / 3, 1 / 3]] * data["train"].num_rows, atol=1e-6)
    np.testing.assert_array_equal(split_labels(data["train"], "negative"), [[1, 0]] * data["train"].num_rows)


@named("vinbigdata")
def test_kaggles_table_is_not_taken_for_chexperts_and_states_15_names(tree: Path) -> None:
    assert len(label_set_of(tree).names) == 15
    frame = as_frame(tree, observations=["Cardiomegaly", "Lung Lesion", "No Finding", "Edema"])
    assert stated(frame, "Cardiomegaly") == [1] * 8
    assert stated(frame, "Lung Lesion") == [0] * 8  # three boxes of one reader are one vote
    assert stated(frame, "No Finding") == [0] * 8
    assert stated(frame, "Edema") == [-100] * 8


# RSNA and SIIM


@named("rsna")
def test_rsna_has_one_row_for_an_image_with_two_boxes(tree: Path) -> None:
    frame = as_frame(tree)
    assert stated(frame, "Lung Opacity") == [1] + [0] * 7
    assert stated(frame, "No Finding") == [0, 1] + [0] * 6
    (tree / "stage_2_detailed_class_info.csv").unlink()
    assert label_set_of(tree).names == ("Lung Opacity",)
    assert stated(as_frame(tree, observations=["Lung Opacity", "No Finding"]), "No Finding") == [-100] * 8


@named("siim")
@pytest.mark.parametrize("column", [" EncodedPixels", "EncodedPixels"])
def test_siims_column_has_a_blank_in_its_name_or_not(tree: Path, column: str) -> None:
    file = tree / "train-rle.csv"
    file.write_text(file.read_text().replace(" EncodedPixels", column))
    frame = as_frame(tree)
    assert stated(frame, "Pneumothorax") == [1] + [0] * 7
    assert frame["study"].tolist() == [f"1.2.276.{i}" for i in range(8)]


@named("siim")
def test_siims_runs_are_decoded_down_the_columns_and_rows_of_one_image_are_joined(tree: Path) -> None:
    layout, folder = find_layout(tree)
    masks = layout.masks(folder)
    assert list(masks) == ["dicom-images-train/1.2.0/1.3.0/1.2.276.0.dcm"]
    mask = masks["dicom-images-train/1.2.0/1.3.0/1.2.276.0.dcm"]["Pneumothorax"]()
    expected = np.zeros((1024, 1024), dtype=bool)
    for start in (557374, 600000):  # each row of the table has runs of 2 and 8 pixels, with 1,015 between them
        expected[start % 1024 : start % 1024 + 2, start // 1024] = True
        expected[start % 1024 - 7 : start % 1024 + 1, start // 1024 + 1] = True
    np.testing.assert_array_equal(mask, expected)


@named("siim")
@pytest.mark.parametrize("runs", ["1048575 2", "5 0", "-5 2", "5 2.5", "0 1 -2 3"])
def test_runs_that_make_no_mask_are_named_with_their_row(tree: Path, runs: str) -> None:
    file = tree / "train-rle.csv"
    file.write_text(file.read_text().replace("600000 2 1015 8", runs))
    masks = find_layout(tree)[0].masks(tree)
    with pytest.raises(DatasetError, match=rf"train-rle\.csv row 3: EncodedPixels is '{runs}', expected distances"):
        masks["dicom-images-train/1.2.0/1.3.0/1.2.276.0.dcm"]["Pneumothorax"]()


# Open-i and CheXpert Plus


@named("openi")
def test_openis_terms_are_labels_and_an_unindexed_report_has_none(tree: Path) -> None:
    frame = as_frame(tree, observations=["No Finding", "Fracture", "Lung Opacity", "Lung Lesion"])
    assert stated(frame, "No Finding")[:4] == [1, 1, 0, 0]
    assert stated(frame, "Fracture")[:4] == [0, 0, 1, 1]
    assert stated(frame, "Lung Opacity")[2:4] == [1, 1]
    assert stated(frame, "Lung Opacity")[6:] == [0, 0]  # an opacity of ribs
    assert np.isnan(stated(frame, "Fracture")[4:6]).all()
    assert frame["is_frontal"].tolist() == [True, False] * 4


@named("chexpert-plus")
def test_chexpert_plus_is_found_as_dicom_files_too(tree: Path) -> None:
    for file in [*(tree / "PNG").rglob("*.png")]:
        moved = tree / "DICOM" / file.relative_to(tree / "PNG").with_suffix(".dcm")
        moved.parent.mkdir(parents=True)
        moved.write_bytes(film(0, "DICOM"))
        file.unlink()
    assert as_frame(tree, ["valid"])["path"].iloc[0] == "DICOM/valid/patient00006/study1/view1_frontal.dcm"


@named("chexpert-plus")
def test_chexpert_plus_takes_the_labels_of_impressions_first(tree: Path) -> None:
    frame = as_frame(tree, ["train", "valid"])
    assert stated(frame, "Edema") == [1] * 8
    assert stated(frame, "Fracture") == [-1] * 8
    assert frame["Pneumonia"].isna().all()
    assert frame["path"].iloc[0] == "PNG/train/patient00000/study1/view1_frontal.png"
    assert frame[["age", "sex", "projection"]].iloc[1].tolist() == [61, "Female", "AP"]
    (tree / "chexbert_labels" / "impression_fixed.json").unlink()
    assert stated(as_frame(tree), "Edema") == [0] * 6


# Tables of anybody


@named("table")
def test_columns_of_a_plain_table_are_found_by_their_names(tree: Path) -> None:
    frame = as_frame(tree)
    assert label_set_of(tree).names == ("TB", "Silicosis")  # not the patient, the age or the comment
    assert stated(frame, "TB") == [0, 1, 0, 1, 0, 1, 0, -1]
    assert frame["Silicosis"].isna().sum() == 7
    assert frame["patient"].tolist() == ["P0", "P0", "P1", "P1", "P2", "P2", "P3", "P3"]
    assert frame["is_frontal"].tolist() == [True, False] * 3 + [True, True]
    assert frame[["sex", "age", "projection"]].iloc[0].tolist() == ["Male", 40, "PA"]
    assert frame[["sex", "age", "projection"]].iloc[7].isna().all()
    assert frame["path"].iloc[0] == "films/film0.png"


@named("table")
def test_the_table_itself_may_be_the_data_set_and_its_columns_be_named(tree: Path) -> None:
    file = (tree / "labels.csv").rename(tree / "chest.csv")
    assert as_frame(file)["path"].iloc[0] == "films/film0.png"
    layout = table_layout(image_column="File Name", label_columns=["Silicosis"], patient_column="View")
    assert label_set_of(file, layout).names == ("Silicosis",)
    with pytest.raises(DatasetError, match=r"chest\.csv row 9: View is blank, expected the name of a patient"):
        as_frame(file, layout=layout)


def test_a_table_may_have_its_splits_in_a_column_in_files_or_in_folders(tmp_path: Path) -> None:
    rows = [f"film{i}.png,{i % 2},{split}" for i, split in enumerate(["train", "train", "val", "validation", "test"])]
    write_csv(tmp_path / "column" / "metadata.csv", "image,TB,split", *rows)
    for split in ("train", "val", "test"):
        write_csv(tmp_path / "files" / f"{split}.csv", "image_path,TB", f"{split}.png,1")
        write_csv(tmp_path / "folders" / split / "metadata.csv", "file_name,TB", "film.png,1")
    splits = ["train", "valid", "test"]
    counts = as_frame(tmp_path / "column", splits, check_files=False)["split"].value_counts()
    assert counts.to_dict() == {"train": 2, "valid": 2, "test": 1}
    assert as_frame(tmp_path / "files", splits, check_files=False)["split"].tolist() == splits
    paths = as_frame(tmp_path / "folders", splits, check_files=False)["path"].tolist()
    assert paths == ["train/film.png", "val/film.png", "test/film.png"]


@pytest.mark.parametrize("table", ["labels.csv", "train/metadata.csv"])
def test_absolute_paths_lead_to_the_same_images_wherever_the_table_is(tmp_path: Path, table: str) -> None:
    write_csv(tmp_path / table, "file_name,TB", f"{tmp_path / 'train' / 'film.png'},1")
    assert as_frame(tmp_path, check_files=False)["path"].tolist() == ["train/film.png"]
    write_csv(tmp_path / table, "file_name,TB", "/elsewhere/film.png,1")
    with pytest.raises(DatasetError, match=r"1 image paths lead out of the data set: row 2 '/elsewhere/film\.png'"):
        load_dataset(tmp_path, splits=["train"], check_files=False)


@pytest.mark.parametrize("fact", ["image", "patient", "study", "sex", "age", "view", "split"])
def test_a_named_column_that_the_table_lacks_is_named_with_those_it_has(tmp_path: Path, fact: str) -> None:
    write_csv(tmp_path / "labels.csv", "image,TB", "film.png,1")
    splits = ["train", "test"] if fact == "split" else ["train"]
    for place, split in product((tmp_path, tmp_path / "labels.csv"), splits):
        with pytest.raises(DatasetError, match=r"labels\.csv lacks the column 'nope'; it has image, TB\."):
            load_dataset(place, layout=f"table:{fact}=nope", splits=[split], check_files=False)


def test_a_table_without_patients_warns_and_one_without_labels_is_none(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv", "image,TB", *(f"a/film{i}.png,1" for i in range(9)))
    lines: list[str] = []
    load_dataset(tmp_path, check_files=False, say=lines.append)
    assert "names no patients" in lines[0]
    write_csv(tmp_path / "labels.csv", "image,age,comment", "film.png,50,1b")
    with pytest.raises(DatasetError, match="No table of a data set"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"is no table of a data set.* it has the columns image, age, comment\."):
        load_dataset(tmp_path / "labels.csv")


def test_a_table_whose_columns_do_not_fit_is_named_with_its_folder_and_one_of_a_known_layout_too(
    tmp_path: Path,
) -> None:
    write_csv(tmp_path / "labels.csv", "filname,TB", "a.png,1")
    with pytest.raises(
        DatasetError, match=r"No table .* labels\.csv is there, but is none: .* has the columns filname, TB\."
    ):
        load_dataset(tmp_path)
    write_csv(
        tmp_path / "train.csv", ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT.names]), "a"
    )
    with pytest.raises(DatasetError, match=r"has the layout chexpert: pass '.*'\.$"):
        load_dataset(tmp_path / "train.csv")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a.png,1,30", "a.png,0,30"], r"labels\.csv row 3: image is 'a\.png', as in row 2 already"),
        (["a.png,1,old"], r"labels\.csv row 2: age is 'old', expected years or blank"),
        ([",1,30"], r"labels\.csv row 2: image is blank, expected the path of an image"),
    ],
)
def test_a_wrong_cell_of_a_plain_table_is_named(tmp_path: Path, rows: list[str], message: str) -> None:
    write_csv(tmp_path / "labels.csv", "image,TB,age", *rows)
    with pytest.raises(DatasetError, match=message):
        load_dataset(tmp_path, splits=["train"], check_files=False, valid_fraction=0)


@pytest.mark.parametrize("odd", ["2", "maybe", "yes", "True"])
def test_a_single_odd_cell_is_an_error_and_never_drops_the_label(tmp_path: Path, odd: str) -> None:
    write_csv(tmp_path / "labels.csv", "image,TB,Normal", "1.png,1,0", f"2.png,{odd},0", "3.png,0,1", "4.png,0,1")
    assert label_set_of(tmp_path).names == ("TB", "Normal")
    with pytest.raises(
        DatasetError,
        match=rf"labels\.csv row 3: TB is '{odd}', expected .*; if TB is no label, pass --observations 'Normal'",
    ):
        load_dataset(tmp_path, check_files=False)
    assert stated(as_frame(tmp_path, observations=["Normal"], check_files=False), "Normal") == [0, 0, 1, 1]


def test_an_error_of_a_column_of_counts_names_its_other_values_and_the_option_without_it(tmp_path: Path) -> None:
    counts = [0, 1, 0, 0, 1, 1, 0, 2, 3, 1, 0, 0]
    write_csv(tmp_path / "labels.csv", "image,TB,nodules", *(f"{i}.png,1,{count}" for i, count in enumerate(counts)))
    with pytest.raises(DatasetError, match=r"row 9: nodules is '2', .*are: 2, 3\. .* pass --observations 'TB'"):
        load_dataset(tmp_path, check_files=False)


def test_columns_of_words_for_yes_and_no_are_named_and_those_of_other_numbers_are_no_labels(tmp_path: Path) -> None:
    rows = [f"{i}.png,{('pos', 'neg')[i % 2]},{i},{i % 4}" for i in range(8)]
    write_csv(tmp_path / "labels.csv", "image,TB,weight,grade", *rows)
    assert label_set_of(tmp_path).names == ("TB",)
    with pytest.raises(DatasetError, match=r"labels\.csv row 2: TB is 'pos', expected 1, 0, -1 or blank"):
        load_dataset(tmp_path, check_files=False)


def refusal(folder: Path, *lines: str) -> str:
    """The error of loading a table, whose images need not exist."""
    write_csv(folder / "labels.csv", *lines)
    with pytest.raises(DatasetError) as refused:
        load_dataset(folder, splits=["train", "valid"], check_files=False)
    return str(refused.value)


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ("image,patient,TB,split", ["a.png,007,1,train", "b.png,007 ,0,valid"], "share 1 patients (007)"),
        ("image,patient,TB,split", ["a.png,1,1,train", "a.png,2,0,valid"], "share 1 radiographs (a.png)"),
        ("image,patient,TB,split", ["x/a.png,1,1,train", ".//x/./a.png,2,0,valid"], "share 1 radiographs (x/a.png)"),
        ("image,patient,TB", ["x/a.png,1,1", "./x/a.png,2,0"], "row 3: image is 'x/a.png', as in row 2"),
        ("image,patient,TB", ["a.png,1,1", "b.png,NA,0"], "row 3: patient is 'NA', expected the name of a patient"),
        ("image,patient,study,TB", ["a.png,1,1,1", "b.png,1, ,0"], "row 3: study is ' ', expected the name of a study"),
        ("image,patient,TB", ["a.png,1,1", "nan,2,0"], "row 3: image is 'nan', expected the path of an image"),
        ("image,patient,TB,split", ["a.png,1,1,train", "b.png,2,0,"], "row 3: split is blank, expected train, valid"),
        ("image,TB,split", ["a.png,1,train", "b.png,0,", "c.png,0,NA"], "test; name the split of such rows (2 in all)"),
    ],
)
def test_cells_that_would_leak_merge_or_lose_radiographs_are_named(
    tmp_path: Path, columns: str, rows: list[str], message: str
) -> None:
    assert message in refusal(tmp_path, columns, *rows)


def test_a_name_that_several_images_below_the_folder_have_is_refused_unless_the_table_states_a_path(
    tmp_path: Path,
) -> None:
    write_films(tmp_path, ["annotated/a.png", "original/a.png", "original/b.png"], "PNG")
    assert "could be 'a.png': annotated/a.png, original/a.png." in refusal(tmp_path, "image,TB", "a.png,1", "b.png,0")
    write_csv(tmp_path / "labels.csv", "image,TB", "original/a.png,1", "original/b.png,0")
    assert as_frame(tmp_path, valid_fraction=0)["path"].tolist() == ["original/a.png", "original/b.png"]


def test_links_to_an_image_are_no_further_images_of_its_name(tmp_path: Path) -> None:
    write_films(tmp_path, ["images_0/a.png", "images_1/b.png"], "PNG")
    (tmp_path / "all").mkdir()
    for name in ("images_0/a.png", "images_1/b.png"):
        (tmp_path / "all" / name[-5:]).symlink_to(f"../{name}")
    write_csv(tmp_path / "labels.csv", "image,TB", "a.png,1", "b.jpg,0")
    assert as_frame(tmp_path)["path"].tolist() == ["all/a.png", "all/b.png"]
    write_films(tmp_path, ["other/a.png"], "PNG")
    with pytest.raises(DatasetError, match=r"could be 'a\.png': all/a\.png, other/a\.png\."):
        as_frame(tmp_path)


def test_reports_with_line_breaks_and_rows_of_megabytes_are_read_in_a_table_of_any_size(tmp_path: Path) -> None:
    reports = ["\n".join(["No change, as before."] * lines) for lines in (3, 100_000, 5)]
    write_csv(tmp_path / "labels.csv", "image,report,TB", *(f'{i}.png,"{text}",1' for i, text in enumerate(reports)))
    assert len(as_frame(tmp_path, check_files=False, valid_fraction=0)) == 3


@pytest.mark.parametrize(
    ("first", "later", "end"), [('"open', "1", "\n"), ('"open', '"good"', "\n"), ('"open', '"x', "")]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_cell_whose_quotation_mark_is_never_closed_is_named_and_swallows_no_rows(
    tmp_path: Path, first: str, later: str, end: str, encoding: str
) -> None:
    notes = ["", '"two\nlines, ""quoted"""', *[""] * 10, first, *[""] * 10, later, *[""] * 5]
    rows = [f"a/{i}.png,{i % 2},{note}" for i, note in enumerate(notes)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,TB,remark", *rows]) + end, encoding=encoding)
    with pytest.raises(DatasetError, match=r'labels\.csv line 15: a cell begins with a quotation mark .*: "open'):
        load_dataset(tmp_path, splits=["train"], check_files=False)


def test_a_cell_that_is_open_for_longer_than_a_block_is_named_with_its_line(tmp_path: Path) -> None:
    rows = [f'a/{i}.png,{i % 2},"open' if i == 20 else f"a/{i}.png,{i % 2},{'x' * 1000}" for i in range(20_000)]
    write_csv(tmp_path / "labels.csv", "image,TB,remark", *rows)
    with pytest.raises(DatasetError, match=r"labels\.csv line 22: a cell begins with a quotation mark"):
        load_dataset(tmp_path, splits=["train"], check_files=False)


def test_quotation_marks_that_open_no_cell_or_are_followed_by_a_blank_are_legal(tmp_path: Path) -> None:
    remarks = ['a 5" tube', '"a,"b', '"two\nlines" ', '"" quoted', '"a, b"', '"a 5"" tube"']
    write_csv(tmp_path / "labels.csv", "image,remark,TB", *(f"a/{i}.png,{text},1" for i, text in enumerate(remarks)))
    assert len(as_frame(tmp_path, check_files=False)) == 6


@pytest.mark.parametrize(("header", "cell"), [("Größe", "a.png"), ("TB", "Müller.png")])
def test_a_table_in_latin_1_is_refused_with_how_to_convert_it(tmp_path: Path, header: str, cell: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(f"image;{header}\n{cell};1\n".encode("cp1252"))
    with pytest.raises(DatasetError, match=r"labels\.csv cannot be read as CSV: it is not in UTF-8; .* iconv"):
        load_dataset(tmp_path)


def test_blanks_around_the_names_of_columns_do_not_matter(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv", "image, patient id, TB ", "a/1.png,1,1", "a/2.png,1,0")
    frame = as_frame(tmp_path, check_files=False)
    assert stated(frame, "TB") == [1, 0]
    assert frame["patient"].tolist() == ["1", "1"]
    assert label_set_of(tmp_path).names == ("TB",)  # not the patient, whose number is a 1


def test_columns_of_a_table_of_scores_are_no_labels_and_refused_if_asked_for(tmp_path: Path) -> None:
    write_csv(tmp_path / "labels.csv", "image,TB,error,note,views,gate", "1.png,1,0,1,1,1", "2.png,0,0,0,1,1")
    assert label_set_of(tmp_path).names == ("TB",)
    assert stated(as_frame(tmp_path, check_files=False), "TB") == [1, 0]
    with pytest.raises(
        DatasetError, match=r"'gate' is a reserved .*; rename it, or leave it out with --observations\."
    ):
        as_frame(tmp_path, check_files=False, observations=["TB", "gate"])


def test_paths_of_a_windows_share_keep_their_two_slashes(tmp_path: Path) -> None:
    message = refusal(tmp_path, "image,TB", r"\\srv\share\\films\.\a.png,1")
    assert "row 2 '//srv/share/films/a.png'" in message


def test_a_file_without_any_of_its_columns_is_refused_with_those_it_has(tmp_path: Path) -> None:
    write_csv(tmp_path / "train-rle.csv", "image,mask", "a,b")
    with pytest.raises(DatasetError, match=r"lacks the columns 'ImageId', 'EncodedPixels'; it has image, mask\."):
        load_dataset(tmp_path, splits=["train"])


def test_a_table_of_chexperts_is_never_taken_for_a_plain_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", "Path,Edema", "test/patient64741/study1/view1_frontal.jpg,1")
    assert find_layout(tmp_path)[0].name == "chexpert"
    write_csv(tmp_path / "test.csv", "Path,Edema", "films/64741.jpg,1")
    assert find_layout(tmp_path)[0].name == "table"


# The how-to page


def test_patients_studies_and_laterals_of_chexperts_paths_are_found_under_any_name_of_the_column(
    tmp_path: Path,
) -> None:
    files = [
        f"valid/patient0000{n}/study1/view{v}_{side}.jpg"
        for n in (1, 2)
        for v, side in ((1, "frontal"), (2, "lateral"))
    ]
    for header in ("path,sex,age,frontal/lateral,ap/pa,edema", "image,Edema"):
        rows = [f"{file},Male,50,,,1" if "sex" in header else f"{file},1" for file in files]
        write_csv(tmp_path / "valid.csv", header, *rows)
        frame = as_frame(tmp_path, ("valid",), check_files=False)
        assert frame["patient"].tolist() == ["patient00001"] * 2 + ["patient00002"] * 2
        assert frame["study"].tolist() == ["patient00001/study1"] * 2 + ["patient00002/study1"] * 2
        assert frame["is_frontal"].tolist() == [True, False] * 2
    write_csv(
        tmp_path / "valid.csv",
        "image,patient,study,view,Edema",
        *(f"{file},7,{n},AP,1" for n, file in enumerate(files)),
    )
    frame = as_frame(tmp_path, ("valid",), check_files=False)  # what columns state goes before
    assert (set(frame["patient"]), frame["study"].nunique(), frame["is_frontal"].all()) == ({"7"}, 4, True)


def test_images_that_differ_in_the_suffix_or_the_end_of_a_uid_are_studies_of_their_own(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "valid.csv",
        "image,Edema",
        *(f"{name},1" for name in ("1.2.840.1", "1.2.840.2", "a.png", "a.jpg", "b.PNG")),
    )
    frame = as_frame(tmp_path, ("valid",), check_files=False)
    assert frame["study"].tolist() == ["1.2.840.1", "1.2.840.2", "a.png", "a.jpg", "b"]
    assert frame["patient"].tolist() == frame["study"].tolist()


def test_the_layout_of_the_how_to_page_reads_the_eight_images_of_its_folders(tmp_path: Path) -> None:
    page = Path(chexpert_hf.__file__).parents[1] / "docs" / "how-to" / "your-data.md"
    if not page.is_file():
        pytest.skip("not a checkout")
    source = page.read_text(encoding="utf-8").partition('title="shenzhen.py"\n')[2].partition("```")[0]
    assert len(source.splitlines()) <= 60
    module: dict[str, Any] = {}
    exec(source, module)  # a page of this repository
    write_films(tmp_path, [f"CXR_png/CHNCXR_{i:04}_{i % 2}.png" for i in range(8)], "PNG")
    frame = as_frame(tmp_path, layout=module["SHENZHEN"])
    assert stated(frame, "Tuberculosis") == [0, 1] * 4
    assert frame["patient"].tolist() == [f"{i:04}" for i in range(8)]


# Folders of images


@named("imagefolder")
def test_the_names_of_folders_are_the_labels(tree: Path) -> None:
    frame = as_frame(tree, ["train", "valid", "test"])
    assert label_set_of(tree).names == ("NORMAL", "PNEUMONIA")
    classes = frame["path"].str.split("/").str[1]
    np.testing.assert_array_equal(frame["PNEUMONIA"] == 1, classes == "PNEUMONIA")
    np.testing.assert_array_equal(frame["NORMAL"] + frame["PNEUMONIA"], np.ones(8))


def test_folders_of_images_without_splits_are_train_and_one_folder_is_no_data_set(tmp_path: Path) -> None:
    write_films(tmp_path, ["healthy/1.png", "healthy/2.png", "ill/1.png"], "PNG")
    frame = as_frame(tmp_path)
    assert stated(frame, "ill") == [0, 0, 1]
    assert not has_dataset(tmp_path)  # commands that take folders of radiographs go on to do so
    (tmp_path / "ill" / "1.png").unlink()
    with pytest.raises(DatasetError, match="No table of a data set"):
        load_dataset(tmp_path)


def test_a_split_of_images_of_one_class_is_that_split_and_names_of_splits_may_have_capitals(tmp_path: Path) -> None:
    films = ["Train/TB/1.png", "Train/Normal/2.png", "Val/Normal/3.png"]
    write_films(tmp_path, films, "PNG")
    data = load_dataset(tmp_path)
    assert data["train"]["path"][:] == ["Train/Normal/2.png", "Train/TB/1.png"]
    assert (data["valid"]["path"][:], data["valid"]["labels"][:]) == (["Val/Normal/3.png"], [[1, 0]])


@pytest.mark.parametrize("nested", ["TB/site2/3.png", "Silicosis/site1/3.png"])
def test_images_below_the_folder_of_a_class_are_refused_and_not_left_out(tmp_path: Path, nested: str) -> None:
    write_films(tmp_path, ["TB/1.png", "TB/masks/1.png", "Normal/2.png", nested], "PNG")
    with pytest.raises(DatasetError, match=rf"{nested} is in a folder below that of its class, {nested[:2]}"):
        load_dataset(tmp_path)


def test_masks_and_trained_models_beside_or_below_classes_are_not_of_their_images(tmp_path: Path) -> None:
    films = ["TB/1.png", "Normal/2.png"]
    masks = ["masks/TB/1/TB.png", "Lung masks/TB/1.png", "TB/masks/site1/1.png"]
    trained = {"runs/tb": "recipe.yaml", "model": "recipe.yaml", "TB/model": "config.json"}
    write_films(tmp_path, [*films, *masks, *(f"{folder}/curve.png" for folder in trained)], "PNG")
    for folder, name in trained.items():
        (tmp_path / folder / name).touch()
    assert as_frame(tmp_path)["path"].tolist() == [*reversed(films)]
    assert label_set_of(tmp_path).names == ("Normal", "TB")


def test_a_table_goes_before_folders_of_images(tmp_path: Path) -> None:
    write_films(tmp_path, ["healthy/1.png", "ill/1.png"], "PNG")
    write_csv(tmp_path / "labels.csv", "file,TB", "healthy/1.png,0", "ill/1.png,1")
    assert label_set_of(tmp_path).names == ("TB",)
