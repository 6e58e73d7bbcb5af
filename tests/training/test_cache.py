"""Images that are decoded once: the same batches as from the files, made again when anything has changed."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chexpert_hf import CheXpertImageProcessor
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.training import cache
from chexpert_hf.training.batches import RadiographDataset
from chexpert_hf.training.cache import cached_images
from chexpert_hf.training.recipe import Recipe, RecipeError

PROCESSOR = CheXpertImageProcessor(size={"height": 48, "width": 40}, gray_range={"low": 0.5, "high": 99.5})


@pytest.fixture
def data(tmp_path):
    write_phantoms(tmp_path / "data", num_studies=6, seed=0)
    return load_dataset(tmp_path / "data")["train"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CHEXPERT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def batch(data, images, processor=PROCESSOR):
    rows = RadiographDataset(data, processor, lambda labels, index: {"labels": labels}, images=images)
    return next(iter(torch.utils.data.DataLoader(rows, batch_size=len(rows))))


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("processes", [0, 1])
def test_batches_are_equal_to_the_last_bit_and_read_no_file(data, kind, processes, monkeypatch):
    monkeypatch.setattr(cache, "FILES_FOR_PROCESSES", 1)
    expected = batch(data, None)
    images = cached_images(image_files(data), PROCESSOR, kind, processes)
    for file in image_files(data):
        os.remove(file)
    found = batch(data, images)
    assert found.keys() == expected.keys()
    assert found["pixel_values"].dtype == torch.uint8
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_levels_that_are_not_rounded_are_kept_as_they_are(data):
    processor = CheXpertImageProcessor(size={"height": 40, "width": 40}, resize_like="scikit-image")
    images = cached_images(image_files(data), processor, "disk")
    assert torch.equal(batch(data, images, processor)["pixel_values"], batch(data, None, processor)["pixel_values"])


def test_a_file_is_used_until_an_image_the_processor_or_the_file_itself_changes(data, folder, monkeypatch):
    files = image_files(data)
    first = np.array(cached_images(files, PROCESSOR, "disk"))
    (file,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_ahead", None)  # nothing is read
        assert np.array_equal(cached_images(files, PROCESSOR, "disk"), first)
    file.write_bytes(file.read_bytes()[:-100])
    assert np.array_equal(cached_images(files, PROCESSOR, "disk"), first)
    assert list(folder.iterdir()) == [file]
    cached_images(files, CheXpertImageProcessor(size={"height": 48, "width": 40}), "disk")
    os.replace(files[1], files[0])
    cached_images([files[0], *files[2:]], PROCESSOR, "disk")
    os.utime(files[2], ns=(0, 0))
    cached_images([files[0], *files[2:]], PROCESSOR, "disk")
    assert len(list(folder.iterdir())) == 4


def test_a_bad_image_is_named_and_leaves_nothing(data, folder):
    files = image_files(data)
    with open(files[2], "r+b") as stream:
        stream.truncate(400)
    with pytest.raises(RadiographError, match=f"{os.path.basename(files[2])}.*cut short"):
        cached_images(files, PROCESSOR, "disk")
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_told_before_anything_is_read(data, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
    with pytest.raises(RecipeError, match=r"cache 'disk' needs .*CHEXPERT_HF_CACHE"):
        cached_images(image_files(data), PROCESSOR, "disk")


def test_recipes_of_earlier_versions_keep_images_in_memory():
    assert Recipe().override(cache=True).cache == "ram"
    assert Recipe().override(cache=False).cache == "none"
