"""Seeded texts that a model might write, for tests that nothing raises on any of them.

`python -m tests.fuzzing --count 1000000` puts a million through parser, regions, rewards and token weights.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

RLLA_PATH = Path(__file__).parents[2] / "shared" / "data" / "rlla" / "rlla_sft.json"

PIECES = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "<think", "think>", "</", "<",
    "{", "}", "{{", "}}", "[", "]", '"', '\\"', "\\", "\\u00e9", "\\ud83d", ":", ",", "\n", "\r\n", "\t", " ", "\x00",
    '{"name": "', '"name": ', '"parameters": {', '"parameters": ', '{"name": "f", "parameters": {}}', "NaN", "Infinity",
    "-1e999", "1" * 30, "null", "true", "1.0", "é", "漢字", "🌧️", "\u2028", "\ufeff", "\ud800", "\udfff", "\u2581",
    "<|im_end|>", "<|im_start|>assistant", "[" * 40, '{"a":' * 40, "get_weather(city='Oslo')",
)  # fmt: skip

_SYNTHETIC = (
    '<think> Sky. </think>\n<tool_call>\n{"name": "sky", "parameters": {"city": "Oslo", "days": 2}}\n</tool_call>',
    """<think> Two cities. </think>
<tool_call>
{"name": "sky", "parameters": {"city": "Oslo"}}
{"name": "sky", "parameters": {"city": "東京", "at": {"h": [1, 2.5, null, true]}}}
</tool_call>""",
    "<think> Nothing fits. </think>\n<response> I cannot book a table. 🙂 </response>",
    '<think> Do. </think>\n<tool_call>\n{"name": "ping", "parameters": {}}\n</tool_call>\n<response> Up. </response>',
)


@cache
def base_texts() -> tuple[str, ...]:
    """Synthetic targets and, where the shared data is there, the 400 real ones with their thoughts cut to 200 signs."""
    real: list[str] = []
    if RLLA_PATH.exists():
        for record in json.loads(RLLA_PATH.read_text()):
            thought, end, rest = record["output"].rpartition("</think>")
            real.append(thought[:200] + end + rest[:600])
    return (*_SYNTHETIC, *real)


def mutated_texts(n: int, seed: int, bases: Sequence[str] | None = None) -> Iterator[str]:
    """Yield `n` texts: targets that were cut, doubled, swapped or had pieces put in, and strings of pieces alone.

    Lone surrogates are among them, so not every text can be encoded in strict UTF-8.
    """
    generator = random.Random(seed)
    bases = base_texts() if bases is None else bases
    for _ in range(n):
        text = generator.choice(bases) if generator.random() < 0.9 else ""
        for _ in range(generator.choice((0, 1, 1, 2, 3, 6) if text else (1, 5, 20))):
            text = _mutate(text, generator)
        yield text


def _mutate(text: str, generator: random.Random) -> str:
    a, b = _border(text, generator), _border(text, generator)
    if a > b:
        a, b = b, a
    kind = int(7 * generator.random())
    if kind == 0:
        return text[:a]
    if kind == 1:
        return text[:a] + text[b:]
    if kind == 2:
        return text[:b] + text[a:b][:400] + text[b:]
    if kind == 3:
        return text[b:] + text[a:b] + text[:a]
    if kind == 4:
        return text[:a] + chr(int(0x110000 * generator.random())) + text[a:]
    return text[:a] + generator.choice(PIECES) + text[a:]


def _border(text: str, generator: random.Random) -> int:
    """A position, half of the time next to a sign that the protocol gives a meaning."""
    chance = 2 * generator.random()
    position = int((chance % 1) * (len(text) + 1))
    if chance < 1:
        return position
    found = text.find(generator.choice('<>{}"\n:'), position)
    return found if found >= 0 else position


def main() -> None:
    """Command line; ends with a traceback at the first text of which something does not hold."""
    from tests.protocol.fuzz_checks import fuzz

    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=main.__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    done = fuzz(arguments.count, arguments.seed)
    whole = sum(done.seconds.values())
    lines = [f"{done.texts} texts, {done.bytes / 1e6:.1f} MB, {done.exact} exact; no exception. {whole:.0f} s in all."]
    for part, seconds in done.seconds.items():
        lines.append(f"{part:<10} {seconds:8.1f} s  {done.texts / seconds:10.0f} texts/s")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
