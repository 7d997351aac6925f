"""The published prompt byte for byte, the compact one, thinking templates, and targets."""

import json
import re

import pytest
import torch

from src.data.rendering import PromptRenderer, compact_prompt
from src.data.templates.published import published_prompt
from src.protocol.dialogue import ChatPrompt, DataError, Message, ToolCall, ToolSpec, TurnExample
from src.protocol.formats.rest import step_text
from src.wings.tiny.make import build_tokenizer
from tests.conftest import needs_shared_data

OSLO = ToolCall("get_weather", {"city": "Oslo", "day": 2})


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocab_size=512, examples=300)


@needs_shared_data
def test_published_prompt_reproduces_the_real_data(shared_data):
    """Tools and history read out of all 400 real prompts, rendered again, give the same bytes."""
    records = json.loads((shared_data / "rlla/rlla_sft.json").read_text())
    multi_turn = 0
    for record in records:
        tools, history = _read_tools(record["instruction"]), _read_history(record["input"])
        prompt = published_prompt(tools, history)
        assert prompt.system == record["instruction"]
        assert prompt.user == record["input"]
        multi_turn += any(message.role == "observation" for message in history)
    assert len(records) == 400 and multi_turn == 37


def test_compact_prompt_by_hand():
    tool = ToolSpec.of("get_weather", "Weather.", {"city": {}, "day": {}})
    history = [
        Message("user", "Sun in Oslo?"),
        Message("assistant", thought="not shown", calls=(OSLO,)),
        Message("observation", '{"sky": "clear"}'),
        Message("assistant", "It is clear.", "not shown either"),
        Message("user", "Thanks!"),
    ]
    assert compact_prompt([tool], history) == ChatPrompt(
        "get_weather(city,day)",
        "<user> Sun in Oslo? </user>\n"
        '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Oslo", "day": 2}}\n</tool_call>\n'
        '<obs> {"sky": "clear"} </obs>\n'
        "<response> It is clear. </response>\n"
        "<user> Thanks! </user>",
    )


def test_prompt_and_target_join_into_the_dialogue(tokenizer):
    example = _example(Message("assistant", "Done.", "Call it.", (OSLO,)))
    renderer = PromptRenderer(tokenizer, "compact")
    prompt, target = renderer.render(example), renderer.render_target(example)
    assert prompt.response_prefix == ""
    assert tokenizer.decode(torch.cat([prompt.prompt_ids, target])) == (
        "<|im_start|>system\nget_weather(city)<|im_end|>\n"
        "<|im_start|>user\n<user> Sun in Oslo? </user><|im_end|>\n"
        "<|im_start|>assistant\n<think> Call it. </think>\n"
        '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Oslo", "day": 2}}\n</tool_call>\n'
        "<response> Done. </response><|im_end|>"
    )
    assert target[-1] == tokenizer.eos_token_id


def test_thinking_template_opens_the_response(tokenizer):
    """A template that ends in `<think>` and a line break, like Qwen3-4B-Thinking-2507's: the target goes on."""
    plain = tokenizer.chat_template
    try:
        tokenizer.chat_template = plain.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
        renderer = PromptRenderer(tokenizer, "compact")
        example = _example(Message("assistant", "Hi.", "Greet."))
        assert renderer.response_prefix == "<think>\n"
        assert tokenizer.decode(renderer.render(example).prompt_ids).endswith("assistant\n<think>\n")
        assert (
            tokenizer.decode(renderer.render_target(example)) == "Greet. </think>\n<response> Hi. </response><|im_end|>"
        )
    finally:
        tokenizer.chat_template = plain


def test_verbatim_prompts_need_the_published_layout(tokenizer):
    example = TurnExample((), (), Message("assistant", "Hi."), "rlla", "7", prompt=ChatPrompt("s", "u"))
    assert "<|im_start|>user\nu<|im_end|>" in tokenizer.decode(PromptRenderer(tokenizer).render(example).prompt_ids)
    with pytest.raises(DataError, match=r"rlla\[7\]: field 'prompt'.*prompt.layout=published"):
        PromptRenderer(tokenizer, "compact").render(example)


def test_renderer_refuses_what_it_cannot_use(tokenizer):
    with pytest.raises(ValueError, match=r"prompt\.layout: expected one of published, compact, native, found 'short'"):
        PromptRenderer(tokenizer, "short")  # type: ignore[arg-type]
    template = tokenizer.chat_template
    try:
        tokenizer.chat_template = None
        with pytest.raises(ValueError, match="no chat template"):
            PromptRenderer(tokenizer)
    finally:
        tokenizer.chat_template = template


def _example(target: Message) -> TurnExample:
    tool = ToolSpec.of("get_weather", "Weather.", {"city": {}})
    return TurnExample((tool,), (Message("user", "Sun in Oslo?"),), target, "doc", "0")


def _read_tools(instruction: str) -> list[ToolSpec]:
    listing = instruction.split("following tools:\n")[1].split("\n\n**Steps for Each Turn**")[0]
    pattern = r"^\d+\. Name: (.*?)\nDescription: (.*?)\nParameters: (\{.*?\})(?=\n\d+\. Name: |\Z)"
    return [
        ToolSpec.of(name, description, json.loads(parameters))
        for name, description, parameters in re.findall(pattern, listing, re.DOTALL | re.MULTILINE)
    ]


def _read_history(text: str) -> list[Message]:
    pattern = (
        r"<user> (?P<user>.*?) </user>(?=\n\n|\Z)"
        r"|<obs> (?P<obs>.*?) </obs>(?=\n\n|\Z)"
        r"|<think> .*? </think>(?:\n<tool_call>\n(?P<calls>.*?)\n</tool_call>)?"
        r"(?:\n<response> (?P<response>.*?) </response>)?(?=\n|\Z)"
    )
    messages = []
    for found in re.finditer(pattern, text, re.DOTALL):
        if found["user"] is not None:
            messages.append(Message("user", found["user"]))
        elif found["obs"] is not None:
            messages.append(Message("observation", found["obs"]))
        else:
            lines = (found["calls"] or "").splitlines()
            calls = tuple(ToolCall(**json.loads(line)) for line in lines)
            messages.append(Message("assistant", found["response"] or "", calls=calls))
    return messages


def test_step_text_of_calls_only():
    step = Message("assistant", calls=(OSLO, ToolCall("stop", {})))
    assert step_text(step) == (
        '<tool_call>\n{"name": "get_weather", "parameters": {"city": "Oslo", "day": 2}}\n'
        '{"name": "stop", "parameters": {}}\n</tool_call>'
    )
