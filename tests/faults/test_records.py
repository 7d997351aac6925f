"""A few generated records of each fault; `python -m tests.faults.records` takes 1,000 of each."""

import random

import pytest

from tests.faults.records import FAULTS, Reader, found, xlam_row

COUNT, SEED = 40, 20261129


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_faulty_record_is_named_and_no_good_one(fault, reader: Reader) -> None:
    assert found(fault, COUNT, SEED, reader) == (COUNT, COUNT)


def test_rows_are_the_same_for_a_seed() -> None:
    assert xlam_row(random.Random(3)) == xlam_row(random.Random(3))
