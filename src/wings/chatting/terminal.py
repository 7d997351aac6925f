"""How a conversation looks: blocks of labelled text, growing while the policy writes. Prints; decides nothing.

What the policy or a tool wrote is data: it is never read as markup, and characters that a terminal would obey are
spelled out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from src.environments.conversation import Answer
from src.protocol.dialogue import ToolSpec
from src.protocol.formats.known import REST
from src.protocol.output_format import OutputFormat
from src.protocol.token_bytes import TokenBytes
from src.protocol.types import Region
from src.wings.chatting.conversation import Event, Notice, Result

_STYLES = {
    "think": "dim italic",
    "tool": "cyan",
    "call": "cyan",
    "result": "green",
    "response": "bold",
    "text": "yellow",
    "error": "red",
    "note": "dim",
    "you": "blue",
}
_WIDTH = max(map(len, _STYLES)) + 2


class Block(NamedTuple):
    """A label, a key of the styles, and its text."""

    label: str
    text: str


def visible(text: str) -> str:
    r"""Text without characters that a terminal would obey or hide: their escapes instead.

    >>> visible("a\x1b[31mb\u202e\tc")
    'a\\x1b[31mb\\u202e\tc'
    """
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def blocks(text: str, format: OutputFormat = REST) -> list[Block]:
    r"""What an answer holds by its format, whole or as far as it is written.

    >>> blocks('<think> Rain? </think>\n<tool_call>\n{"name": "sky", "parameters": {"at": "Oslo"}}\n</tool_call>')
    [Block(label='think', text='Rain?'), Block(label='call', text='sky {"at": "Oslo"}')]
    >>> blocks("<response> It is cle")
    [Block(label='response', text='It is cle')]
    """
    data = text.encode("utf-8", "surrogatepass")
    parsed = format.parse(data)
    found: list[Block] = []
    if parsed.thought is not None:
        found.append(Block("think", parsed.thought.strip()))
    call = ""
    for span in parsed.spans:
        piece = data[span.start : span.stop].decode("utf-8", "replace").strip()
        if span.region is Region.TOOL_PARAMETERS:
            call, piece = "", f"{call} {piece}".strip()
            found.append(Block("call", piece))
        elif span.region in (Region.TOOL_NAME, Region.OTHER):
            if call:  # it had no parameters
                found.append(Block("call", call))
            call = piece if span.region is Region.TOOL_NAME else ""
            if span.region is Region.OTHER:
                found.append(Block("text", piece))
    if call:
        found.append(Block("call", call))
    if parsed.response is not None:
        found.append(Block("response", parsed.response.strip()))
    return found


class Screen:
    """Prints a conversation.

    Args:
        console: where to.
        table: the tokenizer's tokens as bytes.
        prefix: what the chat template writes of each answer.
        format: of the answers.
    """

    def __init__(self, console: Console, table: TokenBytes, prefix: str = "", format: OutputFormat = REST) -> None:
        self._console = console
        self._table = table
        self._prefix, self._format = prefix, format
        self._tokens: list[int] = []
        self._live: Live | None = None

    def show(self, events: Iterator[Event]) -> None:
        """Print events as they come; on a terminal, an answer as it grows (see `watch`)."""
        while True:
            event = self._drawing(events) if self._console.is_terminal else next(events, None)
            if event is None:
                return
            self._print(_blocks_of(event, self._format))

    def watch(self, tokens: Tensor) -> None:
        """Draw an answer, int64 [T], that has one token more; for `NativeEngine.watch`."""
        if self._live is not None:
            self._tokens += tokens.tolist()
            text = self._prefix + self._table.decode(torch.tensor(self._tokens)).decode("utf-8", "replace")
            self._live.update(_drawn(blocks(text, self._format)), refresh=True)

    def _drawing(self, events: Iterator[Event]) -> Event | None:
        """The next event; until it is there, what is written so far stands in its place."""
        self._tokens = []
        with Live(console=self._console, auto_refresh=False, transient=True) as self._live:
            try:
                return next(events, None)
            finally:
                self._live = None

    def echo(self, text: str) -> None:
        """Print what the user said, where it was not typed."""
        self._print([Block("you", text)])

    def note(self, text: str) -> None:
        """Print something that nobody said."""
        self._print([Block("note", text)])

    def tools(self, tools: Sequence[ToolSpec]) -> None:
        """Print what tools there are."""
        self._print([Block("tool", f"{tool.name}({', '.join(tool.parameters)})") for tool in tools])

    def _print(self, shown: Sequence[Block]) -> None:
        self._console.print(_drawn(shown), soft_wrap=not self._console.is_terminal)


def _blocks_of(event: Event, format: OutputFormat) -> list[Block]:
    match event:
        case Answer():
            return blocks(event.text, format)
        case Result(_, text):
            return [Block("result", text)]
        case Notice(text):
            return [Block("error", text)]


def _drawn(shown: Sequence[Block]) -> Group:
    """A line a block, its label before it; further lines of its text below."""
    lines = []
    for block in shown:
        body = visible(block.text).replace("\n", "\n" + " " * _WIDTH)
        lines.append(Text.assemble((block.label.ljust(_WIDTH), "dim"), (body, _STYLES[block.label])))
    return Group(*lines)
