"""What README.md is generated from: the scripts, and what they print when they run.

    make readme

has cog put the results of `code`, `diff` and `bench`, and what the terminals of tools/session.py
show, where the page asks for them, in comments that a reader does not see. `make check-readme`
compares: what stands there is what a run gives, or the last full run of `make bench` gave.
"""

import ast
import difflib
import re

from bench.results import MEASURES, Results
from testbed.terminal import REPOSITORY


def code(script: str, *names: str) -> str:
    """Return functions, classes or methods ("Class.method") of a script, or all of it, fenced.

    Raises:
        LookupError: The script has none of such a name.
    """
    parts = "\n\n".join(_part(script, name) for name in names or [""])
    return f"```python\n{parts}\n```\n"


def diff(old: str, new: str, name: str = "") -> str:
    """Return what is new in a script, or in a function of it, against another one, fenced.

    Each place is shown with the line before and after it. Docstrings are left out.
    """
    docstring = r'(?m)^ *"""[^"]*(?:"[^"]+)*"""\n'
    before, after = (re.sub(docstring, "", _part(script, name)) for script in (old, new))
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    places = re.split(r"(?m)^@@.*\n", "\n".join(line for line in list(lines)[2:] if line != " "))
    shown = "\n …\n".join(place.rstrip("\n") for place in places if place)
    return f"```diff\n{shown}\n```\n"


def _part(script: str, name: str) -> str:
    """Return the text of that function, class or method ("Class.method"), or of all of a script.

    "with" is the program's own `with` statement, outside of all functions.
    """
    source = (REPOSITORY / script).read_text(encoding="utf-8").rstrip()
    scope: ast.Module | ast.ClassDef | ast.FunctionDef | ast.With = ast.parse(source)
    if not name:
        return source
    for part in name.split("."):
        kinds = ast.ClassDef | ast.FunctionDef | ast.With
        nodes = (node for node in scope.body if isinstance(node, kinds))
        scope = {getattr(node, "name", "with"): node for node in nodes}[part]
    assert not isinstance(scope, ast.Module)
    first = min([scope.lineno, *(each.lineno for each in getattr(scope, "decorator_list", []))])
    return "\n".join(source.splitlines()[first - 1 : scope.end_lineno])


def bench(*measures: str) -> str:
    """Return tables of what `make bench` measured (keys of MEASURES)."""
    results = Results.read()
    return "".join(f"\n{results.table(measure)}\n" for measure in measures) + "\n"


def figure(measure: str, variant: str, of: str = "") -> str:
    """Return how many times the value of another variant one has, as "1.80".

    The other is the measure's first, unless it is named. This and the next three are for the
    middle of a sentence.
    """
    return _rounded(Results.read().ratio(measure, variant, of).median)


def share(measure: str, variant: str, of: str = "", by: int = 1) -> str:
    """Return the same as "82 %", divided by a number of things if it is about each of them."""
    return f"{_rounded(100 * Results.read().ratio(measure, variant, of).median / by)} %"


def rate(measure: str, variant: str) -> str:
    """Return a variant's value with its unit, as "1,500 tasks a second"."""
    unit = MEASURES[measure].unit.partition(",")[0]
    return f"{_rounded(Results.read().value(measure, variant).median)} {unit}"


def measured_on() -> str:
    """Return the versions and the cores that all those are from, as the end of a sentence."""
    return f"{Results.read().conditions}."


# What cog has to put where, of all that it puts into a page, and what stands there.
_MEASURED = re.compile(
    r"(?<=cog cog\.)(outl?)\(((?:bench|figure|share|rate|measured_on)\(.*?\))\) \]\]\] -->\n"
    r"(.*?)(?=^[^\n]*\[\[\[end)",
    re.DOTALL | re.MULTILINE,
)


def measured_calls(page: str) -> list[str]:
    """Return the calls of the above in the text of a page."""
    return [call for _, call, _ in _MEASURED.findall(page)]


def measured_anew(page: str) -> str:
    """Return the text of a page with all that was measured put in again, and nothing else run."""

    def again(match: re.Match[str]) -> str:
        text = str(eval(match[2]))  # noqa: S307 - as cog does
        marker = match[0].removesuffix(match[3])
        return marker + text + ("\n" if match[1] == "outl" else "")

    return _MEASURED.sub(again, page)


def _rounded(value: float) -> str:
    # A first digit of 1 says little, so that a third one is kept behind it.
    rounded = float(f"{value:.{3 if f'{value:e}'[0] == '1' else 2}g}")
    return f"{rounded:,.{0 if rounded >= 10 else 1 if rounded >= 2 else 2}f}"
