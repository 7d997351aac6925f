"""The layout `published`, the prompt of the paper's training data, byte for byte: written, and read back.

It is read back where a corpus publishes prompts and the run wants another layout.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from src.data.sources.base import dialogue_key
from src.protocol.dialogue import (
    THOUGHT_OF_CALLS,
    THOUGHT_OF_RESPONSE,
    ChatPrompt,
    DataError,
    Message,
    OpenPrompt,
    ToolSpec,
    TurnExample,
)
from src.protocol.formats.rest import parse, step_text

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
HISTORY_HEAD = "**Dialogue Records History**\n"
_TOOL = re.compile(
    r"\d+\. (?:Name: (.*?)\nDescription: |(\S+): )(.*?)\nParameters: (.*?)"
    r"(?=\n\d+\. (?:Name|\S+): |\Z)",  # the second form is that of API-Bank's third level
    re.DOTALL,
)
_RECORD = re.compile(r"\s*+<(user|system|obs|think|tool_call|response)>(.*?)</\1>\s*+", re.DOTALL)
_HEAD = re.compile(r"\s*\*+Dialogue Records History\*+")
_ROLES = {"user": "user", "system": "system", "obs": "observation"}


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


def structured(example: TurnExample) -> TurnExample:
    """An example with tools and messages, read from its prompt where it has a rendered one, and without stand-ins.

    The paper's format has a thought in every step; other formats have none where none is known.

    Raises:
        DataError: that prompt is not in the published layout.
    """
    example = replace(example, target=_known(example.target), history=tuple(map(_known, example.history)))
    if example.prompt is None:
        return example
    try:
        found = read_published(example.prompt)
    except ValueError as error:
        raise DataError(
            example.place,
            "prompt",
            "a prompt in the published layout, to read tools and messages from",
            str(error),
            "Set prompt.layout=published, or use a corpus of dialogues.",
        ) from error
    return replace(example, prompt=None, tools=found.tools, history=found.history, dialogue=dialogue_key(example))


def _known(message: Message) -> Message:
    """The message without a thought that only stands in for one."""
    return replace(message, thought="") if message.thought in (THOUGHT_OF_CALLS, THOUGHT_OF_RESPONSE) else message


def read_published(prompt: ChatPrompt) -> OpenPrompt:
    """What `published_prompt` was given, but for thoughts, which that replaces by two standard ones.

    Raises:
        ValueError: it is another prompt.
    """
    _, heading, rest = prompt.system.strip().partition("**Available Tools**")
    listing, _, _ = rest.partition("\n\n**Steps for Each Turn**")
    start = listing.find("1. ")
    if not heading or start < 0:
        raise ValueError(f"no list of tools in {prompt.system[:80]!r}")
    tools = tuple(
        ToolSpec(
            {"name": name or other, "description": about, "parameters": _literal(schema)},
            filled=True,
        )
        for name, other, about, schema in _TOOL.findall(listing[start:].strip())
    )
    return OpenPrompt(tools, tuple(_messages(_HEAD.sub("", prompt.user, count=1))))


def _literal(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text.strip())  # as Python prints it
        except SyntaxError as error:
            raise ValueError(f"no parameters: {text[:80]!r}") from error


def _messages(text: str) -> Iterator[Message]:
    at = 0
    step = ""
    while at < len(text):
        record = _RECORD.match(text, at)
        if record is None:
            if not text[at:].strip():
                break
            raise ValueError(f"no record at {text[at:][:80]!r}")
        at = record.end()
        if record[1] not in _ROLES:
            begins = record[1] == "think" and step
            if begins:
                yield _step(step)
            step = record[0] if begins else step + record[0]
            continue
        if step:
            yield _step(step)
            step = ""
        yield Message(_ROLES[record[1]], record[2].strip())  # type: ignore[arg-type]
    if step:
        yield _step(step)


def _step(text: str) -> Message:
    read = parse(text)
    if "tool_call" in read.fields and read.calls is None:
        raise ValueError(f"no calls: {text[:80]!r}")
    return _known(Message("assistant", (read.response or "").strip(), (read.thought or "").strip(), read.calls or ()))
