import pytest

from chexpert_hf.labels import COMPETITION_OBSERVATIONS, OBSERVATIONS, check_observations, parse_policies


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
    [([], "at least one"), (["Edema", "Effusion"], "'Effusion' is not a CheXpert"), (["Edema", "Edema"], "named once")],
)
def test_names_that_are_no_observations_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_observations(names)
