"""What `make mutants` has pytest count: a test that runs a script, and that fails.

Tests that run no script do not count, since whoever edits a script would edit a check of its text
along with it; nor does a test that cannot begin, because it alters the very line that was edited.
"""

from collections.abc import Generator

import pytest

from testbed.terminal import replaced

#: The tests that run scripts in their own process, without a broker.
IN_PROCESS = "test_any_input.py"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests that run no script; in each file have those that stop a broker last."""
    fixtures = {item: getattr(item, "fixturenames", ()) for item in items}
    files = list(dict.fromkeys(item.path for item in items))
    # Any other test that runs a script has the broker for it.
    counting = [i for i in items if "broker" in fixtures[i] or i.path.name == IN_PROCESS]
    config.hook.pytest_deselected(items=[item for item in items if item not in counting])
    items[:] = counting
    items.sort(key=lambda item: (files.index(item.path), "own_broker" in fixtures[item]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have a test that misses the text it alters neither pass nor fail, so that others go on."""
    report = yield
    if call.excinfo and call.excinfo.traceback[-1].name == replaced.__name__:
        report.outcome = "skipped"
        report.wasxfail = "what it alters was edited"
    return report
