import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from chexpert_hf import CheXpertClassifier
from chexpert_hf.datasets.loading import BadFilesError
from chexpert_hf.evaluation.metrics import split_labels
from chexpert_hf.evaluation.patients import TRAINING_PATIENTS_FILE, overlapping_patients, write_patient_hashes
from chexpert_hf.files import FolderError
from chexpert_hf.labels import OBSERVATIONS
from chexpert_hf.models.model_files import renew_checksums
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.training.data import load_data
from chexpert_hf.training.durable.intact import CheckpointError
from chexpert_hf.training.initial_model import build_model, build_processor, changes_to_initial
from chexpert_hf.training.losses import centring_loss, map_loss, offsets_of_peaks
from chexpert_hf.training.recipe import Recipe, RecipeError
from chexpert_hf.training.run import train
from chexpert_hf.training.trainer import build_trainer

from ..conftest import TINY
from .processes import run_until_killed, torchrun

# 40 images, 5 steps an epoch; checkpoints at steps 2, 4, ... inside the epochs.
PRECISIONS = ("auto", "bf16", "fp32")
RECIPE = Recipe(
    observations=OBSERVATIONS,
    init="random",
    architecture=TINY | {"drop_rate": 0.1},
    num_channels=1,
    image_size=32,
    frontal_only=True,
    policy={"Edema": "u-ones", "Atelectasis": "u-zeros"},
    rotation_degrees=10,
    translation=0.05,
    contrast=0.2,
    epochs=3,
    batch_size=8,
    images_per_checkpoint=16,
    precision="fp32",  # so that the evaluations during training are those after it
    learning_rate=3e-3,
    schedule="cosine",
    warmup=0.1,
    workers=2,
)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=66, seed=5, valid_fraction=0.4)
    return root


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("run") / "model"
    train(RECIPE, phantoms, output, say=lambda line: None)
    return output


def few(**values: object) -> Recipe:
    """One epoch on so few radiographs that no gate is fitted, which takes longer than the epoch."""
    return RECIPE.override(**{"num_patients": 14, "batch_size": 4, "epochs": 1, "workers": 0} | values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def last_checkpoint(output: Path) -> Path:
    return max((output / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))


def assert_equal_to_the_last_bit(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_a_run_leaves_a_complete_model_folder(finished):
    assert {path.name for path in finished.iterdir()} == {
        "README.md",
        "checkpoints",
        "checksums.json",
        "config.json",
        "backbones_chexpert.py",
        "configuration_chexpert.py",
        "curve.png",
        "evaluation.json",
        "gate.safetensors",
        "history.json",
        "image_processing_chexpert.py",
        "labels.py",
        "model.safetensors",
        "modeling_chexpert.py",
        "preprocessor_config.json",
        "recipe.yaml",
        "reference.json",
        "selection_patients.json",
        "terms.json",
        "training_patients.json",
    }
    assert Recipe.load(finished / "recipe.yaml").to_dict() == RECIPE.to_dict()
    config = json.loads((finished / "config.json").read_text())
    assert config["uncertainty_policies"]["Edema"] == "u-ones"
    assert config["uncertainty_policies"]["Pneumonia"] == "u-ignore"
    card = (finished / "README.md").read_text()
    assert "not a medical device" in card
    assert "{{" not in card
    assert "- u-ones: Edema\n" in card


def test_the_reference_scores_are_those_of_the_saved_model(finished):
    from chexpert_hf.publishing.model_folder import reference_scores

    recorded = json.loads((finished / "reference.json").read_text())
    again = reference_scores(CheXpertClassifier.from_pretrained(finished))
    assert recorded["phantom"] == again["phantom"]
    assert recorded["probabilities"] == pytest.approx(again["probabilities"], abs=1e-5)


def test_the_model_is_the_checkpoint_with_the_best_mean_auroc(finished):
    history = json.loads((finished / "history.json").read_text())
    scores = {entry["step"]: entry["eval_mean_auroc"] for entry in history if "eval_mean_auroc" in entry}
    assert list(scores) == [2, 4, 6, 8, 10, 12, 14, 15]  # the last step, too
    known = {step: score for step, score in scores.items() if not math.isnan(score)}
    best = max(known, key=known.get)
    assert_equal_to_the_last_bit(finished, finished / "checkpoints" / f"checkpoint-{best}")
    assert json.loads((finished / "evaluation.json").read_text())["mean_auroc"] == pytest.approx(known[best])


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits(phantoms, finished, tmp_path):
    RECIPE.save(tmp_path / "recipe.yaml")
    output = tmp_path / "model"
    # In the middle of an epoch; then while a checkpoint is written.
    run_until_killed(phantoms, output, tmp_path / "recipe.yaml", "step 7", resume=False)
    run_until_killed(phantoms, output, tmp_path / "recipe.yaml", "saving 10", resume=True)
    assert (output / "checkpoints" / "_unfinished" / "checkpoint-10" / "model.safetensors").exists()
    assert not (output / "checkpoints" / "checkpoint-10").exists()
    said: list[str] = []
    train(RECIPE, phantoms, output, resume=True, say=said.append)
    assert any("checkpoint-8" in line for line in said)
    assert_equal_to_the_last_bit(output, finished)
    assert_equal_to_the_last_bit(last_checkpoint(output), last_checkpoint(finished))


@pytest.mark.slow
def test_a_killed_run_on_mixtures_of_images_resumes_to_the_same_bits(phantoms, finished, tmp_path):
    recipe = RECIPE.override(distillation=0.5, mixup=True, distillation_models=[str(finished)])
    recipe.save(tmp_path / "recipe.yaml")
    run_until_killed(phantoms, tmp_path / "killed", tmp_path / "recipe.yaml", "step 7", resume=False)
    resumed = train(recipe, phantoms, tmp_path / "killed", resume=True, say=lambda line: None).folder
    undisturbed = train(recipe, phantoms, tmp_path / "undisturbed", say=lambda line: None).folder
    assert_equal_to_the_last_bit(resumed, undisturbed)


def test_a_run_does_not_end_in_a_best_checkpoint_that_was_damaged(phantoms, finished, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    history = json.loads((last_checkpoint(output) / "trainer_state.json").read_text())
    best = output / "checkpoints" / f"checkpoint-{history['best_global_step']}"
    assert best != last_checkpoint(output)
    with (best / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x07")
    with pytest.raises(
        CheckpointError, match=rf"{best.name} cannot be used: model.safetensors is not as it was written"
    ):
        train(RECIPE, phantoms, output, resume=True, say=lambda line: None)


def test_bad_files_are_all_listed_beside_the_folder_that_is_not_made(phantoms, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(phantoms, root)
    bad = sorted(root.glob("train/*/*/*frontal*"))[:7]
    for path in bad:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        BadFilesError,
        match=r"7 of \d+ files cannot be used: .*take their rows out of the table\. All are .*bad_files\.csv\.$",
    ):
        train(RECIPE, root, tmp_path / "model", say=lambda line: None)
    assert not (tmp_path / "model").exists()
    listed = (tmp_path / "model.bad_files.csv").read_text()
    assert all(path.relative_to(root).as_posix() in listed for path in bad)


def test_resuming_a_finished_run_trains_nothing(phantoms, finished, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished, output)
    (output / "model.safetensors").unlink()
    said: list[str] = []
    train(RECIPE, phantoms, output, resume=True, say=said.append)
    assert any("nothing is left to train" in line for line in said)
    assert_equal_to_the_last_bit(output, finished)


def test_bf16_trains_on_this_machine(phantoms, tmp_path):
    recipe = few(precision="bf16")
    weights_of = weights(train(recipe, phantoms, tmp_path / "bf16", say=lambda line: None).folder)
    assert all(tensor.isfinite().all() for tensor in weights_of.values())
    assert weights_of["classifier.weight"].dtype == torch.float32


@pytest.mark.skipif(torch.accelerator.is_available(), reason="decides by the CPU's instructions")
@pytest.mark.parametrize(("capabilities", "precision"), [({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32")])
def test_auto_is_bf16_where_the_processor_multiplies_it(phantoms, tmp_path, monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    folders = {name: train(few(precision=name), phantoms, tmp_path / name, say=print).folder for name in PRECISIONS}
    chosen, *others = (weights(folders[name])["classifier.weight"] for name in ("auto", *PRECISIONS[1:]))
    assert [torch.equal(chosen, other) for other in others] == [precision == name for name in PRECISIONS[1:]]


@pytest.mark.parametrize("batch_size", [4, 8])  # after two steps the weights are finite, and their outputs are not
def test_a_run_that_diverges_says_so_and_what_to_do(phantoms, tmp_path, batch_size):
    with pytest.raises(RecipeError, match=r"Training diverged before step .*: lower learning_rate"):
        train(few(learning_rate=1e30, batch_size=batch_size), phantoms, tmp_path / "far", say=lambda line: None)


def test_batches_without_known_labels_leave_the_weights_finite(phantoms, tmp_path):
    recipe = few(observations=("Fracture",), policy="u-ignore", blank_labels="unknown", batch_size=2)
    result = train(recipe, phantoms, tmp_path / "rare", say=lambda line: None)
    assert all(tensor.isfinite().all() for tensor in weights(result.folder).values())


def test_folders_may_be_named_by_text(phantoms, tmp_path):
    recipe = RECIPE.override(epochs=0.2, workers=0)
    assert train(recipe, str(phantoms), str(tmp_path / "model"), say=lambda line: None).folder == tmp_path / "model"


def test_another_seed_gives_other_weights():
    def initial(seed):
        torch.manual_seed(seed)
        return build_model(RECIPE).classifier.weight

    assert torch.equal(initial(0), initial(0))
    assert not torch.equal(initial(0), initial(1))


def test_a_folder_with_another_run_is_not_written_into(phantoms, finished):
    with pytest.raises(RecipeError, match="is not empty: resume its run with --resume"):
        train(RECIPE, phantoms, finished)


@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_never_train_into_one_folder(phantoms, tmp_path, resume):
    class Second(TrainerCallback):
        refusals = 0

        def on_train_begin(self, *_args, **_options):
            with pytest.raises(FolderError, match="model is being written by another run; wait for its end"):
                train(few(), phantoms, tmp_path / "model", resume=resume, say=lambda line: None)
            self.refusals += 1

    second = Second()
    train(few(), phantoms, tmp_path / "model", say=lambda line: None, progress=second)
    assert second.refusals == 1
    train(few(), phantoms, tmp_path / "model", say=lambda line: None, resume=True)  # not locked any more


def test_resuming_with_another_recipe_is_refused_by_field(phantoms, finished):
    with pytest.raises(RecipeError, match=r"another recipe: learning_rate was 0.003 and is 0.1"):
        train(RECIPE.override(learning_rate=0.1), phantoms, finished, resume=True)


def test_resuming_with_another_recipe_is_refused_before_its_weights_are_downloaded(phantoms, finished, monkeypatch):
    monkeypatch.setattr("chexpert_hf.training.run.build_model", lambda recipe: pytest.fail("the model was built"))
    with pytest.raises(RecipeError, match=r"another recipe: .*init was 'random' and is 'imagenet'"):
        train(RECIPE.override(init="imagenet", architecture={}), phantoms, finished, resume=True)


def test_a_fine_tuned_head_keeps_the_rows_of_observations_that_both_have(finished):
    recipe = RECIPE.override(
        init=str(finished), architecture={}, observations=("TB", "Edema"), image_size=64, policy="u-ones"
    )
    source = load_file(finished / "model.safetensors")
    row = RECIPE.observations.index("Edema")
    head = build_model(recipe).classifier
    assert torch.equal(head.weight[1], source["classifier.weight"][row].float())
    assert torch.equal(head.bias[1], source["classifier.bias"][row].float())
    assert not torch.equal(head.weight[0], source["classifier.weight"][0].float())
    new, size = changes_to_initial(recipe)
    assert new == f"{finished} has no output for TB: new in the head; --observations 'Edema' trains those that it has."
    assert size.endswith("--image-size 32 keeps that.")
    assert not changes_to_initial(RECIPE.override(init=str(finished), architecture={}))


def test_a_fine_tuned_model_is_trained_at_its_own_size_unless_the_recipe_says_another(phantoms, finished, tmp_path):
    same = few(init=str(finished), architecture={}, freeze_backbone=True, image_size=None)
    (line,) = changes_to_initial(same)
    assert line == f"Training at 32 pixels, as {finished} was; --image-size sets another size."
    assert build_processor(same).longest_side == 32
    assert build_processor(same.override(image_size=64)).longest_side == 64
    assert build_processor(Recipe()).longest_side == Recipe.load(Path("u_ones")).image_size == 320
    train(same, phantoms, tmp_path / "model", say=lambda line: None)
    assert Recipe.load(tmp_path / "model" / "recipe.yaml").image_size == 32
    assert json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())["size"]["height"] == 32


def test_several_runs_say_once_which_labels_and_which_initial_model_they_take(phantoms, finished, tmp_path):
    lines: list[str] = []
    recipe = few(init=str(finished), architecture={}, freeze_backbone=True, image_size=64, runs=2)
    train(recipe, phantoms, tmp_path / "runs", say=lines.append)
    for text in ("Labels: ", "Training at 64 pixels, where "):
        assert len([line for line in lines if line.startswith(text)]) == 1
    assert len([line for line in lines if line.startswith("Training on ")]) == 2


def test_patients_of_the_initial_model_are_seen_by_all_models_made_from_it(phantoms, finished, tmp_path):
    initial = shutil.copytree(finished, tmp_path / "initial", ignore=shutil.ignore_patterns("checkpoints"))
    recipe = few(init=str(initial), architecture={}, freeze_backbone=True, image_size=64, runs=2)
    patients = {split: set(part["patient"][:]) for split, part in load_data(recipe, phantoms).items()}
    write_patient_hashes(initial / TRAINING_PATIENTS_FILE, ["elsewhere", min(patients["valid"])])
    renew_checksums(initial, [TRAINING_PATIENTS_FILE])
    lines: list[str] = []
    train(recipe, phantoms, tmp_path / "runs", say=lines.append)
    told = [line for line in lines if line.startswith(f"1 of the {len(patients['valid'])} validation patients are")]
    assert len(told) == 1
    for folder in (tmp_path / "runs", tmp_path / "runs" / "run-1", tmp_path / "runs" / "members" / "01"):
        asked = {*patients["train"], *patients["valid"], "elsewhere", "nobody"}
        seen = overlapping_patients(folder / TRAINING_PATIENTS_FILE, asked)
        assert seen == {*patients["train"], "elsewhere", min(patients["valid"])}


def test_a_transferred_model_trains_its_head_alone(phantoms, finished, tmp_path):
    recipe = Recipe(
        init=str(finished),
        observations=("Edema", "Cardiomegaly"),
        freeze_backbone=True,
        head_hidden_size=8,
        num_channels=1,
        image_size=32,
        num_patients=14,
        frontal_only=True,
        epochs=1,
        batch_size=8,
        learning_rate=1e-2,
        workers=0,
    )
    result = train(recipe, phantoms, tmp_path / "head", say=lambda line: None)
    before, after = weights(finished), weights(result.folder)
    backbone = [name for name in before if name.startswith("features.")]
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    assert after["classifier.3.weight"].shape == (2, 8)


def test_training_batches_are_normalised_as_the_processor_does_it(phantoms, tmp_path):
    recipe = RECIPE.override(rotation_degrees=0.0, translation=0.0, contrast=0.0, workers=0)
    data, processor = load_data(recipe, phantoms), build_processor(recipe)
    trainer = build_trainer(recipe, build_model(recipe), processor, data, tmp_path)
    item = trainer.train_dataset[3]
    batch = {"pixel_values": item["pixel_values"][None], "labels": item["labels"][None], "index": torch.tensor([3])}
    prepared = trainer.network_inputs(batch)["pixel_values"]
    image = CheXpertClassifier(trainer.model, processor).read(trainer.train_dataset.files[3]).image
    expected = processor(image, return_tensors="pt")["pixel_values"].to(prepared.device)
    # On a GPU the last bit may differ.
    assert torch.allclose(prepared, expected, rtol=0, atol=0 if prepared.device.type == "cpu" else 1e-6)


def test_mixup_mixes_images_and_labels_by_the_same_shares_and_teachers_see_the_mixture(phantoms, tmp_path):
    recipe = RECIPE.override(
        rotation_degrees=0.0, translation=0.0, contrast=0.0, workers=0, distillation=0.25, mixup=True
    )
    data, processor = load_data(recipe, phantoms), build_processor(recipe)
    teacher = build_model(recipe.override(seed=5))
    trainer = build_trainer(recipe, build_model(recipe), processor, data, tmp_path, teachers=[teacher])
    gray = torch.tensor([0, 50, 110, 255], dtype=torch.uint8)
    side = recipe.image_size
    labels = torch.zeros(4, len(recipe.observations))
    labels[:, 1], labels[2, 2], labels[3, 3] = gray / 255, -100, -1
    batch = {
        "pixel_values": gray[:, None, None, None].expand(4, 1, side, side),
        "labels": labels,
        "index": torch.arange(4),
    }
    given = processor.pixel_values_of(batch["pixel_values"])
    trainer.model.train()
    torch.manual_seed(1)  # not every image is mixed with itself
    mixed = trainer.network_inputs(dict(batch))
    with torch.no_grad():
        taught = teacher(mixed["pixel_values"]).logits.sigmoid()
    own = (mixed["labels"] - 0.25 * taught) / 0.75
    low, high = given[0, 0, 0, 0], given[3, 0, 0, 0]
    level = (mixed["pixel_values"][:, 0, 0, 0] - low) / (high - low)
    assert not torch.isclose(level[:, None], gray[None] / 255, atol=1e-3).any(dim=1).all()
    torch.testing.assert_close(own[:, 1], level, atol=1e-5, rtol=0)  # this label is as the gray level
    torch.testing.assert_close(own[:, 0], torch.zeros(4), atol=1e-5, rtol=0)
    for column, image in ((2, 2), (3, 3)):  # not known of this image: ignored in all mixtures with it
        ignored = mixed["labels"][:, column] == -100
        assert ignored[image]
        assert 1 <= ignored.sum() <= 2
        torch.testing.assert_close(own[~ignored, column], torch.zeros(int((~ignored).sum())), atol=1e-5, rtol=0)
    trainer.model.eval()
    assert torch.equal(trainer.network_inputs(dict(batch))["pixel_values"], given)  # in evaluation nothing is mixed


def test_labels_are_resolved_for_training_and_left_out_where_uncertain_for_validation(phantoms, tmp_path):
    recipe = RECIPE.override(workers=0)
    data = load_data(recipe, phantoms)
    column = recipe.observations.index("Edema")

    def with_uncertain(row, index):
        return {"labels": [-1 if (index, k) == (0, column) else x for k, x in enumerate(row["labels"])]}

    data["valid"] = data["valid"].map(with_uncertain, with_indices=True, features=data["valid"].features)
    trainer = build_trainer(recipe, build_model(recipe), build_processor(recipe), data, tmp_path)
    raw = np.asarray(data["train"]["labels"][:])
    targets = np.stack([trainer.train_dataset[i]["labels"] for i in range(len(raw))])
    edema, fracture = recipe.observations.index("Edema"), recipe.observations.index("Fracture")
    assert (raw[:, edema] == -1).any()
    assert (targets[:, edema][raw[:, edema] == -1] == 1).all()
    assert (targets[:, fracture][raw[:, fracture] == -1] == -100).all()
    assert (targets[np.isnan(raw)] == 0).all()
    assert (targets[raw == 1] == 1).all()
    validated = np.stack([trainer.eval_dataset[i]["labels"] for i in range(len(data["valid"]))])
    assert validated[0, edema] == -100
    np.testing.assert_array_equal(
        np.where(validated == -100, np.nan, validated), split_labels(data["valid"], "negative")
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": {"growth": 3}}, "no field 'growth'"),
        ({"architecture": {"block_config": [0]}}, "must be at least 1"),
    ],
)
def test_an_architecture_that_is_none_is_refused(values, message):
    with pytest.raises(RecipeError, match=message):
        build_model(RECIPE.override(**values))


def test_a_run_with_the_loss_of_maps_trains_on_it(phantoms, tmp_path):
    recipe = RECIPE.override(map_loss=1.0, epochs=1)
    trainer = build_trainer(
        recipe, build_model(recipe), build_processor(recipe), load_data(recipe, phantoms), tmp_path / "trainer"
    )
    batch = trainer.network_inputs(next(iter(trainer.get_train_dataloader())))
    model = trainer.model.eval()  # so that dropout and BatchNorm give the same twice
    alone = trainer.compute_loss(model, dict(batch))
    model.training = True
    both, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert both.item() == pytest.approx((alone + map_loss(outputs, batch["labels"])).item(), rel=1e-5)
    assert both.item() > alone.item() + 0.1
    model.training = False


def test_the_centring_of_maps_is_part_of_the_loss(phantoms, tmp_path):
    recipe = RECIPE.override(map_centring=1.0, architecture=TINY, workers=0)
    trainer = build_trainer(recipe, build_model(recipe), build_processor(recipe), load_data(recipe, phantoms), tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    batch = trainer.network_inputs(batch)
    batch["labels"][:] = 1
    batch["labels"][:, 1:] = 0  # so that there is nothing to draw
    trainer.model.train()
    before = trainer.centring(batch["pixel_values"], batch["labels"])
    assert trainer.model.training
    offsets = offsets_of_peaks(trainer.model.eval(), batch["pixel_values"], torch.zeros(8, dtype=torch.long))
    assert before.item() == pytest.approx(centring_loss(offsets).item(), rel=1e-5)
    before.backward()
    assert trainer.model.features.conv0.weight.grad.abs().max() > 0
    assert trainer.centring(batch["pixel_values"], torch.zeros_like(batch["labels"])).item() == 0
    trainer.model.zero_grad()
    for steps in (1, 2):  # of an optimizer step, over which it is averaged as the labels are
        trainer.args.gradient_accumulation_steps = steps
        without = trainer.compute_loss(trainer.model.eval(), dict(batch)).item()
        trainer.model.training = True
        added = trainer.compute_loss(trainer.model, dict(batch)).item() - without
        assert added == pytest.approx(before.item() / steps, rel=1e-3)


def test_a_last_batch_of_one_image_is_refused_before_anything_is_written_or_dropped(phantoms, tmp_path):
    # 11 images in batches of 5, with feature maps of 1 x 1
    recipe = few(num_patients=11, image_size=12, batch_size=5)
    with pytest.raises(RecipeError, match="give a batch of one image"):
        train(recipe, phantoms, tmp_path / "refused", say=lambda line: None)
    assert not (tmp_path / "refused").exists()
    train(recipe.override(drop_last=True), phantoms, tmp_path / "dropped", say=lambda line: None)
    history = json.loads((tmp_path / "dropped" / "history.json").read_text())
    assert history[-1]["step"] == 2  # 10 images
    assert any("eval_mean_auroc" in entry for entry in history)  # the 26 validation images are no whole batches


@pytest.mark.slow
def test_two_processes_without_gpus_share_each_step(phantoms, tmp_path):
    few(num_patients=17, images_per_checkpoint=8).save(tmp_path / "recipe.yaml")
    arguments = [phantoms, "--recipe", tmp_path / "recipe.yaml", "--output", tmp_path / "model", "--json"]
    output = torchrun(2, tmp_path / "logs", [str(argument) for argument in arguments])
    assert [len(texts) for texts in output.values()] == [2, 2]
    (line,) = "".join(output["stdout.log"]).splitlines()  # of one process alone
    assert json.loads(line)["folder"] == str(tmp_path / "model")
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    # 20 images in steps of 2 x 4, with a checkpoint every 8 images
    assert [entry["step"] for entry in history if "eval_mean_auroc" in entry] == [1, 2, 3]
    assert "".join(output["stderr.log"]).count("Training on 20 images") == 1


def test_gradient_checkpointing_trains_the_same_weights(finished, phantoms, tmp_path):
    recipe = RECIPE.override(gradient_checkpointing=True, workers=0)
    trainer = build_trainer(recipe, build_model(recipe), build_processor(recipe), load_data(recipe, phantoms), tmp_path)
    assert trainer.model.is_gradient_checkpointing
    train(recipe, phantoms, tmp_path / "model", say=lambda line: None)
    assert_equal_to_the_last_bit(finished, tmp_path / "model")
