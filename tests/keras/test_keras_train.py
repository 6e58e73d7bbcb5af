import json

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("keras")

import keras
from transformers import AutoModelForImageClassification, get_scheduler

from chexpert_hf import CheXpertClassifier, CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.evaluation.report.reporting import evaluate_dataset
from chexpert_hf.formats import keras as twins
from chexpert_hf.modeling_chexpert import masked_mean
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.training.data import load_data
from chexpert_hf.training.recipe import Recipe, RecipeError
from tests.conftest import TINY
from train import keras_train
from train.ordered_batches import OrderedBatches

OBSERVATIONS = ("Cardiomegaly", "Edema", "Pleural Effusion")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms") / "data"
    write_phantoms(root, num_studies=24, seed=1, valid_fraction=0.3)
    return root


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    values = {
        "observations": list(OBSERVATIONS), "init": "random", "architecture": TINY, "num_channels": 1, "image_size": 32,
        "epochs": 2, "batch_size": 8, "learning_rate": 0.01, "frontal_only": True, "workers": 0,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def rows_of(count, channels=1, size=32):
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 2, (count, len(OBSERVATIONS)), generator=generator).float()
    labels[::3, 1] = -100
    gray = torch.randint(0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8)
    return [{"pixel_values": image, "labels": label} for image, label in zip(gray, labels, strict=True)]


def processor_of():
    return CheXpertImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5], image_std=[0.25])


def tiny_model(**fields):
    torch.manual_seed(1)
    names = dict(enumerate(OBSERVATIONS))
    return CheXpertForImageClassification(CheXpertConfig(**{**TINY, "num_channels": 1, "id2label": names, **fields}))


def test_the_loss_is_the_models():
    logits = torch.randn(5, 3) * 3
    labels = torch.tensor([[1, 0, -100], [0.7, 0, 1], [0, -100, -100], [1, 1, 0], [-100, 0, 0.2]])
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    expected = masked_mean(losses, labels != -100).item()
    ours = keras.ops.convert_to_numpy(keras_train.masked_cross_entropy(labels.numpy(), logits.numpy()))
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    nothing = keras_train.masked_cross_entropy(np.full((2, 3), -100, "float32"), logits.numpy()[:2])
    assert float(keras.ops.convert_to_numpy(nothing)) == 0


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_learning_rates_are_the_trainers(schedule, warmup):
    recipe = Recipe(schedule=schedule, warmup=warmup, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    name = "constant_with_warmup" if warmup and schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=int(20 * warmup), num_training_steps=20)
    ours = keras_train.RecipeSchedule(recipe, 20)
    for step in range(20):
        assert float(keras.ops.convert_to_numpy(ours(step))) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.1, "max_grad_norm": 0.5, "schedule": "cosine"}])
def test_weights_after_some_steps_are_those_of_pytorch(changes):
    recipe = Recipe(num_channels=1, image_size=32, batch_size=8, learning_rate=1e-3, **changes)
    model = tiny_model()
    batches = OrderedBatches(rows_of(32), recipe, processor_of())
    twin = twins.from_torch(model, processor_of())
    keras_train.compiled(twin, recipe, 4).fit(keras_train.EpochBatches(batches, 0), shuffle=False, verbose=0)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    schedule = get_scheduler(recipe.schedule, optimizer, num_warmup_steps=0, num_training_steps=4)
    model.train()
    for number in range(4):
        pixel_values, targets = map(torch.from_numpy, batches.batch(0, number))
        optimizer.zero_grad()
        model(pixel_values, labels=targets).loss.backward()
        if recipe.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
    after = twins.state_dict(twin)
    for name, parameter in model.named_parameters():
        if name == "features.norm0.weight":
            continue  # BatchNorm follows: its gradient is 0, and Adam makes steps of the noise in it
        moved = (parameter - before[name]).abs().mean()
        assert (parameter - after[name]).abs().mean() < 0.03 * moved, name
    running_mean = "features.norm0.running_mean"
    torch.testing.assert_close(after[running_mean], model.state_dict()[running_mean], rtol=1e-3, atol=1e-4)


def test_images_come_in_the_order_of_the_epoch_each_once():
    seen = []

    class Recording(OrderedBatches):
        def batch(self, epoch, number):
            pixel_values, targets = super().batch(epoch, number)
            seen.append((epoch, number))
            return pixel_values, targets

    recipe = Recipe(num_channels=1, image_size=32, batch_size=8)
    batches = Recording(rows_of(20), recipe, processor_of())
    assert batches.steps_per_epoch == 3
    assert sorted(batches.order(0)) == list(range(20))
    assert list(batches.order(0)) != list(batches.order(1))
    assert OrderedBatches(rows_of(20), recipe, processor_of(), drop_last=True).steps_per_epoch == 2
    scorer = keras_train.compiled(twins.from_torch(tiny_model(), processor_of()), recipe, 6)
    for epoch in range(2):
        scorer.fit(keras_train.EpochBatches(batches, epoch), shuffle=False, verbose=0)
    # TensorFlow looks at the first batches of each epoch for their shapes.
    for epoch in range(2):
        assert [number for e, number in seen if e == epoch][-3:] == [0, 1, 2]


def test_a_frozen_backbone_stays_as_it_is_statistics_included():
    twin = twins.from_torch(tiny_model(head_hidden_size=5), processor_of())
    before = twins.state_dict(twin)
    keras_train.freeze_backbone(twin)
    recipe = Recipe(num_channels=1, image_size=32, batch_size=8, learning_rate=0.01, freeze_backbone=True)
    batches = OrderedBatches(rows_of(16), recipe, processor_of())
    keras_train.compiled(twin, recipe, 2).fit(keras_train.EpochBatches(batches, 0), shuffle=False, verbose=0)
    changed = {name for name, tensor in twins.state_dict(twin).items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias"}


def test_a_run_leaves_a_model_folder_that_says_the_same(phantoms, recipe_file, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = [str(phantoms), "--recipe", str(recipe_file), "--output", str(output), "--policy", "u-zeros"]
    assert keras_train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "epoch 2 of 2" in printed
    recorded = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    recipe = Recipe.load(output / "recipe.yaml")
    assert recipe.policies == dict.fromkeys(OBSERVATIONS, "u-zeros")
    classifier = CheXpertClassifier.from_pretrained(output)
    assert classifier.model.config.uncertainty_policies == recipe.policies
    again = evaluate_dataset(classifier, load_data(recipe, phantoms)["valid"])
    for ours, theirs in zip(again.observations, recorded["observations"], strict=True):
        assert theirs["auroc"] is None or ours.auroc == pytest.approx(theirs["auroc"], abs=0.02), ours.observation
    assert "## " in (output / "README.md").read_text(encoding="utf-8")
    assert type(AutoModelForImageClassification.from_pretrained(output)).__name__ == "CheXpertForImageClassification"

    second = tmp_path / "second"
    more = ["--model", str(output), "--epochs", "1", "--image-size", "32", "--num-channels", "1", "--frontal-only"]
    with_folder = tmp_path / "fine-tune.yaml"
    with_folder.write_text(yaml.safe_dump({"observations": list(OBSERVATIONS), "batch_size": 8}), encoding="utf-8")
    more += ["--recipe", str(with_folder), "--freeze-backbone", "--output", str(second)]
    assert keras_train.main([str(phantoms), *more]) == 0
    first, last = (CheXpertClassifier.from_pretrained(folder).model.state_dict() for folder in (output, second))
    assert {n.split(".")[0] for n in first if not torch.equal(first[n], last[n]) and "num_batches" not in n} == {
        "classifier"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "u-multiclass"}, "The policy of No Finding is u-multiclass, expected u-ignore, u-zeros, u-ones"),
        ({"policy": "Edema=u-ones+lsr"}, r"The policy of Edema is u-ones\+lsr"),
        ({"precision": "bf16"}, "precision is 'bf16', expected 'fp32' in Keras"),
        ({"class_weights": True}, "class_weights is True, expected False"),
        ({"checkpoint": "best"}, "checkpoint is 'best', expected 'last'"),
        ({"epochs": 1.5}, "epochs is 1.5, expected a whole number"),
    ],
)
def test_what_is_not_done_in_keras_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        keras_train.check_recipe(Recipe().override(**{"checkpoint": "last", **changes}))


def test_bad_input_is_one_line_and_exit_code_2(phantoms, recipe_file, tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    arguments = [str(phantoms), "--recipe", str(recipe_file), "--output", str(tmp_path / "used")]
    assert keras_train.main(arguments) == 2
    assert keras_train.main([str(phantoms), "--output", str(tmp_path / "new"), "--policy", "u-self-trained"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "is in use; choose a new folder" in lines[0]
    assert "u-self-trained" in lines[1]
    assert not (tmp_path / "new").exists()
