"""Steps made at random with tools that they call, what each format writes for them, and what goes wrong with that."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from src.protocol.dialogue import Message, ToolCall, ToolSpec
from src.protocol.output_format import OutputFormat

_WORDS = (
    "Oslo",
    "north",
    "a b",
    "Zürich",
    "日本",
    "x<y",
    "5",
    "true",
    "null",
    "",
    "it's",
    'say "hi"',
    "C:\\dir",
    "👍🏽",
    "1e3",
)
_KINDS: tuple[tuple[str, Any], ...] = (
    ("string", lambda rng: rng.choice(_WORDS)),
    ("integer", lambda rng: rng.randrange(-5, 500)),
    ("number", lambda rng: rng.choice([0.5, -2.25, 3, 1e-3, 12.0])),
    ("boolean", lambda rng: rng.random() < 0.5),
    ("array", lambda rng: [rng.choice(_WORDS) for _ in range(rng.randrange(3))]),
    ("object", lambda rng: {rng.choice("abc"): rng.choice([1, "x", None, [True]]) for _ in range(rng.randrange(3))}),
)
_PIECES = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>",
    ">", "{", "}", '"', "\\", "\n", ", ", ": ", '"name"', '"arguments"', '"parameters"', "<|python_tag|>", ";", "[",
    "<|channel|>", "analysis", "commentary", "final", " to=functions.sky", "<|message|>", "<|end|>", "null",
    "<|start|>assistant", "<|constrain|>json", " ", "é", "𝄞", "1e999", "NaN", '{"name": "sky", "arguments": {}}',
)  # fmt: skip


def tools_and_step(rng: random.Random, calls: int | None = None) -> tuple[tuple[ToolSpec, ...], Message]:
    """Two tools, and a step that thinks, says and calls, or does some of it; values fit their schemas."""
    specs, kinds = [], {}
    for name in ("sky", "book.table"):
        chosen = {f"p{index}": rng.choice(_KINDS) for index in range(rng.randrange(4))}
        kinds[name] = chosen
        properties = {key: {"type": kind} for key, (kind, _) in chosen.items()}
        specs.append(
            ToolSpec({"name": name, "description": "", "parameters": {"type": "object", "properties": properties}})
        )
    made = []
    for _ in range(rng.randrange(4) if calls is None else calls):
        name = rng.choice(list(kinds))
        made.append(ToolCall(name, {key: make(rng) for key, (_, make) in kinds[name].items()}))
    thought = rng.choice(["", "It asks for the weather.", "A {brace} and <b>."])
    text = rng.choice(["", "One moment.", "Nothing fits, {sorry}."]) if made else "There is none."
    return tuple(specs), Message("assistant", text, thought, tuple(made))


def mutated(text: str, rng: random.Random) -> str:
    """The text with one to three faults: cut, doubled, moved, a piece put in or taken out, brackets nested."""
    for _ in range(rng.randrange(1, 4)):
        at, other = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        kind = rng.randrange(7)
        if kind == 0:
            text = text[:at]
        elif kind == 1:
            text = text[:other] + text[at:other] + text[other:]
        elif kind == 2:
            text = text[at:other] + text[:at] + text[other:]
        elif kind == 3:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif kind == 4:
            text = text[:at] + text[min(other, at + 8) :]
        elif kind == 5:
            piece = rng.choice(_PIECES)
            text = text.replace(piece, rng.choice(_PIECES), 1)
        else:
            text = text + rng.choice(["\n", "", " "]) + text[at:]
    return text


def texts(form: OutputFormat, count: int, seed: int) -> Iterator[tuple[tuple[ToolSpec, ...], Message, str, bool]]:
    """Tools, a step, and what is written for it: a fifth as it should be (True), the rest mutated."""
    rng = random.Random(seed)
    for index in range(count):
        tools, step = tools_and_step(rng)
        text = form.step_text(step)
        yield (tools, step, text, True) if index % 5 == 0 else (tools, step, mutated(text, rng), False)
