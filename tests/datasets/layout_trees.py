"""A small data set of eight radiographs in each layout, in the folders and columns of the real ones."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from chexpert_hf.labels import OBSERVATIONS
from tests.dicom_files import dicom_of

NUM_FILMS = 8
MIMIC_FILMS = [  # patient, study, image, view
    ("10000032", "50414267", "02aa804e-bde0afdd", "PA"),
    ("10000032", "50414267", "174413ec-4ec4c1f7", "LATERAL"),
    ("10000032", "53189527", "2a2277a9-b0ded155", "AP"),
    ("10000764", "57375967", "096052b7-d256dc40", "AP"),
    ("10000898", "50771383", "8dfc8f7f-b2e9d7a8", "LL"),
    ("10000898", "54205396", "a75d7e33-6b8f3a2e", ""),
    ("11000011", "51029426", "10a8b8d4-5fb1c0d5", "PA"),
    ("12000012", "52000021", "dd4fd3e7-7b1c1d3a", "PA"),
]


@cache
def film(number: int, kind: str) -> bytes:
    """The bytes of a radiograph: a "PNG", "JPEG" or "DICOM" file of 16 x 12 pixels."""
    grey = np.add.outer(np.arange(16, dtype=np.uint8) * 8, np.arange(12, dtype=np.uint8) * 4 + number)
    if kind == "DICOM":
        return dicom_of(grey)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, kind)
    return buffer.getvalue()


def write_films(folder: Path, paths: Sequence[str], kind: str) -> None:
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(film(number, kind))


def write_csv(file: Path, *lines: str) -> None:
    """Writes lines as they stand: what is quoted and how is a part of a layout."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def nih(folder: Path) -> None:
    names = [f"{patient:08}_{view:03}.png" for patient in range(1, 5) for view in range(2)]
    # The header has unquoted commas in brackets, as NIH's; the first edition has ages of up to 414.
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    found = ["Cardiomegaly|Effusion", "No Finding", "Hernia", "Mass", "Nodule", "Edema", "Pneumonia", "Infiltration"]
    write_csv(
        folder / "Data_Entry_2017.csv",
        header + ",OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
        *(
            f"{name},{found[i]},0,{int(name[:8])},{414 if i == 0 else 50 + i},{'MF'[i % 2]},{('PA', 'AP')[i % 2]}"
            ",2682,2749,0.143,0.143,"
            for i, name in enumerate(names)
        ),
    )
    write_csv(folder / "train_val_list.txt", *names[:6])
    write_csv(folder / "test_list.txt", *names[6:])
    write_films(folder, [f"images_00{1 + i // 4}/images/{name}" for i, name in enumerate(names)], "PNG")


def google(folder: Path) -> None:
    names = [f"{patient:08}_000.png" for patient in range(1, 9)]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],Fracture,Pneumothorax,Airspace opacity,"
        "Nodule or mass,Set Id"
    )
    write_csv(
        folder / "google2019_nih-chest-xray-labels.csv",
        header,
        *(
            f"{name},No Finding,0,{i + 1},60,M,AP,3056,2544,0.139,0.139,NO,{'YES' if i % 2 else 'NO'},YES,NO,"
            + ("val" if i < 5 else "test")
            for i, name in enumerate(names)
        ),
    )
    write_films(folder, [f"images/{name}" for name in names], "PNG")


def mimic(folder: Path) -> None:
    write_csv(
        folder / "mimic-cxr-2.0.0-metadata.csv",
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate",
        *(
            f'{image},{patient},{study},"CHEST (PA, LAT)",{view},16,12,21800506'
            for patient, study, image, view in MIMIC_FILMS
        ),
    )
    splits = {"10000898": "validate", "12000012": "test"}
    write_csv(
        folder / "mimic-cxr-2.0.0-split.csv",
        "dicom_id,study_id,subject_id,split",
        *(f"{image},{study},{patient},{splits.get(patient, 'train')}" for patient, study, image, _ in MIMIC_FILMS),
    )
    columns = sorted(OBSERVATIONS)  # in another order than CheXpert's
    labels = {"50414267": {"No Finding": "1.0"}, "53189527": {"Edema": "-1.0", "Fracture": "0.0"}, "50771383": {}}
    labels |= {"54205396": {"Edema": "1.0"}, "51029426": {"Pneumonia": "1.0"}, "52000021": {"Edema": "1.0"}}
    for labeler in ("chexpert", "negbio"):  # study 57375967 has no labels
        write_csv(
            folder / f"mimic-cxr-2.0.0-{labeler}.csv",
            ",".join(["subject_id", "study_id", *columns]),
            *(
                ",".join([patient, study, *(labels[study].get(name, "") for name in columns)])
                for patient, study in dict.fromkeys(each[:2] for each in MIMIC_FILMS)
                if study in labels
            ),
        )
    paths = [f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg" for patient, study, image, _ in MIMIC_FILMS]
    write_films(folder, paths, "JPEG")


def padchest(folder: Path) -> None:
    header = (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
        "Projection,Pediatric,ReportID,Report,MethodLabel,Labels,labelCUIS"
    )
    rows = [
        ("PA", "Physician", "\"['pneumonia', ' pleural effusion']\""),
        ("L", "Physician", "\"['pneumonia', ' pleural effusion']\""),
        ("AP", "RNN_model", "['normal']"),
        ("AP_horizontal", "RNN_model", "\"['NSG tube', ' callus rib fracture', 'laminar atelectasis']\""),
        ("COSTAL", "Physician", "\"['unchanged', ' suboptimal study']\""),
        ("EXCLUDE", "Physician", "\"['exclude', 'nodule']\""),
        ("UNK", "RNN_model", "['']"),
        ("PA", "RNN_model", "nan"),
    ]
    write_csv(
        folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
        header,
        *(
            f"{i},film{i}.png,{i % 3},20140915,{900 + i // 2},{500 + i // 2},{'1930.0' if i < 6 else ''},"
            f"{'None' if i == 7 else 'MFO'[i % 3]},None,{projection},No,{i},una linea .,{method},{labels},"
            "\"['C0034069'\n 'C0742362']\""  # numpy broke lines of long lists, in quotes
            for i, (projection, method, labels) in enumerate(rows)
        ),
    )
    write_films(folder, [f"{i % 3}/film{i}.png" for i in range(NUM_FILMS)], "PNG")


VINDR_LABELS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation",
    "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst",
    "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
    "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
)  # fmt: skip


def vindr(folder: Path) -> None:
    def cells(positive: Mapping[str, int], other: str) -> str:
        return ",".join(str(positive.get(name, 0)) for name in (*VINDR_LABELS, other, "No finding"))

    readers = [
        {"Edema": 1, "Other diseases": 1},
        {"Edema": 1},
        {"No finding": 1},
    ]
    write_csv(
        folder / "annotations" / "image_labels_train.csv",
        ",".join(["image_id", "rad_id", *VINDR_LABELS, "Other diseases", "No finding"]),
        *(f"film{i},R{r + 1},{cells(readers[r], 'Other diseases')}" for i in range(6) for r in range(3)),
    )
    write_csv(
        folder / "annotations" / "image_labels_test.csv",
        ",".join(["image_id", *VINDR_LABELS, "Other disease", "No finding"]),
        *(f"film{i},{cells({'Other disease': 1}, 'Other disease')}" for i in (6, 7)),
    )
    paths = [f"{'train' if i < 6 else 'test'}/film{i}.dicom" for i in range(NUM_FILMS)]
    write_films(folder, paths, "DICOM")


def vinbigdata(folder: Path) -> None:
    lines = []
    for i in range(NUM_FILMS):
        lines += [f"film{i},Cardiomegaly,3,R10,691.0,1375.0,1653.0,1831.0"]
        lines += [f"film{i},Nodule/Mass,8,R10,{x},20,30,40" for x in (1, 2, 3)]  # three boxes of one reader
        lines += [f"film{i},Cardiomegaly,3,R9,690.0,1375.0,1653.0,1831.0", f"film{i},No finding,14,R8,,,,"]
    write_csv(folder / "train.csv", "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", *lines)
    write_films(folder, [f"train/film{i}.dicom" for i in range(NUM_FILMS)], "DICOM")


def rsna(folder: Path) -> None:
    boxes = ["film0,264.0,152.0,213.0,379.0,1", "film0,562.0,152.0,256.0,453.0,1"]
    write_csv(
        folder / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        *boxes,
        *(f"film{i},,,,,0" for i in range(1, NUM_FILMS)),
    )
    classes = ["Lung Opacity", "Normal", *["No Lung Opacity / Not Normal"] * 6]
    write_csv(
        folder / "stage_2_detailed_class_info.csv",
        "patientId,class",
        "film0,Lung Opacity",
        *(f"film{i},{name}" for i, name in enumerate(classes)),
    )
    write_films(folder, [f"stage_2_train_images/film{i}.dcm" for i in range(NUM_FILMS)], "DICOM")


def siim(folder: Path) -> None:
    lines = [
        "1.2.276.0,557374 2 1015 8",
        "1.2.276.0,600000 2 1015 8",
        *(f"1.2.276.{i},-1" for i in range(1, NUM_FILMS)),
    ]
    write_csv(folder / "train-rle.csv", "ImageId, EncodedPixels", *lines)
    write_films(folder, [f"dicom-images-train/1.2.{i}/1.3.{i}/1.2.276.{i}.dcm" for i in range(NUM_FILMS)], "DICOM")


def openi(folder: Path) -> None:
    reports = [
        '1,normal,normal,Xray Chest PA and Lateral,Positive TB test,None.,"Clear lungs.\nNo effusion.",Normal.',
        '2,"Fractures, Bone/ribs/left;Opacity/lung/base;Lung/hypoinflation","Fractures, Bone;Opacity;Lung",,,,,',
        "3,No Indexing,No Indexing,,,,,",
        "4,Opacity/ribs/right,Opacity,,,,,",
    ]
    write_csv(
        folder / "indiana_reports.csv", "uid,MeSH,Problems,image,indication,comparison,findings,impression", *reports
    )
    names = [f"{1 + i // 2}_IM-000{i}-1001.dcm.png" for i in range(NUM_FILMS)]
    views = [f"{1 + i // 2},{name},{('Frontal', 'Lateral')[i % 2]}" for i, name in enumerate(names)]
    write_csv(folder / "indiana_projections.csv", "uid,filename,projection", *views)
    write_films(folder, [f"images/images_normalized/{name}" for name in names], "PNG")


def chexpert_plus(folder: Path) -> None:
    paths = [f"{'train' if i < 6 else 'valid'}/patient{i:05}/study1/view1_frontal.jpg" for i in range(NUM_FILMS)]
    write_csv(
        folder / "df_chexpert_plus_240401.csv",
        "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,age,sex,split",
        *(
            f'{path},x.dcm,Frontal,AP,patient{i:05},1,"NARRATIVE:\nTwo lines, and a comma.",{60 + i}.0,'
            f"{('Male', 'Female')[i % 2]},{path.partition('/')[0]}"
            for i, path in enumerate(paths)
        ),
    )
    for section, edema in (("impression", 1.0), ("report", 0.0)):
        records = [
            {"path_to_image": path, **dict.fromkeys(OBSERVATIONS), "Edema": edema, "Fracture": -1.0} for path in paths
        ]
        (folder / "chexbert_labels").mkdir(exist_ok=True)
        write_csv(folder / "chexbert_labels" / f"{section}_fixed.json", *map(json.dumps, records))
    write_films(folder, [f"PNG/{path.replace('.jpg', '.png')}" for path in paths], "PNG")


def chexpert(folder: Path) -> None:
    for split, numbers in (("train", range(6)), ("valid", range(6, NUM_FILMS))):
        paths = [f"{split}/patient{i:05}/study1/view1_frontal.jpg" for i in numbers]
        write_csv(
            folder / f"{split}.csv",
            ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS]),
            *(f"CheXpert-v1.0-small/{path},Female,68,Frontal,AP,1.0{',' * 13}" for path in paths),
        )
        write_films(folder, paths, "JPEG")


def table(folder: Path) -> None:
    write_csv(
        folder / "labels.csv",
        "File Name,Patient-ID,Gender,Age,View,TB,Silicosis,Comment",
        *(f"film{i}.png,P{i // 2},{'mf'[i % 2]},{40 + i},{('pa', 'lateral')[i % 2]},{i % 2},,fine" for i in range(7)),
        "film7.png,P3,,,,-1,1,",
    )
    write_films(folder, [f"films/film{i}.png" for i in range(NUM_FILMS)], "PNG")


def image_folder(folder: Path) -> None:
    places = {"train": ["NORMAL", "PNEUMONIA", "PNEUMONIA", "NORMAL"], "validation": ["NORMAL", "PNEUMONIA"]}
    places |= {"test": ["NORMAL", "PNEUMONIA"]}
    classes = [f"{split}/{name}" for split, names in places.items() for name in names]
    write_films(folder, [f"{place}/film{i}.jpeg" for i, place in enumerate(classes)], "JPEG")


TREES: Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "nih": (nih, ("train", "test")),
    "google": (google, ("valid", "test")),
    "mimic": (mimic, ("train", "valid", "test")),
    "padchest": (padchest, ("train",)),
    "vindr": (vindr, ("train", "test")),
    "vinbigdata": (vinbigdata, ("train",)),
    "rsna": (rsna, ("train",)),
    "siim": (siim, ("train",)),
    "openi": (openi, ("train",)),
    "chexpert-plus": (chexpert_plus, ("train", "valid")),
    "chexpert": (chexpert, ("train", "valid")),
    "table": (table, ("train",)),
    "imagefolder": (image_folder, ("train", "valid", "test")),
}
"""Layout -> the function that writes a data set of eight radiographs in it, and the splits that this has."""
