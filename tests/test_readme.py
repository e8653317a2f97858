"""The text and the proofs say the same; `make check-readme` compares it with the scripts."""

import re
from pathlib import Path

from tests.terminal import REPOSITORY

# The pages outside that the text builds on, and no other.
OUTSIDE = {
    "https://www.rabbitmq.com/tutorials/tutorial-one-python",
    "https://www.rabbitmq.com/docs/confirms",
    "https://www.rabbitmq.com/docs/queues",
}

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROOFS = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "tests").glob("test_*.py"))
)


def test_each_statement_has_its_proof_and_each_proof_its_statement() -> None:
    told = re.findall(r"<!-- claim: ([\w-]+) -->", README)
    marks = re.findall(r"@pytest\.mark\.claim\(([^)]*)\)", PROOFS)
    proved = [claim for mark in marks for claim in re.findall(r'"([\w-]+)"', mark)]
    assert told
    assert len(told) == len(set(told))
    assert sorted(told) == sorted(proved)


def test_no_code_and_no_transcript_was_written_by_hand() -> None:
    generated = re.compile(r"(?<=\]\]\] -->\n).*?(?=<!-- \[\[\[end\]\]\] -->)", re.DOTALL)
    assert len(generated.findall(README)) == README.count("[[[cog")
    assert re.findall(r"```(?:python|console)", generated.sub("", README)) == []


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    }
    dead = [
        link
        for link in links
        if not (
            link in OUTSIDE
            or (link.startswith("#") and link[1:] in headings)
            or Path(REPOSITORY / link).is_file()
        )
    ]
    assert set(links) >= OUTSIDE
    assert dead == []
