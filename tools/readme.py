"""What README.md is generated from: the scripts, and what they print when they run.

    make readme

has cog put the results of `code`, `transcript` and `bench` where the page asks for them, in
comments that a reader does not see. `make check-readme` compares: what stands there is what a run
gives, or the last full run of `make bench` gave.
"""

import ast
import atexit
import contextlib
import functools
import sys

from bench.results import Results
from testbed.broker import Broker, OwnBroker
from testbed.choice import prepare
from testbed.running import running
from testbed.terminal import REPOSITORY
from tools import demo


def code(script: str, *names: str) -> str:
    """Return functions, classes or methods ("Class.method") of a script, or all of it, fenced.

    Raises:
        LookupError: The script has none of such a name.
    """
    source = (REPOSITORY / script).read_text(encoding="utf-8")
    parts = [definition(source, name) for name in names] or [source.rstrip()]
    return _fence("python", "\n\n\n".join(parts))


def transcript(scene: str) -> str:
    """Play a scene of the tour; return what each of its terminals showed, fenced."""
    with contextlib.redirect_stdout(sys.stderr):  # what is printed is not for the page
        shown = demo.play(getattr(demo, scene), _broker())
    return "".join(
        # A terminal shows Ctrl+C without a new line.
        _fence("console", "\n".join([f"# terminal {terminal}", *lines]).replace("^C\n", "^C"))
        for terminal, lines in sorted(shown.items())
    )


def bench(*measures: str) -> str:
    """Return tables of what `make bench` measured (keys of MEASURES), and of what that ran on."""
    results = Results.read()
    tables = "".join(f"\n{results.table(measure)}\n" for measure in measures)
    return f"{tables}\n*{results.conditions} Medians.*\n"


def _fence(language: str, text: str) -> str:
    return f"\n```{language}\n{text}\n```\n"


def definition(source: str, name: str) -> str:
    """Return the text of that function, class or method ("Class.method") in a source.

    Raises:
        LookupError: There is none of such a name.
    """
    scope: ast.Module | ast.ClassDef | ast.FunctionDef = ast.parse(source)
    for part in name.split("."):
        for node in scope.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part:
                scope = node
                break
        else:
            raise LookupError(name)
    assert not isinstance(scope, ast.Module)
    first = min([scope.lineno, *(decorator.lineno for decorator in scope.decorator_list)])
    return "\n".join(source.splitlines()[first - 1 : scope.end_lineno])


@functools.cache
def _broker() -> Broker:
    # One for the whole page, discarded when cog has done the last of it.
    broker = prepare("auto")
    if not isinstance(broker, OwnBroker):
        sys.exit("the transcripts stop their broker: unset RABBITMQ_URL")
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running(broker))
