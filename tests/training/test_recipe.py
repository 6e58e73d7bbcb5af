from pathlib import Path

import pytest

from chexpert_hf.training.initial_model import image_size_of
from chexpert_hf.training.recipe import Recipe, RecipeError, recipes_folder


def test_the_defaults_are_the_papers():
    # Irvin et al. 2019, section 3.2
    recipe = Recipe()
    assert (recipe.init, image_size_of(recipe), recipe.batch_size, recipe.epochs) == ("imagenet", 320, 16, 3)
    assert (recipe.learning_rate, recipe.schedule, recipe.weight_decay) == (1e-4, "constant", 0)
    assert (recipe.images_per_checkpoint, recipe.keep_checkpoints) == (4800, 10)
    assert (recipe.rotation_degrees, recipe.translation, recipe.scaling, recipe.contrast) == (0, 0, 0, 0)
    assert recipe.observations == ()  # all that the data have: CheXpert's 14
    assert recipe.blank_labels == "negative"


def test_a_saved_recipe_loads_as_an_equal_one(tmp_path):
    recipe = Recipe(
        observations=("Edema", "Fracture"),
        policy={"Edema": "u-ones"},
        init="random",
        architecture={"growth_rate": 8, "block_config": [2, 2]},
        learning_rate=1e-5,
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml").to_dict() == recipe.to_dict()


def test_a_yaml_recipe_may_write_1e_4(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1e-3\nobservations: [Edema]\n")
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.learning_rate == 0.001
    assert recipe.observations == ("Edema",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: fast", "learning_rate is 'fast', expected a number"),
        ("batchsize: 3", "has no field 'batchsize'; expected: observations, labels"),
        ("batch_size: 0", "batch_size is 0, expected at least 1"),
        ("policy: u-perhaps", "Unknown uncertainty policy 'u-perhaps'"),
        ("schedule: step", "expected one of: constant, linear, cosine"),
        ("architecture: {growth_rate: 8}", "needs init 'random'"),
        ("loss: hinge", "loss is 'hinge', expected one of: cross-entropy, auc-margin"),
        ("{loss: auc-margin, class_weights: true}", "class_weights has no meaning"),
        ("conditional_epochs: -1", "conditional_epochs is -1, expected at least 0"),
        ("{loss: auc-margin, policy: paper}", "supports no uncertain class"),
        ("{map_loss: 1.0, unconditional: true}", "map_loss is for models without a label hierarchy"),
        ("{map_loss: 1.0, conditional_epochs: 1}", "map_loss is for models without a label hierarchy"),
        ("map_centring: -0.1", "map_centring is -0.1, expected at least 0"),
        ("{conditional_epochs: 1, observations: [Fracture]}", "no observation of the recipe has a parent"),
        ("teacher: somewhere", "no observation has the policy u-self-trained"),
        ("batch_size: true", "batch_size is True, expected a whole number"),
        ("frontal_only: 'no'", "frontal_only is 'no', expected true or false"),
        ("image_size: 64.5", "image_size is 64.5, expected a whole number"),
        ("image_size: 16", "image_size is 16, expected at least 32 for this network"),
        ("observations: Edema", "observations is 'Edema', expected a list of names"),
        ("observations: 3", "observations is 3, expected a list of names"),
        ("architecture: [3]", r"architecture is \[3\], expected a mapping of fields"),
        ("num_channels: 2", "num_channels is 2, expected one of: 1, 3"),
        ("seed: -1", r"seed is -1, expected in \[0, 2"),
        ("policy: 'Edema=u-ones,Edema=u-zeros'", "Two policies are given for 'Edema'"),
        ("valid_fraction: 1.0", r"valid_fraction is 1.0, expected in \(0, 1\)"),
        ("image_size: large", "image_size is 'large', expected a whole number"),
        ("border: 0.5", r"border is 0.5, expected in \[0, .5\)"),
        ("distillation: 1.5", r"distillation is 1.5, expected in \[0, 1\]"),
        ("{distillation: 0.5, unconditional: true}", "distillation is for one run of one stage"),
        ("{distillation: 0.5, map_centring: 1.0}", "map_centring needs labels of 1"),
        ("mixup: true", "mixup needs distillation above 0"),
        (
            "{mixup: true, distillation: 0.5, class_weights: true}",
            "supports no class_weights, map_loss and u-multiclass",
        ),
        ("{mixup: true, distillation: 0.5, map_loss: 1.0}", "supports no class_weights, map_loss and u-multiclass"),
        ("{mixup: true, distillation: 0.5, policy: u-multiclass}", "supports no class_weights, map_loss and u-multi"),
        ("distillation_models: somewhere", "distillation_models is 'somewhere', expected a list"),
        ("calibration_models: [a]", "calibration_models names 1 models, expected one for each of the 0"),
        ("cache: tape", "cache is 'tape', expected one of: none, ram, disk"),
        ("workers: -1", "workers is -1, expected at least 0"),
        ("workers: many", "workers is 'many', expected a whole number"),
        ("- a list", "not a mapping of fields"),
        ("a: b: c", "cannot be read"),
        ("1: 2", "A recipe has no field '1'"),
        ("policy: {Edema: 1}", "expected a mapping of observations to policies"),
        ("architecture: {block_config: 4}", "block_config is 4, expected a list of whole numbers"),
        ("num_patients: 0", "num_patients is 0, expected at least 1"),
        ("head_hidden_size: -3", "head_hidden_size is -3, expected at least 1"),
        ("teacher_epochs: -1", "teacher_epochs is -1, expected more than 0"),
        ("epochs: .inf", "epochs is inf, expected more than 0"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_with_its_field(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_recipe_of_an_earlier_version_loads_without_the_field_that_is_gone(tmp_path):
    (tmp_path / "recipe.yaml").write_text("register_maps: true\nepochs: 2\n")
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe(epochs=2)


def test_a_recipe_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes("model_name: Lungenflügel".encode("utf-16"))
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"no recipe 'u_none'; expected a YAML file or one of: .*u_ones"):
        Recipe.load(Path("u_none"))


RECIPES = sorted(recipes_folder().glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_by_its_name_and_says_what_it_reproduces(path):
    assert path.read_text().startswith("# ")
    assert Recipe.load(Path(path.stem)).to_dict() == Recipe.load(path).to_dict()


def test_there_is_a_recipe_for_the_paper_and_for_each_single_policy():
    names = {path.stem for path in RECIPES}
    assert {"paper_densenet121_320", "lsr_conditional", "transfer_frozen"} <= names
    for policy in ("u-ignore", "u-zeros", "u-ones", "u-self-trained", "u-multiclass"):
        assert Recipe.load(Path(policy.replace("-", "_"))).policy == policy


def test_the_papers_recipe_is_the_papers():
    # Irvin et al. 2019, section 3.2: three runs, the best policy of each observation, images as they are published
    expected = Recipe(policy="paper", runs=3, gray_range=False, image_size=320)
    assert Recipe.load(Path("paper_densenet121_320")).to_dict() == expected.to_dict()


def test_the_student_projects_recipe_has_its_head():
    recipe = Recipe.load(Path("transfer_frozen"))
    assert recipe.freeze_backbone
    assert (recipe.head_hidden_size, recipe.head_dropout, recipe.learning_rate) == (512, 0.5, 1e-3)
    assert recipe.observations == ("Atelectasis", "Cardiomegaly", "Edema", "Consolidation", "Pleural Effusion")
