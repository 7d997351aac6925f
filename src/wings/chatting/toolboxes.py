"""Tools that a policy can really call: those of the synthetic corpus, and BFCL's backends behind the sandbox.

A call comes from the model and is data: it is looked up by name and executed by the tools' own executors. Whatever is
wrong with it becomes its result, which the model reads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Protocol

from src.data.sources.synthetic.domains import TRAINING_DOMAINS
from src.data.sources.synthetic.source import SyntheticSource, tool_spec
from src.environments.bfcl.sandbox import Sandbox
from src.errors import ConfigError, advice
from src.protocol.dialogue import ToolCall, ToolSpec
from src.wings.evaluation import synthetic
from src.wings.evaluation.bfcl.dataset import Case, class_functions, data_folder, load_cases
from src.wings.evaluation.bfcl.prompting import observation, tool_specs

_CATEGORY = "multi_turn_base"


class Toolbox(Protocol):
    """Tools and the world that they act on."""

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """What the prompt offers."""
        ...

    @property
    def hint(self) -> str:
        """Something that a user could ask for."""
        ...

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """A result for each call of a step, errors included."""
        ...

    def observation(self, calls: Sequence[ToolCall], results: Sequence[str]) -> str:
        """The results of a step as the model reads them."""
        ...

    def reset(self) -> None:
        """Put the world back to its beginning."""
        ...

    def close(self) -> None:
        """Give back processes."""
        ...


class SyntheticToolbox:
    """Tools of the synthetic corpus, which have no state.

    Args:
        domains: keys of `TRAINING_DOMAINS`.

    Raises:
        ConfigError: an unknown domain, or none.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        for domain in domains:
            if domain not in TRAINING_DOMAINS:
                raise ConfigError(f"tools.domains: no domain is called {domain!r}. {advice(domain, TRAINING_DOMAINS)}")
        if not domains:
            raise ConfigError(f"tools.domains: expected at least one of {', '.join(TRAINING_DOMAINS)}, found none.")
        chosen = [tool for domain in domains for tool in TRAINING_DOMAINS[domain]]
        self._tools = tuple(map(tool_spec, chosen))
        self._offered = frozenset(tool.name for tool in chosen)
        self._hint = _request(self._offered)

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """See `Toolbox`."""
        return self._tools

    @property
    def hint(self) -> str:
        """See `Toolbox`."""
        return self._hint

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `Toolbox`; invented values, always the same for the same call."""
        return [json.dumps(synthetic.run(call, self._offered)) for call in calls]

    def observation(self, calls: Sequence[ToolCall], results: Sequence[str]) -> str:
        """As in the corpus."""
        return synthetic.observation([json.loads(result) for result in results])

    def reset(self) -> None:
        """Nothing to put back."""

    def close(self) -> None:
        """Nothing to give back."""


class BfclToolbox:
    """BFCL's multi-turn backends, executed in a worker process as its evaluation does.

    Args:
        classes: of the backends, e.g. `GorillaFileSystem`; each starts from the state of the first case of
            multi_turn_base that has it.
        sandbox: the worker and its limits.
        case: of multi_turn_base, in place of `classes`: the world is that of this case.

    Raises:
        ConfigError: there is no such class or case.
        BenchmarkDataError: bfcl-eval is not installed.
    """

    def __init__(self, classes: Sequence[str], sandbox: Sandbox, case: str | None = None) -> None:
        self._sandbox = sandbox
        cases = load_cases(_CATEGORY)
        self._case = _world(cases, classes) if case is None else _named(cases, case)
        self._steps: list[tuple[ToolCall, ...]] = []

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """See `Toolbox`."""
        return tuple(tool_specs(self._case))

    @property
    def hint(self) -> str:
        """What the first user of such a world asks first."""
        return str(self._case.question[0][-1]["content"])

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `Toolbox`. A step that hits a limit of the sandbox did not happen."""
        execution = self._sandbox.execute(self._case.entry, [*self._steps, tuple(calls)])
        if execution.error_type:
            limit = f"{self._sandbox.time_limit:g} s" if execution.error_type == "time_limit" else "the memory limit"
            return [json.dumps({"error": f"not executed: the calls took more than {limit}"})] * len(calls)
        self._steps.append(tuple(calls))
        return list(execution.results)

    def observation(self, calls: Sequence[ToolCall], results: Sequence[str]) -> str:
        """As in the evaluation."""
        return observation(calls, results)

    def reset(self) -> None:
        """Forget the steps: the sandbox replays them from the initial state."""
        self._steps = []

    def close(self) -> None:
        """End the worker."""
        self._sandbox.close()


def _request(offered: Collection[str]) -> str:
    """A user's words of a held-out dialogue that one of these tools serves."""
    written = SyntheticSource(kinds={"single": 1.0}).dialogues("val")
    return next(d.messages[0].text for d, _ in written if d.messages[1].calls[0].name in offered)


def _named(cases: Sequence[Case], wanted: str) -> Case:
    by_id = {case.id: case for case in cases}
    if wanted not in by_id:
        raise ConfigError(f"tools.case: expected one of {cases[0].id} to {cases[-1].id}, found {wanted!r}.")
    return by_id[wanted]


def _world(cases: Sequence[Case], classes: Sequence[str]) -> Case:
    """A case with these classes and no others, their states from the first cases that have them."""
    first: dict[str, Case] = {}
    for case in cases:
        for name in case.entry["involved_classes"]:
            first.setdefault(name, case)
    if not classes:
        raise ConfigError(f"tools.classes: expected at least one of {', '.join(sorted(first))}, found none.")
    for name in classes:
        if name not in first:
            raise ConfigError(f"tools.classes: no class is called {name!r}. {advice(name, first)}")
    asked = min(cases, key=lambda case: len(set(classes) ^ set(case.entry["involved_classes"])))
    entry = {
        "id": asked.id,
        "question": asked.question,
        "involved_classes": list(classes),
        "initial_config": {name: first[name].entry["initial_config"].get(name, {}) for name in classes},
    }
    docs = [doc for name in classes for doc in class_functions(data_folder(), name)]
    return Case(asked.id, _CATEGORY, entry, docs)
