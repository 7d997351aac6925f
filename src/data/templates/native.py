"""The layout `native`: the model's own chat template with `tools=`, and the format that its calls have.

A prompt is what the template writes for the messages before a step; the target is what it writes for that step behind
the same messages. Neither holds a word of this project's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from src.data.sources.tools import with_json_types
from src.data.templates.chat_template import faults, render, special_tokens, template_settings
from src.errors import ConfigError
from src.protocol.dialogue import DataError, JsonValue, Message, ToolCall, ToolSpec, TurnExample
from src.protocol.formats.known import NATIVE, format_named
from src.protocol.output_format import OutputFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_TOOL = ToolSpec.of("probe_the_weather", "Weather.", {"city": {"type": "string"}, "days": {"type": "integer"}})
_ASKED = Message("user", "Weather in Oslo?")
_THOUGHT = "Look it up."
_CALL = Message("assistant", calls=(ToolCall("probe_the_weather", {"city": "Oslo", "days": 2}, "call00000"),))


class NativeTemplate:
    """A tokenizer's chat template with tools, tried out once.

    Attributes:
        format: in which the template writes calls.
        date: the day that the template writes, as YYYY-MM-DD; None if it writes none.
        prefix: the part of an answer that the template writes at the end of a prompt (`<think>`), empty for most.
        thinks: whether the template lets an answer think: it writes a thought, and closes none in the prompt.
        special: the tokenizer's special tokens.
        control: those of them that the template writes around messages.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: Mapping[str, Any] | None = None,
        day: str | None = None,
        format_name: str | None = None,
    ) -> None:
        """Render a call and look for a format that reads it back.

        Args:
            tokenizer: with a chat template and an end-of-sequence token.
            settings: passed on to the template.
            day: see `date`; None: today.
            format_name: the format; None: the one that reads back what the template writes.

        Raises:
            ConfigError: the template takes no tools or calls, or writes them in no known format; or no such format.
        """
        self._tokenizer = tokenizer
        self._settings, self.date = template_settings(tokenizer, settings, day)
        self.special = tuple(special_tokens(tokenizer).values())
        self._eos = str(tokenizer.eos_token)
        try:
            opened = self._render([_ASKED], (_TOOL,), opened=True)
            header = opened.removeprefix(self._render([_ASKED], (_TOOL,)))
            start = header.find("<think>")
            self.prefix = header[start:] if start >= 0 else ""
            thinking = self._answer((_TOOL,), [_ASKED], replace(_CALL, thought=_THOUGHT), "prompt")
            self.thinks = _THOUGHT in thinking and "</think>" not in self.prefix
            try:
                written = self._answer((_TOOL,), [_ASKED], _CALL, "prompt")
            except DataError:  # behind an open <think> a template may have no way to write a step without a thought
                written = thinking
        except faults() as error:
            raise ConfigError(
                f"prompt.layout=native: the chat template of '{tokenizer.name_or_path}' does not take tools and calls "
                f"({error}). Choose a model whose template does, or set prompt.layout=published."
            ) from error
        self._several = self._writes_several_calls()
        self.control = tuple(token for token in self.special if token in opened + written)
        if _TOOL.name not in opened:
            raise ConfigError(
                f"prompt.layout=native: the chat template of '{tokenizer.name_or_path}' leaves the tools out of its "
                "prompts. Choose a model whose template has tools, or set prompt.layout=published."
            )
        self.format = self._found(written) if format_name is None else format_named(format_name)
        if not self._reads(self.format, written):
            raise ConfigError(
                f"prompt.format={self.format.name}: the chat template of '{tokenizer.name_or_path}' writes calls in "
                f"another format: {written!r}. Leave prompt.format null, or change the template."
            )

    def prompt_text(self, example: TurnExample) -> str:
        """The text of a prompt, ready to be continued by an answer.

        Args:
            example: with tools and messages (`published.structured`).

        Raises:
            DataError: the template refuses its messages or tools, or leaves something of them out.
        """
        try:
            text = self._render(example.history, example.tools, opened=True)
        except faults() as error:
            raise self._refused(example, error) from error
        self._check_history(example, text)
        return text

    def target_text(self, example: TurnExample) -> str:
        """The text of the target, as it follows the prompt, up to the token that ends it.

        Raises:
            DataError: see `prompt_text`; or the template writes it otherwise than behind the prompt.
        """
        try:
            return self._answer(example.tools, example.history, example.target, example.place)
        except DataError:
            raise
        except faults() as error:
            raise self._refused(example, error) from error

    def continued(self, example: TurnExample, further: Sequence[Message]) -> tuple[str, bool]:
        """What an answer is followed by, once something was observed.

        Args:
            example: its target is the answer, behind its history.
            further: what was observed since, at least one message.

        Returns:
            What the template writes behind the token that ends the answer, ready for the next one; and True. Where it
            writes the messages before otherwise by now (old thoughts are left out), the whole prompt; and False.

        Raises:
            DataError: the template refuses the messages.
        """
        history = [*example.history, example.target]
        try:
            written = self._ended(self._render(history, example.tools), example.place)
            opened = self._render([*history, *further], example.tools, opened=True)
        except faults() as error:
            raise self._refused(example, error) from error
        appended = opened.startswith(written)
        return opened[len(written) * appended :], appended

    def _refused(self, example: TurnExample, error: Exception) -> DataError:
        """What a template raises, with the tools named where it takes the messages without them."""
        field, advice = "messages", "Mend the record."
        with suppress(*faults()):
            self._render([*example.history, example.target], ())
            self._render(example.history, ())
            field, advice = "tools", "Add the keys that the template asks of a tool, though OpenAI does not."
        return DataError(example.place, field, "what the model's chat template can write", str(error), advice)

    def _check_history(self, example: TurnExample, written: str) -> None:
        """Refuse messages before the target that the template leaves out in part."""
        for index, message in enumerate(example.history):
            text = message.text.strip()
            if text not in written and not any(
                json.dumps(text, ensure_ascii=ascii_only)[1:-1] in written for ascii_only in (False, True)
            ):
                left_out = f"it leaves out the text of message {index} ({message.role})"
                expected = f"what the chat template writes whole; {left_out}"
                advice = "Mend the record, or take another model."
                raise DataError(example.place, "messages", expected, text, advice)
            if len(message.calls) > 1 and not self._several:
                expected = f"one call in a step, as the chat template writes; message {index} has more"
                advice = "Give each call a message of its own with its result, or take another model."
                raise DataError(example.place, "messages", expected, [call.name for call in message.calls], advice)

    def _writes_several_calls(self) -> bool:
        """Whether the template writes all calls of an earlier step."""
        calls = (*_CALL.calls, replace(_CALL.calls[0], parameters={"city": "Quito"}))
        results = [Message("observation", "1"), Message("observation", "2")]
        try:
            return "Quito" in self._render([_ASKED, replace(_CALL, calls=calls), *results, _ASKED], (_TOOL,))
        except faults():
            return False

    def _found(self, written: str) -> OutputFormat:
        for known in NATIVE:
            if self._reads(known, written):
                log.info("The chat template writes calls in the format %s.", known.name)
                return known
        raise ConfigError(
            f"prompt.layout=native: the chat template of '{self._tokenizer.name_or_path}' writes a call as {written!r},"
            f" which none of {', '.join(one.name for one in NATIVE)} reads. Choose another model, write a format "
            "(docs/extending.md), or set prompt.layout=published."
        )

    def _reads(self, known: OutputFormat, written: str) -> bool:
        end = max((token for token in self.special if written.endswith(token)), key=len, default=self._eos)
        text = written.removesuffix(end)
        parsed = known.parse(text.encode(), (_TOOL,), self.prefix.encode())
        return parsed.calls == _CALL.calls and not parsed.stray and all(parsed.closed)

    def _answer(self, tools: Sequence[ToolSpec], history: Sequence[Message], reply: Message, place: str) -> str:
        """What the template writes for a reply behind the prompt, up to the token that ends it."""
        for before in (history, [_ASKED]):  # a template may write the history otherwise once it is answered
            opened = self._render(before, tools, opened=True)
            written = self._render([*before, reply], tools)
            bare = opened.removesuffix(self.prefix)
            if written.startswith(opened):
                return self._ended(written[len(opened) :], place)
            if written.startswith(bare) and "</think>" in self.prefix:  # closed in the prompt, left out of the answer
                return self._ended(written[len(bare) :], place)
        raise DataError(
            place, "target", "a step that the chat template writes behind its prompt", written[-300:], "Mend the step."
        )

    def _ended(self, text: str, place: str) -> str:
        """The text up to its last special token, behind which templates may break the line."""
        last = max((text.rfind(token) + len(token) for token in self.special if token in text), default=0)
        if not last:
            return text + self._eos
        if text[last:].strip():
            raise DataError(place, "target", "a step that the chat template ends with a special token", text[last:])
        return text[:last]

    def _render(self, messages: Sequence[Message], tools: Sequence[ToolSpec], *, opened: bool = False) -> str:
        given = [openai_tool(tool) for tool in tools]
        return render(self._tokenizer, openai_messages(messages), opened, {**self._settings, "tools": given or None})


def call_end(tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any] | None = None) -> int | None:
    """The token that ends a step with calls, which in some templates is not the one that ends an answer (gpt-oss).

    None where the template takes no calls, or ends them with no special token.
    """
    special = special_tokens(tokenizer)
    given = {**(settings or {}), "tools": [openai_tool(_TOOL)]}
    try:
        text = render(tokenizer, openai_messages([_ASKED, _CALL]), False, given)
    except faults():
        return None
    ends = {text.rfind(token) + len(token): index for index, token in special.items() if token in text}
    return ends[max(ends)] if ends and not text[max(ends) :].strip() else None


def openai_tool(tool: ToolSpec) -> dict[str, JsonValue]:
    """A tool as OpenAI has it: one that came so stays as it came, others get JSON's names of their types."""
    if isinstance(tool.json.get("function"), Mapping):
        return dict(tool.json)
    properties = {name: with_json_types(about) for name, about in tool.parameters.items()}
    schema: dict[str, JsonValue] = {"type": "object", "properties": properties}
    if tool.required:
        schema["required"] = list(tool.required)
    if tool.open:
        schema["additionalProperties"] = True
    function = {"name": tool.name, "description": tool.description, "parameters": schema}
    return {"type": "function", "function": function}


def openai_messages(messages: Sequence[Message]) -> list[dict[str, JsonValue]]:
    """Messages as OpenAI has them, arguments as objects, thoughts under the keys that templates read.

    A result without a name has that of its call: the one with its id, else the one at its place behind the last calls.
    """
    found: list[dict[str, JsonValue]] = []
    calls: tuple[ToolCall, ...] = ()
    results = 0
    for message in messages:
        if message.role == "assistant":
            calls, results = message.calls, 0
            found.append(_assistant(message))
        elif message.role == "observation":
            by_id = [call.name for call in calls if call.id and call.id == message.call_id]
            name = message.name or next(iter(by_id), calls[results].name if results < len(calls) else "")
            results += 1
            given = {"name": name, "tool_call_id": message.call_id}
            found.append({"role": "tool", "content": message.text} | {k: v for k, v in given.items() if v})
        else:
            found.append({"role": message.role, "content": message.text})
    return found


def _assistant(message: Message) -> dict[str, JsonValue]:
    written: dict[str, JsonValue] = {"role": "assistant", "content": message.text}
    if message.thought:
        written |= {"reasoning_content": message.thought, "thinking": message.thought}
    if message.calls:
        written["tool_calls"] = [call.openai() for call in message.calls]
    return written
