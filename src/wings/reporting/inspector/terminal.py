"""The inspector in a terminal or a pipe: the same view as the page's, one completion below the other.

What a model wrote may hold escape sequences; only `printable` text is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from src.wings.reporting.inspector.comparing import CallPair, Failure, State, pair_calls, shortened
from src.wings.reporting.inspector.episode_records import LoggedEpisode
from src.wings.reporting.inspector.rollout_records import LoggedCompletion, LoggedGroup

STYLES = {
    "format": Style(color="bright_black"),
    "tool_name": Style(color="blue", bold=True, underline=True),
    "tool_parameters": Style(color="yellow", underline=True),
    "reasoning": Style(color="green", italic=True),
    "response": Style(color="magenta", underline2=True),
    "other": Style(color="red", reverse=True),
}
_SOFT = Style(dim=True)
_BAD = Style(color="red", bold=True)
_MARKS = {State.SAME: "=", State.DIFFERS: "≠", State.MISSING: "−", State.EXTRA: "+"}


def printable(text: str, line_break: str = "↵") -> str:
    r"""The text with what is no visible character spelled out: control, direction and half characters.

    >>> printable("a\x1b[2J\nb\u202e")
    'a\\x1b[2J↵b\\u202e'
    """
    escaped = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
    return "".join(escaped).replace("\n", line_break)


def show_group(console: Console, group: LoggedGroup, *, numbers: str | None = None, prompt: bool = False) -> None:
    """Print a group.

    Args:
        console: where; without colours, as in a pipe, regions are named instead.
        group: its completions are printed in order.
        numbers: one of `COLUMNS`, to stand under the tokens.
        prompt: print it first.
    """
    coloured = console.color_system is not None and not console.no_color
    write = _Writer(console)
    write.line(f"Step {group.rollout_step}, {group.example}", "bold")
    if prompt:
        write.line("Prompt", _SOFT)
        write.line("not logged" if group.prompt is None else printable(group.prompt, "\n"))
    if group.target:
        write.line("Target", _SOFT)
        write.line(printable(group.target, "\n"))
    if coloured:
        write.text(Text("  ").join(Text(name.replace("_", " "), style) for name, style in STYLES.items()))
    for completion in group.completions:
        _show_completion(write, group, completion, numbers, coloured)


class _Writer:
    """Prints text as it is: no markup, no highlighting, no emoji codes; lines are broken for a terminal alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._wrap = console.is_terminal

    def line(self, text: str, style: str | Style = "") -> None:
        self.text(Text(text, style))

    def text(self, text: Text | Table, *, wrap: bool = True) -> None:
        self.console.print(text, soft_wrap=isinstance(text, Text) and not (wrap and self._wrap))


def _show_completion(
    write: _Writer, group: LoggedGroup, completion: LoggedCompletion, numbers: str | None, coloured: bool
) -> None:
    kind = group.failure(completion)
    write.line("")
    heading = Text(f"Completion {completion.index}  ", "bold")
    write.text(heading.append(kind.value, Style(color="green") if kind is Failure.CORRECT else _BAD))
    column = None if numbers is None else completion.columns[numbers]
    if numbers is not None and column is None:
        write.line(f"{numbers}: not logged", _SOFT)
    if not coloured:
        for line in _plain_tokens(completion, column):
            write.text(Text(line), wrap=False)
    elif column is None:
        write.text(_coloured_tokens(completion))
    else:
        for row in _tokens_over_numbers(completion, column, write.console.width):
            write.text(row, wrap=False)
    write.text(_reward_line(completion))
    if completion.episode is not None:
        _show_turns(write, completion.episode)
        return
    for pair in pair_calls(completion.parsed.calls or (), group.gold):
        write.text(_call_table(pair))


def _show_turns(write: _Writer, episode: LoggedEpisode) -> None:
    """What was observed and said in each turn, what it earned, and how the episode ended."""
    for number, turn in enumerate(episode.turns, 1):
        for seen in turn.observed:
            write.line(f"  {printable(shortened(seen.speaker))}: {printable(shortened(seen.text))}", _SOFT)
        numbers = f"earned {turn.earned:.4g}, advantage {turn.advantage:.4g}, {turn.stop - turn.start} tokens"
        write.line(f"  turn {number} ({numbers}): {printable(turn.text)}")
    faults = "".join(f", {printable(name).replace('_', ' ')} {count}" for name, count in episode.faults.items())
    write.line(f"  ended: {printable(episode.ending)}, rewritten histories {episode.rewrites}{faults}", _SOFT)


def _coloured_tokens(completion: LoggedCompletion) -> Text:
    text = Text()
    for token, region in zip(completion.tokens, completion.regions, strict=True):
        text.append(printable(token, "↵\n"), STYLES[region])
    return text


def _plain_tokens(completion: LoggedCompletion, column: Sequence[float] | None) -> Iterator[str]:
    """A line a run of tokens of one region, or a line a token where each has a number."""
    width = max(map(len, STYLES))
    tokens = [printable(token) for token in completion.tokens]
    if column is not None:
        for token, region, value in zip(tokens, completion.regions, column, strict=True):
            yield f"  {region:{width}}  {value:>12.6g}  {token}"
        return
    for region, run in groupby(zip(completion.regions, tokens, strict=True), key=lambda pair: pair[0]):
        yield f"  {region:{width}}  {''.join(token for _, token in run)}"


def _tokens_over_numbers(completion: LoggedCompletion, column: Sequence[float], width: int) -> Iterator[Text]:
    """Lines of tokens, each with a line of numbers under it, as many as fit into `width`."""
    above, below = Text(), Text(style=_SOFT)
    for token, region, value in zip(completion.tokens, completion.regions, column, strict=True):
        shown, number = printable(token), f"{value:.3g}"
        size = max(cell_len(shown), len(number))
        if above and above.cell_len + size > width:
            yield from (above, below)
            above, below = Text(), Text(style=_SOFT)
        above.append(shown, STYLES[region]).append(" " * (size - cell_len(shown) + 1))
        below.append(number.ljust(size + 1))
    if above:
        yield from (above, below)


def _reward_line(completion: LoggedCompletion) -> Text:
    parts = {name.replace("_", " "): value for name, value in completion.parts.items()}
    parts = {name: value for name, value in parts.items() if value is not None or completion.episode is None}
    parts |= {name.replace("_", " "): value for name, value in completion.scores.items()}
    parts["scaled total"] = completion.reward
    if completion.episode is None:  # else each turn has its own
        parts["advantage"] = completion.advantage
    text = Text()
    for name, value in parts.items():
        text.append(f"{name} ", _SOFT).append("not logged" if value is None else f"{value:.4g}").append("   ")
    return text


def _call_table(pair: CallPair) -> Table:
    """A predicted call beside its gold call."""
    table = Table(box=SIMPLE, pad_edge=False, show_edge=False, header_style=_SOFT)
    for title in ("", "", "predicted", "gold"):
        table.add_column(title, overflow="fold")
    if pair.predicted is None:
        state = State.MISSING
    elif pair.gold is None:
        state = State.EXTRA
    else:
        state = State.SAME if pair.predicted == pair.gold else State.DIFFERS
    for name, predicted, gold, found in [("tool", pair.predicted, pair.gold, state), *pair.rows]:
        cells = (_MARKS[found], name, "none" if predicted is None else predicted, "none" if gold is None else gold)
        table.add_row(*(Text(printable(cell)) for cell in cells), style="" if found is State.SAME else _BAD)
    return table
