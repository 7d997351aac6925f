"""The native layout with the chat templates of real models: ids are the template's own, and targets read back."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.data.sources.checks import TargetCheck
from src.data.templates.native import call_end, openai_messages, openai_tool
from src.errors import ConfigError
from src.protocol.dialogue import DataError, Message, ToolCall, ToolSpec, TurnExample
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from tests.protocol.conftest import package_folder, smollm2  # noqa: F401  # a fixture
from tests.protocol.formats.texts import tools_and_step

MARKERS = (
    "<|im_start|> <|im_end|> <|start|> <|end|> <|message|> <|channel|> <|call|> <|return|> <|constrain|> <|eot_id|> "
    "<|start_header_id|> <|end_header_id|> <|eom_id|> <|begin_of_text|> <|python_tag|> <think> </think> <tool_call> "
    "</tool_call> <tool_response> </tool_response>"
).split()
FORMATS = {
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_instruct_2507": "hermes",
    "qwen3_vl": "hermes",
    "qwen3_5_think": "qwen3_xml",
    "qwen3_5_nothink": "qwen3_xml",
    "qwen3_6": "qwen3_xml",
    "qwen3_8": "qwen3_xml",
    "nemotron_3_nano": "qwen3_xml",
    "llama3_1": "llama3_json",
    "llama3_2": "llama3_json",
    "gptoss": "harmony",
}
"""Templates of TRL's wheel -> the format that is found in them."""
_NO_THOUGHT: tuple[dict[str, int], int] = ({"target.thought": 144}, 56)
_ONE_CALL: tuple[dict[str, int], int] = ({"messages": 95, "target.response": 10, "target.thought": 76}, 0)
EXPRESSED: dict[str, tuple[dict[str, int], int]] = {
    "qwen2_5": _NO_THOUGHT,
    "qwen3": ({}, 200),
    "qwen3_instruct_2507": _NO_THOUGHT,
    "qwen3_vl": _NO_THOUGHT,
    "qwen3_5_think": ({}, 144),
    "qwen3_5_nothink": ({"target.thought": 144}, 8),
    "qwen3_6": ({}, 144),
    "qwen3_8": ({}, 144),
    "nemotron_3_nano": ({"target": 56}, 144),
    "llama3_1": _ONE_CALL,
    "llama3_2": _ONE_CALL,
    "gptoss": ({"messages": 74, "target.calls": 29, "target.thought": 30}, 57),
}
"""Of 200 steps: why some cannot be written, and how many have the ids that the template gives the whole dialogue.

The others have its text. Behind a prompt that ends in a line break the whole dialogue has a token across its end
(Llama, and Qwen3.5 without a thought); and gpt-oss's template writes a thought before a call only while nothing final
follows.
"""


def template(name: str) -> str:
    return (package_folder("trl") / f"chat_templates/{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(smollm2: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:  # noqa: F811
    smollm2.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKERS])
    return smollm2


def examples(count: int) -> Iterator[TurnExample]:
    """Steps at the beginning of a dialogue, behind a system message, behind results, and in a second turn."""
    rng = random.Random(11)
    for index in range(count):
        tools, target = tools_and_step(rng)
        history = [Message("user", rng.choice(["Weather in Oslo?", "Book a table, please."]))]
        if rng.random() < 0.3:
            history.insert(0, Message("system", "Be brief."))
        if rng.random() < 0.5:
            call = ToolCall("sky", {"city": "Oslo"}, "call00001")
            history += [
                Message("assistant", "", rng.choice(["", "Look it up."]), (call,)),
                Message("observation", '{"sky": "clear"}', name="sky", call_id="call00001"),
            ]
            if rng.random() < 0.5:
                history += [Message("assistant", "It is clear."), Message("user", "And tomorrow?")]
        yield TurnExample(tools, tuple(history), target, "made", str(index))


def given(example: TurnExample, **settings: Any) -> dict[str, Any]:
    return {
        "tools": [openai_tool(tool) for tool in example.tools],
        "strftime_now": datetime(2024, 7, 26).strftime,
        **settings,
    }


@pytest.mark.parametrize("name", FORMATS)
def test_ids_are_the_templates_own_and_targets_read_back(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = template(name)
    renderer = PromptRenderer(tokenizer, "native", date="2024-07-26")
    assert renderer.format.name == FORMATS[name]
    ends = tuple(tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|eot_id|>", "<|call|>", "<|return|>"))
    check = TargetCheck(renderer, ToolCallReward(), TokenBytes.from_tokenizer(tokenizer), ends)
    made = list(examples(200))
    faults = check.faults(made)
    reasons = Counter(
        fault.args[0].split("field ")[1].split(":")[0].strip("'") for fault in faults if fault is not None
    )
    fine = [example for example, fault in zip(made, faults, strict=True) if fault is None]
    same = 0
    for example in fine:
        prompt = renderer.render(example).prompt_ids.tolist()
        messages = openai_messages(example.history)
        assert prompt == ids(tokenizer, messages, add_generation_prompt=True, **given(example))
        target = renderer.render_target(example).tolist()
        whole = ids(tokenizer, [*messages, *openai_messages([example.target])], **given(example))
        assert target[-1] in ends
        same += whole[: len(prompt) + len(target)] == prompt + target
        assert tokenizer.decode(target) in tokenizer.decode(whole)
    assert (dict(reasons), same) == EXPRESSED[name]


def ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **settings: Any) -> list[int]:
    made = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **settings)
    return list(made)


def test_a_call_may_end_with_another_token_than_an_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    for name, end in (("gptoss", "<|call|>"), ("qwen3", "<|im_end|>"), ("llama3_2", "<|eot_id|>")):
        tokenizer.chat_template = template(name)
        assert call_end(tokenizer, {"strftime_now": datetime(2024, 7, 26).strftime}) == ids_of(tokenizer, end)
    tokenizer.chat_template = "{{ raise_exception('no tools') }}"
    assert call_end(tokenizer) is None


def test_templates_that_have_no_tools_or_another_format_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    for name, message in (
        ("gemma3", "leaves the tools out of its prompts"),
        ("glm4moe", "which none of qwen3_xml, hermes, llama3_json, harmony reads"),
        ("llava_next", "does not take tools and calls"),
    ):
        tokenizer.chat_template = template(name)
        with pytest.raises(ConfigError, match=f"prompt.layout=native: the chat template of .* {message}"):
            PromptRenderer(tokenizer, "native")
    tokenizer.chat_template = template("qwen3")
    with pytest.raises(ConfigError, match=r"prompt\.format=qwen3_xml: the chat template of .* writes calls in another"):
        PromptRenderer(tokenizer, "native", format="qwen3_xml")
    with pytest.raises(
        ConfigError, match=r"prompt\.format=hermes with prompt\.layout=published: .* ask for the format rest"
    ):
        PromptRenderer(tokenizer, "published", format="hermes")


SKY = ToolSpec.of("sky", "The sky.", {"city": {"type": "str"}, "days": {"type": "List[int]"}})
CALL = ToolCall("sky", {"city": "Oslo"}, "call00001")
ASKED = Message("user", "Weather?")
SEEN = Message("observation", "clear", name="sky", call_id="call00001")


@pytest.mark.parametrize(
    ("name", "history", "said"),
    [
        (
            "gptoss",
            (ASKED, Message("system", "Be brief.")),
            r"leaves out the text of message 1 \(system\), found 'Be brief\.'",
        ),
        (
            "gptoss",
            (ASKED, Message("assistant", calls=(CALL, CALL)), SEEN, SEEN),
            "one call in a step, .* message 1 has",
        ),
        (
            "llama3_1",
            (ASKED, Message("assistant", "I look.", calls=(CALL,)), SEEN),
            r"message 1 \(assistant\), found 'I look",
        ),
        ("qwen3", (ASKED, Message("assistant", "I look.", calls=(CALL, CALL)), SEEN, SEEN), None),
        ("llama3_1", (ASKED, Message("assistant", calls=(CALL,)), Message("observation", 'say "é"\nso')), None),
        ("gptoss", (ASKED, Message("assistant", calls=(CALL,)), Message("observation", 'say "é"\nso')), None),
    ],
)
def test_a_history_that_the_template_leaves_out_in_part_is_refused(
    name: str, history: tuple[Message, ...], said: str | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    tokenizer.chat_template = template(name)
    renderer = PromptRenderer(tokenizer, "native", date="2024-07-26")
    example = TurnExample((SKY,), history, Message("assistant", "It is clear."), "rows.jsonl:3", "0")
    if said is None:
        assert "Weather?" in tokenizer.decode(renderer.render(example).prompt_ids)
    else:
        with pytest.raises(DataError, match=rf"^rows\.jsonl:3\[0\]: field 'messages': expected .*{said}"):
            renderer.render(example)


def test_tools_that_the_template_does_not_take_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = template("gptoss")
    tool = ToolSpec({"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}})
    example = TurnExample((tool,), (ASKED,), Message("assistant", "It is clear."), "rows.jsonl:3", "0")
    with pytest.raises(DataError, match=r"^rows\.jsonl:3\[0\]: field 'tools': .* no attribute 'description'"):
        PromptRenderer(tokenizer, "native").render(example)


def test_bare_tools_get_the_names_of_json_for_their_types() -> None:
    properties = {"city": {"type": "string"}, "days": {"type": "array"}}
    assert openai_tool(SKY)["function"]["parameters"]["properties"] == properties  # type: ignore[index, call-overload]


def test_a_setting_that_the_template_does_not_know_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = template("qwen3")
    PromptRenderer(tokenizer, "native", {"enable_thinking": False})
    for layout in ("native", "published"):
        with pytest.raises(ConfigError, match=r"prompt\.chat_template_kwargs: expected .* found 'enable_thinkng'"):
            PromptRenderer(tokenizer, layout, {"enable_thinkng": False})  # type: ignore[arg-type]


def ids_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]
