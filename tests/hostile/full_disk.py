"""G12: a disk that is full at each stage of a checkpoint: one line names the intact one, and the run can be resumed.

As `python -m tests.hostile.full_disk STAGE FOLDER` it is the child that has a small file system of its own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerState

from chexpert_hf.training.durable import intact
from chexpert_hf.training.durable.intact import CheckpointError
from tests.hostile.promises import Figure, Settings, judged
from tests.hostile.runs import SmallRun, differences

STAGES = {
    "weights": (PreTrainedModel, "save_pretrained", 1),
    "optimizer": (Trainer, "_save_optimizer_and_scheduler", 1),
    "state": (TrainerState, "save_to_json", 2),
    "manifest": (intact, "manifest_text", 1),
}
"""What writes a part of a checkpoint, and how often it has done so before the second checkpoint."""


def fill_disk_at(stage: str, disk: Path) -> dict[str, str]:
    """Trains on a disk that is full when the second checkpoint comes to a stage, then with room again."""
    run = SmallRun()
    folder, ballast = disk / "run", disk / "ballast"
    owner, name, num_before = STAGES[stage]
    original = getattr(owner, name)
    calls = iter(range(1_000_000))

    def full(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == num_before:
            with open(ballast, "wb", buffering=0) as file:
                try:
                    while file.write(bytes(1024)):
                        pass
                except OSError:
                    pass
        return original(*args, **kwargs)

    setattr(owner, name, full)
    try:
        run.train(folder, workers=0, resume=False)
        line = "SILENT: nothing was raised"
    except CheckpointError as error:
        line = str(error)
    finally:
        setattr(owner, name, original)
        ballast.unlink(missing_ok=True)
    run.train(folder, workers=0, resume=True, say=lambda line: None)
    run.train(disk / "undisturbed", workers=0, resume=False)
    found = differences(folder, disk / "undisturbed")
    return {"line": line, "differs": ", ".join(found)}


def disk_full(stage: str, scratch: Path) -> dict[str, str] | None:
    """`fill_disk_at` on a disk of 2 MB; None where none can be mounted."""
    disk = scratch / "disk"
    disk.mkdir(exist_ok=True)
    child = f'"{sys.executable}" -m tests.hostile.full_disk {stage} "{disk}"'
    command = f'mount -t tmpfs -o size=2m tmpfs "{disk}" && {child}'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def disk_rows(_: Settings) -> Iterator[Figure]:
    """G12."""
    with tempfile.TemporaryDirectory() as name:
        tried = {stage: disk_full(stage, Path(name)) for stage in STAGES}
    results = {stage: result for stage, result in tried.items() if result}
    for stage, result in results.items():
        print(f"G12 {stage}: {result['line']} {result['differs'] and 'DIFFERS ' + result['differs']}", file=sys.stderr)
    is_named = [
        "checkpoint-3 is intact" in result["line"] and "\n" not in result["line"] for result in results.values()
    ]
    is_equal = [not result["differs"] for result in results.values()]
    yield judged(
        f"a disk of 2 MB, full at {', '.join(results) or 'no stage: no file system could be mounted here'}",
        {
            "one line that names the intact checkpoint": f"{sum(is_named)} of {len(STAGES)}",
            "resumed to the same bits": f"{sum(is_equal)} of {len(STAGES)}",
        },
        {
            "tried at every stage": len(results) == len(STAGES),
            "one line each": all(is_named),
            "all bit-equal": all(is_equal),
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(fill_disk_at(sys.argv[1], Path(sys.argv[2]))))
