"""Hostile and broken files, made from seeds: mutants, bombs, polyglots, wrong names, odd DICOM, planted identities.

Nothing here comes from a file on disk: what is mutated is drawn here, so that every seed gives the same bytes anywhere.
"""

import gzip
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin
from pydicom import FileDataset, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

NAME, NUMBER = "Quixote^Dulcinea", "PID-4711-0815"
"""The planted identity, which may turn up nowhere."""

_SIDE = 48
_MIB = 1 << 20


@dataclass(frozen=True)
class Attack:
    """A file.

    Attributes:
        kind: For the table.
        name: That it is uploaded under.
        data: Its bytes.
    """

    kind: str
    name: str
    data: bytes


def attacks(seed: int, num_mutants: int) -> Iterator[Attack]:
    """All that is not a mutant, then so many mutants."""
    yield from bombs()
    yield from odd_dicoms()
    yield from polyglots()
    yield from wrong_names()
    yield from odd_archives()
    yield from identities()
    yield from mutants(seed, num_mutants)


@cache
def valid_files() -> dict[str, bytes]:
    """A radiograph-like image in every format that is read, by the name of a file."""
    random = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(_SIDE), np.arange(_SIDE)) * 2
    pixels = (smooth + random.integers(0, 40, (_SIDE, _SIDE))).astype(np.uint8)
    deep = pixels.astype(np.uint16) * 257
    files = {
        "gray.jpg": _saved(pixels, "JPEG"),
        "progressive.jpg": _saved(pixels, "JPEG", progressive=True),
        "gray.png": _saved(pixels, "PNG"),
        "deep.png": _saved(deep, "PNG"),
        "gray.tif": _saved(pixels, "TIFF"),
        "packed.tif": _saved(pixels, "TIFF", compression="tiff_deflate"),
        "gray.bmp": _saved(pixels, "BMP"),
        "gray.webp": _saved(np.stack([pixels] * 3, axis=-1), "WEBP"),
    }
    for name, syntax in (("explicit", ExplicitVRLittleEndian), ("implicit", ImplicitVRLittleEndian)):
        files[f"{name}.dcm"] = dicom(deep, syntax)
    files["deflated.dcm"] = dicom(deep, DeflatedExplicitVRLittleEndian)
    files["bare.dcm"] = files["explicit.dcm"][132:]  # without a preamble
    files["big.dcm"] = dicom(deep.byteswap(), ExplicitVRBigEndian)
    dataset = _dataset(deep, ExplicitVRLittleEndian)
    dataset.compress(RLELossless, generate_instance_uid=False)
    files["rle.dcm"] = _written(dataset)
    dataset = _dataset(deep, ExplicitVRLittleEndian)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    files["j2k.dcm"] = _written(dataset)
    return files


def mutants(seed: int, count: int) -> Iterator[Attack]:
    """Valid files cut short, with bits flipped, bytes changed, pieces removed or doubled, lengths made large."""
    files = list(valid_files().items())
    for number in range(count):
        random = np.random.default_rng((seed, number))
        name, data = files[number % len(files)]
        kind, changed = _mutate(data, random)
        yield Attack(f"mutant, {kind}", name, changed)


def _mutate(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    place, length = int(random.integers(len(data))), int(random.integers(1, 64))
    changed = bytearray(data)
    kind = ("cut short", "bits", "bytes", "removed", "doubled", "zeros", "large length", "header")[random.integers(8)]
    if kind == "cut short":
        changed = changed[:place]
    elif kind == "bits":
        for spot in random.integers(len(data), size=random.integers(1, 9)):
            changed[spot] ^= 1 << random.integers(8)
    elif kind == "bytes":
        for spot in random.integers(len(data), size=random.integers(1, 33)):
            changed[spot] = random.integers(256)
    elif kind == "removed":
        del changed[place : place + length]
    elif kind == "doubled":
        changed[place:place] = changed[place : place + length]
    elif kind == "zeros":
        changed[place : place + length] = bytes(min(length, len(data) - place))
    elif kind == "large length":
        changed[place : place + 4] = struct.pack(
            "<I", int(random.choice([0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 1 << 28]))
        )
    else:
        spot = int(random.integers(min(400, len(data))))
        changed[spot] = random.integers(256)
    return kind, bytes(changed)


def bombs() -> Iterator[Attack]:
    """Small files that would become large ones, in every container."""
    for width, height in ((60_000, 60_000), (7_200, 7_200), (2**31 - 1, 1), (1, 2**31 - 1)):
        yield Attack("bomb, PNG", "bomb.png", _png(width, height, zlib.compress(bytes(4 * _MIB), 9)))
    texts = b"".join(_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(_MIB), 9)) for _ in range(64))
    yield Attack("bomb, PNG", "texts.png", _png(8, 8, zlib.compress(bytes(72)), texts))
    icc = _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(64 * _MIB), 9))
    yield Attack("bomb, PNG", "icc.png", _png(8, 8, zlib.compress(bytes(72)), icc))
    yield Attack("surplus, PNG", "data.png", _png(8, 8, zlib.compress(bytes(64 * _MIB), 9)))
    jpeg = bytearray(valid_files()["gray.jpg"])
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = b"\xff\xff\xff\xff"
    yield Attack("bomb, JPEG", "bomb.jpg", bytes(jpeg))
    for rows, columns, frames in ((65535, 65535, 1), (48, 48, 2_000_000_000), (0, 0, 1), (0, 48, 1), (65535, 1, 65535)):
        yield Attack("bomb, DICOM", "bomb.dcm", dicom(_flat(), Rows=rows, Columns=columns, NumberOfFrames=frames))
    deflated = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflated.compress(bytes(64 * _MIB)) + deflated.flush()
    yield Attack("bomb, DICOM", "deflated.dcm", dicom(_flat(), DeflatedExplicitVRLittleEndian, body=body))
    for kind in (b"SQ", b"UN"):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + b"\x08\x00\x40\x11" + kind + b"\0\0\xff\xff\xff\xff"
        body = b"\x08\x00\x40\x11" + kind + b"\0\0\xff\xff\xff\xff" + item * 20_000
        yield Attack("bomb, DICOM", "nested.dcm", dicom(_flat(), body=body))
    empty = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    body = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + empty * 500_000
    yield Attack("bomb, DICOM", "items.dcm", dicom(_flat(), body=body))
    element = b"\x08\x00\x70\x00LO\x02\x00a "
    yield Attack("bomb, DICOM", "elements.dcm", dicom(_flat(), body=element * 500_000))
    yield Attack("bomb, gzip", "film.png", gzip.compress(bytes(64 * _MIB)))
    for width, height in ((60_000, 60_000), (65_535, 65_535)):
        yield Attack("bomb, TIFF", "bomb.tif", _tiff(width, height))
        yield Attack("bomb, BMP", "bomb.bmp", b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + _bmp_header(width, height))


def odd_dicoms() -> Iterator[Attack]:
    """DICOM that is valid in part, or valid and nothing that a radiograph could be."""
    for change in (
        {"Rows": 47},
        {"Columns": 4},
        {"BitsAllocated": 1},
        {"BitsAllocated": 32},
        {"BitsStored": 0},
        {"BitsStored": 17},
        {"HighBit": 40},
        {"SamplesPerPixel": 2},
        {"SamplesPerPixel": 0},
        {"PixelRepresentation": 9},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"PhotometricInterpretation": "X" * 5000},
        {"NumberOfFrames": 2},
        {"NumberOfFrames": -1},
        {"RescaleSlope": "1e308"},
        {"RescaleSlope": "nan"},
        {"RescaleIntercept": "-inf"},
        {"WindowCenter": "0", "WindowWidth": "0"},
        {"WindowCenter": ["1"] * 3, "WindowWidth": ["2"]},
        {"WindowCenter": "1e300", "WindowWidth": "1e-300"},
        {"PresentationLUTShape": "NOTHING"},
        {"PixelPaddingValue": 65535},
    ):
        yield Attack("odd DICOM", "odd.dcm", dicom(_flat(), **change))
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelData", "PhotometricInterpretation"):
        dataset = _dataset(_flat(), ExplicitVRLittleEndian)
        delattr(dataset, keyword)
        yield Attack("odd DICOM", "missing.dcm", _written(dataset))
    for syntax in (JPEGLSLossless, MPEG2MPML, JPEG2000Lossless, RLELossless, UID("1.2.3.4"), UID("")):
        data = dicom(_flat()).replace(b"1.2.840.10008.1.2.1\0", str(syntax).encode().ljust(20, b"\0")[:20], 1)
        yield Attack("odd DICOM", "codec.dcm", data)
    whole = dicom(_flat())
    yield Attack("odd DICOM", "no-preamble.dcm", whole[132:])
    yield Attack("odd DICOM", "preamble-only.dcm", whole[:132])
    yield Attack("odd DICOM", "twice.dcm", whole + whole)
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [0, 0, 16], b"\0\0"
    yield Attack("odd DICOM", "lut.dcm", dicom(_flat(), VOILUTSequence=Sequence([lut])))
    yield Attack("odd DICOM", "modality-lut.dcm", dicom(_flat(), ModalityLUTSequence=Sequence([lut, lut])))


def polyglots() -> Iterator[Attack]:
    """Files that are two things, or what others would run."""
    files = valid_files()
    for name, data in files.items():
        buffer = io.BytesIO(data)
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("x.html", "<script>alert(1)</script>")
        yield Attack("polyglot", name, buffer.getvalue())
        yield Attack("polyglot", name, data + b"<?php system('id'); ?>")
        yield Attack("polyglot", f"{name}.html", b"<script>alert(1)</script>" + data)
    yield Attack(
        "polyglot", "dicom-in-tiff.dcm", files["gray.tif"][:128].ljust(128, b"\0") + files["explicit.dcm"][128:]
    )
    yield Attack("polyglot", "png-in-dicom.png", files["gray.png"][:128] + files["explicit.dcm"][128:])
    for name, data in (
        ("image.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
        ("image.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n(%pipe%id) (w) file\n"),
        ("image.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0"),
        ("image.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\n"),
        ("image.xml", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
        ("model.pkl", b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85R."),
        ("array.npy", b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 60),
        ("movie.mp4", b"\0\0\0\x18ftypmp42"),
        ("empty.png", b""),
        ("zeros.dcm", bytes(4096)),
        ("text.txt", b"no image at all\n" * 100),
        ("magic.png", b"\x89PNG\r\n\x1a\n"),
        ("magic.jpg", b"\xff\xd8\xff"),
        ("magic.webp", b"RIFF\xff\xff\xff\xffWEBPVP8 "),
        ("magic.tif", b"II*\0\xff\xff\xff\xff"),
        ("magic.dcm", bytes(128) + b"DICM"),
    ):
        yield Attack("not an image", name, data)


def wrong_names() -> Iterator[Attack]:
    """Valid files under names that lie, or that would lead somewhere."""
    data = valid_files()["gray.png"]
    for name in (
        "../../../../etc/cron.d/x",
        "film.dcm",
        "film.exe",
        "a" * 300 + ".png",
        "nul\\..\\..\\x.png",
        "-rf.png",
    ):
        yield Attack("wrong name", name, data)
    for name in (
        '"><img src=x onerror=alert(1)>.png',
        "$(id).png",
        "x\r\nSet-Cookie: a=b.png",
        "ﾒ\u202egnp.png",
        "CON",
    ):
        yield Attack("wrong name", name, data)


def odd_archives() -> Iterator[Attack]:
    """ZIP archives that lie, nest or explode."""
    inner = _zip({"film.png": valid_files()["gray.png"]})
    for _ in range(20):
        inner = _zip({"inner.zip": inner})
    yield Attack("archive", "deep.zip", inner)
    yield Attack("archive", "bomb.zip", _zip({f"{number}.png": bytes(4 * _MIB) for number in range(16)}))
    yield Attack("archive", "one.zip", _zip({"film.png": bytes(64 * _MIB)}))
    yield Attack("archive", "many.zip", _zip(dict.fromkeys(map(str, range(2_000)), b"")))
    yield Attack("archive", "slip.zip", _zip({"../../../etc/passwd": b"x", "/etc/passwd": b"x", "C:\\x": b"x"}))
    honest = _zip({"film.png": bytes(16 * _MIB)})
    size = struct.pack("<I", 16 * _MIB)
    yield Attack("archive", "lying.zip", honest.replace(size, struct.pack("<I", 100)))
    yield Attack("archive", "cut.zip", honest[: len(honest) // 2])
    yield Attack("archive", "magic.zip", b"PK\x03\x04")
    yield Attack("archive", "overlap.zip", _overlapping(1_000))


def identities() -> Iterator[Attack]:
    """Valid files with a name and a number wherever a format has room for them."""
    pixels = np.random.default_rng(1).integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8)
    file_name = f"{NAME}_{NUMBER}"
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", f"{NAME} {NUMBER}")
    yield Attack("identity", f"{file_name}.png", _saved(pixels, "PNG", pnginfo=text))
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = NAME, NUMBER
    for image_format, suffix in (("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif")):
        image = np.stack([pixels] * 3, axis=-1) if image_format == "WEBP" else pixels
        yield Attack("identity", f"{file_name}.{suffix}", _saved(image, image_format, exif=exif))
    yield Attack("identity", f"{file_name}.jpg", _saved(pixels, "JPEG", comment=f"{NAME} {NUMBER}".encode()))
    private = {
        "PatientName": NAME,
        "PatientID": NUMBER,
        "StudyDescription": f"{NAME} {NUMBER}",
        "OtherPatientIDs": NUMBER,
    }
    yield Attack("identity", f"{file_name}.dcm", dicom(_flat(), **private))
    broken = dicom(_flat(), Rows=47, **private)
    yield Attack("identity", f"{file_name}.dcm", broken)
    yield Attack("identity", f"{file_name}.dcm", broken.replace(b"US\x02\x00", b"US\x03\x00"))
    yield Attack("identity", f"{file_name}.dcm", dicom(_flat(), PhotometricInterpretation=NAME, **private))
    yield Attack("identity", f"{file_name}.zip", _zip({f"{file_name}.dcm": dicom(_flat(), **private), NUMBER: b"x"}))


def dicom(
    pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, *, body: bytes | None = None, **change: object
) -> bytes:
    """A DICOM file of one 16-bit frame.

    Args:
        pixels: `(rows, columns)`, uint16.
        syntax: Of the file.
        body: Instead of all that follows the file's own header.
        change: Elements by keyword.
    """
    dataset = _dataset(pixels, syntax if body is None else ExplicitVRLittleEndian)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is set is wrong on purpose
        for keyword, value in change.items():
            setattr(dataset, keyword, value)
    if body is None:
        return _written(dataset)
    whole = _written(dataset)
    start = whole.index(b"\x08\x00\x16\x00UI")
    header = whole[:start]
    if syntax != ExplicitVRLittleEndian:
        old, new = b"1.2.840.10008.1.2.1\0", str(syntax).encode() + b"\0" * (len(syntax) % 2)
        length = header.index(old) - 2
        header = header[:length] + struct.pack("<H", len(new)) + new + header[length + 2 + len(old) :]
    return header + body


def _dataset(pixels: np.ndarray, syntax: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1.1")
    meta.MediaStorageSOPInstanceUID = UID("1.2.826.0.1.3680043.8.498.1")
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 1, 16, 16, 15
    dataset.PixelRepresentation = 0
    dataset.add_new(0x7FE00010, "OW", pixels.tobytes())
    return dataset


def _written(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is written is wrong on purpose
        syntax = dataset.file_meta.TransferSyntaxUID
        dcmwrite(
            buffer,
            dataset,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=syntax.is_little_endian,
            enforce_file_format=False,
            force_encoding=True,
        )
    return buffer.getvalue()


def _flat() -> np.ndarray:
    return np.arange(_SIDE * _SIDE, dtype=np.uint16).reshape(_SIDE, _SIDE)


def _saved(pixels: np.ndarray, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, data: bytes, before: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _tiff(width: int, height: int) -> bytes:
    strip = zlib.compress(bytes(_MIB), 9)
    entries = (
        (256, width),
        (257, height),
        (258, 8),
        (259, 8),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(strip)),
    )
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries
    )
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4)


def _bmp_header(width: int, height: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _overlapping(count: int) -> bytes:
    """Many entries of the directory that lead to one large member (Fifield 2019, "A better zip bomb")."""
    one = _zip({"a.png": bytes(4 * _MIB)})
    start = one.index(b"PK\x01\x02")
    end = one.index(b"PK\x05\x06")
    entry = one[start:end]
    entries = b"".join(entry.replace(b"a.png", f"{number:05d}".encode()) for number in range(count))
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(entries), start, 0)
    return one[:start] + entries + tail
