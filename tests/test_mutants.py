"""`make mutants` counts only what it should, and its list fits the scripts."""

from pathlib import Path

from testbed.terminal import REPOSITORY
from tools.mutants import Verdict, copy, judge, listed
from tools.mutants_plugin import IN_PROCESS

# A suite in which only the last test looks at what a script does.
CONFTEST = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--broker")

@pytest.fixture
def broker():
    return None

@pytest.fixture
def fails():
    assert False, "a fixture fails"
"""
TESTS = """
from testbed.terminal import replaced

def test_the_text_alone():
    assert False, "a script's text differs"

def test_that_alters_what_was_edited(broker):
    replaced("edited", ("as it was", "altered"))

def test_that_passes(broker):
    pass

def test_that_fails(broker):
    assert 1 == 2, "caught"

def test_that_cannot_begin(broker, fails):
    pass
"""


def test_each_edit_fits_and_leaves_a_program() -> None:
    mutants = listed()
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        for script, text in mutant.edited(REPOSITORY).items():
            compile(text, f"{mutant.name}: {script}", "exec")


def test_only_a_test_that_ran_a_script_and_failed_counts(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy(REPOSITORY, tree)
    (tree / "tests" / "conftest.py").write_text(CONFTEST)
    some = tree / "tests" / "test_some.py"
    some.write_text(TESTS)
    verdict = judge(tree, "local", ["tests/test_some.py::test_that_cannot_begin"])
    assert (verdict.test, verdict.reason[:14]) == (None, "no test failed")
    verdict = judge(tree, "local", ["tests/test_some.py"])
    assert verdict == Verdict("tests/test_some.py::test_that_fails", "AssertionError: caught")
    assert (REPOSITORY / "tests" / IN_PROCESS).is_file()
