"""Wrong edits of the scripts, such as a colleague might make: a test has to catch each of them.

    make mutants
    make mutants ARGS="--broker=local -k prefetch"

tools/mutants.toml lists them. Each is made in a copy of the repository, and the suite runs there
until a test fails, twice in a row: first the tests of that part and those of all scripts, then the
rest. tools/mutants_plugin.py says which tests count. In the end the tests that failed have to pass
on the scripts as they are.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from testbed.choice import KINDS
from testbed.running import interruptible, parser_with_broker
from testbed.terminal import REPOSITORY, replaced

# The files of the tests that hold for several scripts, the quickest first.
OF_ALL_SCRIPTS = ["test_any_input", "test_scripts", "test_stopping"]

# Suites mostly wait, and have a broker each, so that two at a time do not disturb each other.
AT_A_TIME = 2


@dataclass(frozen=True)
class Mutant:
    """A wrong edit: its name, the scripts that are edited, and what replaces what in each."""

    name: str
    scripts: Sequence[str]
    edits: Sequence[tuple[str, str]]

    def edited(self, folder: Path) -> dict[str, str]:
        """Return the text of each script, edited, as it is in a repository's folder."""
        return {
            script: replaced((folder / script).read_text(encoding="utf-8"), *self.edits)
            for script in self.scripts
        }


def listed() -> list[Mutant]:
    """Return the mutants that tools/mutants.toml has."""
    text = (REPOSITORY / "tools" / "mutants.toml").read_text(encoding="utf-8")
    return [
        Mutant(
            f"{Path(scripts).stem}: {name}",
            scripts.split(),
            list(zip(texts[::2], texts[1::2], strict=True)),
        )
        for scripts, mutants in tomllib.loads(text).items()
        for name, texts in mutants.items()
    ]


@dataclass(frozen=True)
class Verdict:
    """What a run of the suite showed: the test that failed, if one did, and why, or what else."""

    test: str | None
    reason: str


ALL_PASSED = Verdict(None, "all tests passed")


def judge(tree: Path, broker: str, tests: Iterable[str]) -> Verdict:
    """Run the tests below `tree` until one fails, on a broker of that kind."""
    # Many a mutant shows by a wait in vain. pika may take 12 s to see that heartbeats are missing.
    environment = {**os.environ, "TESTBED_PATIENCE": "20"}
    # Tests that stop a broker, which catch what no other does, skip one that was only named.
    environment.pop("RABBITMQ_URL", None)
    # On a busy machine a test may fail for lack of time, or catch by luck: it has to fail twice.
    # With -vv the summary says why it failed in full.
    options = "-x -rf -vv --reruns=1 -p pytest_rerunfailures -p tools.mutants_plugin"
    # By default the second time has no limit, and what hangs would hang for ever.
    options += " -o timeout_func_only=true"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), f"--broker={broker}", *tests],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        process_group=0,  # Ctrl+C is for this program, which ends its suites
    )
    if done.returncode == pytest.ExitCode.OK:
        return ALL_PASSED
    # Of a test whose fixture fails the summary says ERROR.
    if failed := re.findall(r"(?m)^FAILED (.+?)(?: - (.*))?$", done.stdout):
        return Verdict(*failed[-1])
    return Verdict(None, f"no test failed: {done.stdout.strip().splitlines()[-1]}")


def copy(folder: Path, tree: Path) -> None:
    """Copy what the suite needs from a repository's folder to the new folder `tree`."""
    shutil.copytree(folder, tree, ignore=shutil.ignore_patterns(".*", "__pycache__"))


def files_for(mutant: Mutant, tree: Path) -> list[str]:
    """Return the suite's files: that of the mutant's part, those of all scripts, the rest."""
    first = [f"test_{Path(script).parent.name}" for script in mutant.scripts] + OF_ALL_SCRIPTS
    files = [path.relative_to(tree) for path in tree.glob("tests/test_*.py")]
    files.sort(key=lambda file: ([*first, file.stem].index(file.stem), file))
    return [str(file) for file in files]


def survivors_of(mutants: list[Mutant], broker: str) -> list[Mutant]:
    """Try the mutants, and print for each which test caught it; return those that none caught."""
    survivors: list[Mutant] = []
    catching: set[str] = set()
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as folder,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        unedited = Path(folder) / "unedited"

        def run(mutant: Mutant) -> tuple[Verdict, float]:
            tree = Path(folder) / mutant.name
            copy(unedited, tree)
            for script, text in mutant.edited(unedited).items():
                (tree / script).write_text(text, encoding="utf-8")
            began = time.monotonic()
            return judge(tree, broker, files_for(mutant, tree)), time.monotonic() - began

        try:
            copy(REPOSITORY, unedited)  # once: somebody may go on working there
            for mutant, (verdict, took) in zip(mutants, pool.map(run, mutants), strict=True):
                if verdict.test:
                    catching.add(verdict.test)
                    what = f"caught by {verdict.test}"
                else:
                    survivors.append(mutant)
                    what = "SURVIVED" if verdict == ALL_PASSED else "NOT CAUGHT"
                print(f"{mutant.name}: {what} ({took:.0f} s): {verdict.reason[:120]}", flush=True)
            verdict = judge(unedited, broker, sorted(catching)) if catching else ALL_PASSED
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for suite in psutil.Process().children():
                suite.send_signal(signal.SIGINT)  # it has a broker to discard
            sys.exit(130)
        if verdict != ALL_PASSED:
            what = f"{verdict.test}: {verdict.reason}"
            sys.exit(f"Nothing is shown, since a test fails without an edit: {what}")
        print(f"\nAll that caught one pass on the unedited scripts ({len(catching)} tests).")
    return survivors


def main() -> None:
    """Try the mutants, or some of them; exit with 1 if one survived."""
    parser = parser_with_broker(__doc__, [kind for kind in KINDS if kind != "url"])
    parser.add_argument("-k", metavar="TEXT", default="", help="only those with it in their names")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in listed() if arguments.k in mutant.name]
    if not chosen:
        parser.error(f"no mutant has {arguments.k!r} in its name")
    with interruptible():
        survivors = survivors_of(chosen, arguments.broker)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were caught.")
    for mutant in survivors:
        print(f"Not caught: {mutant.name}")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
