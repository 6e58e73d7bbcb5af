"""How it measures, not how fast: contenders in real processes on a tiny model, and the table from figures by hand."""

import copy
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chexpert_hf import CheXpertClassifier
from chexpert_hf.bench.contenders import RuntimeContender, radiographs, runtime_specs
from chexpert_hf.bench.measure import REFERENCE, Measurements, Spec, as_table, run_benchmark
from tests.benchmarks.peers import PipelineContender, peer_specs

from ..test_cli import run
from .recorder import Broken, Recorder


@pytest.fixture
def files(tmp_path) -> list[str]:
    folder = tmp_path / "radiographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (70, 60), dtype=np.uint8)).save(folder / f"{number}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def spec_of(folder) -> Spec:
    return Spec(REFERENCE, partial(RuntimeContender, str(folder), "torch", "fp32", 2, False), 2)


@pytest.mark.slow
def test_contenders_score_the_same_files_alike_and_a_broken_one_does_not_stop_the_others(tiny_folder, files):
    pipeline = Spec("transformers pipeline", partial(PipelineContender, str(tiny_folder), 2), 2)
    broken = Spec("chexpert-hf, torch bf16", partial(Broken, "no such folder"), 2)
    specs, said = [spec_of(tiny_folder), broken, pipeline], []
    ours, broken, pipeline = run_benchmark(specs, files, rounds=2, say=said.append)
    assert broken.failure == "OSError: no such folder"
    assert broken.end_to_end == []
    assert any("chexpert-hf, torch bf16 does not take part" in line for line in said)
    for figures in (ours, pipeline):
        assert figures.failure is None
        assert (len(figures.end_to_end), len(figures.model_only), len(figures.latencies)) == (2, 2, 20)
        assert min(figures.end_to_end + figures.model_only + figures.latencies) > 0
        assert figures.mebibytes > 100  # torch alone takes more
    assert ours.difference == 0
    assert pipeline.difference < 1e-5


def test_every_contenders_scores_are_the_models(tiny_folder, files):
    expected = [
        list(item.probabilities.values()) for item in CheXpertClassifier.from_pretrained(tiny_folder).predict(files)
    ]
    np.testing.assert_allclose(spec_of(tiny_folder).make().score(files), expected, atol=1e-6)
    np.testing.assert_allclose(PipelineContender(str(tiny_folder), 2).score(files), expected, atol=1e-6)


@pytest.mark.slow
def test_a_file_that_cannot_be_read_leaves_the_others_comparable(tiny_folder, files):
    Path(files[1]).write_bytes(b"no image")
    scores = spec_of(tiny_folder).make().score(files)
    assert np.isnan(scores).all(axis=1).tolist() == [False, True, False, False, False]
    ours, other = run_benchmark([spec_of(tiny_folder), spec_of(tiny_folder)], files, rounds=0, say=lambda line: None)
    assert ours.difference == other.difference == 0


def test_contenders_take_turns_in_an_order_that_is_turned_around(tmp_path, capfd):
    log = tmp_path / "turns.txt"
    specs = [Spec(name, partial(Recorder, name, str(log)), 1) for name in "abc"]
    results = run_benchmark(specs, ["file"] * 33, rounds=3, say=lambda line: None)
    assert log.read_text() == "abccbaabc"
    assert [figures.failure for figures in results] == [None] * 3
    assert "a library's output" not in "".join(capfd.readouterr())


def test_the_table_gives_medians_with_their_range_and_ratios_to_the_baseline():
    ours = Measurements(REFERENCE, False, [40.0, 60.0, 50.0], [80.0], [0.010] * 19 + [0.030], 1024.0, 0.0)
    peer = Measurements("torchxrayvision", False, [20.0, 25.0, 30.0], [35.0], [0.040], 512.0)
    failed = Measurements("chexpert-hf, openvino bf16", failure="not installed")
    header, *lines = as_table([ours, peer, failed], "torchxrayvision").splitlines()
    assert "x torchxrayvision" in header
    assert "50.0 (40.0 to 60.0)" in lines[0]
    assert " 2.00 " in lines[0]
    assert "10, 11 ms" in lines[0]
    assert "1,024 MiB" in lines[0]
    assert lines[2].endswith("did not take part: not installed")
    header, *lines = as_table([ours, peer]).splitlines()
    assert f"x {REFERENCE}" in header
    assert " 0.50 " in lines[1]


def test_int8_takes_part_only_where_the_model_folder_has_such_a_graph(tiny_folder, monkeypatch):
    monkeypatch.setattr("chexpert_hf.bench.contenders.find_spec", lambda name: object())
    names = [spec.name for spec in runtime_specs(tiny_folder, 8, saliency=False)]
    assert "chexpert-hf, openvino bf16" in names
    assert "chexpert-hf, openvino int8" not in names
    (tiny_folder / "openvino").mkdir()
    (tiny_folder / "openvino" / "openvino_model_int8.xml").touch()
    assert "chexpert-hf, openvino int8" in [spec.name for spec in runtime_specs(tiny_folder, 8, saliency=False)]
    assert {spec.saliency for spec in runtime_specs(tiny_folder, 8, saliency=True)} == {False, True}


@pytest.mark.parametrize("saliency", [False, True])
def test_peers_run_by_their_own_steps(tiny_folder, files, saliency):
    peers = [spec for spec in peer_specs(tiny_folder, 2, saliency) if "pipeline" not in spec.name]
    if not peers:
        pytest.skip("no such peer is installed")
    for spec in peers:
        contender = spec.make()
        assert contender.score(files[:2]) is None  # other labels, or maps: nothing to compare
        contender.forward_batches(2)


@pytest.mark.parametrize("count", [1, 2])
def test_the_network_alone_computes_as_many_images_as_it_says_and_as_scoring_does(tiny_folder, monkeypatch, count):
    contender, computed = RuntimeContender(str(tiny_folder), "torch", "fp32", 8, False), []
    classifier = contender.classifier
    workers = [copy.copy(classifier) for _ in range(count)]
    for number, worker in enumerate(workers):
        ask = lambda values, saliency, number=number: computed.append((number, len(values))) or (values, None)  # noqa: E731
        worker.runtime = ask
    if count == 1:
        classifier.runtime = workers[0].runtime
    contender.workers = workers
    contender.forward_batches(3)
    assert [size for _, size in computed] == ([8] * 3 if count == 1 else [4] * 6)
    assert {number for number, _ in computed} <= set(range(count))


def test_phantoms_stand_in_for_radiographs_and_a_folders_are_taken_up_to_the_limit(files, tmp_path):
    drawn = radiographs(None, 3, tmp_path / "phantoms")
    assert [Image.open(path).size for path in drawn] == [(390, 390)] * 3
    assert radiographs(tmp_path / "radiographs", 2, tmp_path) == files[:2]


@pytest.mark.slow
def test_bench_prints_json_that_holds_every_figure(monkeypatch, capsys, tiny_folder, files, tmp_path):
    arguments = [
        "bench",
        tmp_path / "radiographs",
        "--model",
        tiny_folder,
        "--rounds",
        1,
        "--only",
        "torch fp32",
        "--json",
    ]
    code, out, _ = run(monkeypatch, capsys, *arguments)
    assert code == 0
    (result,) = json.loads(out)["results"]
    assert result["name"] == "chexpert-hf, torch fp32"
    assert len(result["end_to_end"]) == 1
    code, _, err = run(monkeypatch, capsys, "bench", "--model", tiny_folder, "--only", "tensorrt")
    assert (code, "No runtime's name has 'tensorrt' in it" in err) == (2, True)
    code, _, err = run(monkeypatch, capsys, "bench", "--model", tmp_path / "radiographs")
    assert (code, "holds no config.json; expected a model folder" in err) == (2, True)
