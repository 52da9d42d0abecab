"""The arithmetic of the speed benchmarks, on clocks and programs whose figures are known."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fastervit_jax.analysis.multiply_adds import multiply_adds as counted_by_hand
from fastervit_jax.models import abstract_model, variant_config

pytest.importorskip("torch", reason="the benchmarks time torch too")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import harness
import inference
import int8
import limits
import multiply_adds


class Clock:
    """A clock that candidates move."""

    def __init__(self, monkeypatch):
        self.wall = self.processor = 0.0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(harness.time, "process_time", lambda: self.processor)

    def run(self, seconds, log, name):
        """A candidate that takes these seconds a call, the last ones again and again."""
        seconds = iter([*seconds, *[seconds[-1]] * 100])

        def run(calls):
            log.append((name, calls))
            took = next(seconds)
            self.wall += calls * took
            self.processor += 2 * calls * took

        return run


@pytest.mark.parametrize(("device", "factor"), [("gpu", 1), ("cpu", 2)])
def test_candidates_take_turns_and_medians_count(monkeypatch, device, factor):
    clock, log = Clock(monkeypatch), []
    # One call to warm up, one to choose how many calls a turn has, then five turns.
    runs = {
        "slow": clock.run([9, 1.0, 5, 1, 2, 3, 4], log, "slow"),
        "fast": clock.run([9, 0.25, 1, 1, 1, 1, 7], log, "fast"),
    }
    timings = harness.take_turns(runs, rounds=5, seconds=2, device=device)
    assert log[4:] == [("slow", 2), ("fast", 8)] * 5
    assert timings["slow"] == (3 * factor, 3, pytest.approx(4 / 3))
    assert timings["fast"] == (1 * factor, 1, pytest.approx(6))


def test_ratios_are_ours_over_theirs_in_speed():
    rates = {"eager": 10, "compiled": 20, "compiled_deployed": 25, "ours": 30, "ours_deployed": 50}
    assert inference.ratios(rates) == {
        "ratio_eager": 3,
        "ratio_plain": 1.5,
        "ratio_deployed": 2,
        "ratio_best": 2,
    }
    assert inference.ratios({"eager": 10, "ours": 4, "ours_deployed": 5}) == {
        "ratio_eager": 0.4,
        "ratio_best": 0.5,
    }


def test_agreement_of_logits():
    expected = np.array([[3.0, 0, 0], [0, 4, 0]])
    found = np.array([[3.0, 0, 0], [5, 4, 0]])
    assert int8.agreement(found, expected) == (0.5, 1.0)


def test_a_record_is_whole_after_every_row(tmp_path):
    path = tmp_path / "new" / "record.json"
    record = harness.Record("question", Namespace(output=path, rounds=5), "cpu")
    for number in range(2):
        record.add(model=number, ratio=0.5)
        content = json.loads(path.read_text())
        assert content["rows"][-1] == {"model": number, "ratio": 0.5}
        assert len(content["rows"]) == number + 1
    assert content["versions"]["jax"] == jax.__version__
    assert {"date", "device", "commit", "settings", "allocator"} <= set(content)


def test_fewer_than_five_turns_are_refused():
    with pytest.raises(SystemExit, match="5 or more"):
        harness.start(Namespace(rounds=4))


def test_traced_multiply_adds_of_known_products():
    def program(x, kernel):
        x = jax.lax.conv(x, kernel, (2, 2), "SAME")  # [2, 5, 4, 4]
        return jax.jit(lambda x: jnp.einsum("nchw,ncvw->nhv", x, x))(x)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3, 8, 8), (5, 3, 3, 3))]
    convolution, product = 2 * 5 * 4 * 4 * 3 * 9, 2 * 4 * 4 * (5 * 4)
    assert multiply_adds.traced(jax.make_jaxpr(program)(*shapes).jaxpr) == convolution + product


@pytest.mark.slow
def test_the_parts_of_a_network_are_all_of_it():
    """What each part's own program multiplies is what the whole does, and the count by hand."""
    config = variant_config(
        "faster_vit_3_224",
        dim=4,
        in_dim=4,
        num_heads=(1, 1, 2, 4),
        depths=(1, 2, 2, 1),
        num_classes=10,
    )
    model = nnx.eval_shape(lambda model: model.deploy(), abstract_model(config))
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    parts = {part.name: part for part in limits.pieces(model, images)}
    traced = {name: limits.traced(part) for name, part in parts.items()}
    hand = limits.by_hand(config, 2)
    assert {name: traced[name] for name in hand} == hand
    assert hand["whole"] == sum(value for name, value in hand.items() if name != "whole")
    assert hand["whole"] == 2 * counted_by_hand(config).per_image

    block = [
        f"stages.2.{layer}.{part}"
        for layer in ("carrier", "window")
        for part in ("attention", "mlp")
    ]
    assert traced["stages.2.block"] == sum(traced[name] for name in block)
    inside = traced["stages.2.tokenizer"] + 2 * traced["stages.2.block"]
    assert inside == traced["stages.2"]
    assert traced["stages.1"] == 2 * traced["stages.1.block"]
