"""Real tables of public data sets, as torchxrayvision carries them: counts equal pandas', labels torchxrayvision's."""

import importlib.util
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from chexpert_hf.datasets.layouts.nih import NIH
from chexpert_hf.datasets.layouts.padchest import NAMES as PADCHEST_NAMES
from chexpert_hf.datasets.layouts.padchest import PADCHEST_LAYOUT
from chexpert_hf.datasets.layouts.vindr import KAGGLE_LABELS
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.datasets.reference import boxes_of
from chexpert_hf.datasets.sources import find_layout
from chexpert_hf.labels import OBSERVATIONS

PADCHEST_FILE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"


@pytest.fixture(scope="module")
def tables() -> Path:
    """The folder of the tables; the package is not imported for that."""
    package = importlib.util.find_spec("torchxrayvision")
    if package is None or not package.submodule_search_locations:
        pytest.skip("torchxrayvision, which carries the tables, is not installed")
    return Path(package.submodule_search_locations[0], "data")


def linked(folder: Path, file: Path, name: str) -> Path:
    (folder / name).symlink_to(file)
    return folder


def as_frame(
    folder: Path, splits: Sequence[str] = ("train",), observations: Sequence[str] | None = None
) -> pd.DataFrame:
    """All rows of a folder, with a column for each label."""
    data = load_dataset(folder, splits=splits, observations=observations, check_files=False, valid_fraction=0)
    frames = []
    for split, dataset in data.items():
        names = dataset.info.description.partition(": ")[2].split(", ")
        facts = dataset.remove_columns(["image", "labels"]).to_pandas()
        labels = dataset.with_format("numpy").select_columns("labels")["labels"][:]
        frames.append(pd.concat([facts, pd.DataFrame(labels, columns=names)], axis=1).assign(split=split))
    return pd.concat(frames, ignore_index=True)


def stem(paths: pd.Series) -> pd.Series:
    return paths.str.rpartition("/")[2].str.replace(r"\.[a-z]+$", "", regex=True)


def assert_equal_labels(frame: pd.DataFrame, images: Sequence[str], theirs: np.ndarray, names: Sequence[str]) -> None:
    """All cells equal those of another reader, image by image."""
    own = frame.set_index(frame["path"].str.rpartition("/")[2])[list(names)]
    np.testing.assert_array_equal(own.loc[list(images)].to_numpy(), theirs)


# NIH and Google


@pytest.fixture(scope="module")
def nih(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    name = "Data_Entry_2017_v2020.csv.gz"
    return as_frame(linked(tmp_path_factory.mktemp("nih"), tables / name, name))


def test_nih_has_the_rows_patients_and_positives_of_its_table(tables: Path, nih: pd.DataFrame) -> None:
    own = pd.read_csv(tables / "Data_Entry_2017_v2020.csv.gz")
    assert len(nih) == len(own) == 112_120
    assert nih["patient"].nunique() == own["Patient ID"].nunique() == 30_805
    counts = Counter(name for cell in own["Finding Labels"] for name in cell.split("|"))
    assert {name: int(nih[name].sum()) for name in NIH.names} == {name: counts[name] for name in NIH.names}
    np.testing.assert_array_equal(nih["age"].isna(), own["Patient Age"] > 120)


def test_nih_equals_torchxrayvision_in_every_cell(nih: pd.DataFrame, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    theirs = xrv.datasets.NIH_Dataset(tmp_path, views="*", unique_patients=False)
    assert_equal_labels(nih, theirs.csv["Image Index"], theirs.labels, theirs.pathologies)


def test_googles_labels_equal_the_table_and_torchxrayvision(tables: Path, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    name = "google2019_nih-chest-xray-labels.csv.gz"
    frame = as_frame(linked(tmp_path, tables / name, name), ["valid", "test"])
    own = pd.read_csv(tables / name)
    assert len(frame) == len(own) == 4_376
    assert frame["split"].value_counts().to_dict() == {"valid": 2_414, "test": 1_962}
    assert frame["patient"].nunique() == own["Patient ID"].nunique()
    theirs = xrv.datasets.NIH_Google_Dataset(tmp_path, views="*", unique_patients=False)
    names = {"Lung Opacity": "Airspace opacity", "Nodule/Mass": "Nodule or mass"}
    own_names = [names.get(name, name) for name in theirs.pathologies]
    assert_equal_labels(frame, theirs.csv["Image Index"], theirs.labels, own_names)


# PadChest

# torchxrayvision takes every label whose text contains a name: its matrix is the union of these labels of ours. Where
# they are more than those of one finding (pericardial effusion, pseudonodules, masses outside of the lung, subcutaneous
# emphysema, sequelae of tuberculosis), this package does not join them.
XRV_JOINS: Mapping[str, str | Sequence[str]] = {
    "Air Trapping": "air trapping",
    "Aortic Atheromatosis": "aortic atheromatosis",
    "Aortic Elongation": "aortic elongation",
    "Atelectasis": "atelectasis",
    "Bronchiectasis": "bronchiectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": ["consolidation", "air bronchogram"],
    "Costophrenic Angle Blunting": "costophrenic angle blunting",
    "Edema": "edema",
    "Effusion": "effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Flattened Diaphragm": "flattened diaphragm",
    "Fracture": "fracture",
    "Granuloma": "granuloma",
    "Hemidiaphragm Elevation": "hemidiaphragm elevation",
    "Hernia": "hernia",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
    "Scoliosis": "scoliosis",
    "Tuberculosis": "tuberculosis",
}


@pytest.fixture(scope="module")
def padchest(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = linked(tmp_path_factory.mktemp("padchest"), tables / PADCHEST_FILE, PADCHEST_FILE)
    implied = [name for name in OBSERVATIONS if name in PADCHEST_LAYOUT.implied_by]
    return as_frame(folder, observations=[*PADCHEST_NAMES, *implied])


@pytest.fixture(scope="module")
def padchest_table(tables: Path) -> pd.DataFrame:
    return pd.read_csv(tables / PADCHEST_FILE, low_memory=False)


def test_padchest_has_the_rows_patients_and_positives_of_its_table(
    padchest: pd.DataFrame, padchest_table: pd.DataFrame
) -> None:
    own = padchest_table
    assert len(padchest) == len(own) == 160_861
    assert padchest["patient"].nunique() == own["PatientID"].nunique() == 67_625
    assert padchest["study"].nunique() == len(own[["PatientID", "StudyID"]].drop_duplicates()) == 109_932
    assert own["StudyID"].nunique() == 109_931  # one of them is of two patients
    lists = own["Labels"].fillna("[]").str.strip("[]").str.split(",")
    stated = [{name.strip(" '") for name in names} - {""} for names in lists]
    counts = Counter(name for names in stated for name in names)
    assert {name: int((padchest[name] == 1).sum()) for name in PADCHEST_NAMES} == {
        name: counts[name] for name in PADCHEST_NAMES
    }
    assert set(counts) - set(PADCHEST_NAMES) == {"exclude", "unchanged", "suboptimal study"}
    says_nothing = [not names - {"exclude", "unchanged", "suboptimal study"} for names in stated]
    assert sum(own["Labels"].isna()) == 103
    np.testing.assert_array_equal(padchest["normal"].isna(), says_nothing)
    np.testing.assert_array_equal(padchest["labels_by"] == "physicians", own["MethodLabel"] == "Physician")
    np.testing.assert_array_equal(padchest["is_frontal"], own["Projection"].isin(["PA", "AP", "AP_horizontal"]))
    years = own["StudyDate_DICOM"] // 10_000 - own["PatientBirth"]
    np.testing.assert_array_equal(padchest["age"].astype(float), years)


def test_padchest_equals_torchxrayvision_but_for_what_it_joins(padchest: pd.DataFrame, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    theirs = xrv.datasets.PC_Dataset(tmp_path, views="*", unique_patients=False)
    own = padchest.set_index(padchest["path"].str.rpartition("/")[2]).loc[theirs.csv["ImageID"]]
    is_stated = own["normal"].notna().to_numpy()  # theirs are negative where a report says "unchanged" only
    assert len(own) == 158_616
    assert set(XRV_JOINS) == set(theirs.pathologies) - {
        "Infiltration", "Hilar Enlargement", "Pleural_Thickening", "Support Devices", "Tube"
    }  # fmt: skip
    for name, texts in XRV_JOINS.items():
        texts = [texts] if isinstance(texts, str) else texts
        joined = [column for column in PADCHEST_NAMES if any(text in column for text in texts)]
        expected = theirs.labels[:, theirs.pathologies.index(name)]
        np.testing.assert_array_equal(own[joined].max(axis=1).to_numpy()[is_stated], expected[is_stated], err_msg=name)
    for name in (
        "Atelectasis",
        "Consolidation",
        "Fracture",
        "Pneumonia",
        "Pneumothorax",
    ):  # answers of CheXpert's names
        expected = theirs.labels[:, theirs.pathologies.index(name)]
        np.testing.assert_array_equal(own[name].to_numpy()[is_stated], expected[is_stated], err_msg=name)


# RSNA, SIIM, VinDr


def test_rsna_has_one_row_for_each_image_and_torchxrayvisions_labels(tables: Path, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    with zipfile.ZipFile(tables / "kaggle_stage_2_train_labels.csv.zip") as archive:
        archive.extractall(tmp_path)
    frame = as_frame(tmp_path)
    own = pd.read_csv(tmp_path / "stage_2_train_labels.csv").groupby("patientId")["Target"].max()
    assert len(frame) == len(own) == 26_684
    assert frame["Lung Opacity"].sum() == own.sum() == 6_012
    theirs = xrv.datasets.RSNA_Pneumonia_Dataset(tmp_path, views="*")
    opacity = theirs.labels[:, [theirs.pathologies.index("Lung Opacity")]]
    assert_equal_labels(frame, theirs.csv["patientId"] + ".dcm", opacity, ["Lung Opacity"])


def test_siim_has_one_row_for_each_image_and_torchxrayvisions_labels(tables: Path, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    name = "siim-pneumothorax-train-rle.csv.gz"
    frame = as_frame(linked(tmp_path, tables / name, name))
    own = pd.read_csv(tables / name)
    assert len(frame) == own["ImageId"].nunique() == 12_047
    theirs = xrv.datasets.SIIM_Pneumothorax_Dataset(tmp_path)  # one row for each mask
    by_image = pd.Series(theirs.labels[:, 0]).groupby(theirs.csv["ImageId"].to_numpy()).max()
    assert by_image.sum() == frame["Pneumothorax"].sum() == 2_669
    assert_equal_labels(frame, by_image.index + ".dcm", by_image.to_numpy()[:, None], ["Pneumothorax"])


def test_siims_masks_equal_torchxrayvisions_and_lie_in_the_lungs(tables: Path, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    name = "siim-pneumothorax-train-rle.csv.gz"
    masks = find_layout(linked(tmp_path, tables / name, name))[0].masks(tmp_path)
    assert len(masks) == 2_669
    theirs = xrv.datasets.SIIM_Pneumothorax_Dataset(tmp_path)
    table, counts = theirs.csv, theirs.csv["ImageId"].value_counts()
    columns, areas = np.zeros(1024), Counter()
    for path in [path for number, path in enumerate(masks) if number % 10 == 0]:
        image, mask = path.removesuffix(".dcm"), masks[path]["Pneumothorax"]()
        one = theirs.get_pathology_mask_dict(image, 1024)[0][0] > 0  # of several rows, the last
        areas["pixels"], areas["theirs"] = areas["pixels"] + mask.sum(), areas["theirs"] + (mask & one).sum()
        assert (mask & one).sum() == one.sum()
        assert counts[image] > 1 or mask.sum() == one.sum()
        columns += mask.sum(axis=0)
    assert (table["ImageId"].value_counts() > 1).sum() == 624
    assert areas["pixels"] > areas["theirs"] > 0
    middle, right, left = (columns[part].mean() for part in (slice(480, 576), slice(192, 448), slice(608, 832)))
    assert middle < min(right, left) / 1.5  # the mediastinum


def test_vinbigdata_is_the_majority_of_its_three_readers(tables: Path, tmp_path: Path) -> None:
    frame = as_frame(linked(tmp_path, tables / "vinbigdata-train.csv.gz", "train.csv.gz")).set_index("patient")
    own = pd.read_csv(tables / "vinbigdata-train.csv.gz")
    assert len(frame) == own["image_id"].nunique() == 15_000
    assert set(own.groupby("image_id")["rad_id"].nunique()) == {3}
    for name in KAGGLE_LABELS.names:
        readers = own[own["class_name"] == name].groupby("image_id")["rad_id"].nunique()
        assert set(frame.index[frame[name] == 1]) == set(readers.index[readers >= 2]), name
    assert set(frame["labels_by"]) == {"majority of three radiologists"}


def test_vinbigdata_differs_from_torchxrayvision_only_where_one_reader_alone_drew_a_box(
    tables: Path, tmp_path: Path
) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    frame = as_frame(linked(tmp_path, tables / "vinbigdata-train.csv.gz", "train.csv.gz")).set_index("patient")
    theirs = xrv.datasets.VinDr_Dataset(tmp_path, views="*")  # positive where any reader drew a box
    own = pd.read_csv(tables / "vinbigdata-train.csv.gz")
    names = {name.lower(): name for name in KAGGLE_LABELS.names}
    names |= {"effusion": "Pleural effusion", "pleural_thickening": "Pleural thickening"}
    images = theirs.csv["image_id"].to_numpy()
    assert len(theirs.pathologies) == 14
    for column, name in enumerate(names[pathology.lower()] for pathology in theirs.pathologies):
        readers = own[own["class_name"] == name].groupby("image_id")["rad_id"].nunique().reindex(images, fill_value=0)
        mine = frame.loc[images, name].to_numpy()
        differs = mine != theirs.labels[:, column]
        np.testing.assert_array_equal(differs, readers.to_numpy() == 1, err_msg=name)


# CheXpert, whose counts are in test_chexpert


def test_chexpert_differs_from_torchxrayvision_where_it_changes_labels(tables: Path, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision")
    frame = as_frame(linked(tmp_path, tables / "chexpert_train.csv.gz", "train.csv.gz"))
    theirs = xrv.datasets.CheX_Dataset(tmp_path, views="*", unique_patients=False)
    names = [{"Effusion": "Pleural Effusion"}.get(name, name) for name in theirs.pathologies]
    own = frame[names].to_numpy()
    is_normal = (frame["No Finding"] == 1).to_numpy()[:, None]  # all others are set to 0 there, but for devices
    is_normal = is_normal & (np.array(names) != "Support Devices")
    expected = np.where(is_normal, 0, np.where(own == -1, np.nan, own))  # and uncertain labels become NaN
    np.testing.assert_array_equal(expected, theirs.labels)


# Open-i: the wheel has NLM's XML files, of which Kaggle's edition made its two tables


def test_openi_counts_the_reports_and_terms_of_nlms_xml_files(tables: Path, tmp_path: Path) -> None:
    reports, images, terms_of = [], [], {}
    with tarfile.open(tables / "NLMCXR_reports.tgz") as archive:
        for member in (member for member in archive if member.name.endswith(".xml")):
            root = ElementTree.parse(archive.extractfile(member)).getroot()
            uid = root.find("uId").get("id").removeprefix("CXR")
            terms = [node.text.strip() for node in root.findall(".//MeSH/major")]
            files = [f"{node.get('id').removeprefix('CXR')}.dcm.png" for node in root.findall(".//parentImage")]
            reports.append({"uid": uid, "MeSH": ";".join(terms), "findings": "One line.\nAnother, with a comma."})
            images += [{"uid": uid, "filename": file, "projection": "Frontal"} for file in files]
            terms_of[uid] = (terms, len(files))
    pd.DataFrame(reports).to_csv(tmp_path / "indiana_reports.csv", index=False)
    pd.DataFrame(images).to_csv(tmp_path / "indiana_projections.csv", index=False)
    frame = as_frame(tmp_path)
    assert len(frame) == 7_470
    assert frame["study"].nunique() == 3_851  # of 3,955 reports, 104 have no image
    for name, head in {
        "No Finding": "normal", "Cardiomegaly": "Cardiomegaly", "Atelectasis": "Pulmonary Atelectasis",
        "Consolidation": "Consolidation", "Edema": "Pulmonary Edema", "Fracture": "Fractures, Bone",
    }.items():  # fmt: skip
        count = sum(num for terms, num in terms_of.values() if any(term.split("/")[0] == head for term in terms))
        assert (frame[name] == 1).sum() == count, name
    nothing = {"No Indexing", "Technical Quality of Image Unsatisfactory"}
    unstated = sum(num for terms, num in terms_of.values() if not set(terms) - nothing)
    assert frame["Edema"].isna().sum() == unstated > 0


# Boxes


def test_boxes_are_the_published_ones(tables: Path, tmp_path: Path) -> None:
    counts = {}
    for name, make in (("nih", "BBox_List_2017.csv.gz"), ("rsna", None), ("vinbigdata", "vinbigdata-train.csv.gz")):
        folder = tmp_path / name
        folder.mkdir()
        if name == "nih":
            for file in (make, "Data_Entry_2017_v2020.csv.gz"):
                linked(folder, tables / str(file), str(file))
        elif name == "rsna":
            zipfile.ZipFile(tables / "kaggle_stage_2_train_labels.csv.zip").extractall(folder)
        else:
            linked(folder, tables / str(make), "train.csv.gz")
        layout, found = find_layout(folder)
        reference = boxes_of(layout, found, layout.labels_in(found).names)
        assert reference is not None
        counts[name] = {each.name: sum(map(len, each.boxes.values())) for each in reference.targets}
    # Wang et al. 2017: 984 boxes, of which these; "Infiltrate" is Infiltration.
    assert counts["nih"] == {
        "Atelectasis": 180,
        "Effusion": 153,
        "Cardiomegaly": 146,
        "Infiltration": 123,
        "Pneumonia": 120,
        "Pneumothorax": 98,
        "Mass": 85,
        "Nodule": 79,
    }
    assert counts["rsna"] == {"Lung Opacity": 9_555}
    raw = pd.read_csv(tables / "vinbigdata-train.csv.gz").dropna(subset="x_min")
    assert counts["vinbigdata"] == raw["class_name"].value_counts().to_dict()


def test_boxes_have_the_names_of_the_model_and_corners_become_sizes(tables: Path, tmp_path: Path) -> None:
    linked(tmp_path, tables / "vinbigdata-train.csv.gz", "train.csv.gz")
    layout, folder = find_layout(tmp_path)
    reference = boxes_of(layout, folder, OBSERVATIONS)
    assert reference is not None
    targets = {each.observation: each for each in reference.targets}
    assert {"Pleural Effusion", "Lung Lesion", "Lung Opacity"} <= set(targets)
    row = pd.read_csv(tables / "vinbigdata-train.csv.gz").query("class_name == 'Pleural effusion'").iloc[0]
    box = targets["Pleural Effusion"].boxes[f"train/{row['image_id']}.dicom"][0]
    assert box == (row["x_min"], row["y_min"], row["x_max"] - row["x_min"], row["y_max"] - row["y_min"])
