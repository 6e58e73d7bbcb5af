import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from typer.testing import CliRunner

from chexpert_hf import CheXpertClassifier, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.cli import app
from chexpert_hf.datasets.image_files import image_files
from chexpert_hf.datasets.loading import load_dataset
from chexpert_hf.errors import InputError
from chexpert_hf.evaluation.report.report import write_report
from chexpert_hf.evaluation.report.reporting import assess_dataset
from chexpert_hf.evaluation.sanity import checks as sanity_checks
from chexpert_hf.evaluation.sanity.checks import (
    check_sanity,
    choose_pairs,
    estimate_statistics,
    randomised_networks,
    removal_check,
    removal_curves,
    sample_rows,
)
from chexpert_hf.evaluation.sanity.sanity import Verdict
from chexpert_hf.phantoms import write_phantoms
from chexpert_hf.radiographs.radiograph import RadiographError
from chexpert_hf.scoring.classifier import CheXpertEnsemble
from tests.conftest import TINY


class PictureForImageClassification(CheXpertForImageClassification):
    """Its maps are the picture, whatever the weights are."""

    def forward(self, pixel_values, **kwargs):
        outputs = super().forward(pixel_values, **kwargs)
        picture = functional.adaptive_avg_pool2d(pixel_values[:, :1], (8, 8))
        outputs.saliency = picture.expand(-1, self.num_labels, -1, -1)
        return outputs


@pytest.fixture(autouse=True)
def few_curves(monkeypatch):
    """As many as there are in life would take most of the time."""
    monkeypatch.setattr(sanity_checks, "PAIRS", 5)
    monkeypatch.setattr(sanity_checks, "STEPS", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(root, num_studies=12, seed=2, valid_fraction=0.9)
    return root


@pytest.fixture(scope="module")
def files(root):
    return image_files(load_dataset(root, splits=["valid"])["valid"])


@pytest.fixture
def classifier(tiny_model):
    tiny_model.config.operating_points = dict.fromkeys(tiny_model.config.observations, 0.0)
    return CheXpertClassifier(tiny_model, CheXpertImageProcessor(size={"height": 64, "width": 64}))


def test_the_model_comes_out_as_it_went_in(classifier, files):
    before = copy.deepcopy(classifier.model.state_dict())
    config = classifier.model.config.to_dict()
    state = torch.random.get_rng_state()
    check_sanity(classifier, files[:4])
    after = classifier.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert classifier.model.config.to_dict() == config
    assert not classifier.model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_gives_the_same_figures_and_another_one_others(classifier, files):
    first, again, other = (check_sanity(classifier, files[:4], seed=seed) for seed in (0, 0, 1))
    assert first.weights[1].similarity == again.weights[1].similarity != other.weights[1].similarity
    np.testing.assert_array_equal(first.removal.random, again.removal.random)


def test_only_the_head_is_randomised_and_then_everything(tiny_model):
    other_head, fresh = randomised_networks(tiny_model, 0)
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(other_head.state_dict()[name], value) != (name == "classifier.weight")
        if name.endswith("weight") and value.ndim > 1:
            assert not torch.equal(fresh.state_dict()[name], value)


def test_the_seed_of_the_training_does_not_bring_its_initial_weights_back():
    torch.manual_seed(0)
    model = CheXpertForImageClassification(CheXpertForImageClassification.config_class(**TINY))
    assert not torch.equal(randomised_networks(model, 0)[0].classifier.weight, model.classifier.weight)


def test_a_random_network_gets_the_statistics_of_the_radiographs(tiny_model):
    fresh = randomised_networks(tiny_model, 0)[1]
    pixel_values = torch.randn(6, 3, 64, 64) * 3 + 1
    estimate_statistics(fresh, pixel_values)
    with torch.no_grad():
        first = fresh.features.conv0(pixel_values)
    torch.testing.assert_close(fresh.features.norm0.running_mean, first.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert not fresh.training


def test_a_model_whose_maps_do_not_depend_on_its_weights_fails(classifier, files):
    cheat = PictureForImageClassification(classifier.model.config)
    checks = check_sanity(CheXpertClassifier(cheat, classifier.processor), files[:6])
    assert [check.verdict for check in checks.weights] == [Verdict.FAILED, Verdict.FAILED]
    assert checks.weights[0].similarity.value == pytest.approx(1)
    assert checks.weights[1].similarity.value == pytest.approx(1)


def test_maps_of_a_network_change_with_all_its_weights(classifier, files):
    assert check_sanity(classifier, files[:8]).weights[1].verdict == Verdict.PASSED


def test_a_map_is_judged_where_the_finding_is_called(classifier, files):
    classifier.model.config.operating_points |= dict.fromkeys(classifier.observations, 1.0)
    classifier.model.config.operating_points |= {"Edema": 0.0, "No Finding": 0.0}
    is_positive = np.zeros((4, 14), dtype=bool)
    is_positive[2, 13] = is_positive[:, 0] = True  # No Finding is nowhere in particular
    checks = check_sanity(classifier, files[:4], is_positive=is_positive)
    outside = checks.regions[0]
    assert [name for name, value in zip(checks.observations, outside.by_observation, strict=True) if value >= 0] in (
        ["Edema"],
        [],  # where the positive part is empty
    )
    assert sorted(checks.removal.observations) == ["Edema"] * 4 + ["Support Devices"]


def test_regions_are_those_of_the_part_that_the_model_sees(classifier, files):
    whole = check_sanity(classifier, files[:4])
    classifier.processor.do_center_crop, classifier.processor.crop_size = True, {"height": 24, "width": 24}
    middle = check_sanity(classifier, files[:4])
    assert {item.region for item in whole.regions} == {"outside the body", "outer frame", "side marker"}
    assert whole.regions[0].area > 0.1
    assert not middle.regions[0].area > 0.05  # no air in the middle of a chest


class OnePatch:
    """Its probability is read from the brightest place of the upper left quarter alone."""

    device, dtype = torch.device("cpu"), torch.float32

    def __call__(self, pixel_values):
        height, width = pixel_values.shape[-2:]
        brightness = pixel_values[:, 0, : height // 2, : width // 2].amax(dim=(1, 2))
        return SimpleNamespace(logits=(8 * brightness - 4)[:, None])


def test_the_patch_that_is_read_makes_the_probability_fall_and_rise_first():
    picture = torch.zeros(1, 1, 64, 64)
    picture[..., 16, 16] = 1  # a spot, which the blur takes away
    read = np.array([5, 0, 1, 4])  # of 4 x 4 places, the upper left quarter; the spot is in place 5
    others = np.setdiff1d(np.arange(16), read)
    right, wrong = np.concatenate([read, others]), np.concatenate([others, read])
    random = np.random.default_rng(0).permutation(16)
    deletion, insertion, at_random = removal_curves(OnePatch(), picture, 0, right, random, (4, 4), 8)
    assert deletion[0] == insertion[-1] == at_random[0] == pytest.approx(torch.tensor(4.0).sigmoid().item(), abs=1e-4)
    assert deletion[-1] == insertion[0] == at_random[-1] < 0.5
    np.testing.assert_allclose(deletion[2:], deletion[-1], rtol=1e-5)
    np.testing.assert_allclose(insertion[2:], insertion[-1], rtol=1e-5)
    assert deletion.mean() < at_random.mean() < insertion.mean()
    late, _, _ = removal_curves(OnePatch(), picture, 0, wrong, random, (4, 4), 8)
    np.testing.assert_allclose(late[:7], late[0], rtol=1e-5)


def test_a_map_that_names_the_patch_beats_random_order_and_its_opposite_does_not():
    picture = torch.zeros(1, 1, 64, 64)
    picture[..., 16, 16] = 1
    classifier = SimpleNamespace(
        model=OnePatch(),
        processor=lambda images, return_tensors: {"pixel_values": picture},
        read=lambda file: SimpleNamespace(image=file),
        observations=["Edema"],
    )
    maps = -np.arange(16.0).reshape(1, 1, 4, 4)
    maps[..., 1, 1] = 1  # the patch with the spot
    gains = []
    for saliency in (maps, -maps):
        check = removal_check(classifier, ["radiograph"], saliency, [(0, 0)], ["patient"], seed=0)
        gains.append((check.deletion_gain.value, check.insertion_gain.value))
    assert min(gains[0]) > 0.1
    assert max(gains[1]) < -0.1


def test_pairs_come_in_turn_from_each_observation():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert choose_pairs(probabilities, np.array([[1, 1], [1, 0], [0, 1]], dtype=bool)) == [
        (0, 0),
        (2, 1),
        (1, 0),
        (0, 1),
    ]
    assert choose_pairs(probabilities, np.zeros((3, 2), dtype=bool)) == []
    assert len(choose_pairs(np.ones((40, 2)), np.ones((40, 2), dtype=bool))) == 5


def test_a_sample_is_seeded_and_whole_if_it_is_large_enough():
    assert sample_rows(5, 9) == [0, 1, 2, 3, 4]
    assert sample_rows(100, 7, seed=1) == sample_rows(100, 7, seed=1) != sample_rows(100, 7, seed=2)
    assert len(set(sample_rows(100, 7))) == 7


def test_what_cannot_be_checked_is_refused(classifier, files, tmp_path):
    with pytest.raises(InputError, match="one model, got an ensemble of 2"):
        check_sanity(CheXpertEnsemble([classifier, classifier]), files)
    with pytest.raises(InputError, match=r"two or more radiographs.* got 1"):
        check_sanity(classifier, files[:1])
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(RadiographError, match=r"no\.png: "):
        check_sanity(classifier, [*files[:3], tmp_path / "no.png"])


def test_the_command_checks_the_valid_split_of_a_folder(root, tiny_folder, tmp_path):
    arguments = ["sanity", str(root), "--model", str(tiny_folder), "--limit", "4", "--output", str(tmp_path / "out")]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert "The maps change when the weights do: " in answer.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sanity.json", "sanity.png"}
    answer = CliRunner().invoke(app, [*arguments[:-2], "--json"])
    assert json.loads(answer.stdout) == json.loads((tmp_path / "out" / "sanity.json").read_text())


def test_the_command_takes_radiographs_and_a_failure_is_no_error(classifier, tiny_folder, tmp_path):
    for number in range(3):
        Image.new("L", (90, 80), 40 * number).save(tmp_path / f"{number}.png")
    answer = CliRunner().invoke(
        app, ["sanity", str(tmp_path / "0.png"), str(tmp_path / "1.png"), "-m", str(tiny_folder)]
    )
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith("2 radiographs, maps of 8 x 8.")


def test_the_report_has_the_checks_as_a_section(root, classifier, tmp_path):
    dataset = load_dataset(root, splits=["valid"])["valid"]
    report = assess_dataset({"a": classifier, "b": classifier}, dataset, title="t", replicates=100, num_sanity=4)
    write_report(tmp_path, report)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["sanity"].keys() == {"a", "b"}
    assert metrics["sanity"]["a"]["num_images"] == 4
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Sanity of the maps of b" in text
        assert "The maps change when the weights do: " in text
    markdown = (tmp_path / "report.md").read_text()
    assert {row.count("|") for row in markdown.splitlines() if row.startswith(("| head", "| randomised"))} == {7}
    assert (tmp_path / "sanity.png").is_file()
    assert (tmp_path / "sanity_2.png").is_file()
