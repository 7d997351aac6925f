"""What holds of any input (hypothesis): parser, regions, rewards, turn splitting, Hammer masking, packing."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.algorithm.experience import PromptGroup
from src.algorithm.packing import balance, deal, divide, pack, row_tokens
from src.data.sources.hammer import mask_example
from src.protocol.dialogue import Dialogue, Message, ToolCall, ToolSpec, TurnExample, split_turns
from src.protocol.formats.rest import parse, step_text
from src.protocol.regions import TokenBytes, read_completion
from src.protocol.types import Region
from src.rewards.tool_call import ToolCallReward

EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True)  # the same ones each time

PLAIN = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs", "Cc"]), max_size=30).map(str.strip)
WORDS = PLAIN.filter(bool)
ANY_TEXT = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            '<think> </think> <tool_call> </tool_call> <response> </response> { } [ ] : , " \\ \n'.split(" ")
        ),
        st.sampled_from(['{"name": "f", "parameters": {"a": 1}}', '"name": "', '"parameters": {', "\ud800"]),
    ),
    max_size=12,
).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(ToolCall, WORDS, st.dictionaries(WORDS, JSON, max_size=3))
STEPS = st.builds(
    Message,
    st.just("assistant"),
    text=PLAIN,
    thought=WORDS,
    calls=st.lists(CALLS, max_size=3).map(tuple),
).filter(lambda step: bool(step.text or step.calls))


@EXAMPLES
@given(ANY_TEXT)
def test_spans_partition_any_text(text: str) -> None:
    parsed = parse(text)
    size = len(text.encode("utf-8", "surrogatepass"))
    borders = [0, *(border for span in parsed.spans for border in (span.start, span.stop)), size]
    assert borders == sorted(borders) and parsed.size == size
    assert all(one.stop == other.start for one, other in pairwise(parsed.spans))
    assert all(one.region != other.region or one.stop > one.start for one, other in pairwise(parsed.spans))


@EXAMPLES
@given(STEPS)
def test_what_a_step_says_is_what_is_read(step: Message) -> None:
    parsed = parse(step_text(step))
    assert parsed.calls == (step.calls or None) or (not step.calls and not parsed.calls)
    assert (parsed.thought or "").strip() == step.thought
    assert (parsed.response or "").strip() == step.text
    assert all(parsed.closed)


@EXAMPLES
@given(ANY_TEXT | STEPS.map(step_text), st.randoms(use_true_random=False))
def test_a_token_has_the_region_of_its_first_byte_however_the_text_is_cut(text: str, rng: random.Random) -> None:
    data = text.encode("utf-8", "surrogatepass")
    cuts = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(len(data) // 2))})
    tokens = [data[a:b] for a, b in pairwise(cuts)]
    stop = len(tokens)
    read = read_completion(torch.arange(stop + 1), TokenBytes((*tokens, b"")), (stop,))
    parsed = parse(text)
    of_bytes = np.repeat([int(span.region) for span in parsed.spans], [s.stop - s.start for s in parsed.spans])
    assert read.regions.tolist() == [*(int(of_bytes[a]) for a, _ in pairwise(cuts)), int(Region.FORMAT)]
    assert read.parsed == parsed


@EXAMPLES
@given(STEPS, ANY_TEXT | STEPS.map(step_text), st.integers(0, 400))
def test_no_response_is_worth_more_than_the_target_itself(target: Message, other: str, step: int) -> None:
    reward = ToolCallReward()
    said = step_text(target)
    best = reward(said, parse(said), target, rollout_step=step)
    found = reward(other, parse(other), target, rollout_step=step)
    low, high = reward.bounds(step)
    assert best.parts.exact_match == 1.0
    assert low - 1e-9 <= found.total <= best.total + 1e-9 <= high + 2e-9


@EXAMPLES
@given(
    st.lists(
        STEPS | st.builds(Message, st.sampled_from(["user", "observation"]), WORDS), min_size=1, max_size=8
    ).filter(lambda messages: messages[0].role == "user")
)
def test_every_step_of_a_dialogue_is_learnt_once_and_from_what_came_before(messages: list[Message]) -> None:
    examples = split_turns(Dialogue((), tuple(messages), "doc", "0"))
    said = [call for message in messages for call in message.calls]
    assert [call for example in examples for call in example.target.calls] == said
    assert [e.target.text for e in examples if e.target.text] == [
        m.text for m in messages if m.role == "assistant" and m.text
    ]
    for earlier, later in pairwise(examples):
        assert later.history[: len(earlier.history) + 1] == (*earlier.history, earlier.target)
    assert len({example.id for example in examples}) == len(examples)


NAMES = st.from_regex(r"[a-z]{2,6}_[a-z]{2,6}", fullmatch=True)
TOOLS = st.lists(
    st.builds(ToolSpec.of, NAMES, WORDS, st.dictionaries(NAMES, st.just({"type": "string"}), max_size=3)),
    min_size=1,
    max_size=4,
    unique_by=lambda tool: tool.name,
)


@EXAMPLES
@given(TOOLS, st.data())
def test_masking_is_a_renaming_and_nothing_more(tools: list[ToolSpec], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(tools), min_size=1, max_size=3))
    calls = tuple(
        ToolCall(tool.name, {name: data.draw(st.integers(0, 9)) for name in tool.parameters}) for tool in chosen
    )
    user = Message("user", f"Use {tools[0].name}.")
    seen = Message("observation", f"{tools[0].name} says no")
    example = TurnExample(tuple(tools), (user, seen), Message("assistant", calls=calls), "doc", "0")
    masked = mask_example(example, random.Random(data.draw(st.integers())))
    new = {tool.name: other for tool, other in zip(tools, masked.tools, strict=True)}
    assert len({other.name for other in new.values()}) == len(tools) and not {t.name for t in new.values()} & set(new)
    for call, other in zip(calls, masked.target.calls, strict=True):
        assert other.name == new[call.name].name
        assert list(other.parameters.values()) == list(call.parameters.values())
        assert set(other.parameters) <= set(new[call.name].parameters)
    assert masked.history[0] == user and new[tools[0].name].name in masked.history[1].text


@EXAMPLES
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100), st.integers(1, 5))
def test_rows_and_shares_hold_everything_once(sizes: list[int], budget: int, parts: int) -> None:
    rows = balance(sizes, budget)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(len(row) == 1 or sum(sizes[index] for index in row) <= budget for row in rows)
    shares = divide(sizes, parts)
    assert len(shares) == parts and sorted(index for share in shares for index in share) == list(range(len(sizes)))
    assert all(share == sorted(share) for share in shares)


@EXAMPLES
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100), st.integers(1, 5))
def test_rows_in_lock_step_wait_no_longer_than_the_longest_is_longer_than_the_shortest(
    sizes: list[int], budget: int, parts: int
) -> None:
    """Rows that run together are neighbours in the order of lengths, so the waits of all turns add up to that."""
    turns = -(-len(balance(sizes, budget)) // parts)
    shares = deal(sizes, parts, max_tokens=budget)
    assert len(shares) == parts and sorted(index for share in shares for index in share) == list(range(len(sizes)))
    rows = [balance([sizes[index] for index in share], budget, turns) for share in shares]
    assert all(len(of_part) == turns for of_part in rows)
    lengths = [
        sorted((sum(sizes[share[i]] for i in row) for row in of_part), reverse=True)
        for share, of_part in zip(shares, rows, strict=True)
    ]
    every = sorted(length for of_part in lengths for length in of_part)
    assert every == sorted(sum(sizes[i] for i in row) for row in balance(sizes, budget, turns * parts))
    assert sum(map(max, zip(*lengths, strict=True))) <= sum(sizes) / parts + every[-1] - every[0]


@EXAMPLES
@given(
    st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_in_a_packed_row_each_target_follows_its_own_prompt_and_completion(shapes: list[tuple[int, list[int]]]) -> None:
    ids = iter(range(10_000))
    groups = []
    for prompt, lengths in shapes:
        n, g = sum(lengths), len(lengths)
        groups.append(
            PromptGroup(
                prompt_ids=torch.tensor([next(ids) for _ in range(prompt)]),
                token_ids=torch.tensor([next(ids) for _ in range(n)]),
                lengths=torch.tensor(lengths),
                rollout_logprobs=torch.zeros(n),
                regions=torch.zeros(n, dtype=torch.int64),
                rewards=torch.zeros(g),
                advantages=torch.zeros(g),
                weights=torch.ones(n),
            )
        )
    row = pack(groups)
    before = iter(row.input_ids[row.score_positions].tolist())
    positions = iter(row.position_ids[row.score_positions].tolist())
    for group in groups:
        for completion in group.token_ids.split(group.lengths.tolist()):
            whole = [*group.prompt_ids.tolist(), *completion.tolist()]
            for place in range(len(group.prompt_ids), len(whole)):
                assert (next(before), next(positions)) == (whole[place - 1], place - 1)
    assert torch.equal(row.targets, torch.cat([group.token_ids for group in groups]))
    assert len(row.input_ids) == sum(map(row_tokens, groups))
