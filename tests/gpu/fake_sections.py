"""Sections that end in every way, for the tests of the proof."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.measuring import Result


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))
    section, file = arguments["--section"], Path(arguments["--to"])
    value = 2.0 if section == "missed" else 1.0
    result = vars(Result(section, "cpu", "a case", "a number", value, bar=1.5, at_most=True))
    skipped = json.dumps({"skipped": "no reason to"}) + "\n" if section == "skipped" else ""
    file.write_text(json.dumps({"note": "begun"}) + "\n" + json.dumps({"result": result}) + "\n" + skipped + '{"torn')
    if section == "broken":
        raise ValueError("3 is odd")
    if section == "endless":
        child = subprocess.Popen(["sleep", "600"])
        (file.parent / "child").write_text(str(child.pid))
        time.sleep(600)


if __name__ == "__main__":
    main()
