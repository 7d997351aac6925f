"""100,000 mutated and random texts through parser, rewards, regions and token weights."""

from __future__ import annotations

import numpy as np
import torch

from src.algorithm.region_weights import RegionFactors, RegionWeighting, token_weights
from src.data.dialogue import Message, ToolCall
from src.protocol.parsing import parse
from src.protocol.regions import TokenBytes, token_regions
from src.protocol.types import ParsedResponse, Region
from src.rewards.published import PublishedReward
from src.rewards.tool_call import Reward, ToolCallReward
from tests.fuzzing import mutated_texts

COUNT, SEED = 100_000, 20260101
TARGETS = (
    Message("assistant", calls=(ToolCall("sky", {"city": "Oslo", "days": 2}),)),
    Message("assistant", calls=(ToolCall("sky", {"city": "Oslo"}), ToolCall("ping", {})), text="Done."),
    Message("assistant", text="I cannot book a table."),
)
STEPS = (0, 40, 75, 150, 300)

TABLE_F1 = RegionWeighting(
    factors=RegionFactors(reasoning=0.016, tool_name=1.2, tool_parameters=0.8, format=0.95),
    alpha_format=0.003,
    alpha_parameters=0.003,
    alpha_reasoning=6e-5,
)
END_OF_TURN = torch.tensor([int(Region.FORMAT)])

# A token for each pair of bytes and for each byte: an odd text ends in a token of one byte.
PAIRS = TokenBytes((*(bytes((a, b)) for a in range(256) for b in range(256)), *(bytes((a,)) for a in range(256))))


def pair_ids(text: str) -> torch.Tensor:
    data = text.encode("utf-8", "surrogatepass")
    ids = np.frombuffer(data + b"\x00" * (len(data) % 2), dtype=">u2").astype(np.int64)
    if len(data) % 2:
        ids[-1] = 65536 + data[-1]
    return torch.from_numpy(ids)


def assert_sound(parsed: ParsedResponse, text: str) -> torch.Tensor:
    """Spans partition the text; each first byte of a token pair has the region of its span. Returns the regions."""
    assert len(parsed.fields) == len(parsed.closed)
    lengths = [span.stop - span.start for span in parsed.spans]
    assert sum(lengths) == parsed.size
    assert min(lengths, default=1) > 0
    regions = token_regions(pair_ids(text), parsed, PAIRS, ())
    first_bytes = np.repeat([int(span.region) for span in parsed.spans], lengths)[::2]
    assert np.array_equal(regions.numpy(), first_bytes)
    return regions


def assert_weights(texts: list[torch.Tensor]) -> None:
    """Table F.1's weights at steps 0 and 100 are finite, positive, and of mean 1 over each sequence."""
    regions, lengths = torch.cat(texts), torch.tensor([len(text) for text in texts])
    for progress in (0.0, 100.0):
        factors = TABLE_F1.factors_at(TABLE_F1.factors, progress)
        weights = token_weights(factors, regions, lengths)
        assert weights.isfinite().all() and (weights > 0).all()
        means = torch.stack([part.double().mean() for part in weights.split(lengths.tolist())])
        torch.testing.assert_close(means, torch.ones_like(means), rtol=0, atol=1e-5)


def assert_bounded(reward: Reward, bounds: tuple[float, float]) -> None:
    low, high = bounds
    parts = reward.parts
    assert low - 1e-9 <= reward.total <= high + 1e-9
    values = (parts.format, parts.name, parts.parameter_names, parts.parameter_values, parts.correctness)
    assert min(values) >= 0.0
    assert max(values) <= 1.0
    assert parts.exact_match in (0.0, 1.0)
    assert not parts.exact_match or parts.correctness == 1.0


def test_nothing_raises_and_rewards_stay_in_bounds() -> None:
    default = ToolCallReward()
    others = (
        ToolCallReward(scaling="eq14", beta_accuracy=2.0, no_call="published"),
        ToolCallReward(scaling="constant", names="set"),
        PublishedReward(),
        PublishedReward(format_rule="toolrl", scheduled=False),
    )
    bounds = {step: default.bounds(step) for step in STEPS}
    exact = 0
    tagged: list[torch.Tensor] = []
    for index, text in enumerate(mutated_texts(COUNT, SEED)):
        parsed = parse(text, prefix="<think>\n" if index % 5 == 0 else "")
        tagged.append(torch.cat([assert_sound(parsed, text), END_OF_TURN]))
        if len(tagged) == 1000:
            assert_weights(tagged)
            tagged = []
        target, step = TARGETS[index % 3], STEPS[index % 5]
        reward = default(text, parsed, target, rollout_step=step)
        assert_bounded(reward, bounds[step])
        exact += reward.parts.exact_match == 1.0
        if index % 8 == 0:
            other = others[index // 8 % 4]
            assert_bounded(
                other(text, parsed, target, rollout_step=step, progress=0.3), other.bounds(step, progress=0.3)
            )
    assert not tagged
    assert exact > 100  # some mutations leave a target as it was: the texts are not all junk


def test_texts_are_the_same_for_a_seed() -> None:
    assert list(mutated_texts(50, 3)) == list(mutated_texts(50, 3))
    assert list(mutated_texts(50, 3)) != list(mutated_texts(50, 4))
