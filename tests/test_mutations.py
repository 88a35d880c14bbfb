"""The list of seeded faults stays in step with the code (the faults run in the benchmark)."""

import re
from pathlib import Path

import pytest

from benchmarks.mutations import FAULTS

ROOT = Path(__file__).parents[1]


def test_there_are_enough_faults_with_names_of_their_own():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_changes_its_line_and_has_tests(fault):
    text = (ROOT / fault.path).read_text()
    changed = fault.applied_to(text)
    compile(changed, fault.path, "exec")
    assert changed != text
    for tests in fault.tests:
        assert (ROOT / tests).exists()
        files = [ROOT / tests] if tests.endswith(".py") else (ROOT / tests).glob("test_*.py")
        assert any(re.search(r"^def test_", file.read_text(), re.M) for file in files)
