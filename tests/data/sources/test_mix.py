"""Mixing by counts."""

from collections import Counter

import pytest

from src.data.sources.mix import MixSource
from src.protocol.dialogue import Message, TurnExample


class Numbered:
    """A source of `size` training and `held_out` validation examples."""

    def __init__(self, name: str, size: int, held_out: int = 0) -> None:
        self.name, self.sizes = name, {"train": size, "val": held_out}

    def splits(self) -> tuple[str, ...]:
        return ("train", "val") if self.sizes["val"] else ("train",)

    def load(self, split: str) -> list[TurnExample]:
        question, answer = Message("user", "?"), Message("assistant", "!")
        return [TurnExample((), (question,), answer, self.name, f"{split}-{n}") for n in range(self.sizes[split])]


def published(seed: int = 0, masked: int = 1000) -> MixSource:
    return MixSource(
        {
            "toolace": {"source": Numbered("toolace", 5000, 30), "count": 2000},
            "hammer": {"source": Numbered("hammer", masked), "count": 1000},
            "xlam": {"source": Numbered("xlam", 3000, 20), "count": 1000},
        },
        seed=seed,
    )


def test_each_part_gives_its_count_without_replacement() -> None:
    train = published().load("train")

    assert Counter(example.source for example in train) == {"toolace": 2000, "hammer": 1000, "xlam": 1000}
    assert len({example.id for example in train}) == 4000
    assert sum(example.id.startswith("toolace/train-") for example in train) == 2000


def test_the_sample_is_spread_over_the_part_and_seeded() -> None:
    def numbers(seed: int) -> list[int]:
        train = published(seed).load("train")
        return [int(example.id.split("-")[1]) for example in train if example.source == "toolace"]

    assert numbers(0) == numbers(0) != numbers(1)
    # 2,000 of 5,000: the half above 2,500 has 1,000 expected, hypergeometric deviation sqrt(2000 x 1/4 x 3/5) = 17.3
    assert 1000 - 4 * 17.3 < sum(number >= 2500 for number in numbers(0)) < 1000 + 4 * 17.3


def test_another_count_of_one_part_leaves_the_other_samples_alone() -> None:
    def xlam(mix: MixSource) -> list[str]:
        return [example.id for example in mix.load("train") if example.source == "xlam"]

    other = published()
    other.parts["toolace"]["count"] = 10
    assert xlam(other) == xlam(published())


def test_validation_is_all_that_is_held_out_shuffled_together() -> None:
    val = published().load("val")

    assert published().splits() == ("train", "val")
    assert Counter(example.source for example in val) == {"toolace": 30, "xlam": 20}
    assert {example.source for example in val[:15]} == {"toolace", "xlam"}
    assert val == published().load("val")


def test_a_part_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match=r"data\.train\.parts\.hammer\.count: expected at most the 999 .*found 1000"):
        published(masked=999).load("train")


def shared(**shares: float) -> MixSource:
    sizes = {"shop": 60, "chats": 100}
    return MixSource({key: {"source": Numbered(key, sizes[key], 5), "share": share} for key, share in shares.items()})


@pytest.mark.parametrize(
    ("shop", "chats", "expected"),
    [(0.5, 0.5, (60, 60)), (0.6, 0.4, (60, 40)), (0.3, 0.7, (42, 100)), (1, 3, (33, 100)), (0.375, 0.625, (60, 100))],
)
def test_shares_are_kept_as_far_as_the_scarcest_part_goes(shop: float, chats: float, expected: tuple[int, int]) -> None:
    counts = Counter(example.source for example in shared(shop=shop, chats=chats).load("train"))

    assert (counts["shop"], counts["chats"]) == expected
    assert len(shared(shop=shop, chats=chats).load("val")) == 10


def test_counts_and_shares_are_not_mixed() -> None:
    both = "expected a count for every part, or a share for every part, found"
    parts = {"a": {"source": Numbered("a", 9), "share": 1.0}, "b": {"source": Numbered("b", 9), "count": 3}}
    with pytest.raises(ValueError, match=rf"data\.train\.parts\.b: {both} count 3, share None\."):
        MixSource(parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"data\.train\.parts\.a: {both} count None, share None\."):
        MixSource({"a": {"source": Numbered("a", 9)}})
    with pytest.raises(ValueError, match=r"data\.train\.parts\.shop: expected a share above 0, found 0\."):
        shared(shop=0)
    with pytest.raises(ValueError, match=r"data\.train\.parts\.shop: .* a mix of 100 it is none"):
        shared(shop=0.005, chats=0.995).load("train")


def test_impossible_parts_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.train\.parts: expected at least one part"):
        MixSource({})
    with pytest.raises(ValueError, match=r"data\.train\.parts\.a\.count: expected at least 1, found 0"):
        MixSource({"a": {"source": Numbered("a", 1), "count": 0}})
    with pytest.raises(ValueError, match=r"source 'mix': expected a split of \('train',\), found 'val'"):
        MixSource({"a": {"source": Numbered("a", 1), "count": 1}}).load("val")
