"""A small seeded part of the campaigns `make break` and `make faults`."""

import pytest

from benchmarks import damage, soundness
from benchmarks.campaign import Tally


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damaged_files(seed, tmp_path):
    tally = Tally()
    damage.damaged_files(seed, tmp_path, {}, tally)
    assert not tally.violations
    assert len(tally.counts) == 7
    for counts in tally.counts.values():
        assert counts["files"] == 1
        assert counts["refused without its name"] == 0


def test_damage_that_is_taken_silently_is_a_violation(tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "_equal", lambda before, after: False)
    monkeypatch.setattr(damage, "_damaged", lambda content, rng: content)
    tally = Tally()
    damage.damaged_files(1, tmp_path, {}, tally)
    assert len(tally.violations) == 6  # JPEG has no checksum
    assert all("taken silently" in text for text in tally.violations)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_models(seed, tmp_path):
    tally = Tally()
    damage.hostile_models(seed, tmp_path, {}, tally)
    assert not tally.violations
    assert tally.counts["hostile models"] == {"files": 5, "refused": 5}


@pytest.mark.parametrize("part", ["try_bounds", "try_norms", "try_sketches"])
def test_what_is_proven(part, tmp_path):
    tally = soundness.Tally()
    for seed in (1, 2):
        getattr(soundness, part)(seed, tally, tmp_path)
    assert tally.counts
    assert not tally.violations
