"""Transformers' own ways to fine-tune a saved model: the stock Trainer, and other labels."""

import json
import os
import subprocess
import sys
from pathlib import Path

STOCK_TRAINER = """
import json, sys
sys.modules["chexpert_hf"] = None  # any import of it fails
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


def run_without_this_package(script: str, *arguments: Path) -> dict:
    """Runs a script in which the model's code comes from the folder alone; returns its last line of output."""
    process = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=arguments[-1],
        env=os.environ | {"HF_HOME": str(arguments[-1] / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_the_stock_trainer_evaluates_and_keeps_the_best_model(tiny_folder, tmp_path):
    report = run_without_this_package(STOCK_TRAINER, tiny_folder, tmp_path)
    assert report["shapes"] == [[[8, 14], [8, 14]]] * 3  # once each epoch, and once at the end
    assert [log["epoch"] for log in report["logs"]] == [1, 2]
    assert report["best"] == max(log["eval_accuracy"] for log in report["logs"])
    assert abs(report["evaluated"] - report["loss"]) < 1e-6
    best = max(report["logs"], key=lambda log: log["eval_accuracy"])
    assert abs(best["eval_loss"] - report["loss"]) < 1e-5
