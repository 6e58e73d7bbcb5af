"""Every uncertainty policy against values worked out by hand and against a loop over cells that knows no tensors."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from chexpert_hf import CheXpertConfig, CheXpertForImageClassification, CheXpertImageProcessor
from chexpert_hf.labels import OBSERVATIONS, PAPER_POLICIES, PARENTS, UncertaintyPolicy, parents_among, parse_policies
from chexpert_hf.modeling_chexpert import masked_mean, resolve_labels, unconditional_logits

from .conftest import TINY

NAN = float("nan")
POLICIES = [policy.value for policy in UncertaintyPolicy]


def tiny(seed: int = 0, **options) -> CheXpertForImageClassification:
    torch.manual_seed(seed)
    return CheXpertForImageClassification(CheXpertConfig(**TINY, **options)).eval()


def head_outputs(model: CheXpertForImageClassification, pixel_values: torch.Tensor) -> list[list[float]]:
    caught = []
    handle = model.classifier.register_forward_hook(lambda module, inputs, output: caught.append(output))
    model(pixel_values)
    handle.remove()
    return caught[0].tolist()


def loss_by_loops(outputs: list[list[float]], labels: list[list[float]], config: CheXpertConfig) -> float:
    """Irvin et al. 2019, section 3.1, and Pham et al. 2019, cell by cell."""
    observations, losses = config.observations, []
    three_class = [name for name in observations if config.uncertainty_policies[name] == "u-multiclass"]
    for output, row in zip(outputs, labels, strict=True):
        for column, name in enumerate(observations):
            policy, label = config.uncertainty_policies[name], row[column]
            if math.isnan(label):
                if config.blank_labels == "unknown":
                    continue
                label = 0.0
            if policy == "u-multiclass":
                place = len(observations) + three_class.index(name)
                z = {0.0: output[place], 1.0: output[column], -1.0: output[place + len(three_class)]}
                losses.append(-math.log(math.exp(z[label]) / sum(math.exp(value) for value in z.values())))
                continue
            if label == -1:
                label = {"u-zeros": 0.0, "u-ones": 1.0, "u-zeros+lsr": 0.15, "u-ones+lsr": 0.7}.get(policy)
            if label is None:  # U-Ignore, and U-SelfTrained before there is a teacher
                continue
            p = 1 / (1 + math.exp(-output[column]))
            losses.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
    return sum(losses) / len(losses) if losses else 0.0


def raw_labels(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.choice([0.0, 1.0, -1.0, NAN], size=(rows, columns)), dtype=torch.float32)


def test_the_loss_is_the_mean_cross_entropy_of_the_known_cells():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 5.0]])
    targets = torch.tensor([[1.0, 0.0], [-100.0, 0.8]])
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    # -log s(0) = .6931; -log(1 - s(2)) = 2.1269; -(.8 log s(5) + .2 log(1 - s(5))) = 1.0067
    expected = (0.6931 + 2.1269 + 1.0067) / 3
    assert masked_mean(losses, targets != -100).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_the_mean_over_nothing_known_is_zero(num_items):
    losses = torch.ones(2, 2, requires_grad=True)
    mean = masked_mean(losses, torch.zeros(2, 2, dtype=torch.bool), num_items)
    mean.backward()
    assert mean.item() == 0
    assert torch.equal(losses.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("blank_labels", ["negative", "unknown"])
def test_the_loss_of_one_policy_equals_that_of_loops_over_cells(policy, blank_labels):
    config = {"uncertainty_policies": dict.fromkeys(OBSERVATIONS, policy), "blank_labels": blank_labels}
    model = tiny(**config)
    pixel_values, labels = torch.randn(5, 3, 64, 64), raw_labels(5, 14)
    expected = loss_by_loops(head_outputs(model, pixel_values), labels.tolist(), model.config)
    assert model(pixel_values, labels=labels).loss.item() == pytest.approx(expected, rel=1e-5)


def test_mixed_policies_in_one_batch_equal_loops_over_cells():
    policies = {name: POLICIES[place % len(POLICIES)] for place, name in enumerate(OBSERVATIONS)}
    model = tiny(uncertainty_policies=policies)
    pixel_values = torch.randn(6, 3, 64, 64)
    labels = raw_labels(6, 14)
    labels[2] = -1  # a row of nothing but uncertain cells
    expected = loss_by_loops(head_outputs(model, pixel_values), labels.tolist(), model.config)
    assert model(pixel_values, labels=labels).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("policy", ["u-ignore", "u-self-trained"])
def test_a_batch_without_known_labels_has_loss_zero_and_finite_gradients(policy):
    model = tiny(uncertainty_policies=dict.fromkeys(OBSERVATIONS, policy))
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.full((2, 14), -1.0)).loss
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(model.classifier.weight.grad, torch.zeros_like(model.classifier.weight))


def test_only_uncertain_cells_follow_the_policy():
    config = CheXpertConfig(
        id2label=dict(enumerate(["Edema", "Pneumonia", "Fracture", "Atelectasis"])),
        uncertainty_policies={"Edema": "u-ones", "Pneumonia": "u-zeros", "Atelectasis": "u-multiclass"},
    )
    raw = torch.tensor([[-1.0, -1, -1, -1], [1, 0, NAN, NAN], [0.3, -100, 1, 0]])
    expected = torch.tensor([[1.0, 0, -100, -1], [1, 0, 0, 0], [0.3, -100, 1, 0]])
    assert torch.equal(resolve_labels(raw, config), expected)
    assert torch.equal(resolve_labels(expected, config), expected)


@pytest.mark.parametrize("policies", [{}, {"Edema": "u-multiclass", "Fracture": "u-ones"}])
def test_gradients_of_accumulated_batches_equal_those_of_one_large_batch(policies):
    model = tiny(uncertainty_policies=policies)
    pixel_values, labels = torch.randn(6, 3, 64, 64), raw_labels(6, 14)
    known = (resolve_labels(labels, model.config) != -100).sum()

    def gradients(parts: list[slice]) -> list[torch.Tensor]:
        model.zero_grad()
        for part in parts:
            model(pixel_values[part], labels=labels[part], num_items_in_batch=known).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for one, other in zip(gradients([slice(0, 1), slice(1, 6)]), gradients([slice(0, 6)]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_loss_weights_multiply_the_losses_of_their_cells():
    model = tiny()
    pixel_values, labels = torch.randn(3, 3, 64, 64), torch.ones(3, 14)
    only = torch.zeros(3, 14)
    only[1, 4] = 42
    loss = model(pixel_values, labels=labels, loss_weights=only).loss
    cell = -math.log(1 / (1 + math.exp(-head_outputs(model, pixel_values)[1][4])))
    assert loss.item() == pytest.approx(cell, rel=1e-5)  # 42 times that cell, over 42 cells


MULTICLASS = {"Cardiomegaly": "u-multiclass", "Pleural Effusion": "u-multiclass"}


@pytest.mark.parametrize("head_hidden_size", [None, 8])
def test_the_sigmoid_of_a_multiclass_logit_is_p1_over_p0_plus_p1(head_hidden_size):
    model = tiny(uncertainty_policies=MULTICLASS, head_hidden_size=head_hidden_size)
    pixel_values = torch.randn(4, 3, 64, 64)
    outputs = torch.tensor(head_outputs(model, pixel_values))
    answer = model(pixel_values)
    assert outputs.shape == (4, 14 + 2 * 2)
    assert answer.logits.shape == (4, 14)
    for place, name in enumerate(["Cardiomegaly", "Pleural Effusion"]):
        column = OBSERVATIONS.index(name)
        p = outputs[:, [14 + place, column, 16 + place]].softmax(dim=1)  # negative, positive, uncertain
        torch.testing.assert_close(answer.logits[:, column].sigmoid(), p[:, 1] / (p[:, 0] + p[:, 1]))
        torch.testing.assert_close(answer.uncertainty[:, place], p[:, 2])
    assert model.config.multiclass_observations == ("Cardiomegaly", "Pleural Effusion")
    others = [column for column, name in enumerate(OBSERVATIONS) if name not in MULTICLASS]
    assert torch.equal(answer.logits[:, others], outputs[:, others])


def test_the_stock_pipeline_gives_the_same_probability_for_a_multiclass_observation(tmp_path):
    model = tiny(uncertainty_policies=MULTICLASS)
    processor = CheXpertImageProcessor(size={"height": 64, "width": 64})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    outputs = torch.tensor(head_outputs(model, processor(image, return_tensors="pt")["pixel_values"]))[0]
    p = outputs[[14, OBSERVATIONS.index("Cardiomegaly"), 16]].softmax(dim=0)
    scores = pipeline("image-classification", model=model, image_processor=processor)(image, top_k=14)
    by_name = {score["label"]: score["score"] for score in scores}
    assert by_name["Cardiomegaly"] == pytest.approx((p[1] / (p[0] + p[1])).item(), abs=1e-6)


def test_a_multiclass_model_has_no_uncertainty_output_without_such_observations():
    assert tiny()(torch.randn(1, 3, 64, 64)).uncertainty is None


def test_a_multiclass_model_survives_saving(tmp_path):
    model = tiny(uncertainty_policies=MULTICLASS, policies_source="a test")
    model.save_pretrained(tmp_path)
    loaded = CheXpertForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.policies_source == "a test"
    pixel_values = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits, atol=1e-5, rtol=1e-5)


def test_unconditional_probabilities_are_products_along_the_hierarchy():
    config = CheXpertConfig(label_parents=PARENTS)
    logits = torch.randn(5, 14, dtype=torch.float64) * 3
    p = {name: logits[:, column].sigmoid() for column, name in enumerate(OBSERVATIONS)}
    got = unconditional_logits(logits, config).sigmoid()
    expected = {
        "Lung Opacity": p["Lung Opacity"],
        "Pneumonia": p["Pneumonia"] * p["Consolidation"] * p["Lung Opacity"],
        "Cardiomegaly": p["Cardiomegaly"] * p["Enlarged Cardiomediastinum"],
        "Fracture": p["Fracture"],
    }
    for name, value in expected.items():
        torch.testing.assert_close(got[:, OBSERVATIONS.index(name)], value, atol=1e-5, rtol=1e-5)


def test_unconditional_logits_stay_finite_at_the_extremes():
    config = CheXpertConfig(label_parents=PARENTS)
    for value in (-80.0, 80.0):
        assert unconditional_logits(torch.full((1, 14), value), config).isfinite().all()


def test_with_a_hierarchy_a_child_is_learned_where_its_parent_is_positive():
    config = CheXpertConfig(
        id2label=dict(enumerate(["Lung Opacity", "Edema", "Fracture"])),
        label_parents={"Edema": "Lung Opacity"},
        uncertainty_policies=dict.fromkeys(["Lung Opacity", "Edema", "Fracture"], "u-zeros"),
    )
    raw = torch.tensor([[1.0, 0, 1], [0, 0, 1], [NAN, -1, 0], [-1, 0, 0], [1, -1, 0]])
    expected = torch.tensor([[1.0, 0, 1], [0, -100, 1], [0, -100, 0], [0, -100, 0], [1, 0, 0]])
    assert torch.equal(resolve_labels(raw, config), expected)


def test_with_a_hierarchy_a_positive_child_makes_all_above_it_positive():
    # Reports do not: of CheXpert's rows with Cardiomegaly, 91 % leave Enlarged Cardiomediastinum blank.
    names = ["Lung Opacity", "Consolidation", "Pneumonia"]
    config = CheXpertConfig(id2label=dict(enumerate(names)), label_parents=parents_among(names))
    raw = torch.tensor([[NAN, NAN, 1.0], [0, 1, NAN], [NAN, NAN, NAN]])
    expected = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, -100, -100]])
    assert torch.equal(resolve_labels(raw, config), expected)
    assert torch.equal(resolve_labels(expected, config), expected)


def test_unconditional_logits_keep_their_order_under_autocast():
    config = CheXpertConfig(label_parents=PARENTS)
    logits = torch.randn(200, 14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = unconditional_logits(logits, config)
    torch.testing.assert_close(got, unconditional_logits(logits, config))


def test_the_hierarchy_skips_observations_that_are_not_trained():
    assert parents_among(["Pneumonia", "Lung Opacity", "Cardiomegaly"]) == {"Pneumonia": "Lung Opacity"}
    assert parents_among(OBSERVATIONS) == PARENTS


def test_the_paper_preset_is_table_3_and_ignores_what_it_does_not_name():
    policies = parse_policies("paper", OBSERVATIONS)
    assert {name: policies[name] for name in PAPER_POLICIES} == {
        "Atelectasis": "u-ones",
        "Cardiomegaly": "u-multiclass",
        "Consolidation": "u-self-trained",
        "Edema": "u-ones",
        "Pleural Effusion": "u-multiclass",
    }
    assert {policies[name] for name in OBSERVATIONS if name not in PAPER_POLICIES} == {"u-ignore"}
