"""Hostile and damaged archives: each member, or the archive, is one error, and nothing becomes large."""

import io
import struct
import tracemalloc
import zipfile

import pytest

from chexpert_hf.radiographs import archives
from chexpert_hf.radiographs.archives import ArchiveMember, source_of
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.radiograph import RadiographError


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def errors_of(path):
    errors = {}
    for file in find_radiographs([path]).files:
        with pytest.raises(RadiographError, match=r"^[^\n]{20,200}$") as caught:
            source_of(file)
        errors[str(file).removeprefix(f"{path}/")] = str(caught.value)
    return errors


def test_a_member_comes_as_its_bytes(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"x/1.png": b"one", "x/2.png": b"two"})
    assert [source_of(file) for file in find_radiographs([path]).files] == [b"one", b"two"]
    assert source_of("a.png") == "a.png"


def test_names_are_read_as_the_program_that_packed_them_meant_them(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"Scans\\R1\\1.png": b"one", "Scans/R1/2.png": b"two", "Scans\\R2\\": b""})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a\\b.png", b"three")
        archive.writestr("a/b.png", b"four")
        archive.writestr("R\xf6ntgen.png", b"five")  # flagged as UTF-8
        archive.writestr("Ro\u0308ntgen.png", b"six")
    # macOS leaves the flag out: bit 11, in the member's header and in the directory's.
    data = path.read_bytes()
    name = "Ro\u0308ntgen.png".encode()
    for start in (data.index(name) - 30 + 6, data.rindex(name) - 46 + 8):
        data = data[:start] + b"\0\0" + data[start + 2 :]
    path.write_bytes(data)
    assert {file.name: source_of(file) for file in find_radiographs([path]).files} == {
        "Scans/R1/1.png": b"one",
        "Scans/R1/2.png": b"two",
        "a\\b.png": b"three",  # two members that would be one
        "a/b.png": b"four",
        "R\xf6ntgen.png": b"five",
        "Ro\u0308ntgen.png": b"six",
    }


def test_a_changed_archive_is_opened_anew(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"1.png": b"one"})
    member = ArchiveMember(str(path), "1.png")
    assert source_of(member) == b"one"
    write_zip(path, {"1.png": b"another"})
    assert source_of(member) == b"another"


def test_a_bomb_is_one_error_and_stays_small(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", {f"{n}.png": bytes(30_000_000) for n in range(3)})
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    (error,) = errors_of(path).values()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert "becomes at most 200 times its size, this one becomes 90 MB" in error


def test_a_member_that_is_too_large_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1000)
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(1001), "2.png": bytes(1000)}, zipfile.ZIP_STORED)
    assert source_of(ArchiveMember(str(path), "2.png")) == bytes(1000)
    with pytest.raises(RadiographError, match="Expected a file of at most"):
        source_of(ArchiveMember(str(path), "1.png"))


def test_a_member_that_lies_about_its_size_is_damaged(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"1.png": bytes(5_000_000)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 5_000_000), struct.pack("<L", 10)))
    assert "damaged here" in errors_of(path)["1.png"]


def test_too_many_members_are_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    path = write_zip(tmp_path / "a.zip", {f"{n}.png": b"" for n in range(3)})
    assert errors_of(path) == {str(path): "Expected at most 2 files in an archive, got 3; split it."}


def test_other_members_that_are_no_radiographs_are_an_error_each(tmp_path):
    inner = io.BytesIO()
    write_zip(inner, {"1.png": b"x"})
    path = write_zip(
        tmp_path / "a.zip",
        {"nested.zip": inner.getvalue(), "nested.png": inner.getvalue(), "../../up.png": b"x", "/root.png": b"x"},
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("lzma.png", bytes(100), zipfile.ZIP_LZMA)
        archive.writestr("good.png", b"good", zipfile.ZIP_STORED)
        archive.writestr("broken.png", b"broken", zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"pngbroken", b"pngbr0ken"))
    members = [file for file in find_radiographs([path]).files if file.name != "good.png"]
    found = {}
    for member in members:
        with pytest.raises(RadiographError, match=r"^[^\n]+$") as caught:
            source_of(member)
        found[member.name] = str(caught.value).split(",")[1].strip()
    assert found == {
        "nested.zip": "got an archive in an archive; unpack it.",
        "nested.png": "got an archive in an archive; unpack it.",
        "../../up.png": "this one leads out of it; pack it again.",
        "/root.png": "this one leads out of it; pack it again.",
        "lzma.png": "got another compression; pack it again.",
        "broken.png": "expected a whole file; pack it again.",
    }
    assert source_of(ArchiveMember(str(path), "good.png")) == b"good"


def test_an_encrypted_member_is_an_error(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"1.png": b"x"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "without password" in errors_of(path)["1.png"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_one_error(tmp_path, content):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    assert "damaged or none" in errors_of(path)[str(path)]


def test_an_archive_without_radiographs_is_an_error(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"notes.txt": b"x"})
    assert "has no radiographs" in errors_of(path)[str(path)]
