import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from chexpert_hf import CheXpertConfig
from chexpert_hf.labels import (
    CHEXPERT,
    COMPETITION_OBSERVATIONS,
    OBSERVATIONS,
    LabelSet,
    check_observations,
    parse_policies,
)


def test_observations_are_in_the_order_of_chexperts_csv_files(real_data):
    header = (real_data / "NIH-mini" / "train.csv").read_text().splitlines()[0].split(",")
    assert tuple(header[5:]) == OBSERVATIONS


def test_the_competition_is_judged_on_five_of_them():
    assert len(COMPETITION_OBSERVATIONS) == 5
    assert set(COMPETITION_OBSERVATIONS) < set(OBSERVATIONS)


def test_one_policy_is_for_every_observation():
    assert parse_policies("U-Ones", ["Edema", "Fracture"]) == {"Edema": "u-ones", "Fracture": "u-ones"}


@pytest.mark.parametrize("choice", ["Edema=u-ones, Atelectasis=u-zeros", {"Edema": "u-ones", "Atelectasis": "u-zeros"}])
def test_observations_that_a_list_leaves_out_are_ignored_where_uncertain(choice):
    policies = parse_policies(choice, ["Atelectasis", "Edema", "Fracture"])
    assert policies == {"Atelectasis": "u-zeros", "Edema": "u-ones", "Fracture": "u-ignore"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("u-twos", "Unknown uncertainty policy 'u-twos'; expected one of: u-ignore, u-zeros, u-ones"),
        ("Edema=u-ones,u-zeros", "Expected 'Observation=policy' in the list of policies, got 'u-zeros'"),
        ("Oedema=u-ones", "'Oedema', which is not trained"),
    ],
)
def test_a_policy_that_is_none_is_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        parse_policies(choice, ["Edema"])


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "at least one"), (["Edema", "Effusion"], "'Effusion' is not a known"), (["Edema", "Edema"], "named once")],
)
def test_names_that_are_no_observations_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_observations(names, OBSERVATIONS)


def test_a_label_set_of_some_observations_keeps_what_concerns_them():
    some = CHEXPERT.among(["Pneumonia", "Hernia", "Lung Opacity", "Edema"])
    assert some.names == ("Pneumonia", "Hernia", "Lung Opacity", "Edema")
    assert some.headline == ("Edema",)
    assert some.parents == {"Pneumonia": "Lung Opacity", "Edema": "Lung Opacity"}  # Consolidation is not among them
    assert some.none_of_these is None
    assert set(some.definitions) == {"Pneumonia", "Lung Opacity", "Edema"}
    assert CHEXPERT.in_order(["Hernia", "Edema", "No Finding"]) == ["No Finding", "Edema", "Hernia"]


def test_a_label_set_is_the_same_after_json():
    labels = LabelSet(("TB", "Normal"), ("TB",), none_of_these="Normal", definitions={"TB": "Tuberculosis."})
    assert LabelSet.from_dict(labels.names, json.loads(json.dumps(labels.to_dict()))) == labels
    assert LabelSet.from_dict(CHEXPERT.names, json.loads(json.dumps(CHEXPERT.to_dict()))) == CHEXPERT


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"title": "TB"}, "has no 'title'"),
        ({"parents": 3}, "got parents: 3"),
        ({"headline": "TB"}, "got headline: 'TB'"),
        ({"headline": ["Edema"]}, "names 'Edema', expected one of: TB, Normal"),
        ({"none_of_these": "None"}, "names 'None'"),
        ({"parents": {"TB": "Infection"}}, "names 'Infection'"),
    ],
)
def test_a_label_set_of_other_values_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LabelSet.from_dict(["TB", "Normal"], values)


def test_other_labels_keep_what_is_known_of_those_that_stay():
    config = CheXpertConfig(id2label={0: "TB", 1: "Normal"}, label_set={"none_of_these": "Normal", "headline": ["TB"]})
    config.id2label = {0: "TB", 1: "Edema"}
    assert config.labels == LabelSet(("TB", "Edema"), ("TB",))


def test_a_model_has_a_label_set_of_its_own(tmp_path):
    config = CheXpertConfig(id2label={0: "TB", 1: "Normal"}, label_set={"none_of_these": "Normal"})
    config.save_pretrained(tmp_path)
    assert CheXpertConfig.from_pretrained(tmp_path).labels == LabelSet(("TB", "Normal"), none_of_these="Normal")
    assert CheXpertConfig().labels == CHEXPERT
    with pytest.raises(StrictDataclassError, match="no 'headlines'"):
        CheXpertConfig(label_set={"headlines": ["Edema"]})
