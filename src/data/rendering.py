"""The prompt: dialogue steps to chat messages to token ids, and targets to protocol text.

Two layouts: `published` is the one of the paper's training data, byte for byte; `compact` carries the same information
in few tokens, for the tiny policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from src.data.templates.chat_template import ChatTemplate
from src.protocol.dialogue import (
    THOUGHT_OF_CALLS,
    THOUGHT_OF_RESPONSE,
    ChatPrompt,
    DataError,
    Message,
    ToolCall,
    ToolSpec,
    TurnExample,
)
from src.runs.token_cache import TokenCache

if TYPE_CHECKING:  # prompt texts are also wanted where neither is installed (bfcl-eval's own environment)
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Layout = Literal["published", "compact"]

_SYSTEM_HEAD = """You are a helpful multi-turn dialogue assistant capable of leveraging tool calls to solve user tasks \
and provide structured chat responses.

**Available Tools**
In your response, you can use the following tools:
"""
_SYSTEM_TAIL = """

**Steps for Each Turn**
1. **Think:** Recall relevant context and analyze the current user goal.
2. **Decide on Tool Usage:** If a tool is needed, specify the tool and its parameters.
3. **Respond Appropriately:** If a response is needed, generate one while maintaining consistency across user queries.

**Output Format**
```plaintext
<think> Your thoughts and reasoning </think>
<tool_call>
{"name": "Tool name", "parameters": {"Parameter name": "Parameter content", "... ...": "... ..."}}
{"name": "... ...", "parameters": {"... ...": "... ...", "... ...": "... ..."}}
...
</tool_call>
<response> AI's final response </response>
```

**Important Notes**
1. You must always include the `<think>` field to outline your reasoning. Provide at least one of `<tool_call>` or \
`<response>`. Decide whether to use `<tool_call>` (possibly multiple times), `<response>`, or both.
2. You can invoke multiple tool calls simultaneously in the `<tool_call>` fields. Each tool call should be a JSON \
object with a "name" field and an "parameters" field containing a dictionary of parameters. If no parameters are \
needed, leave the "parameters" field an empty dictionary.
3. Refer to the previous dialogue records in the history, including the user's queries, previous `<tool_call>`, \
`<response>`, and any tool feedback noted as `<obs>` (if exists)."""
_TAG = re.compile("<(/?(?:think|tool_call|response)>)")
HISTORY_HEAD = "**Dialogue Records History**\n"


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    r"""A prompt ready to sample from.

    Attributes:
        prompt_ids: int64 [P].
        response_prefix: the part of the response that the chat template already wrote at the end of the prompt, e.g.
            `<think>\n` for thinking templates; empty for most. Format scoring and regions count it.
        example: what was rendered.
    """

    prompt_ids: Tensor
    response_prefix: str
    example: TurnExample


def call_line(call: ToolCall, escaped: Collection[str] = ()) -> str:
    r"""One call as its line of a tool_call block, in which neither the protocol's tags nor `escaped` appear.

    Where they are part of a value or a name their first character is written as JSON's escape.

    >>> call_line(ToolCall("say", {"text": "</tool_call><eos>"}), escaped=["<eos>"])
    '{"name": "say", "parameters": {"text": "\\u003c/tool_call>\\u003ceos>"}}'
    """
    line = json.dumps({"name": call.name, "parameters": call.parameters}, ensure_ascii=False)
    if "<" in line:
        line = _TAG.sub(r"\\u003c\1", line)
    for text in escaped:
        if text in line:
            line = line.replace(text, f"\\u{ord(text[0]):04x}{text[1:]}")
    return line


def step_text(step: Message, thought: str | None = None, escaped: Collection[str] = ()) -> str:
    r"""An assistant step in the output protocol: think, then tool_call and/or response, a line break between fields.

    >>> step_text(Message("assistant", "Hi!", "Greet."))
    '<think> Greet. </think>\n<response> Hi! </response>'
    """
    parts = []
    thought = step.thought if thought is None else thought
    if thought:
        parts.append(f"<think> {thought} </think>")
    if step.calls:
        parts.append("\n".join(["<tool_call>", *(call_line(call, escaped) for call in step.calls), "</tool_call>"]))
    if step.text:
        parts.append(f"<response> {step.text} </response>")
    return "\n".join(parts)


def published_prompt(
    tools: Sequence[ToolSpec], history: Sequence[Message], escaped: Collection[str] = ()
) -> ChatPrompt:
    """The prompt of the published training data (paper, Figure G.1); `escaped` as in `call_line`.

    A system message of the dialogue is one of its records. Thoughts of earlier steps are replaced by the two standard
    ones of that data, so that a prompt never holds distilled reasoning.
    """
    records = ""
    for message in history:
        if message.role in ("user", "system"):
            records += f"<{message.role}> {message.text} </{message.role}>\n\n"
        elif message.role == "observation":
            records = records.removesuffix("\n") + f"<obs> {message.text} </obs>\n\n"
        else:
            thought = THOUGHT_OF_CALLS if message.calls else THOUGHT_OF_RESPONSE
            records += step_text(message, thought, escaped) + "\n\n"
    return ChatPrompt(published_system(tools), HISTORY_HEAD + records.rstrip("\n"))


def published_system(tools: Sequence[ToolSpec]) -> str:
    """The system message of the published training data: the tools and the output protocol (paper, Figure G.1)."""
    listing = [
        f"{number}. Name: {tool.name}\nDescription: {tool.description}\n"
        f"Parameters: {json.dumps(tool.published_parameters())}"
        for number, tool in enumerate(tools, start=1)
    ]
    return _SYSTEM_HEAD + "\n".join(listing) + _SYSTEM_TAIL


def compact_prompt(tools: Sequence[ToolSpec], history: Sequence[Message], escaped: Collection[str] = ()) -> ChatPrompt:
    """The same information without instructions, descriptions and thoughts: tool signatures and bare records.

    >>> tool = ToolSpec.of("get_weather", "Weather.", {"city": {}, "day": {}})
    >>> compact_prompt([tool], [Message("user", "Sun in Oslo?")])
    ChatPrompt(system='get_weather(city,day)', user='<user> Sun in Oslo? </user>')
    """
    listing = "\n".join(f"{tool.name}({','.join(tool.parameters)})" for tool in tools)
    records = []
    for message in history:
        if message.role in ("user", "system"):
            records.append(f"<{message.role}> {message.text} </{message.role}>")
        elif message.role == "observation":
            records.append(f"<obs> {message.text} </obs>")
        else:
            records.append(step_text(message, "", escaped))
    return ChatPrompt(listing, "\n".join(records))


class PromptRenderer:
    """Renders steps to prompt ids, and targets to the ids that supervised training imitates.

    Attributes:
        template: the model's.
        response_prefix: see `RenderedPrompt`.
        date: the day that the template writes; None if it writes none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout = "published",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        fold_system: bool | None = None,
        date: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Check the tokenizer and the layout once.

        Args:
            tokenizer: with a chat template.
            layout: `published` or `compact`.
            chat_template_kwargs: passed on to the template, e.g. `{enable_thinking: true}`.
            fold_system: put the system text before the user's; None: if the template refuses a system message.
            date: YYYY-MM-DD, what a template that writes today's date writes; None: today.
            cache_dir: where the ids of large corpora are kept for the next start; None: nowhere.

        Raises:
            ValueError: unknown layout or date, or a tokenizer without chat template or end-of-turn token.
            ConfigError: a template that prompts cannot be written with; see `ChatTemplate`.
        """
        if layout not in ("published", "compact"):
            raise ValueError(f"layout: expected 'published' or 'compact', found {layout!r}.")
        if not tokenizer.chat_template:
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template: use an instruct model, or set "
                "tokenizer.chat_template in its folder (chat_template.jinja)."
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no eos token, which ends a response.")
        self.tokenizer = tokenizer
        self.layout = layout
        self.template = ChatTemplate(tokenizer, chat_template_kwargs, fold_system, date)
        self.response_prefix, self.date = self.template.prefix, self.template.date
        self.control = self.template.control
        self._special = self.template.special
        self._cache = TokenCache(None if cache_dir is None else Path(cache_dir) / "prompts", tokenizer)

    def render(self, example: TurnExample) -> RenderedPrompt:
        """Tokenise the prompt of one example. Raises as `render_all`."""
        return self.render_all([example])[0]

    def render_all(self, examples: Sequence[TurnExample]) -> list[RenderedPrompt]:
        """Tokenise the prompts of examples.

        Raises:
            DataError: a corpus of verbatim prompts under the compact layout.
        """
        ids = self._cache.encode([self.template.prompt_text(self.chat_prompt(example)) for example in examples])
        return [RenderedPrompt(one, self.response_prefix, example) for one, example in zip(ids, examples, strict=True)]

    def encode_chat(self, prompt: ChatPrompt) -> Tensor:
        """Token ids of two chat messages under the model's template, ready to sample from, int64 [P]."""
        return self._cache.encode([self.template.prompt_text(prompt)])[0]

    def chat_prompt(self, example: TurnExample) -> ChatPrompt:
        """The two chat messages of an example's prompt.

        Raises:
            DataError: the layout wants structured tools and history, and the corpus has whole prompts.
        """
        if example.prompt is None:
            build = published_prompt if self.layout == "published" else compact_prompt
            return build(example.tools, example.history, self._special)
        if self.layout != "published":
            raise DataError(
                example.place,
                "prompt",
                "structured tools and history for layout 'compact'",
                "a prompt that the corpus publishes verbatim",
                "Set prompt.layout=published, or use a corpus of dialogues.",
            )
        return example.prompt

    def render_target(self, example: TurnExample) -> Tensor:
        """Token ids of the target, int64 [T], as they would follow `render`'s prompt, up to the token that ends it."""
        return self.render_targets([example])[0]

    def render_targets(self, examples: Sequence[TurnExample]) -> list[Tensor]:
        """`render_target` of each."""
        texts = []
        for example in examples:
            text = step_text(example.target, escaped=self._special)
            if self.response_prefix:
                text = text.removeprefix(self.response_prefix.rstrip()).removeprefix(" ")
            texts.append(text + self.template.end)
        return self._cache.encode(texts)
