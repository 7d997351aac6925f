"""Worlds of the generated corpora: tools without state, whose results are invented and always the same for a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from src.data.sources.composed.source import ComposedSource, invented_result
from src.data.sources.synthetic.domains import TRAINING_DOMAINS
from src.data.sources.synthetic.source import SyntheticSource, execute, observation, tool_spec
from src.errors import ConfigError, advice
from src.protocol.dialogue import JsonValue, Message, ToolCall, ToolSpec

_execute = partial(execute, domains=TRAINING_DOMAINS)


class SyntheticWorld:
    """See `World`.

    Args:
        tools: on offer.
        hint: something that a user could ask for.
        execute: what a tool on offer answers to a call; default the synthetic corpus' tools.
    """

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        hint: str = "",
        execute: Callable[[ToolCall], Mapping[str, JsonValue]] = _execute,
    ) -> None:
        self.tools = tuple(tools)
        self.hint = hint
        self._execute = execute
        self._offered = {tool.name for tool in tools}

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `World`; an error where a tool is not on offer.

        >>> SyntheticWorld([]).run([ToolCall("get_whether", {})])
        ['{"error": "no tool get_whether"}']
        """
        return [
            json.dumps(self._execute(call) if call.name in self._offered else {"error": f"no tool {call.name}"})
            for call in calls
        ]

    def observations(self, calls: Sequence[ToolCall], results: Sequence[str]) -> tuple[Message, ...]:
        """One for the whole step, as in the corpus."""
        return (Message("observation", observation([json.loads(result) for result in results])),)

    def reset(self) -> None:
        """Nothing to put back."""

    def close(self) -> None:
        """Nothing to give back."""


def synthetic_world(domains: Sequence[str]) -> SyntheticWorld:
    """The world of some domains, with a request of a held-out dialogue as its hint.

    Args:
        domains: keys of `TRAINING_DOMAINS`.

    Raises:
        ConfigError: an unknown domain, or none.
    """
    for domain in domains:
        if domain not in TRAINING_DOMAINS:
            raise ConfigError(f"tools.domains: no domain is called {domain!r}. {advice(domain, TRAINING_DOMAINS)}")
    if not domains:
        raise ConfigError(f"tools.domains: expected at least one of {', '.join(TRAINING_DOMAINS)}, found none.")
    tools = [tool_spec(tool) for domain in domains for tool in TRAINING_DOMAINS[domain]]
    names = {tool.name for tool in tools}
    written = SyntheticSource(kinds={"single": 1.0}).dialogues("val")
    return SyntheticWorld(tools, next(d.messages[0].text for d, _ in written if d.messages[1].calls[0].name in names))


def composed_world(seed: int) -> SyntheticWorld:
    """The tools of a dialogue whose words are never trained on, with its request as the hint.

    Args:
        seed: of the dialogue.
    """
    (dialogue,) = ComposedSource(num_val=1, seed=seed, kinds={"single": 1.0}).load("val_unseen")
    return SyntheticWorld(dialogue.tools, dialogue.history[0].text, invented_result)
