"""Real chat templates on a small tokenizer that has their special tokens, and broken ones."""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from src.data.rendering import PromptRenderer
from src.data.templates import chat_template
from src.data.templates.chat_template import ChatTemplate, turn_end
from src.errors import ConfigError
from src.protocol.dialogue import ChatPrompt, Message, TurnExample
from src.wings.tiny.make import build_tokenizer

PROMPT = ChatPrompt("Use sky(city).", "Sun in Oslo?")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPENED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def small() -> PreTrainedTokenizerBase:
    return build_tokenizer(vocab_size=512, examples=300)


def with_template(small: PreTrainedTokenizerBase, template: str, *special: str) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(small)
    tokenizer.add_special_tokens({"bos_token": "<bos>", "extra_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer


def real(name: str) -> str:
    """A template out of the package trl, which is read and not imported."""
    (folder,) = find_spec("trl").submodule_search_locations  # type: ignore[union-attr, misc]
    return (Path(folder) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "special", "end"),
    [
        ("qwen2_5", [], "<|im_end|>"),
        ("qwen3", [], "<|im_end|>"),
        ("llama3", ["<|eot_id|>"], "<|eot_id|>"),
        ("gemma", ["<end_of_turn>"], "<end_of_turn>"),
        ("gemma4", ["<turn|>"], "<turn|>"),
        ("phi3", ["<|end|>"], "<|end|>"),
        ("gptoss", ["<|return|>", "<|end|>"], "<|return|>"),
        ("cohere2", ["<|END_OF_TURN_TOKEN|>"], "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),  # not special here: text
    ],
)
def test_real_templates_end_a_turn_with_their_own_token(
    small: PreTrainedTokenizerBase, name: str, special: list[str], end: str
) -> None:
    tokenizer = with_template(small, real(name), *special)
    template = ChatTemplate(tokenizer)

    assert template.end == end
    assert tokenizer.convert_ids_to_tokens(template.end_id) == f"<{end.rpartition('<')[2]}"
    assert template.folds_system == (name == "gemma")
    text = template.prompt_text(PROMPT)
    assert PROMPT.system in text and PROMPT.user in text


def test_a_refused_system_message_is_folded_into_the_user_s(
    small: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    chat_template._say.cache_clear()
    caplog.set_level(logging.INFO)
    tokenizer = with_template(small, real("gemma"), "<end_of_turn>", "<start_of_turn>")

    for _ in range(2):  # said once
        assert (
            ChatTemplate(tokenizer)
            .prompt_text(PROMPT)
            .endswith("<start_of_turn>user\nUse sky(city).\n\nSun in Oslo?<end_of_turn>\n<start_of_turn>model\n")
        )
    assert (
        caplog.text.count("takes no system message (System role not supported): its text goes before the user's") == 1
    )
    with pytest.raises(ConfigError, match=r"refuses the messages .*System role not supported.*fold_system=true"):
        ChatTemplate(tokenizer, fold_system=False)


def test_a_template_that_drops_or_changes_a_text_is_refused(small: PreTrainedTokenizerBase) -> None:
    no_system = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(
        ConfigError, match=r"drops or changes the system message, which holds the tools .*Set prompt\.fold"
    ):
        ChatTemplate(with_template(small, no_system + OPENED))
    folded = ChatTemplate(with_template(small, no_system + OPENED), fold_system=True)
    assert folded.prompt_text(PROMPT) == (
        "<|im_start|>user\nUse sky(city).\n\nSun in Oslo?<|im_end|>\n<|im_start|>assistant\n"
    )
    for change in (
        "m.content | escape",
        "m.content | replace('\n', ' ')",
        "m.content | replace('  ', ' ')",
        "m.content.split('</think>')[-1]",
        "m.content[:1000]",
    ):
        with pytest.raises(ConfigError, match="drops or changes the system message"):
            ChatTemplate(with_template(small, CHATML.replace("m.content", change) + OPENED))
    for role, named in (("user", "the user's message"), ("assistant", "the assistant's answer")):
        dropped = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != '" + role + "' }}")
        with pytest.raises(ConfigError, match=f"drops or changes {named}"):
            ChatTemplate(with_template(small, dropped + OPENED))


def test_a_template_that_fails_says_so(small: PreTrainedTokenizerBase) -> None:
    for fault in (
        "{{ messages[0]['content'] + 1 }}",
        "{{ raise_exception('No.') }}",
        "{{ messages[7].content.strip() }}",
    ):
        with pytest.raises(ConfigError, match=r"prompt: the chat template of '.*' refuses the messages of a prompt \("):
            ChatTemplate(with_template(small, fault + CHATML + OPENED))


def test_a_turn_that_ends_in_plain_text_is_refused_and_in_nothing_ends_in_eos(small: PreTrainedTokenizerBase) -> None:
    plain = CHATML.replace("<|im_end|>", "\n[END]")
    with pytest.raises(
        ConfigError, match=r"ends an answer with '\\n\[END\]\\n', expected a special token.*'<\|im_end\|>'"
    ):
        ChatTemplate(with_template(small, plain + OPENED))
    assert turn_end(with_template(small, CHATML.replace("<|im_end|>", ""))) == ("<|im_end|>", small.eos_token_id)


def test_targets_end_as_the_template_ends_them_not_with_eos(small: PreTrainedTokenizerBase) -> None:
    tokenizer = with_template(small, CHATML.replace("<|im_end|>", "\n<|turn|>") + OPENED, "<|turn|>")
    renderer = PromptRenderer(tokenizer)
    example = TurnExample((), (Message("user", "Hi?"),), Message("assistant", "Hi.", "Greet."), "doc", "0")
    target = renderer.render_target(example)

    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}, {"role": "assistant", "content": tokenizer.decode(target[:-1]).rstrip()}],
        tokenize=False,
    )
    assert written.endswith(tokenizer.decode(target) + "\n")
    assert tokenizer.decode(target) == "<think> Greet. </think>\n<response> Hi. </response>\n<|turn|>"
    assert target[-1] == tokenizer.convert_tokens_to_ids("<|turn|>") != tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("name", "prefix", "opening"),
    [
        ("qwen3", "", ""),
        ("qwen3_5_think", "<think>\n", ""),
        ("phi3", "", ""),
        ("gptoss", "", "<|channel|>final<|message|>"),  # without it an answer has no channel
    ],
)
def test_prompts_open_an_answer_as_the_template_does(
    small: PreTrainedTokenizerBase, name: str, prefix: str, opening: str
) -> None:
    template = ChatTemplate(with_template(small, real(name), "<|return|>", "<|end|>"))
    assert (template.prefix, template.opening) == (prefix, opening)
    assert template.prompt_text(PROMPT).endswith(prefix + opening)


def test_a_template_without_a_generation_prompt_still_opens_the_answer(small: PreTrainedTokenizerBase) -> None:
    template = ChatTemplate(with_template(small, CHATML))
    assert template.prompt_text(PROMPT).endswith("Sun in Oslo?<|im_end|>\n<|im_start|>assistant\n")
    assert template.control == ("<|im_start|>", "<|im_end|>")


def test_a_date_is_pinned(small: PreTrainedTokenizerBase) -> None:
    tokenizer = with_template(small, real("llama3_2"), "<|eot_id|>")
    assert "Today Date: 03 Feb 2025\n" in ChatTemplate(tokenizer, day="2025-02-03").prompt_text(PROMPT)
    assert ChatTemplate(tokenizer, day="2025-02-03").date == "2025-02-03"
    today = ChatTemplate(tokenizer)
    assert today.date is not None
    assert ChatTemplate(tokenizer, day=today.date).prompt_text(PROMPT) == today.prompt_text(PROMPT)
    assert ChatTemplate(with_template(small, real("qwen3"))).date is None
    for wrong in ("3 Feb", "2024-2-9", "2024-02-31", 20240209):
        with pytest.raises(ValueError, match=rf"prompt\.date: expected a date as YYYY-MM-DD, found {wrong!r}"):
            ChatTemplate(tokenizer, day=wrong)  # type: ignore[arg-type]
