"""The pictures of what `make bench` measured, in the language of the tutorial's diagrams."""

import io
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

from bench.results import MEASURES, Results, shown
from tools.pictures import save

# The colours of tools/look.gvpr: what is filled, and its edge.
PRODUCER = ("#b6dbff", "#0a4a8f")
EXCHANGE = ("#ffd98a", "#8a5a00")
QUEUE = ("#ffd0d3", "#a40e26")
CONSUMER = ("#bdebc6", "#116329")
DARK, GREY, PANEL, EDGE = "#1f2328", "#424a53", "#f3f5f7", "#afb8c1"
WORDS, CODE = "Inter", "JetBrains Mono"

# In points, of which a picture has as many as a README is pixels wide; two pixels make one.
WIDTH, ROW, TITLE, GAP = 840, 44, 40, 14
BARS, LONGEST = 272, 370  # where they begin, and the longest
# Names that stand in a program, and not in a sentence.
PROGRAM = re.compile(r"[\w/]+\.py|direct|topic|headers")


class Panel(NamedTuple):
    """A measure in a picture, and the colours of what it is about."""

    measure: str
    colours: tuple[str, str]


#: Each picture's file, and its panels from top to bottom.
PICTURES = {
    "sending.png": (Panel("sending", PRODUCER), Panel("persistence", QUEUE)),
    "working.png": (Panel("working", CONSUMER), Panel("prefetch", CONSUMER)),
    "routing.png": (Panel("routing", EXCHANGE),),
    "queues.png": (Panel("queue_types", QUEUE), Panel("queue_types_in_flight", QUEUE)),
}


def height(panel: Panel, results: Results) -> int:
    """Return how high a panel is."""
    return TITLE + ROW * len(results.samples[panel.measure]) + 8


def draw_panel(axes: Axes, panel: Panel, results: Results, top: int) -> None:
    """Draw a bar for each variant, as long as its median, and a line from the least to the most."""
    what, variants = MEASURES[panel.measure], list(results.samples[panel.measure])
    inner = (GAP + 6, top + 6), WIDTH - 2 * GAP - 12, height(panel, results) - 12
    rounded = FancyBboxPatch(*inner, boxstyle="round,pad=6", facecolor=PANEL, edgecolor=EDGE)
    axes.add_patch(rounded)
    axes.text(2 * GAP, top + 22, what.title, color=DARK, fontsize=14)
    axes.text(WIDTH - 2 * GAP, top + 22, what.unit, color=GREY, fontsize=12, ha="right")
    fill, edge = panel.colours
    most = max(results.value(panel.measure, variant).most for variant in variants)
    for row, variant in enumerate(variants):
        middle = top + TITLE + ROW * row + ROW / 2
        value = results.value(panel.measure, variant)
        name, _, note = variant.partition(", ")
        font = CODE if PROGRAM.fullmatch(name) else WORDS
        above = 8 if note else 0
        axes.text(2 * GAP, middle - above, name, color=DARK, fontsize=13, fontfamily=font)
        axes.text(2 * GAP, middle + above, note, color=GREY, fontsize=12)
        scale = LONGEST / most
        bar = Rectangle(
            (BARS, middle - 12), scale * value.median, 24, facecolor=fill, edgecolor=edge, lw=1.5
        )
        axes.add_patch(bar)
        axes.plot([BARS + scale * value.least, BARS + scale * value.most], [middle] * 2, color=edge)
        text = shown(value.median)
        if row:
            text += (
                f"  (\N{MULTIPLICATION SIGN} {shown(results.ratio(panel.measure, variant).median)})"
            )
        axes.text(BARS + scale * value.most + 10, middle, text, color=DARK, fontsize=13)


def picture(panels: tuple[Panel, ...], results: Results) -> Image.Image:
    """Return an image of panels, on white, so that dark pages show it too."""
    panels = tuple(panel for panel in panels if panel.measure in results.samples)
    total = sum(height(panel, results) + GAP for panel in panels) + GAP + 20
    # Fonts that are missing are replaced, with a warning.
    with mpl.rc_context({"font.family": WORDS, "lines.linewidth": 1.5}):
        figure = Figure(figsize=(WIDTH / 72, total / 72), dpi=144, facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(total, 0))
        axes.set_axis_off()
        top = GAP
        for panel in panels:
            draw_panel(axes, panel, results, top)
            top += height(panel, results) + GAP
        legend = f"{results.conditions}; bars are medians, lines go from the least to the most"
        axes.text(2 * GAP, total - 18, legend, color=GREY, fontsize=12)
        for text in axes.texts:
            text.set_verticalalignment("center_baseline")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    return Image.open(drawn)


def draw(results: Results, folder: Path) -> None:
    """Write the pictures to the folder."""
    for name, panels in PICTURES.items():
        save(picture(panels, results), folder / name, digest=results.digest)
