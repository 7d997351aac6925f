"""A BFCL case and what happened in it so far to the prompt, in the layout of the training data.

Two wordings. `official` gives the case as the benchmark states it; `toolrl` is what the published ToolRL handler sends
(`benchmarks/BFCL/rlla_qwen.py`, with the turn type that it always has), to the letter:

| part                  | official                                     | toolrl                                       |
|-----------------------|----------------------------------------------|----------------------------------------------|
| user message          | verbatim                                     | stripped, with its single-turn suffix        |
| system message of a   | after the protocol's instructions and a      | dropped                                      |
| live case             | blank line, where the package puts it too    |                                              |
| assistant message of  | `<response> … </response>`                   | as it stands                                 |
| a live case           |                                              |                                              |
| earlier answer        | as the model wrote it                        | as the model wrote it                        |
| results of a step     | one `<obs>` with a JSON list, as in the      | one `<obs>` a call, in words; after the last |
|                       | training data                                | one a `<user>` that asks to retry or finish  |

Function docs carry the package's language hints in both. Functions that a later turn brings come in that turn's user
message, worded by the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from src.data.templates.published import HISTORY_HEAD, published_system
from src.environments.bfcl.calls import as_python, well_formed
from src.environments.bfcl.cases import Case
from src.environments.bfcl.world import observation, tool_specs
from src.environments.conversation import Turn
from src.protocol.dialogue import ChatPrompt

TurnWording = Literal["official", "toolrl"]

_TOOLRL_SUFFIX = (
    "If there's no appropriate tools to apply or required parameters are missing, please directly inform me in your "
    "response without any tool call, or call the tool with the name as 'None'. Otherwise, you should use one or more "
    "necessary tool calls to complete the given task in this turn."
)
_TOOLRL_RETRY = (
    "If you think you have completed the current task, or the task cannot be finished, please respond directly without "
    "additional tool calls. If you encounter an error during tool execution or the task remains unfinished, retry with "
    "the one or more necessary tool calls according to your thought and plan until completion. Based on the tool "
    "execution feedback, reflect on if understanding or selectioin of tool is wrong, what tool calling step is "
    "missing, and how to achieve the task goal from now on."
)


def build_prompt(case: Case, turns: Sequence[Turn], wording: TurnWording) -> ChatPrompt:
    """The prompt for the next answer of a case."""
    system = published_system(tool_specs(case))
    if wording == "toolrl":
        return ChatPrompt(system + "\n", (HISTORY_HEAD + _toolrl_records(turns)).strip())
    given = [message["content"] for turn in turns for message in turn.messages if message["role"] == "system"]
    return ChatPrompt("\n\n".join([system, *given]), HISTORY_HEAD + _official_records(turns))


def _official_records(turns: Sequence[Turn]) -> str:
    """The layout of `src.data.rendering.published_prompt`; an `<obs>` follows its calls on the next line."""
    records = []
    for turn in turns:
        for message in turn.messages:
            if message["role"] == "user":
                records.append(f"<user> {message['content']} </user>")
            elif message["role"] == "assistant":
                records.append(f"<response> {message['content']} </response>")
        for step in turn.steps:
            written = [step.text.strip()]
            if step.results:
                written.append(f"<obs> {observation(step.calls, step.results)} </obs>")
            records.append("\n".join(filter(None, written)))
    return "\n\n".join(filter(None, records))


def _toolrl_records(turns: Sequence[Turn]) -> str:
    records = ""
    for turn in turns:
        for message in turn.messages:
            content = message["content"].strip()
            if message["role"] == "user":
                records += f"<user> {content}\n{_TOOLRL_SUFFIX} </user>\n"
            elif message["role"] == "assistant":
                records += f"\n{content}\n"
        for step in turn.steps:
            records += f"\n{step.text.strip()}\n"
            for call, result in zip(step.calls, step.results, strict=True):
                shown = well_formed(f"{as_python(call).strip()}. Execution returns: {result.strip()}")
                records += f"<obs> You have made the tool call {shown} </obs>\n"
    if turns and turns[-1].steps and turns[-1].steps[-1].results:
        records += f"\n<user> {_TOOLRL_RETRY} </user>\n"
    return records
