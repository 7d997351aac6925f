"""The order of training prompts."""

from collections import Counter
from itertools import chain

import pytest

from src.data.sampler import ResumableLoader, RolloutSampler, epoch_order


def take(loader: ResumableLoader[int], batches: int) -> list[list[int]]:
    """The next batches, over as many epochs as it takes."""
    taken: list[list[int]] = []
    while len(taken) < batches:
        for batch in loader:
            taken.append(batch)
            if len(taken) == batches:
                break
    return taken


def loader(size: int = 11, batch_size: int = 4, seed: int = 0, workers: int = 0) -> ResumableLoader[int]:
    return ResumableLoader(range(size), RolloutSampler(size, batch_size, seed), workers)


def test_an_epoch_holds_each_example_at_most_once() -> None:
    # 11 examples, batches of 4: two batches an epoch, three examples sit it out
    batches = take(loader(), 2)

    assert [len(batch) for batch in batches] == [4, 4]
    assert max(Counter(chain.from_iterable(batches)).values()) == 1
    assert len(loader()) == 2


def test_epochs_differ_and_leave_out_different_examples() -> None:
    batches = take(loader(), 40)
    epochs = [set(first + second) for first, second in zip(batches[::2], batches[1::2], strict=True)]

    assert batches[:2] != batches[2:4]
    assert set.union(*epochs) == set(range(11))
    assert epochs[0] == set(epoch_order(11, 0, 0)[:8]) and epochs[1] == set(epoch_order(11, 0, 1)[:8])


def test_the_seed_fixes_the_order() -> None:
    assert take(loader(seed=1), 6) == take(loader(seed=1), 6) != take(loader(seed=2), 6)
    assert epoch_order(6, 0, 0) == [2, 3, 1, 0, 5, 4]  # pinned: another order would break resuming old runs


@pytest.mark.parametrize("stop", range(1, 8))
def test_resuming_after_any_batch_continues_the_uninterrupted_order(stop: int) -> None:
    uninterrupted = take(loader(), 10)
    first, second = loader(), loader()
    head = take(first, stop)
    second.load_state_dict(first.state_dict())

    assert head + take(second, 10 - stop) == uninterrupted


def test_batches_fetched_ahead_by_workers_do_not_count() -> None:
    uninterrupted = take(loader(size=40), 9)
    first, second = loader(size=40, workers=2), loader(size=40, workers=1)
    head = take(first, 3)  # two workers hold up to four more batches by now

    assert first.state_dict()["position"] == 3
    second.load_state_dict(first.state_dict())
    assert head + take(second, 6) == uninterrupted


def test_the_last_batch_of_an_epoch_opens_the_next() -> None:
    sampler = RolloutSampler(4, 2, 0)
    sampler.advance()
    assert (sampler.epoch, sampler.position) == (0, 1)
    sampler.advance()
    assert (sampler.epoch, sampler.position) == (1, 0)
    assert list(chain.from_iterable(sampler)) == epoch_order(4, 0, 1)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.prompts_per_step: expected at most the 3 training prompts.*found 4"):
        RolloutSampler(3, 4, 0)
    with pytest.raises(ValueError, match=r"data\.prompts_per_step: expected at least 1, found 0"):
        RolloutSampler(3, 0, 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 21}, "number of training prompts: expected 20 as in the checkpoint, found 21"),
        ({"batch_size": 5}, r"data\.prompts_per_step: expected 4 as in the checkpoint, found 5"),
        ({"seed": 1}, r"data\.seed: expected 0 as in the checkpoint, found 1"),
    ],
)
def test_a_state_of_other_data_is_refused(changed: dict[str, int], message: str) -> None:
    state = RolloutSampler(20, 4, 0).state_dict()
    with pytest.raises(ValueError, match=message):
        RolloutSampler(**{"size": 20, "batch_size": 4, "seed": 0, **changed}).load_state_dict(state)
