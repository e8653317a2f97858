"""`make mutants` counts only what it should, and its list fits the scripts."""

from pathlib import Path

from testbed.terminal import REPOSITORY
from tools.mutants import MUTANTS, Verdict, copy, files_for, first_failure, judge

# A suite in which only the last test looks at what a script does.
PLUGIN = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--broker")

@pytest.fixture
def broker():
    return None
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
"""


def test_each_edit_fits_and_leaves_a_program() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        for script, text in mutant.edited(REPOSITORY).items():
            compile(text, f"{mutant.name}: {script}", "exec")


def test_what_runs_first() -> None:
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name == "task_queue not durable"]
    files = files_for(mutant, REPOSITORY)
    assert files[:2] == ["tests/test_part_2.py", "tests/test_scripts.py"]
    assert sorted(files) == sorted(
        str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("tests/test_*.py")
    )


def test_only_a_test_that_ran_a_script_and_failed_counts(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    copy(REPOSITORY, tree)
    (tree / "tests" / "conftest.py").unlink()
    (tree / "tests" / "plugin.py").write_text(PLUGIN)
    (tree / "tests" / "test_some.py").write_text(TESTS)
    verdict = judge(tree, "local", ["tests/test_some.py"])
    assert verdict == Verdict("tests/test_some.py::test_that_fails", "AssertionError: caught")


def test_a_fixture_that_fails_does_not_count(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    case = '<testcase classname="tests.test_some" name="{0}"><{0} message="why"/></testcase>'
    cases = [case.format(outcome) for outcome in ("error", "skipped", "failure")]
    report.write_text(f"<testsuites><testsuite>{''.join(cases[:2])}</testsuite></testsuites>")
    assert first_failure(report) is None
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert first_failure(report) == Verdict("tests/test_some.py::failure", "why")
