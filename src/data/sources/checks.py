"""What must hold of every example, whatever its source: that it is text, and that its own target earns full marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from src.data.sources.reading import check_json
from src.data.sources.tools import check_on_offer
from src.protocol.dialogue import DataError, JsonValue, Message, ToolSpec, TurnExample
from src.protocol.formats.rest import call_line
from src.protocol.matching import json_equal
from src.protocol.regions import DecodedCompletion, read_completions
from src.protocol.token_bytes import TokenBytes

if TYPE_CHECKING:
    from torch import Tensor

    from src.protocol.output_format import Reading

_TAG = re.compile("</?(?:think|tool_call|response)>")
_CALL_MARK = re.compile(r"<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]|<function=")


class TargetRenderer(Protocol):
    """What writes targets (`rendering.PromptRenderer`)."""

    def opened(self, example: TurnExample) -> TurnExample:
        """The example as it is written."""
        ...

    def reading(self, example: TurnExample) -> Reading:
        """How a target is read back."""
        ...

    def render_targets(self, examples: Sequence[TurnExample]) -> list[Tensor]:
        """Ids of each target, int64 [T]."""
        ...


def faults_of(examples: Sequence[TurnExample], check: TargetCheck | None) -> list[DataError | None]:
    """What is wrong with each example, and with its target where there is a check of it; None where nothing is."""
    found: list[DataError | None] = []
    for example in examples:
        try:
            check_example(example)
            found.append(None)
        except DataError as error:
            found.append(error)
    good = [index for index, fault in enumerate(found) if fault is None]
    if check is not None and good:
        for index, fault in zip(good, check.faults([examples[index] for index in good]), strict=True):
            found[index] = fault
    return found


def remarks(examples: Iterable[TurnExample], control: Collection[str]) -> list[str]:
    """What nobody can prove wrong, and what a user would want to know.

    Args:
        examples: those of a split.
        control: special tokens that the chat template writes around messages.

    Returns:
        A sentence a kind, with the number of examples and the first of them.
    """
    calls: list[str] = []
    spoofed: list[str] = []
    for example in examples:
        target = example.target
        if target.text and not target.calls and _calls_in(target.text, example.tools):
            calls.append(f"{example.place}: {target.text[:80]!r}")
        given = example.prompt
        texts = [message.text for message in example.history] if given is None else [given.system, given.user]
        if any(token in text for text in texts for token in control):
            spoofed.append(example.place)
    said = []
    if calls:
        said.append(
            f"{len(calls)} responses hold what looks like a call, e.g. {calls[0]}. The policy learns to write calls as "
            "text: mend these records if they are meant as calls."
        )
    if spoofed:
        said.append(
            f"{len(spoofed)} prompts hold special tokens of the chat template in their texts, e.g. {spoofed[0]}. The "
            "model reads these as ends and beginnings of messages: take them out of the texts."
        )
    return said


def _calls_in(text: str, tools: Iterable[ToolSpec]) -> bool:
    return _CALL_MARK.search(text) is not None or any(
        tool.name in text
        and re.search(rf'(?<!\w){re.escape(tool.name)}\(\s*\w+\s*=|"name"\s*:\s*"{re.escape(tool.name)}"', text)
        for tool in tools
    )


def check_example(example: TurnExample) -> None:
    """Check what needs no tokenizer.

    Raises:
        DataError: a prompt without a user, a target without calls and text, a call that is not on offer, or what no
            tokenizer and no JSON takes: a lone surrogate, a number that is not finite.
    """
    place, target = example.place, example.target
    asked = [message.text for message in example.history if message.role == "user"]
    if not any(map(str.strip, asked if example.prompt is None else [example.prompt.user])):
        found = [message.role for message in example.history] if example.prompt is None else example.prompt.user
        raise DataError(place, "prompt", "a user's message with text", found)
    if not target.calls and not target.text.strip():
        raise DataError(place, "target", "calls or a response", target)
    prompt = None if example.prompt is None else [example.prompt.system, example.prompt.user]
    check_json([tool.json for tool in example.tools], place, "tools")
    check_json(prompt, place, "prompt")
    check_json(list(map(_plain, example.history)), place, "history")
    check_json(_plain(target), place, "target")
    if example.prompt is None:
        check_on_offer(target.calls, example.tools, place, "target.calls")


def _plain(message: Message) -> JsonValue:
    calls = [{"name": call.name, "parameters": dict(call.parameters)} for call in message.calls]
    return {"text": message.text, "thought": message.thought, "calls": calls}


class TargetCheck:
    """Whether targets read back as they were written, and earn full marks from the run's own reward.

    What a policy is asked for must be worth the most: a response that holds `</response>`, or a thought with the
    end-of-turn token in it, is cut there by every reader, and no policy could ever match it.

    Args:
        renderer: writes the targets.
        reward: the run's. Where it has no attribute `full_marks`, it may score by other things than the target, and its
            scores are not looked at.
        table: the tokenizer's tokens as bytes.
        stop_ids: end-of-turn tokens.
    """

    def __init__(
        self,
        renderer: TargetRenderer,
        reward: Callable[..., Any],
        table: TokenBytes,
        stop_ids: Collection[int],
    ) -> None:
        self._renderer, self._reward, self._table, self._stop_ids = renderer, reward, table, stop_ids
        ends = filter(None, (table.decode([one]).decode("utf-8", "replace") for one in stop_ids))
        self._marks = re.compile("|".join([_TAG.pattern, *map(re.escape, ends)]))

    def faults(self, examples: Sequence[TurnExample]) -> list[DataError | None]:
        """What is wrong with each example's target; None where nothing is."""
        try:
            examples = [self._renderer.opened(example) for example in examples]
            ids = self._renderer.render_targets(examples)
        except DataError as error:  # of one of them: look for it in each half
            if len(examples) == 1:
                return [error]
            half = len(examples) // 2
            return self.faults(examples[:half]) + self.faults(examples[half:])
        read = read_completions(ids, self._table, self._stop_ids, [self._renderer.reading(e) for e in examples])
        return [self._fault(example, decoded) for example, decoded in zip(examples, read, strict=True)]

    def _fault(self, example: TurnExample, decoded: DecodedCompletion) -> DataError | None:
        target, parsed = example.target, decoded.parsed
        found = parsed.calls or ()
        same = len(found) == len(target.calls) and all(
            one.name == other.name and json_equal(one.parameters, other.parameters)
            for one, other in zip(found, target.calls, strict=True)
        )
        for field, written, back in (
            ("thought", target.thought, parsed.thought or ""),
            ("calls", "" if same else "\n".join(map(call_line, target.calls)), ""),
            ("response", target.text, parsed.response or ""),
        ):
            if written.strip() != back.strip():
                shown, advice = self._around_mark(written)
                expected = "what can be written in the output protocol and read back the same"
                if parsed.native:
                    expected = f"{expected} ({back or 'nothing'!r} is read from what the chat template writes)"
                    shown = decoded.text
                return DataError(example.place, f"target.{field}", expected, shown, advice)
        if not getattr(self._reward, "full_marks", False):
            return None
        parts = self._reward(decoded.text, parsed, target, rollout_step=0).parts
        if parts.format == parts.correctness == 1:
            return None
        got = f"format {parts.format:g}, correctness {parts.correctness:g}"
        expected = "a target that earns full marks from the run's own reward (format 1, correctness 1)"
        shown, _ = self._around_mark(target.thought) if self._marks.search(target.thought) else (decoded.text, "")
        return DataError(example.place, "target", f"{expected}, here {got}", shown)

    def _around_mark(self, text: str) -> tuple[str, str]:
        """The part of a text around its first tag or end-of-turn token, and what to do about it."""
        mark = self._marks.search(text)
        if mark is None:
            return text, ""
        return text[max(0, mark.start() - 40) : mark.end() + 40], f"It cannot hold {mark[0]!r}: reword it."
