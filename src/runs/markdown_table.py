"""Tables in Markdown, as every report writes them."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """A Markdown table with padded columns.

    Args:
        head: titles of the columns.
        rows: of as many cells; a bar in one is the caller's to escape.
        numbers: all columns but the first hold numbers, which stand to the right.

    >>> print(markdown_table(["Model", "Overall"], [["tiny", "50.00%"]]))
    | Model   |   Overall |
    |:--------|----------:|
    | tiny    |    50.00% |
    """
    align = ["left", *["right" if numbers else "left"] * (len(head) - 1)]
    layout = "pipe" if numbers else "github"  # which has no marks of alignment
    return tabulate(rows, head, tablefmt=layout, disable_numparse=True, colalign=align)
