"""(c) The whole rollout step: sampling, rewards, scoring, update and optimizer, against TRL's GRPOTrainer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack

from tests.benchmarks.bench import Bench, has_peer
from tests.benchmarks.measuring import Result, take_turns, times_as_fast
from tests.benchmarks.sections.update import DifferentWorkError
from tests.benchmarks.serving import Contestant
from tests.benchmarks.settings import Setting

BARS = {"tiny": 10.0, "smollm2": 6.0}
"""Over TRL."""


def measure(bench: Bench) -> Iterator[Result]:
    for setting in bench.settings:
        with ExitStack() as stack:
            contestants = {"ours": stack.enter_context(bench.start("step", bench.step_job(setting)))}
            if has_peer("trl"):
                contestants["TRL"] = stack.enter_context(bench.start("trl", bench.trl_job(setting)))
                default = bench.trl_job(setting, checkpointing=True)
                contestants["TRL, checkpointing"] = stack.enter_context(bench.start("trl", default))
            turns = {name: Steps(name, contestant, setting) for name, contestant in contestants.items()}
            seconds = take_turns(turns, bench.repeats)
        for key in sorted(turns["ours"].parts):
            value = statistics.median(turns["ours"].parts[key][1:])
            yield Result("step", setting.name, setting.case, f"ours: {key}", value, unit=" s")
        bars = {"TRL": BARS.get(setting.name), "TRL, checkpointing": None}
        yield from times_as_fast("step", setting.name, setting.case, seconds, bars)


class Steps:
    """Asks one contestant for steps, and checks that they are of the setting's size.

    Attributes:
        parts: seconds of the parts of each step, where they are told.
    """

    def __init__(self, name: str, contestant: Contestant, setting: Setting) -> None:
        self._name, self._contestant = name, contestant
        count = setting.prompts * setting.completions
        self._expected = {
            "completions": count,
            "tokens": count * setting.new_tokens,
            "prompt_tokens": count * setting.prompt_tokens,
        }
        self.parts: dict[str, list[float]] = {}

    def __call__(self, _: int) -> float:
        reply = self._contestant.ask("step")
        found = {key: reply[key] for key in self._expected}
        if found != self._expected:
            raise DifferentWorkError(f"step: expected {self._expected} of {self._name}, found {found}.")
        for key, value in reply.get("parts", {}).items():
            self.parts.setdefault(key, []).append(value)
        return float(reply["seconds"])
