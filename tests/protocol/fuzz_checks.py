"""Fuzzed texts through parser, regions, rewards and token weights: what must hold of each, and how fast it went."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch

from src.algorithm.region_weights import RegionFactors, RegionWeighting, token_weights
from src.protocol.dialogue import Message, ToolCall
from src.protocol.formats.known import REST
from src.protocol.formats.rest import parse
from src.protocol.output_format import Reading
from src.protocol.regions import DecodedCompletion, TokenBytes, read_completion, read_completions
from src.protocol.types import Region
from src.rewards.tool_call import Reward, ToolCallReward
from src.wings.published.reward import PublishedReward
from tests.fuzzing import mutated_texts

TARGETS = (
    Message("assistant", calls=(ToolCall("sky", {"city": "Oslo", "days": 2}),)),
    Message("assistant", calls=(ToolCall("sky", {"city": "Oslo"}), ToolCall("ping", {})), text="Done."),
    Message("assistant", text="I cannot book a table."),
)
STEPS = (0, 40, 75, 150, 300)
BATCH = 512
ONE_BY_ONE = 16  # every so many texts are read by themselves too
PREFIX = "<think>\n"
TURN_MARKS = ("<|im_start|>assistant", "<|im_end|>")  # where the published scoring cuts a text

TABLE_F1 = RegionWeighting(
    factors=RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95),
    alpha_format=0.003,
    alpha_parameters=0.003,
    alpha_reasoning=6e-5,
)
DEFAULT = ToolCallReward()
OTHERS = (
    ToolCallReward(scaling="eq14", beta_accuracy=2.0, no_call="published"),
    ToolCallReward(scaling="constant", names="set"),
    PublishedReward(),
    PublishedReward(format_rule="toolrl", scheduled=False),
)

# A token for each pair of bytes and for each byte: an odd text ends in a token of one byte. The last is the stop token.
PAIRS = TokenBytes((*(bytes((a, b)) for a in range(256) for b in range(256)), *(bytes((a,)) for a in range(256)), b""))
STOP = 65536 + 256


@dataclass
class Fuzzed:
    """What was put through, and the seconds that each part took.

    Attributes:
        texts: how many.
        bytes: of all of them.
        exact: texts whose calls are those of their target.
        seconds: by part: `texts` made, `protocol` (decoding, parsing, regions of a batch), `rewards`, `weights`,
            `checks`.
    """

    texts: int = 0
    bytes: int = 0
    exact: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _begun: float = field(default_factory=time.perf_counter)

    def clock(self, part: str) -> None:
        """Book the time since the last call under a part."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._begun
        self._begun = now


def fuzz(count: int, seed: int) -> Fuzzed:
    """Put `count` texts through, a batch at a time as rollouts are.

    Raises:
        AssertionError: of a text of which something does not hold.
    """
    done = Fuzzed()
    texts = mutated_texts(count, seed)
    while batch := list(islice(texts, BATCH)):
        done.clock("texts")
        first = done.texts
        ids = [torch.cat([pair_ids(text), torch.tensor([STOP])]) for text in batch]
        prefixes = [PREFIX if (first + index) % 5 == 0 else "" for index in range(len(batch))]
        done.clock("checks")
        read = read_completions(ids, PAIRS, (STOP,), [Reading(REST, prefix) for prefix in prefixes])
        done.clock("protocol")
        rewards = []
        for index, one in enumerate(read, start=first):
            step = STEPS[index % 5]
            rewards.append(DEFAULT(one.text, one.parsed, TARGETS[index % 3], rollout_step=step, progress=0.3))
        done.clock("rewards")
        for progress in (0.0, 100.0):
            assert_weights([one.regions for one in read], progress, done)
        for index, (text, one, reward) in enumerate(zip(batch, read, rewards, strict=True), start=first):
            assert_sound(one, text)
            assert_bounded(reward, DEFAULT.bounds(STEPS[index % 5]))
            done.exact += reward.parts.exact_match == 1.0
            done.bytes += one.parsed.size
            if index % ONE_BY_ONE == 0:
                assert_same(one, text, ids[index - first], prefixes[index - first])
                other = OTHERS[index // ONE_BY_ONE % len(OTHERS)]
                kind = {"rollout_step": STEPS[index % 5], "progress": 0.3}
                found = other(one.text, one.parsed, TARGETS[index % 3], **kind)
                whole = isinstance(other, ToolCallReward) or not any(mark in one.text for mark in TURN_MARKS)
                assert_bounded(found, other.bounds(STEPS[index % 5], progress=0.3), whole=whole)
        done.texts += len(batch)
        done.clock("checks")
    return done


def pair_ids(text: str) -> torch.Tensor:
    data = text.encode("utf-8", "surrogatepass")
    ids = np.frombuffer(data + b"\x00" * (len(data) % 2), dtype=">u2").astype(np.int64)
    if len(data) % 2:
        ids[-1] = 65536 + data[-1]
    return torch.from_numpy(ids)


def assert_sound(one: DecodedCompletion, text: str) -> None:
    """Spans partition the text; a token has the region of its first byte, the stop token that of the format."""
    parsed = one.parsed
    assert len(parsed.fields) == len(parsed.closed)
    lengths = [span.stop - span.start for span in parsed.spans]
    assert sum(lengths) == parsed.size == len(text.encode("utf-8", "surrogatepass"))
    assert min(lengths, default=1) > 0
    first_bytes = np.repeat([int(span.region) for span in parsed.spans], lengths)[::2]
    assert np.array_equal(one.regions.numpy(), [*first_bytes, int(Region.FORMAT)])


def assert_same(one: DecodedCompletion, text: str, ids: torch.Tensor, prefix: str) -> None:
    """Read by itself, and parsed as text, it is what it was in the batch."""
    alone = read_completion(ids, PAIRS, (STOP,), Reading(REST, prefix))
    assert (alone.text, alone.parsed) == (one.text, one.parsed) and torch.equal(alone.regions, one.regions)
    parsed = parse(text, prefix=prefix)
    assert (parsed.spans, parsed.fields, parsed.closed) == (one.parsed.spans, one.parsed.fields, one.parsed.closed)


def assert_weights(regions: list[torch.Tensor], progress: float, done: Fuzzed) -> None:
    """Table F.1's weights are finite, positive, and of mean 1 over each sequence."""
    done.clock("checks")
    lengths = torch.tensor([len(one) for one in regions])
    weights = token_weights(TABLE_F1.factors_at(TABLE_F1.factors, progress), torch.cat(regions), lengths)
    done.clock("weights")
    assert weights.isfinite().all() and (weights > 0).all()
    sums = torch.zeros(len(lengths), dtype=torch.float64)
    sums.index_add_(0, torch.repeat_interleave(lengths), weights.double())
    torch.testing.assert_close(sums / lengths, torch.ones_like(sums), rtol=0, atol=1e-5)


def assert_bounded(reward: Reward, bounds: tuple[float, float], *, whole: bool = True) -> None:
    """The parts are in their bounds, and an exact match is correct where reward and parser read the `whole` text."""
    low, high = bounds
    parts = reward.parts
    assert low - 1e-9 <= reward.total <= high + 1e-9
    values = (parts.format, parts.name, parts.parameter_names, parts.parameter_values, parts.correctness)
    assert min(values) >= 0.0
    assert max(values) <= 1.0
    assert parts.exact_match in (0.0, 1.0)
    assert not (whole and parts.exact_match) or parts.correctness == 1.0
