"""The published code's regions, worked out by hand on the tiny policy's tokens, and beside the project's own.

In the expected strings one letter stands for a token: F format, N tool name, P tool parameters, R reasoning, A response
and - for OTHER, which has weight 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AddedToken, AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from src.algorithm.region_weights import RegionFactors, RegionWeighting, token_weights
from src.config.policy_checks import check_template
from src.errors import ConfigError
from src.models.loading.loading import PolicyConfig, load_tokenizer
from src.protocol.regions import TokenBytes, read_completion
from src.protocol.types import Region
from src.wings.published.regions import published_regions
from src.wings.tiny.make import FOLDERS
from tests.conftest import train_config
from tests.fuzzing import mutated_texts
from tests.protocol.conftest import package_folder

LETTERS = "FNPRA-"


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDERS["brief"])


def ids_of(pieces: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The ids of these tokens, each of which must be one."""
    ids = [tokenizer.encode(piece, add_special_tokens=False) for piece in pieces]
    assert [len(each) for each in ids] == [1] * len(pieces)
    return torch.tensor(ids)[:, 0]


def letters(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> str:
    return "".join(LETTERS[region] for region in published_regions(ids, tokenizer).tolist())


def tagged(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return letters(torch.tensor(tokenizer.encode(text, add_special_tokens=False), dtype=torch.long), tokenizer)


def covered(text: str, region: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the tokens that got this letter."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.decode([i for i, letter in zip(ids, tagged(text, tokenizer), strict=True) if letter == region])


def test_three_defects_beside_the_sampled_regions(tiny: PreTrainedTokenizerBase) -> None:
    # fmt: off
    rows = [  # token, published, by its first byte
        ("<think>", "F", "F"), (" need", "R", "R"), (" get", "R", "R"), ("_weather", "R", "R"), (".", "R", "R"),
        (" ", "-", "R"),            # 1: the last token of a span of more than one is lost
        ("</think>", "F", "F"), ("\n", "-", "F"), ("<tool_call>", "F", "F"), ("\n", "-", "F"),
        ('{"', "-", "F"), ("name", "-", "F"), ('": "', "-", "F"), ("get", "N", "N"),
        ("_weather", "-", "N"),     # 1
        ('", "', "-", "F"), ("parameters", "-", "F"),
        ('": {"', "-", "F"),        # 2: skipped, as the parameters begin inside of it; FORMAT by its first byte
        ("city", "P", "P"), ('": "', "P", "P"), ("O", "P", "P"), ("s", "P", "P"), ("lo", "P", "P"),
        ('"}}', "-", "P"),          # 1
        ("\n", "-", "F"), ('{"', "-", "F"), ("name", "-", "F"), ('": "', "-", "F"),
        ("get", "-", "N"), ("_t", "-", "N"), ("ime", "-", "N"),  # 3: only the first call of a block counts
        ('", "', "-", "F"), ("parameters", "-", "F"), ('": {"', "-", "F"),
        ("city", "-", "P"), ('": "', "-", "P"), ("Ro", "-", "P"), ("me", "-", "P"), ('"}}', "-", "P"),
        ("\n", "-", "F"), ("</tool_call>", "F", "F"), ("<|im_end|>", "-", "F"),
    ]
    # fmt: on
    ids = ids_of([piece for piece, _, _ in rows], tiny)
    assert letters(ids, tiny) == "".join(published for _, published, _ in rows)
    sampled = read_completion(ids, TokenBytes.from_tokenizer(tiny), {tiny.eos_token_id}).regions
    assert "".join(LETTERS[region] for region in sampled.tolist()) == "".join(own for _, _, own in rows)


def test_how_much_of_the_real_targets_is_lost(rlla_targets: list[str], smollm2: PreTrainedTokenizerBase) -> None:
    table = TokenBytes.from_tokenizer(smollm2)
    counts = torch.zeros(6, 6, dtype=torch.long)
    for text in rlla_targets[:100]:
        ids = torch.tensor(smollm2.encode(text, add_special_tokens=False))
        own = read_completion(ids, table, ()).regions
        counts.index_put_((own, published_regions(ids, smollm2)), torch.ones_like(own), accumulate=True)
    # Names keep 419 of 861 tokens, parameters 1,506 of 2,598.
    assert counts[Region.TOOL_NAME].tolist() == [0, 419, 0, 0, 0, 442]
    assert counts[Region.TOOL_PARAMETERS].tolist() == [0, 0, 1506, 0, 0, 1092]
    # Each thought loses its last token; 18 tokens are the `<tool_call>` of six thoughts that mention it, 3 tokens each.
    assert counts[Region.REASONING].tolist() == [18, 0, 0, 32664, 0, 100]


def test_positions_are_those_of_the_text_tokenised_again(tiny: PreTrainedTokenizerBase) -> None:
    # "Oslo" is three tokens when tokenised and four as sampled: the closing tag's weight falls on the "o" before it.
    assert letters(ids_of(["<think>", "O", "s", "lo", "</think>"], tiny), tiny) == "FRR-F"
    assert letters(ids_of(["<think>", "O", "s", "l", "o", "</think>"], tiny), tiny) == "FRR-F-"
    # A lone byte reads as U+FFFD, three tokens again: the closing tag falls behind the end of the sample and is cut.
    lone = tiny.convert_tokens_to_ids("Ã")  # byte 0xC3
    ids = torch.tensor([*ids_of(["<think>"], tiny), lone, *ids_of(["</think>"], tiny)])
    assert tiny.decode(ids) == "<think>\ufffd</think>"
    assert letters(ids, tiny) == "FR-"


def test_only_closed_pairs_count(tiny: PreTrainedTokenizerBase) -> None:
    assert tagged("<think>Hm", tiny) == "---"
    assert tagged("Hm</think>", tiny) == "---"
    assert tagged("<think>Hm</think><think>Hm", tiny) == "FR-F---"
    assert tagged("<response>No.</response>", tiny) == "FA-F"
    assert tagged('<tool_call>{"name": "f"}', tiny).strip("-") == ""
    # What the template wrote in the prompt is not in the decoded response.
    assert tagged("Hm</think>\n<response>No.</response>", tiny) == "----FA-F"
    assert tagged("", tiny) == ""


def test_what_counts_in_a_block(tiny: PreTrainedTokenizerBase) -> None:
    # The first "name" of all, that of the argument; its last token, as of every span, is lost, and falls to parameters.
    nested = '<tool_call>{"parameters": {"name": "Bobx"}, "name": "tool"}</tool_call>'
    assert (covered(nested, "N", tiny), covered(nested, "P", tiny)) == ("Bob", 'name": "x')
    # `arguments` too, and the first object after the key even if it is not its value.
    assert covered('<tool_call>{"arguments":{"a":1 }}</tool_call>', "P", tiny) == '{"a":1 '
    assert covered('<tool_call>"parameters": 3, "x": { "b": 1 }</tool_call>', "P", tiny) == '{ "b": 1 '
    # A brace in a string does not close the object; an object that is not closed has no span.
    assert covered('<tool_call>{"parameters":{"a":"}\\"}","c":1 }}</tool_call>', "P", tiny) == '{"a":"}\\"}","c":1 '
    assert "P" not in tagged('<tool_call>{"parameters":{"a":"}}</tool_call>', tiny)
    # The other spelling of the tag is no tag, but its content counts.
    other = tagged('<toolcall>{"name": "get_weather", "parameters": {"city": "Oslo"}}</toolcall>', tiny)
    assert "F" not in other and "N" in other and "P" in other


def test_the_heavier_region_wins_where_spans_overlap(tiny: PreTrainedTokenizerBase) -> None:
    # A pair of tags inside a thought's call: format over parameters, name over all, parameters over reasoning.
    text = (
        '<think><tool_call>{"name": "get_weather", "parameters": {"a": "<response>No.</response>"}}</tool_call></think>'
    )
    assert covered(text, "F", tiny) == "<think><tool_call><response></response></tool_call></think>"
    assert covered(text, "N", tiny) == "get"
    assert covered(text, "P", tiny) == 'a": "No.'
    # An empty thought has one token all the same, the closing tag, whose weight is larger.
    assert tagged("<think></think>", tiny) == "FF"


def test_what_crashes_the_published_code_has_no_region() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["brief"])
    tokenizer.add_tokens([AddedToken("x</think>", special=False, normalized=False)])
    # The closing tag begins inside of the last token, and no token begins at it or later.
    assert letters(ids_of(["<think>", "a", "x</think>"], tokenizer), tokenizer) == "FR-"


def test_published_weights_at_steps_0_and_150(tiny: PreTrainedTokenizerBase) -> None:
    # Factors at HEAD: format 1, name 1.2, parameters and reasoning 0.6 + 0.002 step.
    weighting = RegionWeighting(
        factors=RegionFactors(reasoning=0.6, tool_name=1.2, tool_parameters=0.6, format=1.0, response=0.0, other=0.0),
        alpha_parameters=0.002,
        alpha_reasoning=0.002,
        normalisation="positive",
    )
    pieces = ["<think>", "O", "s", "lo", "</think>", "\n", "<response>", "No", ".", "</response>", "<|im_end|>"]
    regions = published_regions(ids_of(pieces, tiny), tiny)
    for step, reasoning in ((0, 0.6), (150, 0.9)):
        mean = (4 + 2 * reasoning) / 6  # four tags and two tokens of the thought; the others have weight 0
        expected = [1, reasoning, reasoning, 0, 1, 0, 1, 0, 0, 1, 0]
        factors = weighting.factors_at(weighting.initial_factors(), step)
        found = token_weights(factors, regions, torch.tensor([len(pieces)]), normalisation=weighting.normalisation)
        assert found.tolist() == pytest.approx([value / mean for value in expected], abs=1e-6)


@pytest.mark.parametrize("name", ["smollm2", "qwen_like", "mistral"])
def test_never_raises_on_what_was_sampled(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: PreTrainedTokenizerBase = request.getfixturevalue(name)
    for text in mutated_texts(80, seed=11):
        ids = torch.tensor(tokenizer.encode(text.encode("utf-8", "replace").decode()), dtype=torch.long)
        assert published_regions(ids, tokenizer).shape == ids.shape
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(len(tokenizer), (30,), generator=generator)
        assert published_regions(ids, tokenizer).shape == ids.shape


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"algorithm\.regions: published needs a fast tokenizer.*ByT5Tokenizer"):
        published_regions(torch.tensor([3, 4]), ByT5Tokenizer())


def test_a_format_whose_calls_they_do_not_find_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(PolicyConfig(path=FOLDERS["brief"]))
    check_template(train_config(tmp_path, "algorithm=rest_published"), tokenizer)
    templates = package_folder("trl") / "chat_templates"
    native = train_config(tmp_path, "algorithm=rest_published", "prompt.layout=native")
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text(encoding="utf-8")
    check_template(native, tokenizer)  # hermes: its calls are as the paper's, but for a key that they know too
    tokenizer.chat_template = (templates / "qwen3_5_think.jinja").read_text(encoding="utf-8")
    expected = (
        r"algorithm\.regions: expected .* format qwen3_xml; \S+published_regions finds neither .*function=get_weather"
    )
    with pytest.raises(ConfigError, match=expected):
        check_template(native, tokenizer)
