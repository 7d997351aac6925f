"""The benchmarks measure what they say: their formulas, their turns, and that every piece runs at a small size."""

import json
from typing import Any

import pytest
import torch

from src.models.policy import Policy
from tests.benchmarks.bench import Bench
from tests.benchmarks.contestants.update import Updates, prepare
from tests.benchmarks.flops import query_key_pairs, update_flops
from tests.benchmarks.measuring import Result, ratios, take_turns, times_as_fast
from tests.benchmarks.models import random_model
from tests.benchmarks.padded import random_groups, slices
from tests.benchmarks.report import dump, load, markdown
from tests.benchmarks.sections import precision
from tests.benchmarks.sections.growth import CENTRE, draw, result_of, shapes, token_saving
from tests.benchmarks.serving import Contestant, ContestantError
from tests.benchmarks.settings import SMALL, prompt_ids


def test_query_key_pairs_are_those_of_the_mask():
    assert query_key_pairs(3, [3]) == 15  # one causal row of 5 tokens: 5·6/2
    assert query_key_pairs(3, [3, 2]) == 19  # and one more token, which sees the prompt and itself
    assert query_key_pairs(4, [1]) == 10  # a single token is no input


def test_useful_operations_by_hand():
    flops = update_flops(
        body_weights=10, hidden=2, vocabulary=5, layers=1, heads=1, head_size=2, tokens=7, scored=4, pairs=3
    )
    assert flops == 420 + 240 + 72  # 6·10·7, 6·2·5·4, 12·1·1·2·3


def test_useful_operations_of_a_policy():
    model = random_model(96, width=32, inner=64, layers=2, heads=4, kv_heads=2, head_size=8)
    groups = random_groups([torch.arange(20)], n=3, length=5, vocabulary=96)
    updates = Updates(Policy(model).train(), groups)
    body = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)  # q, k and v, o, and three of the MLP, two layers
    tokens, scored = 20 + 3 * 4, 15
    pairs = 20 * 21 // 2 + 3 * (4 * 20 + 4 * 5 // 2)
    assert updates.flops() == 6 * body * tokens + 6 * 32 * 96 * scored + 12 * 2 * 4 * 8 * pairs


def test_both_forms_of_the_update_are_the_same_update():
    job: dict[str, Any] = {
        "architecture": {"vocabulary": 128, "width": 64, "inner": 64, "layers": 2},
        "prompt_tokens": 30,
    }
    packed, padded = (
        prepare(form=form, completions=3, new_tokens=5, padded_rows=2, **job).timed() for form in ("packed", "padded")
    )
    assert packed["loss"] == pytest.approx(padded["loss"], rel=1e-5)
    assert packed["gradient_norm"] == pytest.approx(padded["gradient_norm"], rel=1e-5)


def test_slices_of_a_group_are_its_completions():
    (group,) = random_groups([torch.arange(4)], n=5, length=3, vocabulary=50)
    parts = slices(group, 2)
    assert [len(part.lengths) for part in parts] == [2, 2, 1]
    for name in ("token_ids", "advantages", "weights"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(group, name))


def test_contestants_take_turns_and_the_first_round_does_not_count():
    order: list[str] = []

    def runner(name):
        return lambda index: (order.append(name), float(index))[1]

    runs = {name: runner(name) for name in ("a", "b")}
    assert take_turns(runs, repeats=2) == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    assert order == ["a", "b"] * 3


def test_ratios_are_taken_round_by_round():
    assert ratios([4.0, 9.0, 6.0], [2.0, 3.0, 4.0]) == (2.0, 1.5, 3.0)
    (result,) = times_as_fast(
        "update", "tiny", "P=1", {"ours": [1.0, 2.0], "TRL": [4.0, 6.0]}, {"TRL": 3.5, "vLLM": 1.0}
    )
    assert (result.value, result.low, result.high, result.met) == (3.5, 3.0, 4.0, True)
    assert result.details == {"ours s": 1.5, "TRL s": 5.0}


def test_bars_hold_from_below_or_above():
    assert Result("s", "t", "c", "q", 2.0, bar=2.5).met is False
    assert Result("s", "t", "c", "q", 2.0, bar=2.5, at_most=True).met is True
    assert Result("s", "t", "c", "q", 2.0).met is None


def test_prompts_have_the_length_asked_for(tmp_path):
    SMALL.write(tmp_path)
    prompts = prompt_ids(tmp_path, None, 700, 3)
    assert [len(prompt) for prompt in prompts] == [700] * 3
    assert not torch.equal(prompts[0], prompts[1])


def test_the_token_that_ends_a_completion_has_no_logit(tmp_path):
    from src.models.loading.loading import PolicyConfig, load_policy

    SMALL.write(tmp_path)
    loaded = load_policy(PolicyConfig(path=tmp_path, dtype="float32"))
    assert loaded.stop_token_ids == (4096,)
    assert loaded.policy.model.config.vocab_size == 4096


def test_report_tables_come_from_the_json(tmp_path):
    results = [
        Result("step", "tiny", "P=1", "times as fast as TRL", 12.34, 11.0, 13.0, bar=10.0, details={"ours s": 2000})
    ]
    file = tmp_path / "bench.json"
    file.write_text(dump({"cores": 2}, results))
    assert json.loads(file.read_text())["results"][0]["met"] is True
    assert load(file) == ({"cores": 2}, results)
    row = "| tiny | P=1 | times as fast as TRL | **12.3** | 11 to 13 | ≥ 10: met | ours s 2,000 |"
    assert row in markdown(*load(file)).splitlines()


def test_half_precision_halves_what_is_gathered(tmp_path):
    head, adamw, sync = precision.measure(Bench(tmp_path, repeats=1, quick=True))
    assert head.value > 0 and adamw.value > 0 and sync.value == 0.5


def test_growth_is_drawn(tmp_path):
    assert token_saving({"P": 1000, "R": 64, "G": 8}) == pytest.approx(8 * 1064 / 1512)
    assert len(shapes(None)) == 5 + 5 + 5 + 4 - 2  # the centre is on three axes
    seconds = {"ours": [1.0], "padded rows": [5.0]}
    results = [result_of(CENTRE | {"P": value}, seconds) for value in (256, 1000)]
    assert results[1].bar == pytest.approx(0.65 * 8 * 1064 / 1512)
    draw(results, tmp_path / "images" / "growth.png")
    assert (tmp_path / "images" / "growth.png").stat().st_size > 10_000


def test_a_contestant_that_ends_without_an_answer_is_named():
    with pytest.raises(ContestantError, match="measuring ended with code 0"):
        Contestant("tests.benchmarks.measuring", {})


def test_jobs_name_a_model_that_is_written_once(tmp_path):
    bench = Bench(tmp_path, settings=(SMALL,))
    first = bench.model(SMALL)
    assert bench.model(SMALL) == first
    assert bench.update_job(SMALL, "packed")["prompts"] == bench.trl_job(SMALL)["prompt_ids"]
