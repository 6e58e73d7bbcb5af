import json
import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from chexpert_hf import CheXpertClassifier
from chexpert_hf.errors import InputError
from chexpert_hf.files import FolderError, new_folder
from chexpert_hf.formats.imports import import_model, read_source
from chexpert_hf.labels import COMPETITION_OBSERVATIONS, OBSERVATIONS
from chexpert_hf.models.weights import WeightsError
from chexpert_hf.publishing.card import card_problems
from tests.commands import run as run_command

from .foreign_networks import STANFORD_TASKS, StanfordModel, densenet, phantom_image, save_stanford, student_network

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def imagenet():
    return densenet()


@pytest.fixture(scope="module")
def three_classes():
    return densenet(42)


def loaded(folder):
    classifier = CheXpertClassifier.from_pretrained(folder)
    assert card_problems((folder / "README.md").read_text()) == []
    assert (folder / "checksums.json").is_file()
    return classifier


@pytest.mark.slow
def test_imagenets_backbone_comes_with_a_head_that_judges_nothing(imagenet, tmp_path):
    torch.save(imagenet.state_dict(), tmp_path / "densenet121.pth")
    imported = import_model("torchvision", tmp_path / "out", file=tmp_path / "densenet121.pth")
    assert "judges nothing" in imported.remarks[0]
    assert "It judges nothing." in (tmp_path / "out" / "README.md").read_text()
    classifier = loaded(tmp_path / "out")
    assert classifier.observations == OBSERVATIONS
    for name, tensor in imagenet.features.state_dict().items():
        assert torch.equal(tensor, classifier.model.features.state_dict()[name]), name
    assert set(classifier.predict(phantom_image()).probabilities.values()) == {0.5}
    assert classifier.processor.output_size == (224, 224)


def test_the_student_projects_scores_are_its_own(tmp_path):
    network = student_network()
    torch.save(network.state_dict(), tmp_path / "student.pth")
    import_model(f"student:{tmp_path / 'student.pth'}", tmp_path / "out")
    classifier = loaded(tmp_path / "out")
    with torch.no_grad():
        expected, ours = network(PIXELS), classifier.model(PIXELS).logits
    torch.testing.assert_close(ours.sigmoid(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours, expected.double().logit().float(), atol=1e-4, rtol=0)
    assert classifier.observations == ("Atelectasis", "Cardiomegaly", "Edema", "Consolidation", "Pleural Effusion")
    assert set(classifier.observations) == set(COMPETITION_OBSERVATIONS)
    assert (classifier.processor.num_channels, classifier.processor.output_size) == (3, (224, 224))
    back = classifier.model.state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in network.state_dict().items())


def test_safetensors_give_the_same_as_a_pickle(tmp_path):
    network = student_network()
    save_file(network.state_dict(), tmp_path / "student.safetensors")
    read = read_source("student", file=tmp_path / "student.safetensors").build().state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in network.state_dict().items())


def test_stanfords_three_classes_give_p1_of_p0_and_p1_and_go_back_bit_by_bit(three_classes, tmp_path):
    tasks = {name: place for place, name in enumerate(STANFORD_TASKS)}
    save_stanford(three_classes, tmp_path / "iter_4800.pth.tar", task_sequence=tasks)
    import_model(f"stanford:{tmp_path / 'iter_4800.pth.tar'}", tmp_path / "out")
    classifier = loaded(tmp_path / "out")
    with torch.no_grad():
        outputs = StanfordModel(three_classes)(PIXELS).double()
        ours = classifier.model(PIXELS)
    uncertain, negative, positive = outputs.view(2, 14, 3).exp().unbind(dim=2)  # their order
    expected = positive / (negative + positive)
    torch.testing.assert_close(ours.logits.sigmoid().double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.logits.double(), (positive / negative).log(), atol=1e-4, rtol=0)
    of_uncertain = uncertain / (uncertain + negative + positive)
    torch.testing.assert_close(ours.uncertainty.double(), of_uncertain, atol=1e-5, rtol=0)
    assert classifier.observations == OBSERVATIONS  # "Airspace Opacity" by its name in the CSV
    assert classifier.processor.output_size == (320, 320)
    weight = classifier.model.classifier.weight
    back = torch.stack([weight[28:], weight[14:28], weight[:14]], dim=1).flatten(0, 1)
    assert torch.equal(back, three_classes.classifier.weight)


def test_stanfords_single_outputs_need_names_from_the_file_or_the_user(tmp_path):
    network = densenet(14)
    path = save_stanford(network, tmp_path / "ones.pth.tar", task_sequence=list(reversed(STANFORD_TASKS)))
    model = read_source("stanford", file=path).build()
    assert model.config.observations == tuple(reversed(OBSERVATIONS))
    with torch.no_grad():
        torch.testing.assert_close(model(PIXELS).logits, StanfordModel(network)(PIXELS), atol=1e-5, rtol=0)
    bare = save_stanford(network, tmp_path / "bare.pth.tar")
    odd = save_stanford(network, tmp_path / "odd.pth.tar", task_sequence={"Edema": 0, "Fracture": [1]})
    for unnamed in (bare, odd):
        with pytest.raises(WeightsError, match="does not say what its 14 outputs are; name them with --labels"):
            read_source(f"stanford:{unnamed}")
    labels = ["" if name == "Fracture" else name for name in OBSERVATIONS]
    named = read_source(f"stanford:{bare}", labels=labels).build()
    assert named.config.observations == tuple(name for name in OBSERVATIONS if name != "Fracture")
    assert torch.equal(named.classifier.weight[-1], network.classifier.weight[13])
    with pytest.raises(WeightsError, match="has 14 outputs, expected 3 or 9"):
        read_source(f"stanford:{bare}", labels=["Edema", "Fracture", "Pneumonia"])
    with pytest.raises(WeightsError, match=r"its head is 'classifier\.bias', 'classifier\.weight'"):
        read_source(f"student:{bare}")


def test_a_timm_state_dict_is_named_by_the_user_and_imagenets_classes_make_a_backbone(imagenet, tmp_path):
    network, source = densenet(3), f"timm:{tmp_path / 'model.pth'}"
    torch.save(network.state_dict(), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="does not say what its 3 outputs are; name them with --labels"):
        read_source(source)
    with pytest.raises(WeightsError, match="--labels: Each observation may be named once, got: Edema, TB, Edema"):
        read_source(source, labels=["Edema", "TB", "edema"])
    assert read_source(source, labels=["TB", "Normal", "Scoliosis"]).config.observations[0] == "TB"
    foreign = read_source(source, labels=["Edema", "", "Effusion"])
    assert foreign.config.observations == ("Edema", "Pleural Effusion")
    assert "assumed: 224 pixels" in foreign.remarks[-1]
    with torch.no_grad():
        torch.testing.assert_close(foreign.build()(PIXELS).logits, network(PIXELS)[:, [0, 2]], atol=1e-5, rtol=0)
    torch.save(imagenet.state_dict(), tmp_path / "imagenet.pth")
    backbone = read_source(f"timm:{tmp_path / 'imagenet.pth'}", labels=["Edema"])
    assert backbone.config.observations == ("Edema",)
    assert "judges nothing" in backbone.remarks[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", "input_size": [3, 224, 224]},
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "resample": 3, "output": (224, 224)},
        ),
        (
            {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash", "input_size": [3, 96, 80]},
            {"size": {"height": 96, "width": 80}, "do_center_crop": None, "resample": 2, "output": (96, 80)},
        ),
    ],
)
@pytest.mark.slow
def test_a_timm_folder_says_how_images_are_prepared(tmp_path, values, expected):
    network, folder = densenet(3), tmp_path / "timm"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "densenet121",
        "num_classes": 3,
        "label_names": ["Edema", "Hernia", "Effusion"],
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "license": "mit", **values},
    }
    (folder / "config.json").write_text(json.dumps(config))
    foreign = read_source(f"timm:{folder}")
    assert foreign.config.observations == ("Edema", "Hernia", "Pleural Effusion")
    processor = foreign.processor
    assert {name: side for name, side in dict(processor.size).items() if side} == expected["size"]
    assert processor.do_center_crop == expected["do_center_crop"]
    assert processor.resample == expected["resample"]
    assert processor.output_size == expected["output"]
    assert list(processor.image_std) == [0.2] * 3
    assert "The source gives the licence mit" in foreign.origin.licence
    for change, message in (
        ({"architecture": "densenet161"}, "holds timm's densenet161, expected densenet121"),
        ({"pretrained_cfg": {}}, r"cannot be used \(KeyError"),
        ({"pretrained_cfg": {**config["pretrained_cfg"], "crop_mode": "border"}}, "'border' .* cannot be expressed"),
        (
            {"label_names": ["cat", "dog", "horse"]},
            r"None of the source's outputs .* \('cat', 'dog', 'horse'",
        ),
        ({"label_names": ["Edema"]}, "has 3 outputs, expected 1, for the names 'Edema'"),
        (
            {"label_names": ["Effusion", "Pleural Effusion", "x"]},
            "The source's outputs: Each observation may be named once",
        ),
        ({"label_names": 3}, "has no config.json of timm"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(WeightsError, match=message):
            read_source(f"timm:{folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("features.norm5.bias"),
            r"misses 1 weight 'features.norm5.bias'; expected a DenseNet",
        ),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if "denseblock4" in name],
            r"misses 192 weights 'features.denseblock4.denselayer1.norm1.weight', (?:'[^']+', ){4}\.\.\.;",
        ),
        (lambda weights: weights.update({"fc.weight": torch.zeros(1)}), r"has the unknown 1 weight 'fc.weight'"),
        (
            lambda weights: weights.update({"features.norm0.weight": torch.zeros(3)}),
            r"has other sizes: 1 weight .features.norm0.weight is \(3,\), expected \(64,\)",
        ),
        (
            lambda weights: weights.update({"features.conv0.weight": torch.zeros(64, 2, 7, 7)}),
            r"features.conv0.weight is \(64, 2, 7, 7\), expected \(64, 3, 7, 7\)",
        ),
    ],
)
def test_weights_that_are_missing_left_over_or_of_another_size_are_named(imagenet, tmp_path, change, message):
    weights = dict(imagenet.state_dict())
    change(weights)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        import_model(f"timm:{tmp_path / 'odd.pth'}", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pth"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("jfhealthcare:model.pth", "attention block.*which a DenseNet with one head cannot express"),
        ("nowhere", "Unknown source 'nowhere'; expected one of: torchvision:NAME_OR_FILE, torchxrayvision:NAME"),
        ("torchvision:none", "none is not a file"),
        ("stanford", "Expected stanford:FILE, or --file FILE"),
        ("student:none.pth", "none.pth is not a file"),
        ("timm:none", "none is not a file"),
    ],
)
def test_a_source_that_is_none_is_one_line(tmp_path, source, message):
    with pytest.raises(WeightsError, match=message):
        import_model(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read_is_not_taken_for_the_folder_that_is_written(tmp_path):
    with (
        pytest.raises(InputError, match=r"gone cannot be used \(No such file or directory\); .*out was not written\.$"),
        new_folder(tmp_path / "out"),
    ):
        (tmp_path / "gone").read_bytes()
    with (
        pytest.raises(FolderError, match=r"out could not be written .* Choose"),
        new_folder(tmp_path / "out") as folder,
    ):
        (folder / "no" / "file").write_bytes(b"")
    assert not [*tmp_path.iterdir()]


def test_nothing_half_written_is_left_and_nothing_is_overwritten(tmp_path, monkeypatch):
    torch.save(densenet(2).state_dict(), tmp_path / "model.pth")
    source, labels = f"timm:{tmp_path / 'model.pth'}", ["Edema", "Fracture"]
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(FolderError, match="used is not empty; choose a new or empty folder"):
        import_model("timm:never-read", tmp_path / "used", labels=labels)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("chexpert_hf.formats.imports.save_imported_folder", full)
        with pytest.raises(FolderError, match=r"out could not be written \(No space left on device\)"):
            import_model(source, tmp_path / "out", labels=labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "used"]
    (tmp_path / "out").mkdir()
    import_model(source, tmp_path / "out", labels=labels)
    assert re.search(r"^# out$", (tmp_path / "out" / "README.md").read_text(), re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth", "out", "used"]


def test_the_command_says_what_it_wrote_and_its_folder_can_predict(tmp_path, monkeypatch, capsys):
    torch.save(densenet(2).state_dict(), tmp_path / "model.pth")

    run = partial(run_command, monkeypatch, capsys)
    source = (
        "import",
        f"timm:{tmp_path / 'model.pth'}",
        "--output",
        tmp_path / "out",
        "--labels",
        "Edema, Fracture",
        "--json",
    )
    code, out, err = run(*source)
    assert (code, err) == (0, "")
    assert json.loads(out)["operating_points"] == {"Edema": 0.5, "Fracture": 0.5}
    code, out, err = run(*source)
    assert (code, out) == (2, "")
    assert "not empty" in err
    phantom_image().save(tmp_path / "radiograph.png")
    code, out, err = run("predict", tmp_path / "radiograph.png", "--model", tmp_path / "out")
    assert code == 0, err
    assert "Fracture" in out
