"""A slice of `make fuzz`: damaged files are read right, or refused with one clear error."""

import pytest

from tests.fuzz import Workshop

COUNTS = {"audio": 100, "manifest": 60, "arpa": 60, "tokenizer": 60, "card": 10, "config": 10}


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
def test_damaged_files_are_read_right_or_refused(tmp_path, kind, count):
    workshop = Workshop(kind, tmp_path)
    outcomes = {number: workshop.attempt(seed=1, number=number) for number in range(count)}
    assert not {number: outcome for number, outcome in outcomes.items() if outcome[0] == "fault"}


@pytest.mark.parametrize(("kind", "number"), [("arpa", 140), ("card", 488)])
def test_what_was_once_a_fault_is_refused(tmp_path, kind, number):
    assert Workshop(kind, tmp_path).attempt(seed=0, number=number)[0] == "refused"


def test_the_same_seed_damages_in_the_same_way(tmp_path):
    one, other = Workshop("audio", tmp_path), Workshop("audio", tmp_path)
    inputs = [one.damaged(0, number)[1] for number in range(40)]
    assert inputs == [other.damaged(0, number)[1] for number in range(40)]
    assert len({how.data for how in inputs}) > 30
