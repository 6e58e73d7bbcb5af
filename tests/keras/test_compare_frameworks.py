import pytest
import yaml

pytest.importorskip("keras")

from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.training.recipe import Recipe
from tests.conftest import TINY
from train import compare_frameworks


def figures_of(name, **changes):
    return {
        "name": name, "training": 10.0, "cpu_per_image": 0.2, "inference": 30.0, "first_steps": 1.5, "peak": 1000.0,
        "before": 500.0, "auroc": 0.75, "studies": 40, "mean_over": ["Edema"], "images": 100, "logits": 0.0,
        "saliency": 0.0, **changes,
    }  # fmt: skip


def test_pytorch_and_keras_on_its_pytorch_begin_with_the_same_scores(tmp_path, capsys, monkeypatch):
    write_phantoms(tmp_path / "data", num_studies=24, seed=1, valid_fraction=0.3)
    recipe = tmp_path / "tiny.yaml"
    values = {"observations": ["Cardiomegaly", "Edema"], "architecture": TINY, "init": "random"}
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setattr(compare_frameworks, "contenders", lambda: ["PyTorch", "Keras torch", "Keras nonsense"])
    options = ["--recipe", str(recipe), "--output", str(tmp_path / "out"), "--image-size", "32", "--batch-size", "4"]
    assert compare_frameworks.main([str(tmp_path / "data"), *options, "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    table = [line.split(" | ") for line in printed.splitlines() if line.startswith(("| PyTorch |", "| Keras torch |"))]
    assert len(table) == 2
    for row in table:
        training, cpu, inference = (float(cell) for cell in row[1:4])
        assert min(training, cpu, inference) > 0
        logits, maps = (float(cell.strip(" |")) for cell in row[-2:])
        assert logits < 1e-4
        assert maps < 1e-3
    assert "Keras nonsense is skipped: " in printed
    assert (tmp_path / "out" / "frameworks.md").read_text(encoding="utf-8") in printed
    assert compare_frameworks.main([str(tmp_path / "data"), *options]) == 2
    assert "is there already; choose a new folder" in capsys.readouterr().err


def test_the_table_says_what_it_does_and_does_not_show():
    table = compare_frameworks.as_markdown([figures_of("PyTorch"), figures_of("Keras jax", logits=3e-6)], Recipe())
    header, rule, first, second, *words = table.splitlines()
    assert len({line.count("|") for line in (header, rule, first, second)}) == 1
    assert "| Keras jax | 10.0 | 0.200 | 30.0 | 1.5 | 1,000 | 500 | 0.750 | 3e-06 | 0e+00 |" in second
    text = " ".join(words)
    assert "DenseNet121 from imagenet weights, 320 pixels" in text
    assert "The table does not show" in text
