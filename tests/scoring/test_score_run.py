"""Killed and resumed, divided, by study: always the rows of one undisturbed run, to the last byte."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import signal
import time
import weakref
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.metrics import per_study
from chexpert_hf.files import exclusive
from chexpert_hf.folders import score_run
from chexpert_hf.folders.score_output import Existing, ScoreOutput
from chexpert_hf.folders.score_rows import RowFormat, study_of
from chexpert_hf.folders.score_run import Shard, score_to_file
from chexpert_hf.folders.scoring import FileResult
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.radiograph import RadiographError
from tests.radiographs.test_dicom import FILM, make_dicom

NUM_FILES = 60
BAD = (0, 17, 18, 59)
BATCH_SIZE = 8
RESUME = Existing.RESUME


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In CheXpert's layout, three views per study, four files that are none, two of them of one study."""
    root = tmp_path_factory.mktemp("radiographs") / "valid"
    rng = np.random.default_rng(0)
    for number in range(NUM_FILES):
        path = root / f"patient{number // 6:05d}" / f"study{number // 3 % 2 + 1}" / f"view{number % 3 + 1}_frontal.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (70, 60 + number % 4)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    for number in BAD:
        Path(find_radiographs([root]).files[number]).write_text("no image, although its name says so")
    return root


# On a busy machine the threads of a tiny network wait for each other a hundred times longer than they compute.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def classifier(tiny_folder):
    return CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def files(folder):
    return find_radiographs([folder]).files


def run(classifier, files, path, **options):
    output = {key: options.pop(key) for key in ("existing", "by_study", "overlays") if key in options}
    return score_to_file(classifier, files, ScoreOutput(path, **output), **{"batch_size": BATCH_SIZE, **options})


class KilledError(Exception):
    pass


def killed_after(count):
    def watch(results, resumed, radiographs):
        for number, result in enumerate(results):
            if number == count:
                raise KilledError
            yield result

    return watch


def test_rows_are_in_order_and_a_bad_file_is_one_with_an_error(classifier, files, tmp_path):
    summary = run(classifier, files, tmp_path / "a.csv")
    assert (summary.radiographs, summary.failed, summary.resumed) == (NUM_FILES, len(BAD), 0)
    frame = pd.read_csv(tmp_path / "a.csv")
    assert list(frame) == ["path", *classifier.observations, "note", "error"]
    assert frame["note"].isna().all()
    assert frame["path"].tolist() == files
    assert tuple(np.flatnonzero(frame["error"].notna())) == BAD
    assert tuple(np.flatnonzero(frame["Edema"].isna())) == BAD
    expected = classifier.predict(files[1]).probabilities
    assert frame.loc[1, list(expected)].to_dict() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_what_was_supplied_or_ignored_in_a_file_is_in_the_note_column(classifier, tmp_path, name):
    useless, plain = tmp_path / "useless.dcm", tmp_path / "plain.dcm"
    useless.write_bytes(make_dicom(FILM, RescaleSlope=0, RescaleIntercept=0))
    plain.write_bytes(make_dicom(FILM))
    run(classifier, [str(useless), str(plain)], tmp_path / name)
    read_table = {"a.csv": pd.read_csv, "a.jsonl": partial(pd.read_json, lines=True), "a.parquet": pd.read_parquet}
    frame = read_table[name](tmp_path / name)
    assert frame.loc[0, "note"] == " ".join(classifier.predict(useless).notes)
    assert frame["note"].isna().tolist() == [False, True]
    assert frame["error"].isna().all()


@pytest.mark.parametrize(
    ("name", "by_study"), [("a.csv", False), ("a.jsonl", False), ("a.parquet", False), ("a.csv", True)]
)
def test_killed_at_ten_random_points_and_resumed_the_bytes_are_the_same(classifier, files, tmp_path, name, by_study):
    chance = random.Random(f"{name} {by_study}")
    whole, path = tmp_path / f"whole-{name}", tmp_path / name
    run(classifier, files, whole, by_study=by_study)
    for _ in range(10):
        kill = killed_after(chance.randrange(BATCH_SIZE, 20))
        with pytest.raises(KilledError, match=r"^$"):
            run(classifier, files, path, by_study=by_study, existing=RESUME, watch=kill)
        rows_file = ScoreOutput(path, by_study, RESUME).rows_file
        if chance.random() < 0.7:
            os.truncate(rows_file, chance.randrange(rows_file.stat().st_size + 1))
    summary = run(classifier, files, path, by_study=by_study, existing=RESUME)
    assert path.read_bytes() == whole.read_bytes()
    assert (summary.radiographs, summary.failed) == (NUM_FILES, len(BAD))
    assert sorted(file.name for file in tmp_path.glob(f"{name}*")) == [name, f"{name}.run.json"]


def score_slowly(classifier, files, path):
    read = classifier.read
    classifier.read = lambda source: (time.sleep(0.02), read(source))[1]
    run(classifier, files, path)


def test_killed_by_the_operating_system_and_resumed_the_bytes_are_the_same(classifier, files, tmp_path):
    whole, path = tmp_path / "whole.csv", tmp_path / "killed.csv"
    run(classifier, files, whole)
    process = multiprocessing.get_context("fork").Process(target=score_slowly, args=(classifier, files, path))
    process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.is_alive():
        if path.exists() and path.read_bytes().count(b"\n") > 8:
            break
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 8 < path.read_bytes().count(b"\n") < NUM_FILES
    summary = run(classifier, files, path, existing=RESUME)
    assert 8 <= summary.resumed < NUM_FILES
    assert path.read_bytes() == whole.read_bytes()


def test_what_is_complete_is_not_scored_again(classifier, files, tmp_path, monkeypatch):
    for name, by_study in (("a.csv", False), ("a.parquet", False), ("b.csv", True)):
        first = run(classifier, files[:20], tmp_path / name, by_study=by_study)
        with monkeypatch.context() as patch:
            patch.setattr(score_run, "score_files", lambda classifier, files, **rest: iter([1 / 0 for _ in files]))
            second = run(classifier, files[:20], tmp_path / name, by_study=by_study, existing=RESUME)
        assert (second.radiographs, second.failed, second.resumed) == (20, first.failed, 20)


def test_a_folder_that_has_grown_at_its_end_is_gone_on_with(classifier, files, tmp_path):
    run(classifier, files, tmp_path / "whole.csv")
    for count in (5, 20, 43):
        run(classifier, files[:count], tmp_path / "a.csv", existing=RESUME)
    run(classifier, files, tmp_path / "a.csv", existing=RESUME)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_batches_stay_where_they_are_in_the_list(classifier, files, tmp_path):
    """Equality by construction: whatever came before, a row goes through the network in the same batch and place."""
    batches = []

    def record(_, arguments):
        batches.append([image.numpy().tobytes() for image in arguments[0]])

    classifier.model.register_forward_pre_hook(record)
    run(classifier, files, tmp_path / "whole.csv")
    whole, batches[:] = batches[1:], []  # the first is that of the test pattern
    with pytest.raises(KilledError, match=r"^$"):
        run(classifier, files, tmp_path / "a.csv", watch=killed_after(4 * BATCH_SIZE))
    os.truncate(tmp_path / "a.csv", (tmp_path / "a.csv").stat().st_size - 300)
    batches.clear()
    run(classifier, files, tmp_path / "a.csv", existing=RESUME)
    assert batches[1:] == whole[3:]
    assert {len(batch) for batch in whole} == {BATCH_SIZE}
    batches.clear()
    run(classifier, files, tmp_path / "shard.csv", shard=Shard(1, 3))
    assert batches[1:] == whole[1::3]


def test_one_radiograph_is_not_filled_up_to_a_batch(classifier, files, tmp_path):
    sizes = []
    classifier.model.register_forward_hook(lambda _, __, output: sizes.append(len(output.logits)))
    run(classifier, files[1:2], tmp_path / "a.csv")
    assert sizes == [1, 1]


@pytest.mark.parametrize("count", [2, 5, 9])
def test_the_rows_of_all_shards_are_those_of_one_run(classifier, files, tmp_path, count):
    run(classifier, files, tmp_path / "whole.csv")
    header, *expected = (tmp_path / "whole.csv").read_text().splitlines()
    rows = []
    for index in range(count):
        run(classifier, files, tmp_path / f"{index}.csv", shard=Shard(index, count))
        first, *part = (tmp_path / f"{index}.csv").read_text().splitlines()
        assert first == header
        rows += part
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_study_has_the_maximum_over_its_views_and_the_minimum_of_no_finding(classifier, files, tmp_path, suffix):
    run(classifier, files, tmp_path / "views.csv")
    run(classifier, files, tmp_path / f"studies{suffix}", by_study=True)
    views = pd.read_csv(tmp_path / "views.csv")
    studies = (pd.read_csv if suffix == ".csv" else pd.read_parquet)(tmp_path / f"studies{suffix}")
    names = [str(Path(path).parent) for path in views["path"]]
    observations = list(classifier.observations)
    maxima, order = per_study(views[observations].to_numpy(), names)
    assert list(studies) == ["study", "views", *observations, "note", "error"]
    assert studies["study"].tolist() == order
    maxima = pd.DataFrame(maxima, columns=observations)
    maxima["No Finding"] = views["No Finding"].groupby(names, sort=False).min().to_numpy()
    np.testing.assert_array_equal(studies[observations].to_numpy(), maxima)
    assert studies["views"].tolist() == views["error"].isna().groupby(names, sort=False).sum().tolist()
    errors = studies["error"].dropna()
    assert errors.index.tolist() == [0, 5, 6, 19]
    assert errors[0].startswith("1 of 3 views failed: view1_frontal.png (Expected a JPEG")


def test_a_study_is_named_by_its_folder_and_any_other_file_by_itself():
    assert study_of("a/patient1/study2/view1_frontal.jpg") == "a/patient1/study2"
    assert study_of("patient1/study2/x.dcm") == "patient1/study2"
    assert study_of("/d.zip/valid/patient1/study2/v.png") == "/d.zip/valid/patient1/study2"
    assert study_of("files/p10/p10000032/s50414267/02aa804e.jpg") == "files/p10/p10000032/s50414267"
    for other in ("a/b.png", "patient1/study2.png", "patient1/study2/more/a.png", "impatient1/study1/a.png"):
        assert study_of(other) == other


def test_studies_whose_views_lie_apart_or_have_all_failed():
    first, second = "p/patient1/study1", "p/patient2/study1"
    views = [
        [f"{first}/a.png", 0.2, 0.9, "no window", None],
        [f"{second}/a.png", None, None, None, "why"],
        ["b.png", 0.5, 0.5, None, None],
        [f"{first}/b.png", 0.3, 0.1, "slope 0", None],
        [f"{second}/b.png", None, None, None, "that"],
    ]
    assert list(RowFormat(("Edema", "Fracture")).study_rows(views)) == [
        [first, 2, 0.3, 0.9, "a.png (no window); b.png (slope 0)", None],
        [second, 0, None, None, None, "2 of 2 views failed: a.png (why); b.png (that)"],
        ["b.png", 1, 0.5, 0.5, None, None],
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("existing", list(Existing))
def test_two_runs_never_write_one_output(classifier, files, tmp_path, name, existing):
    output = ScoreOutput(tmp_path / name, existing=existing)

    def second(results, *_):
        with pytest.raises(InputError, match="is being written by another run; wait for its end, or stop it"):
            score_to_file(classifier, files, output, batch_size=BATCH_SIZE)
        yield from results

    score_to_file(classifier, files, output, batch_size=BATCH_SIZE, watch=second)
    run(classifier, files, tmp_path / f"alone-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"alone-{name}").read_bytes()


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("existing", list(Existing))
def test_the_files_that_a_run_reads_and_writes_are_not_locked(classifier, files, tmp_path, name, existing):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / f".{name}.lock").touch()  # by a run that was killed

    def locked(results, *_):
        yield next(results)
        result = next(results)
        assert {file.name for file in folder.iterdir()} > {f".{name}.lock", f"{name}.run.json"}
        for file in folder.iterdir():
            if file.name != f".{name}.lock":  # on an SMB share, locks bind the process that holds them, too
                with file.open("rb") as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield result
        yield from results

    run(classifier, files, folder / name, existing=existing, watch=locked)
    assert {file.name for file in folder.iterdir()} == {name, f"{name}.run.json"}


@pytest.mark.parametrize("error", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_outputs_are_written_where_files_cannot_be_locked(classifier, files, tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run(classifier, files[:2], tmp_path / "out" / "a.csv")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a.csv", "a.csv.run.json"}


def test_outputs_are_written_where_no_lock_file_can_be(classifier, files, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".a.csv.lock").symlink_to(tmp_path / "none" / "lock")
    run(classifier, files[:2], folder / "a.csv")
    assert {file.name for file in folder.iterdir()} == {".a.csv.lock", "a.csv", "a.csv.run.json"}


@pytest.mark.parametrize("refusal", [errno.EAGAIN, errno.EACCES])  # EACCES: on an SMB share
def test_a_refused_lock_is_another_run(tmp_path, monkeypatch, refusal):
    def refuse(*_):
        raise OSError(refusal, "locked")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"a\.csv is being written by another run"), exclusive(tmp_path / "a.csv"):
        pass


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_a_run_that_locks_late_does_not_delete_the_output_of_another(tmp_path, monkeypatch, ended):
    output, flock = ScoreOutput(tmp_path / "a.csv", existing=Existing.OVERWRITE), fcntl.flock
    output.path.write_text("an older one")

    with ExitStack() as first:

        def late(*lock):  # the lock file was opened, and then others ran
            monkeypatch.setattr(fcntl, "flock", flock)
            for _ in range(ended):
                with output.locked():
                    output.path.write_text("ended")
            first.enter_context(output.locked())
            output.path.write_text("running")
            flock(*lock)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(InputError, match="is being written by another run"), output.locked():
            pass
        assert output.path.read_text() == "running"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_an_output_that_is_there_is_neither_lost_nor_mixed_with_another(classifier, files, tmp_path, tiny_folder):
    path = tmp_path / "a.csv"
    run(classifier, files[:20], path, models=["tiny"])
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"a\.csv exists already; --resume goes on with it, --overwrite"):
        run(classifier, files, path)
    with pytest.raises(InputError, match="batch_size 8, this run has 4"):
        run(classifier, files, path, existing=RESUME, batch_size=4)
    with pytest.raises(InputError, match="shard"):
        run(classifier, files, path, existing=RESUME, shard=Shard(0, 2))
    with pytest.raises(InputError, match="row radiograph, this run has study"):
        run(classifier, files, path, existing=RESUME, by_study=True)
    with pytest.raises(InputError, match="row 1 is"):
        run(classifier, files[1:], path, existing=RESUME)
    classifier.model.classifier.bias.data += 1e-2
    with pytest.raises(InputError, match=r"another model \(tiny\): this one scores a test pattern otherwise"):
        run(classifier, files, path, existing=RESUME)
    record = tmp_path / "a.csv.run.json"
    for damage in (lambda: record.write_text("{"), record.unlink):
        damage()
        with pytest.raises(InputError, match=r"a\.csv\.run\.json beside it, .* is missing or damaged"):
            run(classifier, files, path, existing=RESUME)
    assert path.read_bytes() == before
    run(classifier, files[1:3], path, existing=Existing.OVERWRITE)
    assert len(path.read_text().splitlines()) == 3
    assert json.loads(record.read_text())["batch_size"] == BATCH_SIZE


def test_a_finished_table_of_other_radiographs_is_refused(classifier, files, tmp_path):
    path = tmp_path / "a.parquet"
    run(classifier, files[:20], path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="is complete, and of other radiographs"):
        run(classifier, files[:21], path, existing=RESUME)
    assert path.read_bytes() == before


def test_a_run_that_was_killed_while_its_table_was_made_is_finished(classifier, files, tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    run(classifier, files, tmp_path / "whole.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(ScoreOutput, "finish", lambda *rest: 1 / 0)
        with pytest.raises(ZeroDivisionError, match="division"):
            run(classifier, files, path)
    assert path.with_name("a.parquet.views.jsonl").exists()
    assert run(classifier, files, path, existing=RESUME).resumed == NUM_FILES
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not path.with_name("a.parquet.views.jsonl").exists()


def test_an_unknown_format_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(InputError, match=r"a\.xlsx ends in \.xlsx, expected \.csv, \.jsonl, \.parquet"):
        ScoreOutput(tmp_path / "a.xlsx")


def test_overlays_are_there_for_every_row_whenever_the_run_is_killed(classifier, files, tmp_path, monkeypatch):
    overlays, path = tmp_path / "overlays", tmp_path / "a.csv"

    def made():
        return {str(path.parent.relative_to(overlays)) for path in overlays.rglob("Support Devices.png")}

    def scored():
        rows = pd.read_csv(path)
        return {os.path.relpath(name, folder) for name in rows.loc[rows["error"].isna(), "path"]}

    folder = os.path.commonpath(files[:20])
    write, calls = score_run.write_overlays, iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(score_run, "write_overlays", lambda *rest: write(*rest) and 1 / (10 - next(calls)))
        with pytest.raises(ZeroDivisionError, match="division"):
            run(classifier, files[:20], path, overlays=overlays)
    assert len(scored()) == 7
    assert scored() < made()
    run(classifier, files[:20], path, existing=RESUME, overlays=overlays)
    assert len(scored()) == 17
    assert scored() == made()


def test_maps_are_let_go_when_their_overlays_are_written(classifier, files, tmp_path, monkeypatch):
    alive = most = 0
    write = score_run.write_overlays

    def gone():
        nonlocal alive
        alive -= 1

    def counted(result, *rest):
        nonlocal alive, most
        weakref.finalize(result.prediction, gone)  # which holds the maps
        alive += 1
        most = max(most, alive)
        return write(result, *rest)

    monkeypatch.setattr(score_run, "write_overlays", counted)
    run(classifier, files[1:13], tmp_path / "a.csv", overlays=tmp_path / "overlays")
    assert most <= 2


def test_a_file_that_is_gone_when_its_overlay_is_made_is_an_error(classifier, files, tmp_path, monkeypatch):
    def gone(result: FileResult, *rest):
        raise RadiographError("File not found")

    monkeypatch.setattr(score_run, "write_overlays", gone)
    assert run(classifier, files[1:3], tmp_path / "a.csv", overlays=tmp_path / "o").failed == 2
