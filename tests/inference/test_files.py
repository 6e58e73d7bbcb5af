import numpy as np
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import InputError
from chexpert_hf.inference.files import find_radiographs, overlay_folders, score_files, write_overlays


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/view1.png", "b/view1.png", "b/view2.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 40), dtype=np.uint8)).save(path)
    (tmp_path / "in" / "notes.txt").write_text("not a radiograph")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    return tmp_path / "in"


def test_folders_are_searched_and_named_files_are_taken_whatever_their_suffix(folder):
    found = find_radiographs([folder / "notes.txt", folder])
    assert [path.relative_to(folder).as_posix() for path in found] == [
        "notes.txt",
        "a/view1.png",
        "b/view1.png",
        "b/view2.jpg",
    ]


def test_in_a_folder_an_image_is_found_whatever_it_is_called(folder):
    (folder / "1.2.840.113619").write_bytes((folder / "a" / "view1.png").read_bytes())
    (folder / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README").write_text("not a radiograph")
    found = {path.name for path in find_radiographs([folder])}
    assert found == {"1.2.840.113619", "IM0001", "view1.png", "view2.jpg"}


def test_a_path_that_is_not_there_and_a_folder_without_radiographs_are_refused(tmp_path):
    with pytest.raises(InputError, match="none does not exist"):
        find_radiographs([tmp_path / "none"])
    with pytest.raises(InputError, match="No radiographs found"):
        find_radiographs([tmp_path])


def test_a_bad_file_is_reported_in_its_place_and_the_rest_is_scored(folder, tiny_folder):
    (folder / "a" / "view1.png").write_text("text under another name")
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    files = find_radiographs([folder])
    results = list(score_files(classifier, files, batch_size=2))
    assert [result.path for result in results] == files
    assert results[0].prediction is None
    assert len(results[0].error.splitlines()) == 1
    for result in results[1:]:
        assert result.error is None
        expected = classifier.predict(result.path).probabilities
        assert result.prediction.probabilities == pytest.approx(expected, abs=1e-6)


def test_overlays_of_files_with_one_name_do_not_meet(folder, tiny_folder, tmp_path):
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    files = find_radiographs([folder])
    folders = overlay_folders(files, tmp_path / "out")
    assert len(set(folders.values())) == 3
    for result in score_files(classifier, files, saliency=True):
        for path in write_overlays(result, folders[result.path], ["Edema", "Fracture"]):
            with Image.open(path) as image:
                assert image.size == (40, 50)
    assert (tmp_path / "out" / "b" / "view2_jpg" / "Edema.png").exists()
    assert len(list((tmp_path / "out").rglob("*.png"))) == 6


def test_overlays_need_maps(folder, tiny_folder, tmp_path):
    classifier = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    result = next(score_files(classifier, find_radiographs([folder])))
    with pytest.raises(ValueError, match="has no maps"):
        write_overlays(result, tmp_path, ["Edema"])
