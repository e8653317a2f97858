"""What the pages say is proved, and what is proved is told. `make check-readme` does the rest."""

import re
from pathlib import Path

import pytest

from testbed.broker import EXCHANGES, QUEUES
from testbed.terminal import REPOSITORY
from tools.pictures import SOURCES, carried, digest

# What a reader is led to, from the README on.
PAGES = {
    page: (REPOSITORY / page).read_text(encoding="utf-8")
    for page in ("README.md", "bench/README.md", "cluster/README.md", "recipes/README.md")
}
README = PAGES["README.md"]
PROOFS = "\n".join(
    path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "tests").glob("test_*.py"))
)

# The sites outside that the text builds on, and no other. Nobody can reach them from a test.
OUTSIDE = (
    "https://www.rabbitmq.com/",
    "http://localhost:15672/",  # the management page
    # Libraries that one may take instead of a recipe.
    "https://docs.celeryq.dev/",
    "https://dramatiq.io/",
    "https://docs.aio-pika.com/",
    "https://faststream.ag2.ai/",
)


def test_each_statement_has_its_proof_and_each_proof_its_statement() -> None:
    told = re.findall(r"<!-- claim: ([\w-]+) -->", "\n".join(PAGES.values()))
    marks = re.findall(r"@pytest\.mark\.claim\(([^)]*)\)", PROOFS)
    proved = [claim for mark in marks for claim in re.findall(r'"([\w-]+)"', mark)]
    assert told
    assert len(told) == len(set(told))
    assert set(told) - set(proved) == set(), "told on a page, and proved by no test"
    assert set(proved) - set(told) == set(), "proved by a test, and told on no page"


@pytest.mark.parametrize("page", PAGES)
def test_no_code_and_no_terminal_was_written_by_hand(page: str) -> None:
    text = PAGES[page]
    generated = re.compile(r"(?<=\]\]\] -->\n).*?(?=<!-- \[\[\[end\]\]\] -->)", re.DOTALL)
    assert len(generated.findall(text)) == text.count("[[[cog")
    by_hand = generated.sub("", text)
    assert re.findall(r"```(?:python|console|diff)", by_hand) == []
    # Commands that no check types say why: they are for Docker, say, or for another machine. Those
    # of the recipes are typed by tests/test_recipe_page.py.
    unmarked = re.findall(r"(?<! -->)\n *```\w+\n(?:.*\n)*? *```\n", f"\n{by_hand}")
    assert page == "recipes/README.md" or unmarked == []


def headings(text: str) -> set[str]:
    """Return the names by which a page's headings are linked, as GitHub makes them."""
    return {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    def leads(link: str) -> bool:
        path, _, heading = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        name = str(target.resolve().relative_to(REPOSITORY))
        return target.exists() and (not heading or heading in headings(PAGES[name]))

    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    assert links
    assert [each for each in links if not each.startswith(OUTSIDE) and not leads(each)] == []


def test_a_lesson_is_not_longer_than_one_reads() -> None:
    assert README.count("\n") <= 1200
    assert README[: README.index("$ python part_1/sender.py")].count("\n") < 60


SCREENSHOT = "part_2/management.png"


def test_every_picture_is_shown_once_with_a_text_that_says_what_it_shows() -> None:
    there = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("*/*.png")}
    shown = [
        (text, str(Path(page).parent / picture))
        for page, content in PAGES.items()
        for text, picture in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", content)
    ]
    assert sorted(picture for _, picture in shown) == sorted(there)
    assert [picture for text, picture in shown if len(text.split()) < 10] == []


def test_no_picture_is_older_than_its_source() -> None:
    drawn = {source.with_suffix(".png"): digest(source) for source in SOURCES}
    assert {*drawn, REPOSITORY / SCREENSHOT} == set(REPOSITORY.glob("part_*/*.png"))
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
    caption = re.search(rf"\({re.escape(SCREENSHOT)}\)\n+\*.*RabbitMQ ([\d.]+)\.\*", README)
    assert caption
    assert caption[1] == carried(REPOSITORY / SCREENSHOT, "RabbitMQ")
    assert f"RabbitMQ {caption[1]}" in (carried(REPOSITORY / SCREENSHOT, "Comment") or "")
