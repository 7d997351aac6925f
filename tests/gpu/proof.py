"""`make gpu-proof`: what only a CUDA device can show, in ten minutes, whatever fails.

    make gpu-proof ARGS="--out proof"
    make gpu-proof ARGS="--device cpu --small"          # a rehearsal without a GPU
    make gpu-proof ARGS="--only attention,update --minutes 4"

Each section runs in a process of its own, which is killed at the section's deadline. As a section ends, a line of
`proof.jsonl` and the tables of `proof.md` are written. The exit code says whether a section failed, or none ran.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.runs.markdown_table import markdown_table
from tests.benchmarks.measuring import Result
from tests.benchmarks.report import result_table
from tests.benchmarks.serving import ROOT

log = logging.getLogger("tests.gpu.proof")

DEADLINES = {
    "machine": 40,
    "attention": 90,
    "packing": 60,
    "update": 150,
    "sharding": 90,
    "rollout": 60,
    "kernels": 60,
    "training": 240,
}
"""Seconds of each section on a GPU, `PATIENCE` times as many in a small proof; the last gets what is left."""
PATIENCE = 4
MINUTES = {False: 9.5, True: 15.0}
"""Of a whole proof, by whether it is small; a section that would begin later is left out."""
FAULTS = ("failed", "timeout")
_REASON = 300  # characters
_ERROR = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b.*", re.MULTILINE)


@dataclass
class Outcome:
    """How a section ended.

    Attributes:
        section: its name.
        status: ok | failed | timeout | skipped.
        reason: of another status than ok.
        seconds: that it took.
        deadline: seconds that it had.
        notes: what it said beside numbers.
        results: its numbers, also those before a failure.
    """

    section: str
    status: str = "ok"
    reason: str = ""
    seconds: float = 0.0
    deadline: float = 0.0
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def line(self) -> str:
        """As JSON."""
        results = [{**vars(result), "met": result.met} for result in self.results]
        return json.dumps({**asdict(self), "results": results})


def run_section(
    name: str,
    options: Sequence[str],
    folder: Path,
    scratch: Path,
    deadline: float,
    module: str = "tests.gpu.proof",
) -> Outcome:
    """Run a section in a process of its own, with all processes that it starts killed at the deadline.

    Args:
        name: of the section.
        options: of the proof, handed on.
        folder: for its log and its numbers.
        scratch: for what it writes.
        deadline: seconds.
        module: that runs it.
    """
    log_file, numbers = folder / f"{name}.log", folder / f"{name}.numbers"
    numbers.unlink(missing_ok=True)
    own = ["--section", name, "--to", str(numbers.resolve()), "--scratch", str(scratch / name)]
    command = [sys.executable, "-m", module, *options, *own]
    started, status, reason = time.monotonic(), "ok", ""
    with log_file.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait(deadline)
        except subprocess.TimeoutExpired:
            status, reason = "timeout", f"killed after {deadline:.0f} s"
        else:
            if code:
                status, reason = "failed", f"ended with code {code}: {said_last(log_file.read_text(errors='replace'))}"
        finally:
            _kill_group(process)
    outcome = Outcome(name, status, reason, round(time.monotonic() - started, 1), deadline)
    _read(numbers, outcome)
    missed = [result for result in outcome.results if result.met is False]
    if outcome.status == "ok" and missed:
        outcome.status, outcome.reason = "failed", "; ".join(f"{r.case}: {r.quantity} {r.value:.3g}" for r in missed)
    return outcome


def said_last(text: str) -> str:
    """The last error that a log names, or its last line.

    >>> said_last("Traceback:\\nValueError: 3 is odd\\nSet TORCH_LOGS for more.\\n")
    'ValueError: 3 is odd'
    """
    found = [match[0] for match in _ERROR.finditer(text)] or text.strip().splitlines() or [""]
    return found[-1][:_REASON]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The section and whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _read(numbers: Path, outcome: Outcome) -> None:
    """What the section wrote; the last line may be torn."""
    text = numbers.read_text(encoding="utf-8") if numbers.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            item = json.loads(line)
            outcome.notes += [item["note"]] if "note" in item else []
            outcome.results += [Result(**item["result"])] if "result" in item else []
            if "skipped" in item:
                outcome.status, outcome.reason = "skipped", item["skipped"]


def section_main(name: str, args: argparse.Namespace) -> None:
    """The other side: prove a section and write its numbers as they come."""
    import torch

    from tests.gpu.settings import Proof, SkippedError

    torch.manual_seed(0)
    args.scratch.mkdir(parents=True, exist_ok=True)
    proof = Proof(args.device, args.small, args.scratch, args.weights, args.rlla, args.api_bank)
    with args.to.open("w", encoding="utf-8", buffering=1) as file:

        def write(**item: Any) -> None:
            file.write(json.dumps(item) + "\n")

        if proof.cuda and not torch.cuda.is_available():
            write(skipped="--device cuda: there is none. --device cpu --small is a rehearsal.")
            return
        try:
            for found in importlib.import_module(f"tests.gpu.sections.{name}").prove(proof):
                write(**({"note": found} if isinstance(found, str) else {"result": vars(found)}))
        except SkippedError as error:
            write(skipped=str(error))


def report(outcomes: Sequence[Outcome]) -> str:
    """The Markdown of a proof: how each section ended, then its notes and numbers."""
    rows = [[o.section, o.status, f"{o.seconds:.0f} of {o.deadline:.0f}", o.reason.replace("|", "¦")] for o in outcomes]
    lines = ["# Proof", "", markdown_table(["section", "status", "seconds", "reason"], rows, numbers=False)]
    for outcome in outcomes:
        lines += ["", f"## {outcome.section}", "", *(f"- {note}" for note in outcome.notes)]
        if outcome.results:
            lines += ["", *result_table(outcome.results)]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof; the exit code is 1 if a section failed, or none ran."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    args = _arguments(arguments)
    if args.section:
        section_main(args.section, args)
        return 0
    out = args.out
    options = _handed_on(args)
    outcomes: list[Outcome] = []
    ends = time.monotonic() + 60 * (args.minutes or MINUTES[args.small])
    with tempfile.TemporaryDirectory() as scratch, (out / "proof.jsonl").open("w", encoding="utf-8") as file:
        for name in args.only or DEADLINES:
            deadline = min(DEADLINES[name] * (PATIENCE if args.small else 1), ends - time.monotonic())
            if deadline <= 0:
                outcome = Outcome(name, "skipped", "no time was left: see --minutes")
            else:
                outcome = run_section(name, options, out, Path(scratch), deadline)
            outcomes.append(outcome)
            file.write(outcome.line() + "\n")
            file.flush()
            (out / "proof.md").write_text(report(outcomes), encoding="utf-8")
            log.info("%s", outcome.line())
    log.info("%s", report(outcomes))
    nothing = all(outcome.status == "skipped" for outcome in outcomes)
    return int(nothing or any(outcome.status in FAULTS for outcome in outcomes))


def _handed_on(args: argparse.Namespace) -> list[str]:
    options = ["--device", args.device, *(["--small"] if args.small else [])]
    for name in ("weights", "rlla", "api_bank"):
        if (path := getattr(args, name)) is not None:
            options += [f"--{name.replace('_', '-')}", str(path.resolve())]
    return options


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="shapes that two CPU cores compute in minutes")
    parser.add_argument("--only", type=_sections, help=f"of {','.join(DEADLINES)}; default: all")
    parser.add_argument("--minutes", type=float, help="of the whole proof; default 9.5, small 15")
    parser.add_argument("--out", type=Path, default=Path("logs/proof"), help="folder of proof.jsonl and proof.md")
    parser.add_argument("--weights", type=Path, help="folder of SmolLM2's weights or GGUF file")
    parser.add_argument("--rlla", type=Path, help="rlla file for SmolLM2's prompts; default: the generated corpus")
    parser.add_argument("--api-bank", type=Path, help="folder of API-Bank's test set, to score SmolLM2 on")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not args.section:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: expected a folder that can be written, found '{args.out}' ({error.strerror})")
    return args


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(DEADLINES):
        raise argparse.ArgumentTypeError(f"expected some of {list(DEADLINES)}, found {sorted(unknown)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
