"""Order, equality whatever the neighbours, bounded memory, and an end to every thread."""

import copy
import gc
import threading
import time
import weakref
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.folders import score_run
from chexpert_hf.folders.readers import read_ahead, read_for, read_in_waves
from chexpert_hf.folders.score_output import Existing, ScoreOutput
from chexpert_hf.folders.scoring import FileResult, common_folder, overlay_folder, score_files, write_overlays
from chexpert_hf.radiographs.finding import find_radiographs
from chexpert_hf.radiographs.radiograph import RadiographError
from tests.conftest import TINY


@pytest.fixture
def classifier(tiny_folder):
    return CheXpertClassifier.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(7):
        path = tmp_path / "in" / f"{number // 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Some of one size, since the image processor resizes those together.
        Image.fromarray(rng.integers(0, 256, (90, 80 + number // 2), dtype=np.uint8)).save(path)
    return tmp_path / "in"


def scores(results):
    return {
        str(result.path): result.prediction and tuple(result.prediction.probabilities.values()) for result in results
    }


def test_a_bad_file_is_reported_in_its_place_and_changes_no_bit_of_the_others(folder, classifier):
    files = find_radiographs([folder]).files
    whole = scores(score_files(classifier, files, batch_size=3))
    assert list(whole) == files
    for bad in (0, 4, 6):
        with open(files[bad], "rb+") as file:
            file.write(b"text")
    results = list(score_files(classifier, files, batch_size=3))
    assert scores(results) == {name: None if files.index(name) in (0, 4, 6) else whole[name] for name in files}
    assert all(len(results[bad].error.splitlines()) == 1 for bad in (0, 4, 6))


def test_scores_are_the_classifiers_own(folder, classifier):
    for result in score_files(classifier, find_radiographs([folder]).files, batch_size=3):
        expected = classifier.predict(result.path).probabilities
        assert result.prediction.probabilities == pytest.approx(expected, abs=1e-6)
        assert result.error is None


def test_a_row_has_the_same_bits_alone_and_among_others(folder, classifier):
    files = find_radiographs([folder]).files
    whole = scores(score_files(classifier, files, batch_size=4))
    for start in (0, 4):
        assert scores(score_files(classifier, files[start : start + 4], batch_size=4)).items() <= whole.items()
    assert scores(score_files(classifier, files[4:5], batch_size=4)).items() <= whole.items()


def test_every_forward_has_full_batches(folder, classifier):
    sizes = []
    classifier.model.register_forward_hook(lambda _, __, output: sizes.append(len(output.logits)))
    assert len(list(score_files(classifier, find_radiographs([folder]).files, batch_size=3))) == 7
    assert sizes == [3, 3, 3]


@pytest.fixture
def radiograph_threads():
    """Lists the threads that read radiographs, but for those that were there before the test."""
    before = set(threading.enumerate())
    return lambda: [one for one in threading.enumerate() if one.name.startswith("radiographs") and one not in before]


@pytest.fixture
def side_by_side(classifier, monkeypatch):
    """Two copies of a classifier, as of a runtime that computes side by side; what each was asked for is kept."""
    copies, asked = [copy.copy(classifier) for _ in range(2)], []
    for number, one in enumerate(copies):

        def predict(prepared, *, number=number, ask=one.predict_prepared, **options):
            prepared = list(prepared)
            asked.append((number, len(prepared), threading.get_ident()))
            return ask(prepared, **options)

        one.predict_prepared = predict
    monkeypatch.setattr(classifier, "side_by_side", lambda: copies)
    return asked


def test_side_by_side_all_files_are_scored_in_order_and_bad_ones_told(
    folder, classifier, side_by_side, monkeypatch, one_thread
):
    files = find_radiographs([folder]).files
    with open(files[5], "rb+") as file:
        file.write(b"text")
    found = list(score_files(classifier, files * 6, batch_size=16))
    assert [result.path for result in found] == files * 6
    assert [result.error is None for result in found] == [number % 7 != 5 for number in range(42)]
    assert {size for _, size, _ in side_by_side} == {4}  # full batches, the last one filled up
    assert {number for number, _, _ in side_by_side} == {0, 1}
    assert len({thread for _, _, thread in side_by_side}) == 2
    monkeypatch.setattr(classifier, "side_by_side", lambda: [classifier])
    assert scores(found) == scores(score_files(classifier, files * 6, batch_size=4))


def test_side_by_side_radiographs_are_scored_with_maps_and_one_at_a_time_by_the_classifier_itself(
    folder, classifier, side_by_side
):
    files = find_radiographs([folder]).files
    assert all(
        result.prediction.maps["Edema"].shape[0] == 90 for result in score_files(classifier, files, saliency=True)
    )
    side_by_side.clear()
    assert len(list(score_files(classifier, files, batch_size=1))) == 7
    assert side_by_side == []


def test_side_by_side_to_stop_early_ends_the_threads(folder, classifier, side_by_side, radiograph_threads):
    results = score_files(classifier, find_radiographs([folder]).files * 20, batch_size=2)
    assert next(results).error is None
    results.close()
    assert radiograph_threads() == []
    assert len(side_by_side) <= 5  # what had begun, and as much ahead


def test_members_of_an_archive_score_as_their_files_do(folder, classifier, tmp_path):
    with zipfile.ZipFile(tmp_path / "scans.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
        archive.writestr("3.png", "text")
    files = scores(score_files(classifier, find_radiographs([folder]).files, batch_size=4))
    members = list(score_files(classifier, find_radiographs([tmp_path / "scans.zip"]).files, batch_size=4))
    assert len(members) == 8
    assert "content is none of these" in members[7].error
    assert list(scores(members[:7]).values()) == list(files.values())


def test_results_come_in_order_whatever_finishes_first():
    begun = threading.Barrier(2)

    def slow(number):
        if number < 2:
            begun.wait(5)  # both threads are at work at once
        if number % 2 == 0:
            time.sleep(0.01)
        return number

    assert list(read_ahead(slow, range(20), threads=2, ahead=4)) == list(range(20))


def test_no_more_is_read_ahead_than_asked_for():
    taken, done = 0, 0

    def items():
        nonlocal taken
        for number in range(100):
            taken += 1
            assert taken - done <= 6
            yield number

    for _ in read_ahead(lambda number: number, items(), threads=2, ahead=5):
        done += 1
    assert (taken, done) == (100, 100)


def test_as_many_images_are_alive_for_many_files_as_for_few(folder, classifier, monkeypatch):
    alive = most = 0
    lock = threading.RLock()  # an image may go while another is counted
    read = classifier.read

    def gone():
        nonlocal alive
        with lock:
            alive -= 1

    def counted(source):
        nonlocal alive, most
        image = read(source)
        weakref.finalize(image, gone)
        with lock:
            alive += 1
            most = max(most, alive)
        return image

    monkeypatch.setattr(classifier, "read", counted)
    peaks = []
    files = find_radiographs([folder]).files
    for times in (2, 20):
        most = 0
        count = sum(1 for _ in score_files(classifier, files * times, batch_size=3))
        assert count == 7 * times
        peaks.append(most)
        gc.collect()
        assert alive == 0
    # The last batch, the next that is gathered, as many ahead of it, and the one that was just taken.
    assert max(peaks) <= 3 * 3 + 1


def test_to_stop_early_ends_the_threads(folder, classifier, radiograph_threads):
    results = score_files(classifier, find_radiographs([folder]).files * 20, batch_size=2)
    assert next(results).error is None
    assert radiograph_threads()  # one or two: the pool starts a thread only if none is idle
    results.close()
    assert radiograph_threads() == []


def test_threads_end_when_the_network_fails(folder, classifier, radiograph_threads):
    classifier.model.register_forward_hook(lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division") as caught:
        list(score_files(classifier, find_radiographs([folder]).files * 20, batch_size=2))
    assert radiograph_threads() == []
    assert caught.tb  # which holds the frames, so that nothing was closed for want of a reference


@pytest.mark.parametrize("fault", [ZeroDivisionError("a bug"), KeyboardInterrupt("stopped")])
def test_what_a_thread_raises_comes_in_its_place_and_ends_the_threads(fault, radiograph_threads):
    def read(number):
        if number == 3:
            raise fault
        return number

    results = read_ahead(read, range(1000), threads=2, ahead=8)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(fault), match=str(fault)):
        next(results)
    assert radiograph_threads() == []


def test_to_stop_drops_what_has_not_begun():
    begun = []
    go = threading.Event()

    def read(number):
        begun.append(number)
        if number:
            go.wait(5)

    results = read_ahead(read, range(100), threads=1, ahead=50)
    next(results)
    threading.Timer(0.05, go.set).start()
    results.close()
    assert len(begun) <= 3


def test_overlays_of_files_with_one_name_do_not_meet(folder, classifier, tmp_path):
    (folder / "1" / "3.png").rename(folder / "1" / "0.png")
    (folder / "1" / "0_png").write_bytes((folder / "1" / "0.png").read_bytes())
    with zipfile.ZipFile(folder / "0.zip", "w") as archive:
        archive.write(folder / "0" / "0.png", "0/0.png")
    files = find_radiographs([folder, folder / "0.zip"]).files
    common = common_folder(files)
    assert common == folder
    written = set()
    for result in score_files(classifier, files, saliency=True):
        paths = write_overlays(result, overlay_folder(result.path, common, tmp_path / "out"), ["Edema", "Fracture"])
        with Image.open(paths[0]) as image:
            assert image.height == 90
        written.update(paths)
    assert len(written) == 2 * len(files) == 18
    assert tmp_path / "out" / "1" / "0.png" / "Edema.png" in written
    assert tmp_path / "out" / "0.zip" / "0" / "0.png" / "Fracture.png" in written


def test_the_picture_of_an_empty_map_says_so_and_that_of_another_is_the_overlay(classifier, tmp_path):
    Image.new("L", (300, 200), 128).save(tmp_path / "a.png")
    result = next(score_files(classifier, [tmp_path / "a.png"], saliency=True))
    maps = result.prediction.maps
    positive = torch.ones_like(maps.positive)
    positive[list(maps.observations).index("Edema")] = 0
    half = replace(result, prediction=replace(result.prediction, saliency=replace(maps, positive=positive)))
    empty, full = (
        np.asarray(Image.open(path)) for path in write_overlays(half, tmp_path / "out", ["Edema", "Fracture"])
    )
    strip = empty[:20, :150]
    assert {0, 255} <= {*strip.ravel().tolist()}  # white text on black
    assert (empty[40:] == 128).all()  # the radiograph
    assert (full == full[0, 0]).all()
    assert full[0, 0].tolist() != [128] * 3


def test_the_overlay_of_a_label_that_cannot_be_a_file_name_is_written_all_the_same(tmp_path):
    config = CheXpertConfig(**TINY, id2label=dict(enumerate(["Nodule/Mass", "..", "Lesion: other"])))
    classifier = CheXpertClassifier(CheXpertForImageClassification(config), CheXpertImageProcessor())
    Image.new("L", (30, 20), 128).save(tmp_path / "a.png")
    result = FileResult(tmp_path / "a.png", classifier.predict(tmp_path / "a.png", saliency=True))
    write_overlays(result, tmp_path / "out", classifier.observations)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"Nodule_Mass.png", "...png", "Lesion_ other.png"}


def test_overlays_need_maps(tmp_path):
    with pytest.raises(ValueError, match="has no maps"):
        write_overlays(FileResult("a.png"), tmp_path, ["Edema"])


def test_a_radiograph_error_is_a_result_and_no_end(classifier, monkeypatch, folder):
    def refuse(source):
        raise RadiographError("all are bad")

    monkeypatch.setattr(classifier, "read", refuse)
    results = list(score_files(classifier, find_radiographs([folder]).files, batch_size=3))
    assert [result.error for result in results] == ["all are bad"] * 7


def test_between_the_batches_of_a_network_on_a_cpu_a_wave_is_read_and_nothing_while_it_computes():
    begun = []
    waves = read_in_waves(lambda item: begun.append(item) or -item, range(7), wave=3)
    assert next(waves) == 0
    assert sorted(begun) == [0, 1, 2]
    assert [next(waves), next(waves)] == [-1, -2]
    assert len(begun) == 3
    assert list(waves) == [-3, -4, -5, -6]


def test_a_gpu_is_read_for_while_it_computes(classifier, monkeypatch):
    monkeypatch.setattr(classifier.runtime, "is_on_cpu", False)
    begun = []
    ahead = read_for(classifier, lambda item: begun.append(item) or item, range(40), batch_size=8)
    next(ahead)
    next(ahead)
    assert len(begun) > 1
    assert list(ahead) == list(range(2, 40))


def test_a_gpu_has_the_next_batch_before_the_rows_of_one_are_made(folder, classifier, monkeypatch):
    files = find_radiographs([folder]).files
    expected = scores(score_files(classifier, files, batch_size=2))
    begun = []
    classifier.model.register_forward_hook(lambda *_: begun.append(len(begun)))
    monkeypatch.setattr(classifier.runtime, "is_on_cpu", False)
    results = score_files(classifier, files, batch_size=2)
    first = next(results)
    assert begun == [0, 1]
    assert scores([first, *results]) == expected
    assert len(begun) == 4


def test_a_long_run_is_compiled_whatever_is_left_of_it(folder, classifier, monkeypatch, tmp_path):
    files, asked = find_radiographs([folder]).files, []
    monkeypatch.setattr(score_run, "COMPILED_FROM", 6)
    monkeypatch.setattr(classifier.runtime, "compiled", lambda: asked.append(1) or copy.copy(classifier.runtime))
    for shard, compiled in ((score_run.Shard(0, 2), 0), (score_run.Shard(), 1)):
        output = ScoreOutput(tmp_path / f"{compiled}.csv", existing=Existing.RESUME)
        score_run.score_to_file(classifier, files, output, batch_size=2, shard=shard)
        assert len(asked) == compiled
    output.path.write_text("".join(output.path.read_text().splitlines(keepends=True)[:5]))
    assert score_run.score_to_file(classifier, files, output, batch_size=2).resumed == 4
    assert len(asked) == 2


def test_readers_leave_the_networks_threads_alone():
    """Torch in a reader must not start helpers, and what is said in the reader must not reach the network's thread."""
    before = torch.get_num_threads()
    assert set(read_in_waves(lambda _: torch.get_num_threads(), range(4), wave=4)) == {1}
    assert torch.get_num_threads() == before
