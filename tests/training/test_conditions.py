"""Covariates as the network takes them, as checkpoints record them, as samples are asked for."""
import math

import pytest
import torch
from helpers import randomize, small_dit

import models
from mri.covariates import CATEGORY, NUMBER, Column
from training import base_weights, checkpoint, condition_choice, conditions, finetuning, pretrained
from training.conditions import CohortRow, Conditions
from training.step import Batches, draw_step
from utils.errors import UserError

AGE = Column("age", NUMBER, "years", mean=70, deviation=5, lowest=60, highest=80)
SEX = Column("sex", CATEGORY, levels=("F", "M"), missing=1)
KNOWN = Conditions((AGE, SEX), (CohortRow(0, (65, "F"), 1), CohortRow(0, (75, None), 3),
                                CohortRow(1, (80, "M"), 2)), "ab")
HEADER = {"covariates": [AGE.to_json(), SEX.to_json()]}
ENTRIES = [{"class": k % 2, "covariates": row} for k, row in enumerate(
    [{"age": 65, "sex": "F"}, {"age": 75}, {"sex": "M"}, {"age": 75}, {"age": 60, "sex": "M"}, {}])]


def metadata_of(known=KNOWN):
    return {"config": {"covariates": list(known.levels)}, "covariates": known.to_json()}


# ------------------------------------------------------------------------------------ the network

@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    return (torch.randn(3, 4, 8, 8, generator=g), torch.tensor([5, 500, 999]),
            torch.tensor([0, 3, 10]))


VALUES = torch.tensor([[0.3, 1], [math.nan, 0], [-2, math.nan]])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_before_training_the_model_is_the_unconditional_one_bitwise(inputs, precision):
    plain = randomize(small_dit())
    config = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=64, depth=3, num_heads=4,
                  num_classes=10, base_grid=None, gamma_blocks=0)
    weights = pretrained.Weights(
        {name: p for name, p in plain.state_dict().items() if name != "pos_embed"}, 4, "official")
    config["covariates"] = [0, 2]
    model = base_weights.assemble(config, base_weights.fit_base(weights, config), "base")
    assert model.condition_embedder.parts[0].mlp_in.any()
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
        assert torch.equal(model(*inputs, VALUES), plain(*inputs))
        assert torch.equal(model(*inputs), plain(*inputs))


@pytest.mark.parametrize(("classes", "covariates"), [(10, []), (2, []), (10, [3])])
def test_a_base_with_covariates_starts_as_if_all_were_missing(inputs, classes, covariates):
    base = randomize(small_dit(covariates=(0, 2)))
    tensors = {name: p for name, p in base.state_dict().items() if name != "pos_embed"}
    config = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=64, depth=3, num_heads=4,
                  num_classes=classes, base_grid=None, gamma_blocks=0, covariates=covariates)
    weights = pretrained.Weights(tensors, 4, "official")
    model = base_weights.assemble(config, base_weights.fit_base(weights, config), "base")
    x, t, y = inputs                                    # of the base's classes 0, 3 and null
    null = torch.full_like(y, 10)
    with torch.no_grad():
        expected = base(x, t, y if classes == 10 else null)
        found = model(x, t, y if classes == 10 else y.clamp(max=classes))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(base.y_embedder.embedding_table.weight,
                       tensors["y_embedder.embedding_table.weight"])
    spoiled = tensors | {"condition_embedder.projection": torch.zeros(3, 64)}
    with pytest.raises(UserError, match="embedder of covariates is damaged"):
        base_weights.fit_base(pretrained.Weights(spoiled, 4, "official"), config)


def test_random_weights_are_those_of_a_model_without_covariates():
    torch.manual_seed(1)
    plain = small_dit().initialize_weights().state_dict()
    torch.manual_seed(1)
    model = small_dit(covariates=(0, 2)).initialize_weights().state_dict()
    assert all(torch.equal(value, model[name]) for name, value in plain.items())
    assert model["condition_embedder.parts.1.table"].std() > 0.5
    assert not model["condition_embedder.projection"].any()


def test_the_embedder_by_hand():
    embedder = models.ConditionEmbedder((0, 2), 6, rank=3).initialize_weights()
    with torch.no_grad():
        embedder.missing.copy_(torch.arange(6.0).view(2, 3))
        embedder.projection.copy_(torch.randn(3, 6))
        out = embedder(VALUES, torch.tensor([False, False, False]))
        number, category = embedder.parts
        z = 0.3
        angles = [2 * math.pi * z / wavelength for wavelength in (16, 8, 4, 2)]
        features = torch.tensor([1, z, *map(math.cos, angles), *map(math.sin, angles)])
        known = torch.nn.functional.silu(features @ number.mlp_in) @ number.mlp_out
        expected = torch.stack([known + category.table[1], embedder.missing[0] + category.table[0]])
        assert torch.allclose(out[:2], expected @ embedder.projection, atol=1e-5)
        missing = embedder.missing.sum(0) @ embedder.projection
        assert torch.allclose(embedder(None, torch.zeros(1, dtype=torch.bool))[0], missing)
        nulls = embedder(VALUES, torch.ones(3, dtype=torch.bool))
        assert torch.allclose(nulls, missing.expand(3, 6), atol=1e-5)


def test_the_null_class_has_no_covariates_and_others_do(inputs):
    model = randomize(small_dit(covariates=(0, 2))).eval()
    x, t, y = inputs
    with torch.no_grad():
        one, other = model(x, t, y, VALUES), model(x, t, y, VALUES + torch.tensor([1.0, 0]))
        assert not torch.equal(one[0], other[0])
        assert torch.equal(model(x, t, y, VALUES * 0)[2], one[2])      # y = 10 is the null class
        assert torch.equal(one[2], model(x, t, y)[2])


def test_guidance_asks_the_null_class_for_nothing(inputs):
    from diffusion.gaussian_diffusion import guided
    model = randomize(small_dit(covariates=(0, 2))).eval()
    x, t, _ = inputs
    y = torch.tensor([0, 3, 2])
    with torch.no_grad():
        out = guided(conditions.with_covariates(model, VALUES, "cpu"), x, t, y, 10, 3.0)
        asked, null = model(x, t, y, VALUES), model(x, t, torch.full_like(y, 10))
    assert torch.allclose(out[:, :4], (null + 3 * (asked - null))[:, :4], atol=1e-5)
    assert conditions.with_covariates(model, None, "cpu") is model


@pytest.mark.parametrize("levels", [(0, 2, 3), (0, 0, 0, 2, 2, 5, 8)])
def test_the_embedder_of_an_xl_model_is_small(levels):
    """At most 2 % of what DiffFit trains: biases and class table."""
    with torch.device("meta"):
        model = models.DiT_models["DiT-XL/2"](input_size=112, covariates=levels)
    trained = finetuning.set_trainable(model, "difffit")
    sizes = {}
    for name, p in trained.items():
        kind = finetuning.parameter_kind(name)
        sizes[kind] = sizes.get(kind, 0) + p.numel()
    assert (sizes["bias"], sizes["class table"]) == (489_632, 1_153_152)
    assert 16 * 1152 < sizes["covariates"] <= 0.02 * (489_632 + 1_153_152)


# ------------------------------------------------------------------------------------- in training

def test_values_are_standardized_and_levels_counted():
    encoded = conditions.encode_entries(KNOWN, ENTRIES, "m")
    nan = math.nan
    expected = torch.tensor([[-1, 0], [1, nan], [nan, 1], [1, nan], [-2, 1], [nan, nan]])
    assert torch.equal(encoded.isnan(), expected.isnan())
    assert torch.equal(encoded.nan_to_num(), expected.nan_to_num())
    assert conditions.encode_entries(None, ENTRIES, "m") is None
    with pytest.raises(UserError, match="'X' is not a value of the covariate sex F, M"):
        conditions.encode([SEX], [["X"]], "m")


def test_each_covariate_is_dropped_on_its_own_and_older_draws_stay():
    plain = draw_step(3, 2, 5, 4000, (1, 2, 2), 0.5)
    drawn = draw_step(3, 2, 5, 4000, (1, 2, 2), 0.5, num_covariates=2, condition_dropout=0.25)
    assert all(torch.equal(a, b) for a, b in zip(plain[:6], drawn[:6]))
    dropped = drawn.drop_covariate.float()
    assert dropped.mean(0).tolist() == pytest.approx([0.25, 0.25], abs=0.03)
    assert dropped.prod(1).mean().item() == pytest.approx(0.0625, abs=0.02)


def test_batches_hold_the_covariates_of_their_volumes():
    encoded = conditions.encode_entries(KNOWN, ENTRIES, "m")
    batches = Batches(
        torch.randn(6, 8, 4, 4), torch.zeros(6, dtype=torch.long), dict(scaling_factor=1), 3,
        seed=0, global_batch_size=16, label_dropout=0, last_step=2, device="cpu",
        covariates=encoded, condition_dropout=0.5)
    drawn, (*_, found) = batches.drawn(1), batches.take(1)
    expected = torch.where(drawn.drop_covariate, math.nan, encoded[drawn.index])
    assert torch.equal(found.isnan(), expected.isnan()) and drawn.drop_covariate.any()
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


# ----------------------------------------------------------------------- chosen, and in checkpoints

def test_rows_are_counted_by_class():
    known = conditions.choose_conditions(["age", "sex"], HEADER, ENTRIES, "d")
    assert known.columns == (AGE, SEX) and known.levels == (0, 2)
    assert CohortRow(1, (75, None), 2) in known.rows and len(known.rows) == 5
    assert sum(row.count for row in known.rows) == len(ENTRIES)
    assert conditions.recorded_conditions(metadata_of(known), "c") == known
    other = conditions.choose_conditions(["age", "sex"], HEADER, ENTRIES[::-1], "d")
    assert other.rows == known.rows and other.sha256 != known.sha256
    assert conditions.choose_conditions([], HEADER, ENTRIES, "d") is None


@pytest.mark.parametrize(("names", "entries", "message"), [
    (["height"], ENTRIES, "height: d has no such covariate; it has age, sex"),
    (["age", "age"], ENTRIES, "names a covariate twice"),
    (["sex"], ENTRIES[2:3], "sex: M for all volumes that are trained on"),
    (["sex"], ENTRIES[1:2], "sex: missing for all volumes that are trained on"),
])
def test_what_cannot_be_trained_on_is_refused(names, entries, message):
    with pytest.raises(UserError, match=message):
        conditions.choose_conditions(names, HEADER, entries, "d")


def test_a_manifest_with_a_damaged_deviation_is_refused():
    header = {"covariates": [AGE.to_json() | {"deviation": 0}, SEX.to_json()]}
    with pytest.raises(UserError, match="d: the deviation of its covariate 'age' is damaged"):
        conditions.choose_conditions(["age"], header, ENTRIES, "d")


@pytest.mark.parametrize("spoil", [
    {"rows": []}, {"rows": None}, {"rows": [[0, [65], 1]]}, {"rows": [[0, [65, "X"], 1]]},
    {"rows": [[-1, [65, "F"], 1]]}, {"rows": [[0, ["65", "F"], 1]]}, {"rows": [[0, [65, "F"], 0]]},
    {"columns": [AGE.to_json()]}, {"columns": 3},
    {"columns": [AGE.to_json() | {"deviation": 0}, SEX.to_json()]},
])
def test_conditions_from_a_file_are_checked(spoil):
    metadata = metadata_of()
    metadata["covariates"] |= spoil
    with pytest.raises(UserError, match="damaged"):
        conditions.recorded_conditions(metadata, "c")
    assert conditions.recorded_conditions({"config": {}}, "c") is None
    with pytest.raises(UserError, match="damaged"):
        conditions.recorded_conditions({"config": {"covariates": [0]}}, "c")


def test_levels_of_which_nothing_is_learned():
    """They are levels of the cohort, but of test volumes alone."""
    sex = Column("sex", CATEGORY, levels=("F", "M", "X"))
    known = Conditions((AGE, sex), KNOWN.rows, "ab")
    assert known.untrained_levels() == {"sex": ["X"]} and KNOWN.untrained_levels() == {}
    assert "no training volume has sex X: nothing is learned of it" in (
        conditions.describe_conditions(known, 0.1))
    assert len(conditions.describe_conditions(KNOWN, 0.1)) == 2
    warning = "sex X: 1 of 1 values are levels that no training volume has"
    assert warning in choose(known, condition=["sex=X"]).warnings[0]
    assert "sex X: 1 of 2 values" in choose(known, sweep="sex=F,X").warnings[0]
    assert not choose(known, sweep="sex=F,M").warnings
    many = Conditions((AGE, sex), KNOWN.rows[:1] * conditions.MAX_ROWS, "ab")   # a part of them
    assert many.untrained_levels() == {}


# --------------------------------------------------------------------------------------- in samples

def choose(known=KNOWN, classes=frozenset({0}), condition=(), table=None, sweep=None):
    return condition_choice.choose_condition(
        known, set(classes), condition=list(condition), table=table, sweep=sweep, checkpoint="c")


def test_fixed_values_and_missing_ones():
    choice = choose(condition=["age=70", "sex="])
    assert choice.of_sample(0, 7, 0) == {"age": 70} == choice.recipe()
    assert torch.equal(choice.encode([{"age": 70}, {"sex": "M"}]).nan_to_num(-9),
                       torch.tensor([[0.0, -9], [-9, 1]]))
    assert choice.count(None) == 32 and choice.count(5) == 5 and not choice.warnings
    assert choose().recipe() is None and choose(known=None).encode([{}]) is None
    assert "outside the training volumes' range, age 60 to 80 years" in choose(
        condition=["age=95"]).warnings[0]


def test_a_sweep_changes_one_value_and_keeps_the_noise():
    choice = choose(condition=["sex=F"], sweep="age=60:80:3")
    assert [choice.of_sample(0, i, 0)["age"] for i in range(3)] == [60, 70, 80]
    assert choice.of_sample(0, 1, 0)["sex"] == "F" and choice.noise_index(2) == 0
    assert choice.headings(3) == ["60", "70", "80"] and choice.count(None) == 3
    assert [row["sex"] for row in choose(sweep="sex=M,F").rows] == ["M", "F"]
    assert choose(condition=["sex=F"]).noise_index(2) == 2
    with pytest.raises(UserError, match="--num-samples 4: .* names 3"):
        choice.count(4)


def test_a_sweep_of_small_numbers():
    dose = Column("dose", NUMBER, "g", mean=2e-7, deviation=1e-7, lowest=1e-7, highest=3e-7)
    known = Conditions((dose,), (CohortRow(0, (1e-7,), 1),), "ab")
    assert [row["dose"] for row in choose(known, sweep="dose=1e-7:3e-7:3").rows] == [
        1e-7, 2e-7, 3e-7]


def test_a_table_has_a_row_per_sample(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sex,age,hair\nF,61,red\nM,,gray\n")
    choice = choose(table=path)
    assert [choice.of_sample(0, i, 0) for i in range(2)] == [{"sex": "F", "age": 61}, {"sex": "M"}]
    assert choice.count(None) == 2 and "columns hair are not used" in choice.warnings[0]
    path.write_text("sex,age\n,\nn/a,\nM,61\n")     # no values, nothing asked for, a value
    choice = choose(table=path)
    assert [choice.of_sample(0, i, 0) for i in range(2)] == [{}, {"sex": "M", "age": 61}]
    assert "1 rows without any value are left out" in choice.warnings[0]
    path.write_text("sex,age\nX,61\n")
    with pytest.raises(UserError, match="row 1: the model was trained on sex F, M; 'X'"):
        choose(table=path)


def test_cohort_draws_rows_of_the_class_as_often_as_in_training():
    choice = choose(table="cohort", classes={0, 1})
    drawn = [choice.of_sample(0, i, 0) for i in range(2000)]
    assert drawn.count({"age": 75}) / 2000 == pytest.approx(0.75, abs=0.04)
    assert {"age": 65, "sex": "F"} in drawn and {"age": 80, "sex": "M"} not in drawn
    assert choice.of_sample(0, 3, 1) == {"age": 80, "sex": "M"} and choice.recipe() == "cohort"
    with pytest.raises(UserError, match="no training volume of class 2"):
        choose(table="cohort", classes={2})


def test_what_is_asked_where_no_flag_says_it():
    choice, class_index = condition_choice.choose_as_in_training(metadata_of(), "c")
    assert choice.is_cohort and class_index == 0
    assert choice.of_sample(3, 0, 0) == choose(table="cohort").of_sample(3, 0, 0)
    rows = tuple(row for row in KNOWN.rows if row.class_index == 1)
    other = Conditions(KNOWN.columns, rows, "ab")
    assert condition_choice.choose_as_in_training(metadata_of(other), "c")[1] == 1
    plain, class_index = condition_choice.choose_as_in_training({"config": {}}, "c")
    assert plain.conditions is None and class_index == 0


def test_all_values_in_words():
    assert choose(condition=["age=70", "sex=F"]).describe_all() == "age=70 sex=F"
    assert choose(condition=["sex=F"]).describe_all() == "sex=F, age missing"
    assert choose().describe_all() == "age and sex missing"


def test_columns_without_rows():
    assert KNOWN.columns_to_json() == [AGE.to_json(), SEX.to_json()]
    assert KNOWN.example_row() == [70.0, "F"]
    assert conditions.encode(KNOWN.columns, [KNOWN.example_row()], "c").tolist() == [[0, 0]]


@pytest.mark.parametrize(("given", "message"), [
    (dict(condition=["height=3"]), "not trained on 'height'; it knows age 60 to 80 .*; sex F, M"),
    (dict(condition=["sex=X"]), "trained on sex F, M; 'X' is not one"),
    (dict(condition=["age=old"]), "'old' is not one of these"),
    (dict(condition=["age=inf"]), "'inf' is not one of these"),
    (dict(condition=["age"]), "must be NAME=VALUE"),
    (dict(condition=["age=1", "age=2"]), "names a covariate twice"),
    (dict(condition=["age=70"], sweep="age=60:80:3"), "--condition names age, too"),
    (dict(sweep="age=60:80:1"), "needs 2 to 1000 values"),
    (dict(sweep="age=60:80:9999999999"), "needs 2 to 1000 values"),
    (dict(sweep="sex=F"), "needs 2 to 1000 values"),
    (dict(table="cohort", condition=["age=70"]), "leave out --condition"),
    (dict(known=None, condition=["age=70"]), "--condition: the model of c takes no covariates"),
    (dict(known=None, table="cohort"), "--conditions: the model of c takes no covariates"),
])
def test_what_the_model_does_not_know_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        choose(**given)


@pytest.mark.parametrize("levels", [3, [65], [-1], [True], [0.5], [None], [0] * 33])
def test_levels_in_a_checkpoint_are_checked_before_a_model_is_built(tmp_path, levels):
    path = tmp_path / "c.safetensors"
    checkpoint.save_checkpoint(path, {"config": {"covariates": levels}})
    with pytest.raises(UserError, match="damaged .config.covariates."):
        checkpoint.read_metadata(path)
    checkpoint.save_checkpoint(path, {"config": {"covariates": [0, 64]}})
    assert checkpoint.read_metadata(path)["config"]["covariates"] == [0, 64]
