"""`bench.py differences`: what numerics policies change in an imported checkpoint."""

import pytest
from flax import nnx

from benchmarks import differences
from benchmarks.differences import CASES, extent, inputs, measure, run
from conformer.checkpoints.convert import read_checkpoint
from conformer.numerics import scale_residual
from conformer.training.checkpoint import load_model
from tests.test_checkpoints_golden import FASTCONFORMER

LARGEST = {
    "float32": 1e-5,
    "bfloat16": 0.01,
    "float16": 0.002,
    "int8": 0.03,
    "edge_fp16": 0.01,
    "edge_fp16_naive": 0.01,
}


@pytest.fixture(scope="module")
def imported(golden, tmp_path_factory):
    """The configuration of an import and its model, without all blocks but one: the others are compiled just alike."""
    folder = tmp_path_factory.mktemp("import")
    read_checkpoint(golden / FASTCONFORMER).save(folder)
    config, model, _, _ = load_model(folder)
    model.encoder.blocks = nnx.List(model.encoder.blocks[:1])
    return config, model


@pytest.mark.slow
def test_extents_grow_with_the_stream_in_norms_alone(imported):
    config, model = imported
    features = inputs(config, model)
    plain, scaled = (extent(config, scale_residual(model, scale), features) for scale in (1.0, 1024.0))
    assert (plain["overflows"], scaled["overflows"]) == ([], ["norm"])
    assert scaled["sum_of_squares"] == pytest.approx(2.0**20 * plain["sum_of_squares"])
    assert scaled["log_sum_exp"] == plain["log_sum_exp"]


@pytest.mark.slow  # two emulated programs
def test_policies_change_little_but_where_a_norm_overflows_and_has_no_stabiliser(imported, monkeypatch):
    """Runs the device's layout alone; the command runs both."""
    config, model = imported
    layout = differences.EXECUTIONS["channels_first"]
    monkeypatch.setattr(differences, "EXECUTIONS", {"channels_first": layout})
    found = list(measure(config, model, CASES))
    overflows = {row["residual_scale"]: row["overflows"] for row in found if "policy" not in row}
    rows = [row for row in found if "policy" in row]
    assert len(rows) == len(CASES)
    for row in rows:
        if row["policy"] == "edge_fp16_naive" and overflows[row["residual_scale"]]:
            assert row["rms"] is None or row["relative"] > 0.3
        else:
            assert row["relative"] < LARGEST[row["policy"]]


def test_a_policy_without_a_case_is_named():
    with pytest.raises(ValueError, match=r"fp8_e4m3.*edge_fp16"):
        run(["absent"], ["fp8_e4m3"])
