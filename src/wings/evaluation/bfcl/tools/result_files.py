"""Records of an evaluation to result files of the official command line, which can judge the same answers again.

    python -m src.wings.evaluation.bfcl.tools.result_files EVALUATION/bfcl.jsonl FOLDER/result/rest

Runs with and without the package's full dependencies; see docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from src.environments.bfcl.cases import load_cases
from src.protocol.dialogue import JsonValue
from src.wings.evaluation.benchmark import Record
from src.wings.evaluation.evaluation_folder import RecordStore


def result_of(details: Mapping[str, JsonValue]) -> JsonValue:
    """A record's answers as the package keeps them: one text, or the texts of every step by turn.

    >>> result_of({"turns": [[{"text": "a"}, {"text": "b"}], [{"text": "c"}]]})
    [['a', 'b'], ['c']]
    """
    turns = details.get("turns")
    return details["text"] if turns is None else [[step["text"] for step in turn] for turn in turns]


def write_result_files(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write `BFCL_v3_<category>_result.json` for every category of the records.

    Args:
        records: of a whole evaluation; the official command line takes whole categories only.
        folder: the model's, named as `official_cli.MODELS` names it.

    Raises:
        ValueError: a category lacks cases, or a record has no texts.
        BenchmarkDataError: the package's data is not there.
    """
    by_id = {record.id: record for record in records}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for category in dict.fromkeys(record.category for record in by_id.values()):
        cases = load_cases(category)
        missing = [case.id for case in cases if case.id not in by_id]
        if missing:
            raise ValueError(
                f"{category}: expected {len(cases)} records, found none of {missing[0]} and {len(missing) - 1} others. "
                "Evaluate without a subset (subset.size=null)."
            )
        lines = []
        for case in cases:
            details = by_id[case.id].details
            if not {"text", "turns"} & details.keys():
                raise ValueError(
                    f"{case.id}: expected the model's text in the record's details, found {list(details)}."
                )
            lines.append(json.dumps({"id": case.entry["id"], "result": result_of(details)}) + "\n")
        written.append(folder / f"BFCL_v3_{category}_result.json")
        written[-1].write_text("".join(lines), encoding="utf-8")
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", type=Path, help="bfcl.jsonl of an evaluation")
    parser.add_argument("folder", type=Path, help="result folder of the model, e.g. logs/bfcl_official/result/rest")
    arguments = parser.parse_args()
    if not arguments.records.is_file():
        parser.error(f"{arguments.records}: no such file")
    write_result_files(RecordStore(arguments.records).read(), arguments.folder)


if __name__ == "__main__":
    main()
