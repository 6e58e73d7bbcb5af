"""Files that are read by processes: the same rows as by threads, whatever happens to a process."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.errors import InputError
from chexpert_hf.folders.processes import ReadingProcesses
from chexpert_hf.folders.readers import num_processes
from chexpert_hf.folders.score_output import ScoreOutput
from chexpert_hf.folders.score_rows import RowFormat
from chexpert_hf.folders.score_run import score_to_file
from chexpert_hf.folders.score_table import GateMode
from chexpert_hf.folders.scoring import score_files
from chexpert_hf.gate import GATE_FILE, Gate
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.scoring.classifier import CheXpertEnsemble
from chexpert_hf.scoring.preparation import Preparation, Prepared
from tests.dicom_files import dicom_without_pixels


@pytest.fixture
def classifier(tiny_folder):
    one = CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")
    return CheXpertClassifier(one.model, one.processor, gate=Gate.load(DEFAULT_MODEL / GATE_FILE))


@pytest.fixture
def files(tmp_path):
    """Good, bad, missing and large files, colour, DICOM and members of an archive, in more than two chunks."""
    rng, root = np.random.default_rng(0), tmp_path / "in"
    root.mkdir()
    for number in range(40):
        shape = (90, 80 + number // 2, *((3,) if number % 9 == 5 else ()))
        levels = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(levels).save(root / f"{number:02}.{'jpg' if number % 2 else 'png'}")
    Image.fromarray(rng.integers(0, 65536, (100, 70), dtype=np.uint16)).save(root / "16 bits.png")
    (root / "03.jpg").write_bytes((root / "01.jpg").read_bytes()[:900])
    (root / "21.jpg").write_bytes(b"")
    dicom = dicom_without_pixels("1.2.840.10008.5.1.4.1.1.1")
    pixels = {"Rows": 2, "Columns": 2, "BitsAllocated": 8, "PixelData": b"1234"}
    (root / "no pixels.dcm").write_bytes(dicom)
    (root / "small.dcm").write_bytes(dicom_without_pixels("1.2.840.10008.5.1.4.1.1.1", **pixels))
    with zipfile.ZipFile(tmp_path / "scans.zip", "w") as archive:
        archive.write(root / "02.png", "a.png")
        archive.writestr("b.png", "text")
    return [*find_radiographs([root, tmp_path / "scans.zip"]).files, str(tmp_path / "gone.png")]


def rows(classifier, files, **options):
    table = RowFormat(classifier.observations, options["gate"], positives=True)
    return list(table.rows(score_files(classifier, files, **options)))


@pytest.mark.parametrize("gate", GateMode)
def test_rows_are_those_of_threads_to_the_last_bit(classifier, files, gate):
    by_threads = rows(classifier, files, batch_size=7, gate=gate)
    assert sum(row[-1] is not None for row in by_threads) >= 5
    assert rows(classifier, files, batch_size=7, gate=gate, workers=2) == by_threads


def test_an_ensembles_members_each_get_their_size(classifier, files, one_thread):
    other = CheXpertClassifier(classifier.model, type(classifier.processor)(size={"height": 96, "width": 80}))
    ensemble = CheXpertEnsemble([classifier, other])
    options = {"batch_size": 5, "gate": GateMode.FLAG, "saliency": True}
    assert rows(ensemble, files[:9], workers=1, **options) == rows(ensemble, files[:9], **options)


def test_a_run_is_resumed_by_processes_to_the_same_bytes(classifier, files, tmp_path):
    for name, workers in (("threads.csv", 0), ("processes.csv", 2)):
        score_to_file(classifier, files, ScoreOutput(tmp_path / name), batch_size=4, workers=workers)
    assert (tmp_path / "processes.csv").read_bytes() == (tmp_path / "threads.csv").read_bytes()


@dataclass(frozen=True)
class Fatal(Preparation):
    """Kills the process that reads a file called "kill", unless it may live; raises on one called "bug"."""

    once: str = ""  # a file that is written by the first kill, and prevents others

    def read(self, source):
        name = os.path.basename(str(source))
        if "kill" in name and not (self.once and os.path.exists(self.once)):
            Path(self.once or os.devnull).write_text("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        if "bug" in name:
            raise ZeroDivisionError("a bug")
        return super().read(source)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number:03}" for number in range(70)]
    names[3], names[37], names[38] = "003 kill", "037 kill", "038 kill"
    for name in names:
        Image.fromarray(np.full((40, 40), int(name[:3]), dtype=np.uint8)).save(folder / f"{name}.png")
    return sorted(map(str, folder.iterdir()))


def levels(read):
    return int(read.image.gray[0][0, 0, 0]) if isinstance(read.image, Prepared) else read.image.reason[:40]


def test_a_file_that_kills_its_process_is_a_row_and_costs_no_other(classifier, images):
    fatal = Fatal(classifier.preparation.processors)
    found = list(ReadingProcesses(fatal, 2).read(iter(images)))
    assert [one.file for one in found] == images
    killed = "The process that read this file was killed"
    assert [levels(one) for one in found] == [killed[:40] if n in (3, 37, 38) else n for n in range(70)]
    assert active_children() == []


def test_a_process_that_is_killed_for_another_reason_costs_no_file(classifier, images, tmp_path):
    fatal = Fatal(classifier.preparation.processors, once=str(tmp_path / "killed"))
    assert [levels(one) for one in ReadingProcesses(fatal, 2).read(images)] == list(range(70))
    assert (tmp_path / "killed").exists()


def test_an_exception_is_raised_and_an_early_stop_leaves_no_process(classifier, images, tmp_path):
    processes = ReadingProcesses(Fatal(classifier.preparation.processors), 2)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(processes.read(["bug.png"]))
    reading = processes.read(images[4:30] * 20)
    assert levels(next(reading)) == 4
    assert active_children()
    reading.close()
    assert active_children() == []


@dataclass(frozen=True)
class Unstartable(Preparation):
    """Cannot be received by another process."""

    def __reduce__(self):
        return exec, ("raise ValueError",)


def test_processes_that_cannot_start_are_one_error_and_not_a_row_for_each_file(classifier, images):
    with pytest.raises(InputError, match="cannot be started"):
        list(ReadingProcesses(Unstartable(classifier.preparation.processors), 2).read(images))


def test_little_shared_memory_is_left_alone(classifier, images, monkeypatch):
    processes = ReadingProcesses(classifier.preparation, 1)
    (roomy,) = processes.read(images[:1])
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=100, f_frsize=4096))
    (scarce,) = processes.read(images[:1])
    assert (roomy.image.gray[0].is_shared(), scarce.image.gray[0].is_shared()) == (True, False)
    assert torch.equal(roomy.image.gray[0], scarce.image.gray[0])


def test_processes_read_for_a_gpu_with_enough_files_to_make_up_for_their_start(classifier, monkeypatch):
    assert num_processes(classifier, range(10**6), "auto") == 0
    assert num_processes(classifier, range(10), 3) == 3
    monkeypatch.setattr(classifier.runtime, "is_on_cpu", False)
    assert num_processes(classifier, range(10**6), "auto") == min(len(os.sched_getaffinity(0)), 32)
    assert num_processes(classifier, range(100), "auto") == 0
    assert num_processes(classifier, iter(range(10**6)), "auto") == 0


SCRIPT = """
from multiprocessing import active_children
from chexpert_hf.folders.processes import ReadingProcesses
from chexpert_hf.image_processing_chexpert import CheXpertImageProcessor
from chexpert_hf.scoring.preparation import Preparation
import sys, time

if __name__ == "__main__":
    reading = ReadingProcesses(Preparation((CheXpertImageProcessor(),)), 2).read(sys.argv[1:] * 1000)
    next(reading)
    print(*(child.pid for child in active_children()), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.slow
def test_reading_processes_end_with_their_parent(images, tmp_path, kind):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", *images[4:8]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(kind)
        _, errors = parent.communicate()
    # The script's own. A process whose parent is killed while it answers may print a traceback of multiprocessing.
    assert errors.count("KeyboardInterrupt") == (kind == signal.SIGINT)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
