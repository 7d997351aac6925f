"""Which ways are right for small random models of real architectures, and those that none is right for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from src.config import guard
from src.config.guard import Ways, check_engine, check_policy_and_engine, check_rows, compare_ways, find_ways
from src.errors import ConfigError
from src.models.loading.policy_config import PolicyConfig
from src.models.policy import Policy
from src.rollout.native.engine import NativeEngine
from tests.architectures.small import small_config, small_model
from tests.models.reference import tiny_model


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", Ways("packed", "shared")),
        ("qwen3_moe", Ways("packed", "shared")),
        ("deepseek_v3", Ways("packed", "shared")),  # keys of other sizes than values
        ("gpt_oss", Ways("packed", "shared")),  # sinks, and windows in every second layer
        ("gemma2", Ways("packed", "shared")),  # caps on scores and logits
        ("gemma3", Ways("packed", "shared")),  # reads images too
        ("mistral", Ways("packed", "shared")),  # windows everywhere
        ("phimoe", Ways("packed", "shared")),  # a window in the mask alone
        ("nemotron", Ways("packed", "shared")),  # drops what it is given, but for the mask
        ("granite", Ways("packed", "shared")),  # a scale on the logits
        ("diffllama", Ways("packed", "padded")),  # attends twice a layer
        ("qwen3_5", Ways("separate", "padded")),  # linear attention
        ("falcon_h1", Ways("separate", "padded")),  # a state-space model beside attention
        ("lfm2", Ways("separate", "padded")),  # convolutions
        ("gpt_neo", Ways("separate", "padded")),  # without transformers' attention interface
        ("llama4", Ways("separate", "even")),  # padding moves its chunks
        ("zamba2", Ways("separate", "none")),  # steps of its states are not its scan's
    ],
)
def test_the_fastest_way_that_is_right_is_chosen(kind: str, expected: Ways) -> None:
    assert compare_ways(small_model(small_config(kind))) == expected


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", "found one that is part of more"),  # a head of several layers
        ("modernbert-decoder", "expected a decoder and a linear output head behind it, found one"),
        ("doge", r"policy\.rows=packed: AttributeError"),  # which keys it keeps depends on those that follow
    ],
)
def test_a_model_that_no_row_is_right_for_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy: model type '{kind}'.*{reason}"):
        compare_ways(small_model(small_config(kind)))


def test_a_model_that_cannot_be_run_is_refused() -> None:
    model = tiny_model("llama")
    model.register_forward_pre_hook(lambda *_: torch.zeros(2)[5])
    with pytest.raises(
        ConfigError,
        match=r"model type 'llama' with the values .* does not score plain text: IndexError: index 5 is out of",
    ):
        compare_ways(model)


def test_rows_that_are_asked_for_are_refused_where_they_are_wrong() -> None:
    model = small_model(small_config("recurrent_gemma"))  # whose config does not tell
    with pytest.raises(ConfigError, match=r"policy\.rows=packed: 0\.\d+ nats and 0\.\d+ of the gradient off"):
        compare_ways(model, ("packed",))


def saved(folder: Path, kind: str) -> PolicyConfig:
    """A policy whose architecture alone is there."""
    small_config(kind).save_pretrained(folder)
    return PolicyConfig(path=folder)


def test_ways_are_found_without_weights_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache" / "ways.json"
    drawn = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        found = find_ways(saved(tmp_path / "a", "qwen3_next"), cache)
    assert found == Ways("separate", "padded")
    assert "Model type 'qwen3_next' runs on separate rows" in caplog.text
    assert torch.equal(torch.get_rng_state(), drawn)

    monkeypatch.setattr(guard, "cut_model", lambda *_, **__: pytest.fail("compared again"))
    assert find_ways(saved(tmp_path / "b", "qwen3_next"), cache) == found
    assert str(tmp_path) not in cache.read_text()
    monkeypatch.setattr(guard, "cut_model", lambda *_, **__: tiny_model("llama"))
    assert find_ways(saved(tmp_path / "c", "llama"), cache) == Ways("packed", "shared")


def test_without_a_model_in_small_the_general_ways_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> PreTrainedModel:
        raise KeyError("no such size")

    monkeypatch.setattr(guard, "cut_model", fail)
    assert find_ways(saved(tmp_path, "llama")) == Ways("separate", "even")
    assert "could not be made in small (KeyError: 'no such size')" in caplog.text


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mixtral"])
def test_weights_that_are_right_pass_and_nothing_of_them_changes(kind: str) -> None:
    model = small_model(small_config("mixtral")) if kind == "mixtral" else tiny_model(kind)
    policy = Policy(model).train()
    model.model.layers[0].eval()
    modes = [part.training for part in policy.modules()]
    before, drawn = {name: value.clone() for name, value in policy.state_dict().items()}, torch.get_rng_state()

    check_policy_and_engine(policy, NativeEngine(model), 16)

    assert [part.training for part in policy.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.config._attn_implementation == "packed_rows"


def test_loaded_weights_that_packed_rows_compute_wrongly_are_refused() -> None:
    policy = Policy(small_model(small_config("recurrent_gemma")), rows="packed")
    with pytest.raises(ConfigError, match=r"packed rows give other log-probabilities .* Set policy\.rows=separate"):
        check_rows(policy)
    check_rows(Policy(small_model(small_config("recurrent_gemma")), rows="separate"))


@pytest.mark.parametrize("kind", ["diffllama", "qwen3_5"])
def test_an_engine_that_samples_from_another_distribution_is_refused(kind: str) -> None:
    model = small_model(small_config(kind))
    with pytest.raises(ConfigError, match=r"the rollout engine reports other log-probabilities .* rollout\.cache"):
        check_engine(NativeEngine(model, cache="shared"), model)
    check_engine(NativeEngine(model, cache="padded"), model)


def test_half_precision_is_compared_within_its_rounding() -> None:
    policy = Policy(tiny_model("llama").bfloat16())
    check_policy_and_engine(policy, NativeEngine(policy.model), 8)


def test_a_large_model_is_not_compared_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "_LARGEST_ON_CPU", 100)
    with caplog.at_level(logging.INFO):
        check_rows(Policy(small_model(small_config("recurrent_gemma")), rows="packed"))
    assert "is not compared with its plain model on a CPU" in caplog.text


def test_the_longest_sequence_of_a_rope_that_changes_with_length() -> None:
    from src.models.structure import positions_of

    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = LlamaConfig(max_position_embeddings=256, rope_parameters=rope | factors, hidden_size=32)
    assert positions_of(config) == 64
    assert positions_of(LlamaConfig(max_position_embeddings=256)) == 256
    assert positions_of(small_config("xlnet")) is None
