"""What is found, and in which order."""

import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from chexpert_hf.errors import InputError
from chexpert_hf.radiographs.archives import ArchiveMember, source_of
from chexpert_hf.radiographs.finding import find_radiographs, read_list
from chexpert_hf.radiographs.radiograph import RadiographError, read_radiograph
from tests.dicom_files import dicom_without_pixels
from tests.linked_folders import LAYOUTS


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    for name in ("b/view2.jpg", "b/view1.png", "a/view1.png", "a.png"):
        write_image(root / name)
    (root / "notes.txt").write_text("not a radiograph")
    (root / ".hidden.png").write_bytes(b"")
    write_image(root / ".cache" / "view1.png")
    return root


def names(found, root):
    return [os.path.relpath(str(file), root) for file in found.files]


IN_FOLDER = ["a/view1.png", "a.png", "b/view1.png", "b/view2.jpg"]


def test_folders_are_searched_in_order_and_named_files_are_taken_whatever_their_suffix(folder):
    assert names(find_radiographs([folder / "notes.txt", folder]), folder) == ["notes.txt", *IN_FOLDER]


def test_a_radiograph_that_is_given_twice_is_one_in_the_first_place(folder):
    paths = [folder / "b" / "view2.jpg", folder, f"{folder}/b/./view1.png", folder]
    assert names(find_radiographs(paths), folder) == ["b/view2.jpg", "a/view1.png", "a.png", "b/view1.png"]


def test_in_a_folder_an_image_is_found_whatever_it_is_called(folder):
    (folder / "1.2.840.113619").write_bytes((folder / "a.png").read_bytes())
    (folder / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README").write_text("not a radiograph")
    assert {"1.2.840.113619", "IM0001"} == {*names(find_radiographs([folder]), folder)} - {*IN_FOLDER}


def test_a_path_that_is_not_there_and_a_folder_without_radiographs_are_refused(tmp_path):
    with pytest.raises(InputError, match="none does not exist"):
        find_radiographs([tmp_path / "none"])
    with pytest.raises(InputError, match="No radiographs found"):
        find_radiographs([tmp_path])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_links_of_the_hub_datalad_and_dvc_are_followed_and_counted(folder, tmp_path, layout):
    data = tmp_path / "set" / "data"
    data.parent.mkdir()
    folder.rename(data)
    root = layout(data)
    found = find_radiographs([root])
    assert names(found, root) == IN_FOLDER
    assert found.num_links == len(IN_FOLDER)
    assert found.notes() == ["Links followed (--no-follow-links skips those that lead out of their folder): 4."]
    (root / "real.png").write_bytes((root / "a.png").read_bytes())
    strict = find_radiographs([root], follow_links=False)
    assert names(strict, root) == ["real.png"]
    assert (strict.num_links, strict.num_outside) == (0, len(IN_FOLDER))  # and not the text file


def test_content_that_has_not_been_fetched_is_reported_in_words(tmp_path):
    links = {
        "a.png": (".git/annex/objects/Xx/Yy/MD5E-s7--0a.png/MD5E-s7--0a.png", "git-annex link .* 'datalad get'"),
        "IM0001": (".git/annex/objects/Xx/Yy/MD5-s7--0a/MD5-s7--0a", "git-annex link .* 'datalad get'"),
        "b.jpg": (str(tmp_path / "cache/files/md5/ab/cdef"), "DVC link .* 'dvc pull'"),
        "c.dcm": ("../../blobs/0123", "link into the Hub's cache is gone; download"),
        "d.png": ("elsewhere.png", "target of this link is gone"),
    }
    pointers = {
        "e.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "not been fetched.*'git lfs"),
        "IM0002": (b"/annex/objects/MD5E-s7--0a.png\n", "not been fetched: this is a git-annex pointer.*'datalad get'"),
    }
    (tmp_path / "in").mkdir()
    for name, (target, _) in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "in" / "notes.txt").symlink_to(".git/annex/objects/Xx/Yy/MD5E-s7--0a.txt/MD5E-s7--0a.txt")
    for name, (content, _) in pointers.items():
        (tmp_path / "in" / name).write_bytes(content)
    files = find_radiographs([tmp_path / "in"]).files
    assert names(find_radiographs([tmp_path / "in"]), tmp_path / "in") == sorted(links | pointers)
    for file in files:
        with pytest.raises(RadiographError, match=(links | pointers)[os.path.basename(str(file))][1]) as caught:
            read_radiograph(source_of(file))
        assert len(str(caught.value)) <= 200


def test_links_to_folders_are_followed_once_and_never_in_circles(folder, tmp_path):
    outside = tmp_path / "outside"
    secret = write_image(outside / "deep" / "secret.png")
    (outside / "deep" / "back").symlink_to(folder)
    (outside / "deep" / "up").symlink_to(outside)
    (folder / "c.png").symlink_to(folder / "a" / "view1.png")
    (folder / "d.png").symlink_to(secret)
    (folder / "e").symlink_to(outside)
    (folder / "e2").symlink_to(outside / "deep")
    (folder / "f").symlink_to(folder)
    (folder / "f.png").symlink_to(folder / "b")
    (folder / "g.png").symlink_to(folder / "gone.png")
    (folder / "h.png").symlink_to(f"{folder}-else")
    (folder / "top").symlink_to("/")
    (tmp_path / "link").symlink_to(folder)
    for root in (folder, tmp_path / "link"):
        found = find_radiographs([root])
        assert names(found, root) == [*IN_FOLDER, "c.png", "d.png", "e/deep/secret.png", "g.png", "h.png"]
        assert (found.num_links, found.num_outside) == (5, 0)
        strict = find_radiographs([root], follow_links=False)
        assert names(strict, root) == [*IN_FOLDER, "c.png", "g.png"]
        assert (strict.num_links, strict.num_outside) == (2, 5)


def test_patterns_find_what_the_shell_would_through_links_too(folder, tmp_path):
    write_image(tmp_path / "outside" / "view1.png")
    write_image(tmp_path / "outside" / "deep" / "view1.png")
    (folder / "c").symlink_to(tmp_path / "outside")
    (folder / "b" / "loop").symlink_to(folder)
    for pattern, inside, outside in (
        ("*/view1.png", ["a/view1.png", "b/view1.png"], ["c/view1.png"]),
        ("**/*.png", ["a/view1.png", "a.png", "b/view1.png"], ["c/deep/view1.png", "c/view1.png"]),
        ("**/d*/**/*.png", [], ["c/deep/view1.png"]),
        ("[b]", ["b/view1.png", "b/view2.jpg"], []),
        (".c*/*.png", [".cache/view1.png"], []),
    ):
        found = find_radiographs([f"{folder}/{pattern}"])
        assert names(found, folder) == [*inside, *outside]
        assert found.num_links == len(outside)
        if inside:
            assert names(find_radiographs([f"{folder}/{pattern}"], follow_links=False), folder) == inside
    assert find_radiographs([f"{folder}/*/view1.png"], follow_links=False).num_outside == 1
    with pytest.raises(InputError, match=r"\*\.dcm matches nothing"):
        find_radiographs([f"{folder}/*.dcm"])


def test_a_name_with_the_signs_of_a_pattern_is_itself(folder):
    write_image(folder / "scan[1].png")
    assert names(find_radiographs([folder / "scan[1].png"]), folder) == ["scan[1].png"]


def test_a_list_is_read_line_by_line_and_what_is_missing_is_left_to_be_reported(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfb/view2.jpg\r\n\n gone .png\nscan\xe9.png\na\n*.png")
    found = find_radiographs([], read_list(file))
    assert found.files == ["b/view2.jpg", " gone .png", os.fsdecode(b"scan\xe9.png"), "a/view1.png", "*.png"]
    file.write_text("b/view2.jpg\r\na.png\r\n", encoding="utf-16")  # as PowerShell's `>` writes it
    assert find_radiographs([], read_list(file)).files == ["b/view2.jpg", "a.png"]
    with pytest.raises(InputError, match=r"none\.txt cannot be read: No such file"):
        list(read_list(tmp_path / "none.txt"))


def test_a_folder_that_cannot_be_listed_is_reported_and_not_left_out(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith(("/b", "/c.zip")):
            raise PermissionError
        return scandir(path)

    (folder / "c.zip").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    found = find_radiographs([folder])
    assert names(found, folder) == ["a/view1.png", "a.png", "b", "c.zip"]
    assert found.notes() == []  # and not an archive


IMAGELESS = {
    "DICOMDIR": "1.2.840.10008.1.3.10",
    "SR000001": "1.2.840.10008.5.1.4.1.1.88.33",
    "PR000001.dcm": "1.2.840.10008.5.1.4.1.1.11.1",
    "KO000001": "1.2.840.10008.5.1.4.1.1.88.59",
    "report.pdf.dcm": "1.2.840.10008.5.1.4.1.1.104.1",
    "1.2.840.7": "1.2.840.99.1",
    "unnamed.dcm": None,
}
PIXELS = {"Rows": 2, "Columns": 2, "BitsAllocated": 8, "PixelData": b"1234"}


def test_dicom_without_an_image_is_counted_and_not_scored_in_folders_patterns_and_archives(folder, tmp_path):
    disc = {name: dicom_without_pixels(storage_class) for name, storage_class in IMAGELESS.items()}
    wanted = {
        "CR000001": dicom_without_pixels("1.2.840.10008.5.1.4.1.1.1", **PIXELS),
        "empty.dcm": dicom_without_pixels("1.2.840.10008.5.1.4.1.1.1"),  # a radiograph that lost its pixels
        "cut.dcm": dicom_without_pixels(None, StudyDescription="x" * 60)[:-50],
        "lost.dcm": dicom_without_pixels("1.2.840.99.1", Rows=2, Columns=2),
        "private": dicom_without_pixels("1.2.840.99.1", **PIXELS),
        "verification.dcm": dicom_without_pixels("1.2.840.10008.1.1", **PIXELS),
    }
    (tmp_path / "disc" / "DICOM").mkdir(parents=True)
    for name, data in (disc | wanted).items():
        (tmp_path / "disc" / "DICOM" / name).write_bytes(data)
    for paths in ([tmp_path / "disc"], [f"{tmp_path}/disc/DICOM/*"]):
        found = find_radiographs(paths)
        assert names(found, tmp_path / "disc" / "DICOM") == sorted(wanted)
        assert found.num_imageless == len(disc)
    with zipfile.ZipFile(tmp_path / "disc.zip", "w") as archive:
        for name, data in (disc | wanted).items():
            archive.writestr(f"DISC\\{name}", data)
    found = find_radiographs([tmp_path / "disc.zip"])
    assert [file.name for file in found.files] == sorted(f"DISC/{name}" for name in wanted)
    assert found.notes() == [
        f"DICOM files without an image (DICOMDIR, reports, presentation states) were skipped: {len(disc)}."
    ]
    with pytest.raises(InputError, match=r"No radiographs found in .*reports, presentation states\) were skipped: 1\."):
        find_radiographs([tmp_path / "disc" / "DICOM" / "DICOMDIR"])


def test_what_operating_systems_leave_behind_is_no_radiograph_wherever_it_is(folder, tmp_path):
    image = (folder / "a.png").read_bytes()
    left = ["__MACOSX/a.png", "b/._view1.png", "b/.DS_Store", "a/Thumbs.db", "Desktop.ini", "x/__MACOSX/y/a.png"]
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(image)
    assert names(find_radiographs([folder, *(folder / name for name in left)]), folder) == IN_FOLDER
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in [*left, *IN_FOLDER]:
            archive.writestr(f"in\\{name}".replace("/", "\\"), image)
    assert [file.name for file in find_radiographs([tmp_path / "all.zip"]).files] == [f"in/{n}" for n in IN_FOLDER]


def test_archives_in_folders_and_what_cannot_be_opened_are_not_lost_in_silence(folder):
    zipfile.ZipFile(folder / "more.zip", "w").close()
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")
    for name in ("IM0001", "secret.txt", "1.2.3"):
        (folder / name).symlink_to(folder / name)  # a link to itself, which cannot be opened
    found = find_radiographs([folder])
    assert names(found, folder) == sorted([*IN_FOLDER, "IM0001", "1.2.3", "pipe.png"], key=lambda name: name.split("/"))
    assert found.notes()[1:] == ["ZIP archives in folders were skipped; name them to score what is in them: 1."]


def test_archives_are_searched_as_folders_are_if_they_are_named(folder, tmp_path):
    with zipfile.ZipFile(folder / "scans.zip", "w") as archive:
        for name in IN_FOLDER[::-1]:
            archive.write(folder / name, name)
        archive.write(folder / "a.png", "IM0001")
        archive.writestr("notes.txt", "not a radiograph")
        archive.writestr("__MACOSX/._a.png", "resource fork")
        archive.writestr(".hidden.png", "")
        archive.writestr("folder.png/", "")
    assert names(find_radiographs([folder]), folder) == IN_FOLDER
    found = find_radiographs([folder / "scans.zip", f"{folder}/*.zip"])
    assert found.files == [ArchiveMember(str(folder / "scans.zip"), name) for name in ["IM0001", *IN_FOLDER]]
    assert str(found.files[0]) == f"{folder}/scans.zip/IM0001"
