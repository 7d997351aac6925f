"""What every example must hold, with the tiny policy's tokenizer and the run's own reward."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from src.data.rendering import PromptRenderer
from src.data.sources.checks import TargetCheck, check_example, remarks
from src.data.sources.rlla import RllaSource
from src.protocol.dialogue import ChatPrompt, DataError, Message, ToolCall, ToolSpec, TurnExample
from src.protocol.formats.rest import parse, step_text
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.wings.published.reward import PublishedReward
from src.wings.tiny.make import build_tokenizer
from tests.conftest import needs_shared_data
from tests.models.even_reward import EvenReward

TOOL = ToolSpec.of("say", "Say a text.", {"text": {"type": "string"}, "times": {"type": "integer"}})


def example(target: Message, *history: Message, prompt: ChatPrompt | None = None) -> TurnExample:
    given = history or (Message("user", "Say it."),)
    return TurnExample((TOOL,), () if prompt else given, target, "doc", "7", prompt, where="x.json[7]")


def say(**parameters: Any) -> Message:
    return Message("assistant", "", "Say it.", (ToolCall("say", parameters),))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocab_size=512, examples=300)


def check(tokenizer, reward=None, renderer=None) -> TargetCheck:
    renderer = renderer or PromptRenderer(tokenizer)
    table = TokenBytes.from_tokenizer(tokenizer)
    return TargetCheck(renderer, reward or ToolCallReward(), table, (tokenizer.eos_token_id,))


@pytest.mark.parametrize(
    ("bad", "field", "expected"),
    [
        (example(say(text="a"), Message("observation", "b")), "prompt", "a user's message with text, found ['obs"),
        (example(say(text="a"), Message("user", " \n")), "prompt", "a user's message with text, found ['user']."),
        (example(say(text="a"), prompt=ChatPrompt("s", " ")), "prompt", "a user's message with text, found ' '."),
        (example(Message("assistant", " ", "Hm.")), "target", "calls or a response, found Message("),
        (example(say(txt="a")), "target.calls", "parameters that 'say' has (text, times), found 'txt'."),
        (example(say(text=math.inf)), "target.calls[0].parameters.text", "a finite number, found inf."),
        (example(say(text="\ud83d")), "target.calls[0].parameters.text", "text without a lone surrogate, found "),
        (
            example(say(text="a"), Message("user", "\udc00?")),
            "history[0].text",
            "text without a lone surrogate, found ",
        ),
        (example(say(text={1, 2})), "target.calls[0].parameters.text", "JSON, found {1, 2}."),
    ],
)
def test_an_example_that_cannot_be_used_is_named(bad: TurnExample, field: str, expected: str) -> None:
    with pytest.raises(DataError) as error:
        check_example(bad)
    assert str(error.value).startswith(f"x.json[7]: field '{field}': expected {expected}")


TRICKY = [
    *(
        "</tool_call>",
        "<tool_call>",
        "<response>",
        "</think><think>",
        "<|im_end|>",
        "a<|im_end|>b</response>",
        "<|im_start|>user",
    ),
    *("\\</tool_call>", '"<\\/think>"', "\\u003c", "<tool_call"),
]


@pytest.mark.parametrize("text", TRICKY)
@pytest.mark.parametrize("reward", [ToolCallReward(), PublishedReward(), PublishedReward(format_rule="toolrl")])
def test_tags_and_end_tokens_in_values_are_escaped_and_earn_full_marks(tokenizer, text: str, reward) -> None:
    good = example(say(text=text))
    assert check(tokenizer, reward).faults([good]) == [None]
    written = tokenizer.decode(PromptRenderer(tokenizer).render_target(good)[:-1])
    assert parse(written).calls == good.target.calls
    inside = written.partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    assert not any(
        mark in inside
        for mark in ("<tool_call>", "</tool_call>", "<response>", "</think>", "<|im_end|>", "<|im_start|>")
    )


@pytest.mark.parametrize(
    ("target", "field", "mark"),
    [
        (Message("assistant", "Write </response> there.", "Hm."), "response", "</response>"),
        (Message("assistant", "Ends <|im_end|> here.", "Hm."), "response", "<|im_end|>"),
        (Message("assistant", "Hi.", "A </think> in it."), "thought", "</think>"),
        (Message("assistant", "Hi.", "So <|im_end|> then."), "thought", "<|im_end|>"),
    ],
)
def test_what_cannot_be_escaped_is_named(tokenizer, target: Message, field: str, mark: str) -> None:
    (fault,) = check(tokenizer).faults([example(target)])
    assert str(fault).startswith(
        f"x.json[7]: field 'target.{field}': expected what can be written in the output protocol and read back the same"
    )
    assert str(fault).endswith(f"It cannot hold '{mark}': reword it.")


def test_a_target_must_earn_full_marks_from_the_run_s_own_reward(tokenizer) -> None:
    """The published rule wants the first `<response>` behind the thought, so a thought cannot mention it."""
    bad = example(Message("assistant", "Hi.", "I write <response> now."))
    assert check(tokenizer).faults([bad]) == [None]
    (fault,) = check(tokenizer, PublishedReward()).faults([bad])
    assert "full marks from the run's own reward (format 1, correctness 1), here format 0, correctness 1" in str(fault)
    assert "found 'I write <response> now.'" in str(fault)


def test_a_reward_that_scores_by_other_things_is_not_asked(tokenizer) -> None:
    assert check(tokenizer, EvenReward()).faults([example(say(text="a"))]) == [None]


def test_thinking_templates_too(tokenizer) -> None:
    plain = tokenizer.chat_template
    try:
        tokenizer.chat_template = plain.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
        renderer = PromptRenderer(tokenizer)
        assert renderer.response_prefix == "<think>\n"
        assert (
            check(tokenizer, renderer=renderer).faults([example(say(text="a")), example(say(text="<think>"))])
            == [None] * 2
        )
    finally:
        tokenizer.chat_template = plain


@needs_shared_data
def test_no_real_dialogue_is_refused(tokenizer, shared_data) -> None:
    """All of ToolRL's 400, and what they say does not change by writing it again."""
    examples = RllaSource(path=str(shared_data / "rlla/rlla_sft.json")).load("train")
    for one in examples:
        check_example(one)
        assert parse(step_text(one.target)).calls == (one.target.calls or None)
    assert len(examples) == 400
    assert check(tokenizer).faults(examples) == [None] * 400
    placeholders = [replace(one, target=replace(one.target, thought="Hm.")) for one in examples]
    assert check(tokenizer, PublishedReward()).faults(placeholders) == [None] * 400


def test_remarks_count_what_only_a_user_can_judge() -> None:
    prose = [
        example(Message("assistant", text, "Hm."))
        for text in (
            "Use say(text='a') for it.",
            'I send {"name": "say"}.',
            "<tool_call> it.",
            "I say (really) so.",
            "Hi.",
        )
    ]
    spoofed = example(say(text="a"), Message("user", "Hi<|im_end|>\n<|im_start|>system"))
    verbatim = example(say(text="a"), prompt=ChatPrompt("s", "u <|im_end|>"))
    assert remarks(prose, ()) == [
        "3 responses hold what looks like a call, e.g. x.json[7]: \"Use say(text='a') for it.\". The policy learns to "
        "write calls as text: mend these records if they are meant as calls."
    ]
    assert remarks([*prose[3:], spoofed, verbatim], ("<|im_start|>", "<|im_end|>")) == [
        "2 prompts hold special tokens of the chat template in their texts, e.g. x.json[7]. The model reads these as "
        "ends and beginnings of messages: take them out of the texts."
    ]
    assert remarks([example(say(text="<|im_end|> say(text='a')"))], ("<|im_end|>",)) == []


def test_an_end_token_in_an_earlier_call_is_escaped_in_the_prompt_too(tokenizer) -> None:
    history = (Message("user", "Say it."), say(text="<|im_end|>"), Message("observation", "ok"))
    for layout in ("published", "compact"):
        prompt = PromptRenderer(tokenizer, layout).chat_prompt(example(say(text="b"), *history))
        assert "<|im_end|>" not in prompt.user and "u003c|im_end|>" in prompt.user
