"""Generated records with one fault each, and without: `python -m tests.faults.records --count 1000`.

Writes a corpus of each kind of fault, half of its records good, reads it as a training would, and counts the faulty
records that are named by file, index and field. A tag or an end-of-turn token in a value is no fault once it is
escaped: those records must load, read back the same and earn full marks. Prints a table; the status is 1 if one was
missed, or a good one refused.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from src.data.rendering import PromptRenderer
from src.data.sources import base
from src.data.sources.base import CorpusSource
from src.data.sources.checks import TargetCheck, faults_of
from src.data.sources.xlam import XlamSource
from src.protocol.dialogue import TurnExample
from src.protocol.token_bytes import TokenBytes
from src.rewards.tool_call import ToolCallReward
from src.wings.tiny.make import build_tokenizer

Record = dict[str, Any]
_WORDS = ("Oslo", "São Paulo", "東京", 'a "quoted" one', "two\nlines", "back\\slash", "50 %", "x < y", "🌧️", "it's")
_TAGS = ("</tool_call>", "<tool_call>", "</response>", "<think>", "</think>", "<response>")


def xlam_row(rng: random.Random) -> Record:
    """A good row in the layout of xLAM's: JSON schemas with required names, one to three calls."""
    tools = [_tool(rng, index) for index in range(rng.randint(1, 4))]
    calls = [_call(rng, rng.choice(tools)) for _ in range(rng.choice((1, 1, 2, 3)))]
    return {"query": f"{rng.choice(_WORDS)} {rng.random()}?", "tools": tools, "answers": calls}


def _tool(rng: random.Random, index: int) -> Record:
    kinds = ["string", "integer", "number", "boolean", "array", "object"]
    names = [f"p{number}" for number in range(rng.randint(1, 5))]
    properties = {name: {"type": rng.choice(kinds), "description": rng.choice(_WORDS)} for name in names}
    for about in properties.values():
        if about["type"] == "array":
            about["items"] = {"type": rng.choice(kinds[:4])}
        if about["type"] == "object":
            about["properties"] = {"at": {"type": rng.choice(kinds[:4])}}
    schema = {"type": "object", "properties": properties, "required": names[: rng.randint(1, len(names))]}
    return {"name": f"tool.{index}", "description": rng.choice(_WORDS), "parameters": schema}


def _call(rng: random.Random, tool: Record) -> Record:
    schema = tool["parameters"]
    given = [name for name in schema["properties"] if name in schema["required"] or rng.random() < 0.5]
    return {"name": tool["name"], "arguments": {name: _value(rng, schema["properties"][name]) for name in given}}


def _value(rng: random.Random, about: Record) -> Any:
    kind = about["type"]
    if kind == "array":
        return [_value(rng, about["items"]) for _ in range(rng.randint(0, 3))]
    if kind == "object":
        return {"at": _value(rng, about["properties"]["at"])}
    plain = {"string": rng.choice(_WORDS), "integer": rng.randrange(-9, 10**9), "boolean": rng.random() < 0.5}
    return plain.get(kind, rng.choice((rng.random(), rng.randrange(9))))


def _text_place(rng: random.Random, row: Record) -> tuple[Record, str]:
    """The arguments of a call and the name of one that is a string, made so if none is."""
    call = rng.choice(row["answers"])
    tool = next(tool for tool in row["tools"] if tool["name"] == call["name"])
    name = rng.choice(list(call["arguments"]))
    tool["parameters"]["properties"][name] = {"type": "string"}
    for other in row["answers"]:
        if other["name"] == call["name"] and name in other["arguments"]:
            other["arguments"][name] = rng.choice(_WORDS)
    return call["arguments"], name


def unknown_tool(rng: random.Random, row: Record) -> None:
    rng.choice(row["answers"])["name"] = "tool.none"


def unknown_parameter(rng: random.Random, row: Record) -> None:
    rng.choice(row["answers"])["arguments"][rng.choice(("p9", "P0", ""))] = rng.choice(_WORDS)


def missing_required(rng: random.Random, row: Record) -> None:
    call = rng.choice(row["answers"])
    tool = next(tool for tool in row["tools"] if tool["name"] == call["name"])
    del call["arguments"][rng.choice(tool["parameters"]["required"])]


def wrong_type(rng: random.Random, row: Record) -> None:
    arguments, name = _text_place(rng, row)
    arguments[name] = rng.choice((7, 7.5, True, ["a"], {"a": 1}))


def tag_in_a_value(rng: random.Random, row: Record) -> None:
    arguments, name = _text_place(rng, row)
    arguments[name] = rng.choice(_WORDS) + rng.choice(_TAGS) + rng.choice(_WORDS)


def end_token_in_a_value(rng: random.Random, row: Record) -> None:
    arguments, name = _text_place(rng, row)
    arguments[name] = rng.choice(_WORDS) + "<|im_end|>" + rng.choice(("", "\n", "a"))


def duplicate_key(rng: random.Random, row: Record) -> None:
    arguments, name = _text_place(rng, row)
    text = json.dumps(row["answers"])
    arguments["@"] = arguments[name]
    row["answers"] = json.dumps(row["answers"]).replace('"@"', json.dumps(name))
    assert row["answers"] != text


def non_finite(rng: random.Random, row: Record) -> None:
    arguments, name = _text_place(rng, row)
    tool = next(tool for tool in row["tools"] if name in tool["parameters"]["properties"])
    tool["parameters"]["properties"][name] = {"type": "number"}
    arguments[name] = "@"
    number = rng.choice(("NaN", "Infinity", "-Infinity", "1e999", "-1e400"))
    row["answers"] = json.dumps(row["answers"]).replace('"@"', number)


def lone_surrogate(rng: random.Random, row: Record) -> None:
    place, text = rng.choice((0, 1, 2)), rng.choice(("\ud83d", "a\udc00", "\ud83d\ud83d"))
    if place == 0:
        row["query"] += text
    elif place == 1:
        rng.choice(row["tools"])["description"] = text
    else:
        arguments, name = _text_place(rng, row)
        arguments[name] = text


def null_by_arrow(rng: random.Random, row: Record) -> None:
    """A required parameter that is not there: as a struct of a nested column it comes back as a null."""
    missing_required(rng, row)


def no_text_and_no_calls(rng: random.Random, row: Record) -> None:
    row["answers"] = rng.choice(("", " \n", None))


def no_user(rng: random.Random, row: Record) -> None:
    row["query"] = rng.choice(("", " ", "\n\t"))


FAULTS: tuple[Callable[[random.Random, Record], None], ...] = (
    unknown_tool, unknown_parameter, missing_required, wrong_type, tag_in_a_value, end_token_in_a_value, duplicate_key,
    non_finite, lone_surrogate, null_by_arrow, no_text_and_no_calls, no_user,
)  # fmt: skip
ESCAPED = (tag_in_a_value, end_token_in_a_value)


def corpus(folder: Path, fault: Callable[[random.Random, Record], None], count: int, seed: int) -> Path:
    """A file of 2 * `count` records, every second one with the fault."""
    rng = random.Random(f"{fault.__name__}/{seed}")
    rows = [xlam_row(rng) for _ in range(2 * count)]
    for row in rows[1::2]:
        fault(rng, row)
    if fault is null_by_arrow:
        table = {"query": [row["query"] for row in rows], "tools": [json.dumps(_of_strings(row)) for row in rows]}
        parquet.write_table(pa.table({**table, "answers": [row["answers"] for row in rows]}), folder / "rows.parquet")
        return folder / "rows.parquet"
    file = folder / rng.choice(("rows.json", "rows.jsonl"))
    as_text = rng.random() < 0.5
    lines = []
    for row in rows:
        answers = row["answers"] if isinstance(row["answers"], str) else json.dumps(row["answers"])
        rest = json.dumps({key: value for key, value in row.items() if key != "answers"})
        raw = as_text or not answers.startswith("[")
        lines.append(f'{rest[:-1]}, "answers": {json.dumps(answers) if raw and answers != "null" else answers}}}')
    file.write_text("\n".join(lines) if file.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return file


def _of_strings(row: Record) -> list[Record]:
    """The tools of a row whose parameters are all made strings: a column of Arrow has one type."""
    for call in row["answers"]:
        call["arguments"] = {name: str(value) for name, value in call["arguments"].items()}
    for tool in row["tools"]:
        names = tool["parameters"]["properties"]
        tool["parameters"]["properties"] = {name: {"type": "string"} for name in names}
    return row["tools"]


class Reader:
    """Reads a corpus as a training does, with the tiny policies' tokenizer and the default reward."""

    def __init__(self) -> None:
        tokenizer = build_tokenizer(vocab_size=512, examples=300)
        table = TokenBytes.from_tokenizer(tokenizer)
        self._check = TargetCheck(PromptRenderer(tokenizer), ToolCallReward(), table, (tokenizer.eos_token_id,))

    def read(self, source: CorpusSource) -> tuple[list[TurnExample], list[str]]:
        """The good examples, and what is said of the others."""
        said: list[str] = []
        warn, base.log.warning = base.log.warning, lambda text, *values: said.append(text % values)  # type: ignore[method-assign]
        try:
            examples = source.load("train")
        finally:
            base.log.warning = warn  # type: ignore[method-assign]
        found = faults_of(examples, self._check)
        said += [str(fault) for fault in found if fault is not None]
        return [example for example, fault in zip(examples, found, strict=True) if fault is None], said


def found(fault: Callable[[random.Random, Record], None], count: int, seed: int, reader: Reader) -> tuple[int, int]:
    """Of the faulty records how many are named (or, escaped, how many are good), and of the good ones how many load."""
    with tempfile.TemporaryDirectory() as folder:
        file = corpus(Path(folder), fault, count, seed)
        examples, said = reader.read(XlamSource(path=str(file), on_bad_record="skip"))
        places = [
            re.search(rf"{re.escape(str(file))}(?:\[(\d+)\]|:(\d+)): field '[^']+': expected ", text) for text in said
        ]
    named = {int(one[1]) if one[1] else int(one[2]) - 1 for one in places if one}
    loaded = {int(number) for example in examples if (number := re.search(r"-(\d+)/", example.id)[1])}  # type: ignore[index]
    first = 1 if file.suffix == ".jsonl" else 0
    loaded = {number - first for number in loaded}
    wanted, good = set(range(1, 2 * count, 2)), set(range(0, 2 * count, 2))
    assert not named & good, f"{fault.__name__}: good records refused, e.g. {said[:2]}"
    return len((loaded if fault in ESCAPED else named) & wanted), len(loaded & good)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="faulty records of each kind")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    reader, missed = Reader(), 0
    for fault in FAULTS:
        hits, good = found(fault, args.count, args.seed, reader)
        missed += 2 * args.count - hits - good
        what = "load, with full marks" if fault in ESCAPED else "named"
        counts = f"{hits:5} of {args.count} {what:22} {good:5} good ones load"
        sys.stdout.write(f"{fault.__name__:24} {counts}\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
