"""Saved models in a process that cannot import this package, as others load and fine-tune them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from chexpert_hf import CheXpertClassifier, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.default_model import DEFAULT_MODEL
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.models.model_files import differences, missing_files
from chexpert_hf.phantoms import render_phantom
from chexpert_hf.publishing.model_folder import REFERENCE_PHANTOM

# Each script has a process of its own, with the libraries imported and none of the models' code.
RUNNER = """
import json, os, sys
sys.modules["chexpert_hf"] = None  # any import of it fails
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, Trainer, pipeline

for line in sys.stdin:
    script, log, *arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv[1:] = arguments
        exec(script, {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Others:
    """Runs scripts in processes that cannot import this package."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process, self._log = process, log

    def run(self, script: str, *arguments: Path) -> dict[str, Any]:
        """The object that a script prints as JSON."""
        self._log.unlink(missing_ok=True)
        print(json.dumps([script, *map(str, (self._log, *arguments))]), file=self._process.stdin, flush=True)
        code, output = self._process.stdout.readline(), self._log.read_text()
        assert code == "0\n", output
        return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Others]:
    folder = tmp_path_factory.mktemp("others")
    settings = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | settings,
    ) as process:
        yield Others(process, folder / "log")
        process.stdin.close()


ISOLATED = """
import json, sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
folder, image = sys.argv[1:]
model, info = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(Image.open(image), return_tensors="pt")).logits
scores = pipeline("image-classification", model=folder, trust_remote_code=True)(image, top_k=14)
print(json.dumps({
    "logits": logits[0].tolist(),
    "problems": [str(keys) for keys in info.values() if keys],
    "scores": {score["label"]: score["score"] for score in scores},
}))
"""


@pytest.mark.slow
def test_a_saved_folder_works_in_a_process_that_cannot_import_this_package(others, tiny_folder, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    processor = CheXpertImageProcessor.from_pretrained(tiny_folder)
    # Loaded, too: weights mapped from a file are aligned otherwise in memory, which changes the last bits of a sum.
    loaded = CheXpertForImageClassification.from_pretrained(tiny_folder)
    with torch.no_grad():
        expected = loaded(**processor(image, return_tensors="pt")).logits[0]
    answer = others.run(ISOLATED, tiny_folder, tmp_path / "image.png")
    assert answer["problems"] == []
    assert answer["logits"] == expected.tolist()
    assert list(answer["scores"]) == sorted(OBSERVATIONS, key=answer["scores"].get, reverse=True)
    for name, probability in zip(OBSERVATIONS, expected.sigmoid().tolist(), strict=True):
        assert answer["scores"][name] == pytest.approx(probability, abs=1e-6)


PIPELINE = """
import json, sys
from transformers import pipeline
scores = pipeline("image-classification", sys.argv[1], trust_remote_code=True)(sys.argv[2], top_k=11)
print(json.dumps({score["label"]: score["score"] for score in scores}))
"""


def test_a_copy_is_a_complete_model_folder_that_transformers_loads_without_the_package(others, tmp_path):
    copy = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    assert not any(path.is_symlink() for path in copy.iterdir())
    assert missing_files(copy) == []
    assert differences(copy) == []
    image = Image.fromarray(render_phantom(**REFERENCE_PHANTOM).image)
    image.save(tmp_path / "phantom.png")
    scores = others.run(PIPELINE, copy, tmp_path / "phantom.png")
    reference = json.loads((DEFAULT_MODEL / "reference.json").read_text())["probabilities"]
    assert scores == pytest.approx(reference, abs=1e-5)


STOCK_TRAINER = """
import json, sys
import torch
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

folder, output = sys.argv[1:]
torch.manual_seed(0)
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
images = torch.randn(24, 3, 64, 64)
rows = [
    {"pixel_values": image, "labels": (torch.rand(14) < 0.5).float()} for image in images
]
shapes = []

def compute_metrics(prediction):
    shapes.append([prediction.predictions.shape, prediction.label_ids.shape])
    return {"accuracy": float(((prediction.predictions > 0) == prediction.label_ids).mean())}

trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=output,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    ),
    train_dataset=rows[:16],
    eval_dataset=rows[16:],
    compute_metrics=compute_metrics,
)
trainer.train()
with torch.no_grad():
    batch = torch.utils.data.default_collate(rows[16:])
    loss = trainer.model.eval()(**batch).loss.item()
print(json.dumps({
    "logs": [log for log in trainer.state.log_history if "eval_loss" in log],
    "best": trainer.state.best_metric,
    "shapes": shapes,
    "loss": loss,
    "evaluated": trainer.evaluate()["eval_loss"],
}))
"""


def test_the_stock_trainer_evaluates_and_keeps_the_best_model(others, tiny_folder, tmp_path):
    report = others.run(STOCK_TRAINER, tiny_folder, tmp_path)
    assert report["shapes"] == [[[8, 14], [8, 14]]] * 3  # once each epoch, and once at the end
    assert [log["epoch"] for log in report["logs"]] == [1, 2]
    assert report["best"] == max(log["eval_accuracy"] for log in report["logs"])
    assert abs(report["evaluated"] - report["loss"]) < 1e-6
    best = max(report["logs"], key=lambda log: log["eval_accuracy"])
    assert abs(best["eval_loss"] - report["loss"]) < 1e-5


RUN_IMAGE_CLASSIFICATION = """
import json, sys
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline
)

folder, output = sys.argv[1:]
labels = ["TB", "Normal"]
config = AutoConfig.from_pretrained(
    folder,
    num_labels=len(labels),
    label2id={label: str(index) for index, label in enumerate(labels)},
    id2label={str(index): label for index, label in enumerate(labels)},
    finetuning_task="image-classification",
    trust_remote_code=True,
)
model = AutoModelForImageClassification.from_pretrained(
    folder, config=config, ignore_mismatched_sizes=True, trust_remote_code=True
)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)

rng = np.random.default_rng(0)
images = [Image.fromarray(rng.integers(120 * (n % 2), 120 * (n % 2) + 120, (64, 64), np.uint8)) for n in range(32)]
rows = [
    {"pixel_values": processor(image, return_tensors="pt")["pixel_values"][0], "labels": n % 2}
    for n, image in enumerate(images)
]
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=output, num_train_epochs=8, per_device_train_batch_size=8, learning_rate=1e-2,
        eval_strategy="epoch", use_cpu=True, report_to="none", disable_tqdm=True,
    ),
    train_dataset=rows[:24],
    eval_dataset=rows[24:],
    compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(axis=1) == p.label_ids).mean())},
    processing_class=processor,
    data_collator=lambda batch: {
        "pixel_values": torch.stack([row["pixel_values"] for row in batch]),
        "labels": torch.tensor([row["labels"] for row in batch]),
    },
)
trainer.train()
trainer.save_model()
again = AutoModelForImageClassification.from_pretrained(output, trust_remote_code=True)
batch = torch.stack([row["pixel_values"] for row in rows[:4]])
with torch.no_grad():
    difference = (again(batch).logits - trainer.model.eval()(batch).logits).abs().max().item()
print(json.dumps({
    "metrics": trainer.evaluate(),
    "difference": difference,
    "scores": pipeline("image-classification", model=output, trust_remote_code=True)(images[:2], top_k=2),
}))
"""


def test_code_like_run_image_classification_fine_tunes_two_classes(others, tiny_folder, tmp_path):
    report = others.run(RUN_IMAGE_CLASSIFICATION, tiny_folder, tmp_path)
    assert report["metrics"]["eval_accuracy"] == 1
    assert report["difference"] < 1e-5
    assert [scores[0]["label"] for scores in report["scores"]] == ["TB", "Normal"]
    assert {score["label"] for score in report["scores"][0]} == {"TB", "Normal"}
    classifier = CheXpertClassifier.from_pretrained(tmp_path)
    assert classifier.operating_points == {"TB": 0.5, "Normal": 0.5}
