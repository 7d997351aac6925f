"""Hammer's function masking: tools whose names say nothing, so that the policy has to read their descriptions.

Only names are masked. The original also changes default values; the published mix shows names of this kind.
"""

from __future__ import annotations

import random
import re
import string
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from src.data.sources.base import Source
from src.protocol.dialogue import DataError, Message, ToolCall, ToolSpec, TurnExample

_ALPHABET = string.ascii_letters + string.digits + "_"
_SHORTEST, _LONGEST = 5, 15
_DISTINCTIVE = re.compile(r"[^A-Za-z]|[a-z][A-Z]")


class HammerSource:
    """Another source, with tool and parameter names replaced by random identifiers in a share of its examples.

    Masked examples carry the tag `masked`. The splits are those of the wrapped source.
    """

    def __init__(self, source: Source, mask_share: float = 1.0, seed: int = 0, name: str = "hammer") -> None:
        """Nothing is read before `load`.

        Args:
            source: a source of structured dialogues.
            mask_share: share of the examples to mask, in [0, 1]; each is drawn by itself.
            seed: with an example's id it fixes whether and how that example is masked.
            name: name of the corpus in examples and metrics.
        """
        if not 0 <= mask_share <= 1:
            raise ValueError(f"mask_share: expected a share in [0, 1], found {mask_share}.")
        self.source, self.mask_share, self.seed, self.name = source, mask_share, seed, name

    def splits(self) -> tuple[str, ...]:
        """The wrapped source's."""
        return self.source.splits()

    @property
    def skipped(self) -> int:
        """Bad records that the wrapped source left out."""
        return int(getattr(self.source, "skipped", 0))

    def load(self, split: str) -> list[TurnExample]:
        """The wrapped source's examples, masked.

        Raises:
            DataError: an example whose prompt is published as text; names inside it cannot be told apart.
        """
        return [self._masked(example) for example in self.source.load(split)]

    def _masked(self, example: TurnExample) -> TurnExample:
        rng = random.Random(f"{self.seed}:{example.id}")
        if rng.random() >= self.mask_share:
            return replace(example, source=self.name)
        return replace(mask_example(example, rng), source=self.name, tags=(*example.tags, "masked"))


def mask_example(example: TurnExample, rng: random.Random) -> TurnExample:
    """Replace tool and parameter names consistently in tools, earlier calls, observations and the target.

    The name of a parameter is masked tool by tool: `id` of two tools becomes two identifiers. In text other than the
    user's, a tool's name is replaced where it is the value of a `name` key, and wherever it stands as a word of its own
    unless it could be an ordinary word (letters only, no inner capital). Argument values stay as they are.

    Raises:
        DataError: the example has a verbatim prompt.
    """
    if example.prompt is not None:
        raise DataError(
            f"{example.source}[{example.id}]",
            "prompt",
            "tools and history as structured data, which can be masked",
            "a prompt published as text",
            "Wrap a corpus of dialogues (toolace, xlam) in hammer; rlla holds masked examples already.",
        )
    masks = _Masks(rng, taken={tool.name for tool in example.tools})
    masked = [masks.tool(tool) for tool in example.tools]
    history = tuple(masks.message(message) for message in example.history)
    target = masks.message(example.target)
    rename = _Renamer(masks.tools)
    return replace(
        example,
        tools=tuple(tool.renamed(tool.name, rename(tool.description), {}) for tool in masked),
        history=tuple(_rename_text(message, rename) for message in history),
        target=_rename_text(target, rename),
    )


class _Masks:
    """The identifiers given so far: of a tool by its name, of a parameter by tool and name."""

    def __init__(self, rng: random.Random, taken: set[str]) -> None:
        self.rng, self.taken = rng, taken
        self.tools: defaultdict[str, str] = defaultdict(self.fresh)
        self.parameters: defaultdict[tuple[str, str], str] = defaultdict(self.fresh)

    def tool(self, tool: ToolSpec) -> ToolSpec:
        names = {name: self.parameters[tool.name, name] for name in tool.parameters}
        return tool.renamed(self.tools[tool.name], tool.description, names)

    def message(self, message: Message) -> Message:
        name = self.tools.get(message.name, message.name)
        return replace(message, calls=tuple(self.call(call) for call in message.calls), name=name)

    def call(self, call: ToolCall) -> ToolCall:
        names = {self.parameters[call.name, name]: value for name, value in call.parameters.items()}
        return replace(call, name=self.tools[call.name], parameters=names)

    def fresh(self) -> str:
        """An identifier that nothing else in the example has."""
        while (name := random_identifier(self.rng)) in self.taken:
            continue
        self.taken.add(name)
        return name


def random_identifier(rng: random.Random) -> str:
    """5 to 15 letters, digits and underscores, as in the published mix."""
    return "".join(rng.choices(_ALPHABET, k=rng.randint(_SHORTEST, _LONGEST)))


class _Renamer:
    """Replaces tool names in running text and in JSON."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self.keyed = re.compile(rf"""(["']name["']\s*:\s*["'])({_alternatives(names)})(?=["'])""")
        distinctive = [name for name in names if _DISTINCTIVE.search(name)]
        self.words = re.compile(rf"(?<!\w)({_alternatives(distinctive)})(?!\w)") if distinctive else None

    def __call__(self, text: str) -> str:
        if not self.names:
            return text
        text = self.keyed.sub(lambda match: match[1] + self.names[match[2]], text)
        return self.words.sub(lambda match: self.names[match[1]], text) if self.words else text


def _alternatives(names: Collection[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _rename_text(message: Message, rename: _Renamer) -> Message:
    if message.role == "user":
        return message
    return replace(message, text=rename(message.text), thought=rename(message.thought))
