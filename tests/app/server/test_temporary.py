import os
import stat
import subprocess
import sys
import time

import pytest

from chexpert_hf.app.server import temporary
from chexpert_hf.app.server.temporary import private_folder, remove_orphans, sweep


@pytest.fixture(autouse=True)
def own_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_nobody_else_may_look_into_the_folder_and_it_is_gone_at_the_end(tmp_path):
    before = os.environ.get("GRADIO_TEMP_DIR")
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "abc").mkdir()
        (folder / "abc" / "film.png").write_bytes(b"x")
    assert list(tmp_path.iterdir()) == []
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_the_janitor_takes_old_files_and_empty_folders_and_leaves_the_rest(tmp_path):
    now = time.time()
    for name, age in (("aborted", 700), ("a/whole.png", 700), ("b/whole.png", 10), ("fresh", 0)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (now - age, now - age))
    (tmp_path / "outside").symlink_to("/")
    os.utime(tmp_path / "outside", (now - 700, now - 700), follow_symlinks=False)
    sweep(tmp_path, now - 600)
    assert not (tmp_path / "a" / "whole.png").exists()
    os.utime(tmp_path / "a", (now - 700, now - 700))
    sweep(tmp_path, now - 600)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "b",
        "b/whole.png",
        "fresh",
    ]


def test_the_janitor_comes_while_the_folder_is_in_use(monkeypatch):
    monkeypatch.setattr(temporary, "SWEEP_SECONDS", 0.01)
    with private_folder() as folder:
        path = folder / "aborted"
        path.write_bytes(b"x")
        os.utime(path, (0, 0))
        end = time.monotonic() + 20
        while path.exists():
            assert time.monotonic() < end


def test_what_a_killed_server_left_is_deleted_by_the_next_and_a_living_one_is_left_alone(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for name, owner in (("chexpert-hf-dead", process.pid), ("chexpert-hf-alive", os.getppid())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner.pid").write_text(str(owner))
    (tmp_path / "chexpert-hf-other").mkdir()
    remove_orphans(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chexpert-hf-alive", "chexpert-hf-other"]
