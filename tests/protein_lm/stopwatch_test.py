"""Every second of a lap belongs to one part."""

import pytest

from protein_lm.stopwatch import Lap, Stopwatch


def test_a_lap_has_its_parts_and_the_next_one_begins_anew(clock):
  watch = Stopwatch(clock)
  watch.start()
  with watch.timing('data'):
    clock.now += 1
  clock.now += 4
  with watch.timing('evaluation'):
    clock.now += 2
  with watch.timing('checkpoint'):
    clock.now += 3
  assert watch.lap() == Lap(10, 1, 2, 3)
  clock.now += 7
  assert watch.lap() == Lap(7, 0, 0, 0)
  assert watch.total == Lap(17, 1, 2, 3)


def test_training_is_what_was_neither_evaluation_nor_checkpoint():
  assert Lap(10, 1, 2, 3).training == 5


def test_shares_add_up_to_one():
  shares = Lap(10, 1, 2, 3).shares()
  assert shares['compute'] == pytest.approx(0.4)
  assert sum(shares.values()) == pytest.approx(1)


def test_an_empty_lap_has_no_shares():
  assert set(Lap(0, 0, 0, 0).shares().values()) == {0.0}


def test_what_comes_before_the_start_is_not_counted(clock):
  watch = Stopwatch(clock)
  with watch.timing('data'):
    clock.now += 50
  assert watch.seconds == 0
  watch.start()
  clock.now += 1
  assert watch.lap() == Lap(1, 0, 0, 0)


def test_the_part_that_raised_is_counted(clock):
  watch = Stopwatch(clock)
  watch.start()
  with pytest.raises(KeyError), watch.timing('data'):
    clock.now += 1
    raise KeyError
  assert watch.lap().data == 1


def test_an_unknown_part_is_refused():
  with (
    pytest.raises(ValueError, match="'lunch' is no part of data, evaluation"),
    Stopwatch().timing('lunch'),
  ):
    pass
