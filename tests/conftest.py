"""What many tests need: a tiny model, and the folder of real radiographs if there is one."""

import copy
import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor

# What `auto` takes depends on what is installed and on the processor; the tests of runtimes ask for each by name.
os.environ["CHEXPERT_HF_RUNTIME"], os.environ["CHEXPERT_HF_PRECISION"] = "torch", "fp32"


# Their tests take longest. They are started first, so that at the end no process works while the other ones wait.
FIRST = ("training/test_run.py", "training/test_stages.py", "app/server/test_launch.py", "test_default_model.py")


def pytest_configure(config: pytest.Config) -> None:
    """One thread for PyTorch in each of several processes; more would wait for each other, and spin meanwhile."""
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that are about to be started
        config.option.loadscopereorder = False  # not the files with most tests first


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collects without the garbage collector, which takes a third of the time and finds nothing in modules."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest before all others."""
    ranks = {str(Path(__file__).parent / name): rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(FIRST)))


TINY = {"growth_rate": 4, "block_config": [2, 2], "num_init_features": 8, "bn_size": 2}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with NIH-mini and NIH-originals."""
    folder = os.environ.get("CHEXPERT_HF_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CHEXPERT_HF_REAL_DATA names no folder of real radiographs")
    return Path(folder)


@pytest.fixture(scope="session")
def shared_tiny_model() -> CheXpertForImageClassification:
    """Not to be changed; `tiny_model` is a copy."""
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertConfig(**TINY))
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 64, 64) * 2 + 1)
    return model.eval()


@pytest.fixture
def tiny_model(shared_tiny_model: CheXpertForImageClassification) -> CheXpertForImageClassification:
    """A DenseNet of a few thousand parameters with BatchNorm statistics that are not the initial ones."""
    return copy.deepcopy(shared_tiny_model)


@pytest.fixture
def tiny_folder(tiny_model: CheXpertForImageClassification, tmp_path: Path) -> Path:
    """`tiny_model` and its 64-pixel processor, saved."""
    folder = tmp_path / "tiny-model"
    tiny_model.save_pretrained(folder)
    CheXpertImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
