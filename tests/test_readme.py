"""The text and the proofs say the same; `make check-readme` compares it with the scripts."""

import re
from pathlib import Path

from testbed.broker import EXCHANGES, QUEUES
from testbed.terminal import REPOSITORY
from tools.pictures import SOURCES, carried, digest

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


SCREENSHOT = "part_2/management.png"
PICTURES = {
    "part_1/legend.png",
    "part_1/overallDesign.png",
    "part_2/acknowledgements.png",
    "part_2/overallDesign.png",
    "part_2/dispatches.png",
    SCREENSHOT,
    "part_3/overallDesign.png",
    "part_3/Bindings.png",
    "part_4/overallDesign.png",
    "part_5/overallDesign.png",
    "part_6/Summary.png",
}


def test_every_picture_is_shown_once_with_a_text_that_says_what_it_shows() -> None:
    there = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("*/*.png")}
    shown = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert there > PICTURES  # and those of the benchmark
    assert sorted(picture for _, picture in shown) == sorted(there)
    assert [picture for text, picture in shown if len(text.split()) < 10] == []


def test_no_picture_is_older_than_its_source() -> None:
    drawn = {source.with_suffix(".png"): digest(source) for source in SOURCES}
    assert {str(path.relative_to(REPOSITORY)) for path in drawn} == PICTURES - {SCREENSHOT}
    old = [str(path) for path, current in drawn.items() if carried(path, "digest") != current]
    assert old == [], "make pictures draws them anew"


def test_the_pictures_use_the_real_names() -> None:
    node = re.compile(r'class=(producer|consumer|exchange|queue), label="((?:\\.|[^"])+)"')
    others = re.compile(r'\\"\\"|amq\.gen-\w+…|Q[12]')  # RabbitMQ's own, and the text's examples
    for source in SOURCES:
        nodes = node.findall(source.read_text(encoding="utf-8"))
        assert nodes
        for kind, label in nodes:
            name = label.partition("|")[0]  # arguments of a script stand on a line of their own
            if source.stem == "legend":
                assert name == kind
            elif kind in ("producer", "consumer"):
                assert source.with_name(name).is_file()
            elif not others.fullmatch(name):
                assert name in {"exchange": EXCHANGES, "queue": QUEUES}[kind]


def test_the_screenshot_says_which_version_it_shows() -> None:
    caption = re.search(rf"\({re.escape(SCREENSHOT)}\)\n\n\*.*RabbitMQ ([\d.]+)\.\*", README)
    assert caption
    assert caption[1] == carried(REPOSITORY / SCREENSHOT, "RabbitMQ")
    assert f"RabbitMQ {caption[1]}" in (carried(REPOSITORY / SCREENSHOT, "Comment") or "")
