"""PadChest: its table of 160,861 radiographs, with images in numbered folders or in any folder below.

Source: Bustos et al. 2020, arXiv:1901.07441, and the files of https://bimcv.cipf.es/bimcv-projects/padchest/.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from chexpert_hf.datasets.cells import Parser, expect_columns, findings, parse_cells, parse_number, read_cells
from chexpert_hf.datasets.label_sets import PADCHEST
from chexpert_hf.datasets.layout import FRONTAL_PROJECTIONS, Layout, find_images, only_train, rows, table_in

TABLES = ("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "PADCHEST_chest_x_ray_images_labels_160K.csv")
_IMAGE, _FOLDER, _PATIENT, _STUDY = "ImageID", "ImageDir", "PatientID", "StudyID"
_DATE, _BIRTH, _SEX, _VIEW = "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM", "Projection"
_LABELS, _METHOD = "Labels", "MethodLabel"

_NO_FINDINGS = frozenset({"", "exclude", "unchanged", "suboptimal study"})
"""Labels that say something of the report or the image. With nothing else, a report states nothing."""

_FURTHER_NAMES = """chronic changes, central venous catheter via jugular vein, callus rib fracture, sternotomy,
volume loss, aortic atheromatosis, increased density, pseudonodule, suture material, vertebral anterior compression,
tracheostomy tube, central venous catheter via subclavian vein, metal, supra aortic elongation, hilar enlargement,
bronchovascular markings, dual chamber device, hypoexpansion, nipple shadow, descendent aortic elongation,
calcified densities, diaphragmatic eventration, hilar congestion, tuberculosis sequelae, flattened diaphragm, goiter,
lobar atelectasis, tracheal shift, superior mediastinal enlargement, mastectomy, granuloma, artificial heart valve,
reticular interstitial pattern, osteopenia, osteosynthesis material, single chamber device, hyperinflated lung,
gynecomastia, bullas, calcified adenopathy, calcified pleural thickening, chest drain tube, cavitation,
sclerotic bone lesion, mammary prosthesis, adenopathy, reservoir central venous catheter, minor fissure thickening,
aortic button enlargement, azygos lobe, vascular redistribution, surgery breast, vertebral compression, surgery neck,
artificial mitral heart valve, central venous catheter, mediastinic lipomatosis, axial hyperostosis, vertebral fracture,
lung metastasis, multiple nodules, pectum excavatum, surgery lung, mediastinal enlargement, post radiotherapy changes,
clavicle fracture, mediastinal mass, artificial aortic heart valve, osteoporosis, tuberculosis, humeral fracture,
loculated pleural effusion, reticulonodular interstitial pattern, non axial articular degenerative changes,
ground glass pattern, dai, pulmonary artery enlargement, thoracic cage deformation, fissure thickening,
calcified pleural plaques, atypical pneumonia, end on vessel, surgery, central vascular redistribution,
subcutaneous emphysema, ascendent aortic elongation, miliary opacities, air bronchogram, air fluid level,
bone metastasis, lung vascular paucity, pulmonary hypertension, segmental atelectasis,
central venous catheter via umbilical vein, heart valve calcified, costochondral junction hypertrophy, soft tissue mass,
loculated fissural effusion, humeral prosthesis, cervical rib, hypoexpansion basal, kerley lines, lytic bone lesion,
pericardial effusion, catheter, asbestosis signs, pneumoperitoneo, abnormal foreign body, calcified fibroadenoma,
blastic bone lesion, pectum carinatum, azygoesophageal recess shift, mediastinal shift, major fissure thickening, mass,
respiratory distress, lymphangitis carcinomatosa, aortic aneurysm, obesity, hydropneumothorax, external foreign body,
subacromial space narrowing, pulmonary artery hypertension, aortic endoprosthesis, electrical device, atelectasis basal,
ventriculoperitoneal drain tube, endoprosthesis, total atelectasis, pneumomediastinum, pleural plaques,
right sided aortic arch, prosthesis, Chilaiditi sign, surgery heart, dextrocardia, surgery humeral, fracture, abscess,
lepidic adenocarcinoma, double J stent, bone cement, pulmonary venous hypertension, calcified mediastinal adenopathy,
gastrostomy tube, cyst, sternoclavicular junction hypertrophy, round atelectasis, empyema, pleural mass,
esophagic dilatation, nephrostomy tube, breast mass, lipomatosis"""
NAMES = (*PADCHEST.names, *(name.strip() for name in _FURTHER_NAMES.replace("\n", " ").split(",")))
"""All labels of the table, by falling frequency but for the first 36."""

_ATELECTASIS = tuple(name for name in NAMES if "atelectasis" in name)
_CONSOLIDATION = ("consolidation", "air bronchogram")
_PNEUMONIA = ("pneumonia", "atypical pneumonia")
_LESION = ("nodule", "multiple nodules", "pulmonary mass", "lung metastasis", "lepidic adenocarcinoma")
_PATTERNS = ("infiltrates", "increased density", "ground glass pattern", "miliary opacities", "pulmonary edema")

_PARSERS: dict[str, Parser] = {
    _DATE: (lambda text: int(text[:4]), "YYYYMMDD"),
    _BIRTH: (lambda text: int(parse_number(text)), "a year"),
    _SEX: (lambda text: {"M": "Male", "F": "Female", "O": "Unknown"}[text], "M, F, O"),
    # Laterals, views of the ribs (COSTAL), and images that are no radiograph of the chest or of no known projection.
    _VIEW: (lambda text: {"L": None, "COSTAL": None, "EXCLUDE": None, "UNK": None}.get(text, text[:2]), "a projection"),
    _METHOD: (
        lambda text: {"Physician": "physicians", "RNN_model": "text-mined labels"}[text],
        "Physician, RNN_model",
    ),
}


def _split_labels(text: str) -> Collection[str] | None:
    """The labels in a Python list as text, some with blanks around them."""
    return {name.strip() for name in re.findall(r"'([^']*)'", text)} - _NO_FINDINGS or None


def _read(folder: Path, _split: str, names: Sequence[str]) -> pd.DataFrame:
    file = table_in(folder, TABLES)
    columns = [_FOLDER, _PATIENT, _STUDY, _DATE, _BIRTH, _SEX, _VIEW, _LABELS, _METHOD]
    cells = read_cells(file, _IMAGE, columns, has_line_breaks=True)
    expect_columns(cells, [_IMAGE, _PATIENT, _STUDY, _VIEW, _LABELS], [], file)
    projection = parse_cells(cells, _VIEW, file, _PARSERS)
    study_year, birth_year = (pd.array(parse_cells(cells, name, file, _PARSERS), "Int32") for name in (_DATE, _BIRTH))
    folders = cells[_FOLDER].astype(str) + "/" if _FOLDER in cells else ""
    return rows(
        cells.index,
        find_images(folder, (folders + cells[_IMAGE]).tolist()),
        cells[_PATIENT].astype(str),
        cells[_PATIENT].astype(str) + "/" + cells[_STUDY].astype(str),
        findings(cells[_LABELS], names, _split_labels, NAMES, file),
        is_frontal=pd.Series(projection).isin(FRONTAL_PROJECTIONS).to_numpy(),
        sex=parse_cells(cells, _SEX, file, _PARSERS),
        age=study_year - birth_year,
        projection=projection,
        labels_by=parse_cells(cells, _METHOD, file, _PARSERS),
    )


PADCHEST_LAYOUT = Layout(
    "padchest",
    PADCHEST,
    files=" or ".join(TABLES),
    has_split=only_train(TABLES),
    read=_read,
    columns=lambda _: NAMES,
    answers={
        "Atelectasis": _ATELECTASIS,
        "Consolidation": _CONSOLIDATION,
        "Pneumonia": _PNEUMONIA,
        "Lung Lesion": _LESION,
        "Lung Opacity": (
            *(name for name in NAMES if "interstitial pattern" in name or name == "alveolar pattern"),
            *_PATTERNS,
            *_ATELECTASIS,
            *_CONSOLIDATION,
            *_PNEUMONIA,
            *_LESION,
        ),
        "Pleural Effusion": (
            "pleural effusion",
            "loculated pleural effusion",
            "loculated fissural effusion",
            "hydropneumothorax",
        ),
        "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
        "Pleural Other": tuple(name for name in NAMES if "pleural thickening" in name or "pleural plaques" in name),
        "Fracture": tuple(name for name in NAMES if "fracture" in name),
        "Support Devices": tuple(
            name
            for name in NAMES
            if name.split()[-1] in ("tube", "device", "pacemaker", "valve", "endoprosthesis", "dai", "stent")
            or "catheter" in name
        ),
    },
)
"""The 160,861 radiographs of 67,625 patients, all of them in the train split."""
