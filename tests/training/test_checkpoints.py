"""Durable checkpoints: whatever stops a run or damages what it wrote, it ends in the same bits or says why not."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_jit_checkpoint import CheckpointManager

from chexpert_hf.training.checkpoints import best_checkpoints
from chexpert_hf.training.durable import intact
from chexpert_hf.training.durable.intact import CheckpointError, expect_intact, fault_of_checkpoint
from chexpert_hf.training.durable.trainer_checkpoints import DurableCheckpoints

from ..hostile.checkpoint_attacks import before_each_operation, outcome
from ..hostile.checkpoint_damage import DAMAGES
from ..hostile.runs import SmallRun, checkpoints_of, differences, small_trainer

RUN = SmallRun()
SEALED = [name for name in DAMAGES if name.endswith("sealed")]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that nothing disturbed, with checkpoints at steps 3, 6 and 7."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    RUN.train(folder, workers=0, resume=False)
    return folder


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    """A run that was stopped after its second checkpoint."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint-7")
    return folder


def resume(folder: Path) -> list[str]:
    said: list[str] = []
    RUN.train(folder, workers=0, resume=True, say=said.append)
    return said


@pytest.mark.slow
def test_a_run_stopped_at_any_file_operation_of_a_save_ends_in_the_same_bits(finished, tmp_path):
    folder = tmp_path / "run"
    states: dict[int, Path] = {}

    def keep(number: int) -> None:  # what kill -9 would leave at this moment
        states[number] = shutil.copytree(folder, tmp_path / f"stopped-{number}")

    with before_each_operation(6, keep):
        RUN.train(folder, workers=0, resume=False)
    assert len(states) > 15  # weights, optimizer, ..., the sums and the renaming are among them
    was_there = [(state / "checkpoint-6").exists() for state in states.values()]
    assert was_there == sorted(was_there)  # from some moment on
    for state, is_there in zip(states.values(), was_there, strict=True):
        taken = small_trainer(state).newest_intact_checkpoint(lambda line: None)
        assert taken == str(state / ("checkpoint-6" if is_there else "checkpoint-3"))
        assert {path.name for path in state.iterdir()} == {"checkpoint-3"} | ({"checkpoint-6"} if is_there else set())
    for number in (0, was_there.index(True) - 1, was_there.index(True)):
        resume(states[number])
        assert differences(states[number], finished) == [], f"stopped before operation {number}"


def test_everything_is_on_the_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    on_disk, names = set(), {}
    rename, fsync = os.rename, os.fsync

    def spy_fsync(descriptor: int) -> None:
        on_disk.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def spy_rename(source, target, **kwargs):
        paths = [Path(source), *Path(source).rglob("*")]
        names[Path(target).name] = {path.name for path in paths if path.stat().st_ino not in on_disk}
        rename(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    small_trainer(tmp_path, max_steps=1).train()
    assert names == {"checkpoint-1": set()}
    assert tmp_path.stat().st_ino in on_disk  # the new name, too


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in SEALED])
def test_damage_is_found(stopped, name):
    previous, newest = checkpoints_of(stopped)
    assert fault_of_checkpoint(newest) is None
    DAMAGES[name](newest, previous)
    fault = fault_of_checkpoint(newest)
    assert fault
    assert "\n" not in fault
    assert fault_of_checkpoint(previous) is None


@pytest.mark.parametrize(
    "name", ["model.safetensors with one bit flipped", "optimizer.pt deleted", "manifest.json cut to half"]
)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(finished, tmp_path, name):
    assert outcome(RUN, finished, tmp_path / "run", DAMAGES[name]) == "fell back"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-3", "checkpoint-6", "checkpoint-7"}


def test_it_is_said_which_checkpoint_is_taken_and_why_others_are_not(stopped):
    DAMAGES["optimizer.pt with one bit flipped"](*reversed(checkpoints_of(stopped)))
    assert resume(stopped) == [
        "Skipped checkpoint-6, now called _damaged-checkpoint-6: optimizer.pt is not as it was written.",
        f"Resuming from {stopped / 'checkpoint-3'}.",
    ]


def test_a_damaged_checkpoint_is_not_deleted_before_it_is_written_again(stopped):
    DAMAGES["optimizer.pt with one bit flipped"](*reversed(checkpoints_of(stopped)))
    small_trainer(stopped).newest_intact_checkpoint(lambda line: None)
    assert {path.name for path in stopped.iterdir()} == {"checkpoint-3", "_damaged-checkpoint-6"}
    assert checkpoints_of(stopped) == best_checkpoints(stopped, 10) == [stopped / "checkpoint-3"]


@pytest.mark.parametrize("name", SEALED)
def test_a_pickle_is_refused_in_one_line_and_not_run(finished, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = outcome(RUN, finished, tmp_path / "run", DAMAGES[name])
    assert text.startswith("stopped: ")
    assert text.endswith("checkpoint-6 cannot be loaded: it holds a pickle of more than plain values.")
    assert not (tmp_path / "planted").exists()


def test_where_no_checkpoint_is_intact_nothing_begins_anew(stopped):
    for checkpoint in checkpoints_of(stopped):
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is intact \(checkpoint-6: it has no manifest.json"):
        resume(stopped)
    assert len(checkpoints_of(stopped)) == 2


def test_a_run_without_checkpoints_begins(finished, tmp_path):
    assert resume(tmp_path / "run") == ["No checkpoint yet: starting at step 0."]
    assert differences(tmp_path / "run", finished) == []


def test_a_named_checkpoint_is_verified_too(stopped):
    DAMAGES["model.safetensors with one bit flipped"](*reversed(checkpoints_of(stopped)))
    with pytest.raises(CheckpointError, match=r"checkpoint-6 cannot be used: model.safetensors is not as it was"):
        small_trainer(stopped).train(str(stopped / "checkpoint-6"))


def test_resuming_a_finished_run_changes_nothing(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    trainer = small_trainer(folder)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 7
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not torch.equal(
        trainer.model.state_dict()["layers.1.weight"], weights["layers.1.weight"]
    )  # they were loaded


def test_another_number_of_threads_is_said_and_not_refused(stopped):
    torch.set_num_threads(2)
    try:
        said = resume(stopped)
    finally:
        torch.set_num_threads(1)
    assert any("with 1 threads, this is torch" in line and "last bits may differ" in line for line in said)
    assert (stopped / "checkpoint-7").is_dir()


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_AT = {
    "weights": (PreTrainedModel, "save_pretrained", 1, SafetensorError("I/O error: No space left on device")),
    "optimizer": (torch, "save", 6, RuntimeError("[enforce fail] unexpected pos 24128 vs 24020")),
    "state": (TrainerState, "save_to_json", 2, NO_SPACE),
    "manifest": (intact, "manifest_text", 1, NO_SPACE),
}


@pytest.mark.parametrize("part", FULL_AT)
@pytest.mark.slow
def test_a_full_disk_is_one_line_that_names_the_intact_checkpoint(finished, tmp_path, monkeypatch, part):
    owner, name, num_before, error = FULL_AT[part]
    original, calls = getattr(owner, name), iter(range(100))

    def write(*args, **kwargs):
        if next(calls) == num_before:
            monkeypatch.setattr(os, "fsync", full)
            raise error
        return original(*args, **kwargs)

    def full(descriptor: int) -> None:
        raise NO_SPACE

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, write)
        with pytest.raises(
            CheckpointError, match=r"^[^\n]*checkpoint-6 could not be written: No space left on device; "
        ):
            RUN.train(folder, workers=0, resume=False)
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]  # and its room is free again
    resume(folder)
    assert differences(folder, finished) == []


def test_the_line_about_a_full_disk_names_the_checkpoint_to_resume_from(stopped, monkeypatch):
    def full(*args):
        raise NO_SPACE

    monkeypatch.setattr("chexpert_hf.training.durable.trainer_checkpoints.seal", full)
    with pytest.raises(CheckpointError, match=r"; checkpoint-6 is intact: fix this and resume\.$"):
        resume(stopped)


def test_no_pickle_of_the_arguments_is_left_and_the_token_is_in_none(tmp_path, monkeypatch):
    tokens, save = [], torch.save

    def spy(value, *args, **kwargs):
        tokens.extend([value.hub_token] if isinstance(value, TrainingArguments) else [])
        save(value, *args, **kwargs)

    monkeypatch.setattr(torch, "save", spy)
    trainer = small_trainer(tmp_path, max_steps=1, hub_token="hf_planted")
    trainer.train()
    trainer.save_model(tmp_path / "model")
    assert tokens == [None, None]
    assert trainer.args.hub_token == "hf_planted"
    assert list(tmp_path.rglob("training_args.bin")) == []


def test_rotation_keeps_as_many_as_asked_for(tmp_path):
    small_trainer(tmp_path, save_total_limit=2).train()
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-6", "checkpoint-7"]


def test_the_best_checkpoint_is_recorded_at_its_place_and_loaded_at_the_end(tmp_path):
    arguments = {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss", "greater_is_better": False}
    trainer = small_trainer(tmp_path, load_best_model_at_end=True, **arguments)
    trainer.train()
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)


def test_the_checkpoint_of_a_stop_by_signal_is_as_durable(stopped):
    trainer = small_trainer(stopped)
    trainer.train(str(stopped / "checkpoint-6"))
    CheckpointManager(trainer).execute_jit_checkpoint()  # of step 7, which is there already
    expect_intact(stopped / "checkpoint-7")


def test_a_checkpoint_that_does_not_fit_the_model_is_refused(stopped):
    model = small_trainer(stopped).model
    model.more = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"does not fit the model: 2 keys differ, more.bias first"):
        small_trainer(stopped, model=model).train(True)


def test_it_goes_before_any_other_trainer(tmp_path):
    class Other(Trainer):
        def training_step(self, *args, **kwargs):
            self.was_here = True
            return super().training_step(*args, **kwargs)

    class Both(DurableCheckpoints, Other):
        pass

    trainer = small_trainer(tmp_path, kind=Both, max_steps=1)
    trainer.train()
    assert trainer.was_here
    expect_intact(tmp_path / "checkpoint-1")
