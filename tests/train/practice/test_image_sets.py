import datasets
import numpy as np
import pytest
from PIL import Image

from train.practice.image_sets import CIFAR_CLASSES, ImageSetError, from_dataset, load_image_sets


def images_of(count, seed=0):
    """`(count, 3, 32, 32)` and a class for each."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(count) % 10


def write_binary(folder, count=20, batches=2):
    """Noise in CIFAR's binary layout, written byte by byte as its page describes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{i + 1}.bin" for i in range(batches)), "test_batch.bin"]):
        images, labels = images_of(count, number)
        records = [bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)]
        (folder / name).write_bytes(b"".join(records))


def write_class_folders(folder, classes=("cat", "dog"), size=(32, 32)):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def test_digits_are_split_once_and_for_all_with_every_class_on_both_sides():
    train, test = load_image_sets("digits")
    assert (len(train.labels), len(test.labels)) == (1198, 599)
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert (train.images.min(), train.images.max(), train.images.shape[1:]) == (0, 255, (1, 8, 8))
    again, _ = load_image_sets("digits")
    np.testing.assert_array_equal(again.images, train.images)
    shared = {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert shared == set()
    assert not train.mirrors


def test_cifars_binary_files_are_read_in_order_with_red_green_and_blue_in_their_places(tmp_path):
    write_binary(tmp_path)
    train, test = load_image_sets(str(tmp_path))
    first, labels = images_of(20)
    second, _ = images_of(20, seed=1)
    np.testing.assert_array_equal(train.images, np.concatenate([first, second]))
    np.testing.assert_array_equal(train.labels, np.concatenate([labels, labels]))
    np.testing.assert_array_equal(test.images, images_of(20, seed=2)[0])
    assert train.classes == CIFAR_CLASSES
    assert train.mirrors
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n", encoding="utf-8")
    assert load_image_sets(str(tmp_path))[0].classes == tuple("abcdefghij")


def test_a_split_of_the_hubs_cifar10_gives_the_same(tmp_path):
    images, labels = images_of(12)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CIFAR_CLASSES))})
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    split = datasets.Dataset.from_dict({"img": pictures, "label": labels.tolist()}, features)
    found = from_dataset(split)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.classes == CIFAR_CLASSES


def test_a_folder_per_class_is_read(tmp_path):
    write_class_folders(tmp_path)
    train, test = load_image_sets(str(tmp_path))
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(tmp_path / "train" / "dog" / "2.png") as image:
        np.testing.assert_array_equal(train.images[5], np.asarray(image).transpose(2, 0, 1))


def test_pickles_are_refused(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"never read")
    with pytest.raises(ImageSetError, match=r"pickles that can run code; use its binary version"):
        load_image_sets(str(tmp_path))


def test_what_is_damaged_or_does_not_fit_is_said_in_one_line(tmp_path):
    write_binary(tmp_path / "cut")
    (tmp_path / "cut" / "test_batch.bin").write_bytes(b"1" * 3000)
    with pytest.raises(ImageSetError, match=r"test_batch\.bin has 3,000 bytes, expected a multiple of 3,073"):
        load_image_sets(str(tmp_path / "cut"))
    write_binary(tmp_path / "classes")
    (tmp_path / "classes" / "batches.meta.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(ImageSetError, match="has class 9, expected 0 to 1"):
        load_image_sets(str(tmp_path / "classes"))
    write_class_folders(tmp_path / "folders")
    (tmp_path / "folders" / "test" / "horse").mkdir()
    with pytest.raises(ImageSetError, match="class 'horse' that is not in train"):
        load_image_sets(str(tmp_path / "folders"))
    (tmp_path / "folders" / "test" / "horse").rmdir()
    (tmp_path / "folders" / "train" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(ImageSetError, match=r"0\.png cannot be read as PNG or JPEG"):
        load_image_sets(str(tmp_path / "folders"))
    with pytest.raises(ImageSetError, match="is not 'digits', 'cifar10' or a folder"):
        load_image_sets(str(tmp_path / "nothing"))
