"""How much decodes together: the size of a batch from the engine's budgets. Pure numbers; `memory` predicts with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """What a batch has place for at once.

    Attributes:
        slots: prompts.
        rows: completions.
        width: tokens of a prompt.
    """

    slots: int
    rows: int
    width: int


def room_for(
    prompts: int, longest: int, n: int, max_new_tokens: int, *, max_sequences: int, max_batch_tokens: int
) -> Room:
    """The largest batch within the budgets; one prompt with its completions always fits.

    A prompt keeps its slot until its last completion is done, so what the budget of tokens leaves goes to further
    slots, for prompts that enter as soon as n completions of any others have left.

    Example:
        >>> room_for(100, 500, 8, 200, max_sequences=64, max_batch_tokens=20_000)
        Room(slots=14, rows=64, width=500)

        64 completions are 8 prompts; they take 64 x 200 tokens and leave 7,200, which is 14 prompts of 500.

    Args:
        prompts: all there are.
        longest: tokens of the longest.
        n: completions a prompt.
        max_new_tokens: longest completion.
        max_sequences: most completions.
        max_batch_tokens: most tokens, every prompt and completion counted at its longest.
    """
    groups = max(1, min(prompts, max_sequences // n, max_batch_tokens // (longest + n * max_new_tokens)))
    rows = groups * n
    spare = (max_batch_tokens - rows * max_new_tokens) // longest
    return Room(slots=max(groups, min(prompts, 2 * groups, spare)), rows=rows, width=longest)
