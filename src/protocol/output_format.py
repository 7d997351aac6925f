"""What an output format is: the one object that knows how a model writes thoughts, calls and answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from src.protocol.dialogue import Message, ToolSpec
from src.protocol.types import ParsedResponse


class OutputFormat(Protocol):
    """Reads and writes a step. Renderer, collector, rewards, benchmarks and inspector get one; none of them knows tags.

    Attributes:
        name: in `prompt.format`.
        tool_call_parser: vLLM's name for it (`--tool-call-parser`); None: vLLM has none.
        reasoning_parser: vLLM's name for its thoughts (`--reasoning-parser`); None: it has none.
    """

    name: str
    tool_call_parser: str | None
    reasoning_parser: str | None

    def parse(self, data: bytes, tools: Sequence[ToolSpec] = (), prefix: bytes = b"") -> ParsedResponse:
        r"""Read a response. Raises on no text, and takes time in proportion to it.

        Args:
            data: the sampled text without the end-of-turn token; bytes that are not UTF-8 read as U+FFFD.
            tools: on offer; formats whose values are text type them by their schemas.
            prefix: the part of the response that the chat template already wrote in the prompt (`<think>\n` for
                thinking templates). It counts for the fields and their text; spans and `size` are about `data` alone.
        """
        ...

    def step_text(self, step: Message, escaped: Collection[str] = ()) -> str:
        """What a policy should write for a step.

        Whether it says what the step says is seen by reading it back: no format can express every step.

        Args:
            step: an assistant message.
            escaped: special tokens, to be written as JSON's escapes where values hold them and the format can.
        """
        ...


class Reading(NamedTuple):
    """How a completion is read.

    Attributes:
        format: in which it is written.
        prefix: the part of the response that the chat template wrote in the prompt, e.g. `<think>` and a line break.
        tools: on offer.
    """

    format: OutputFormat
    prefix: str = ""
    tools: Sequence[ToolSpec] = ()
