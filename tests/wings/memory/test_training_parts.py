"""The plan's parts by hand: 10 layers of 100 weights, embeddings and head of 300 each, a norm of 4."""

from dataclasses import replace

import pytest

from src.config.placement import Placement
from src.models.loading.architecture import ParameterCounts
from src.wings.memory.activations import RowMemory
from src.wings.memory.plan import Capacity, MemoryPart, MemoryPlan
from src.wings.memory.training_parts import RowDemand, TrainingDemand, largest_batches, policy_parts

COUNTS = ParameterCounts(
    total=1604, trained=1604, layers=10, layer=100, layer_trained=100, head=300, tied=False, head_trained=True,
    embedding_trained=True, largest=300, largest_trained=300,
)  # fmt: skip
ROW = RowDemand(RowMemory(kept_layer=50, kept_rest=7, working=30, forward=40), head_forward=60, head_backward=90)
DEMAND = TrainingDemand(COUNTS, weight_bytes=4, trained_bytes=4, compute_bytes=4, row=ROW)
ALONE = Placement()
ALL = ("warm start", "rollout", "scoring", "head", "layers", "embeddings", "step", "handover")


def _plan(demand=DEMAND, place=ALONE, capacity=None):
    parts, host = policy_parts(demand, place)
    return MemoryPlan(tuple(parts), Capacity(capacity, "by hand"), tuple(host))


def _bytes(plan, name):
    return dict(next(part for part in plan.parts if part.name == name).bytes)


def test_one_process_in_float32():
    plan = _plan()
    held = 3 * 4 * 1604  # weights, two moments
    states = held + 4 * 1604  # and gradients, from backward to step
    assert plan.phases == {
        "rollout": held,
        "scoring": held + 60,  # the head's forward is more than a layer's
        "head": states + 507 + 90,
        "layers": states + 507 + 30,
        "embeddings": states + 300 * 4,
        "step": states + 2 * 300 * 4,  # one tensor at a time on the CPU
        "handover": held,
    }
    assert plan.peak_phase == "step" and plan.peak == 28064


def test_a_tied_heads_gradient_waits_for_the_embeddings():
    tied = replace(COUNTS, total=1304, trained=1304, tied=True)
    phases = _plan(replace(DEMAND, counts=tied)).phases
    assert phases["layers"] == 4 * 4 * 1304 + 507 + 30 + 1200 and phases["embeddings"] == 4 * 4 * 1304 + 2400


def test_adapters_keep_the_frozen_weights_in_their_type():
    counts = replace(COUNTS, total=1700, trained=96, layer=109, layer_trained=9, head_trained=False,
                     embedding_trained=False, largest_trained=4)  # fmt: skip
    plan = _plan(TrainingDemand(counts, weight_bytes=2, trained_bytes=4, compute_bytes=2, row=ROW))
    assert plan.phases["rollout"] == 1604 * 2 + 96 * 4 * 3
    assert "embedding gradient" not in {part.name for part in plan.parts}
    assert "policy.lora" not in plan.changes()
    tower = replace(COUNTS, total=1704)  # whose 100 weights stay frozen
    assert _plan(replace(DEMAND, counts=tower)).changes() == _plan().changes() and "policy.lora" in _plan().changes()


def test_sharding_divides_what_lives_and_gathers_a_few_layers():
    place = Placement(ranks=4, cuda=True, sharded=True)
    plan = _plan(replace(DEMAND, compute_bytes=2, copies_weights=True), place)
    assert _bytes(plan, "weights") == dict.fromkeys(ALL, 1604)
    assert _bytes(plan, "optimizer") == dict.fromkeys(ALL, 2 * 1604)
    assert _bytes(plan, "gathered root")["head"] == 604 * 2
    assert _bytes(plan, "gathered layers")["layers"] == 3 * 100 * 2
    assert _bytes(plan, "whole gradients") == {
        "head": 300 * 2,
        "layers": 604 * 2 + 100 * (2 + 4 + 4),
        "embeddings": 604 * (2 + 4),
        "warm start": 604 * 2 + 100 * (2 + 4 + 4),
    }
    assert "step at work" not in {part.name for part in plan.parts}  # AdamW is one fused kernel
    assert _bytes(plan, "gathered tensor") == {"handover": 300 * (2 + 2)}  # gathered in the forwards' type
    kept = _plan(replace(DEMAND, compute_bytes=2), replace(place, reshard=False))
    assert _bytes(kept, "gathered layers")["layers"] == 11 * 100 * 2


def test_layers_of_several_sizes_are_gathered_as_the_largest():
    # four of the ten layers have 60 weights: 160 fewer in all
    counts = replace(COUNTS, total=1444, trained=1444, missing=160, missing_trained=160)
    place = Placement(ranks=4, cuda=True, sharded=True)
    plan = _plan(replace(DEMAND, counts=counts), place)
    assert _bytes(plan, "gathered root")["head"] == 604 * 4
    assert _bytes(plan, "gathered layers")["layers"] == 3 * 100 * 4
    kept = _plan(replace(DEMAND, counts=counts), replace(place, reshard=False))
    assert _bytes(kept, "gathered layers")["layers"] == (10 * 100 - 160 + 100) * 4


@pytest.mark.parametrize("budget", [500, 1215, 1216, 2048, 4096, 100_000])
@pytest.mark.parametrize("sequences", [1, 2, 8])
def test_batches_are_those_that_separate_rows_can_be(budget, sequences):
    rows = largest_batches(budget, sequences, prompt=1024, completion=192)
    assert rows[0].prompt == 1024 and rows[0].completion == 192
    for row in rows:
        assert row.prompt <= 1024 and row.completion <= 192 and row.groups <= sequences and row.completions == 1
        assert row.tokens <= budget or row.groups == 1
    assert max(row.tokens for row in rows) >= min(sequences * 1215, budget - sequences)


def test_offloaded_shards_are_the_hosts():
    plan = _plan(place=Placement(ranks=4, cuda=True, sharded=True, cpu_offload=True))
    assert plan.host == 4 * 1604 and plan.phases["rollout"] == 0
    on_cpu = _plan(place=Placement(ranks=4, sharded=True, cpu_offload=True))  # host and device are one
    assert on_cpu.host == 0 and on_cpu.phases["rollout"] == 3 * 1604 and on_cpu.phases["step"] >= 4 * 1604


def test_reference_buckets_and_warm_start_add_themselves():
    plan = _plan(replace(DEMAND, reference=True, warm_start=replace(ROW, head_backward=20)), Placement(2, buckets=True))
    assert plan.phases["rollout"] == 5 * 4 * 1604
    assert plan.phases["warm start"] == 6 * 4 * 1604 + 507 + 30
    assert "warm start" not in _plan().phases


def test_changes_come_by_the_bytes_that_they_touch():
    parts = (
        MemoryPart.always("a", "", 5, ("first", "second")),
        MemoryPart("b", "", {"head": 20}, ("second",)),
        MemoryPart("c", "", {"rollout": 1}, ("third",)),
    )
    plan = MemoryPlan(parts, Capacity(24, ""))
    assert plan.peak == 25 and not plan.fits and [part.name for part in plan.largest(2)] == ["b", "a"]
    assert plan.changes() == ["second", "first"]
    assert replace(plan, capacity=Capacity(25, "")).fits and replace(plan, capacity=Capacity(None, "")).fits
    assert not replace(plan, capacity=Capacity(25, ""), host_parts=parts, host_capacity=Capacity(25, "")).fits


@pytest.mark.parametrize("key", ["kept_layer", "kept_rest", "working"])
def test_a_longer_row_never_takes_less(key):
    longer = replace(ROW, memory=replace(ROW.memory, **{key: 1000}))
    assert _plan(replace(DEMAND, row=longer)).phases["layers"] > _plan().phases["layers"]
