"""The pictures of what `make bench` measured.

    python -m bench.charts

draws those of the last full run again.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from bench.results import FILE, MEASURES, NEARLY, Results, shown

# From Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, PLAIN, GREY = "#0072B2", "#E69F00", "#999999", "#555555"
#: Inches.
WIDTH = 8.0


def bars(axes: Axes, results: Results, measure: str) -> None:
    """Draw a bar for each variant, as long as its median, and a line from the least to the most.

    The plain variant is grey.
    """
    values = results.values(measure)
    names = list(values)
    medians = [value.median for value in values.values()]
    below = [value.median - value.least for value in values.values()]
    above = [value.most - value.median for value in values.values()]
    others = [BLUE] * (len(names) - 1)
    axes.barh(
        names,
        medians,
        xerr=(below, above),
        color=[PLAIN, *others],
        ecolor=GREY,
        capsize=3,
        height=0.6,
    )
    for name, value in values.items():
        axes.annotate(
            shown(value.median),
            (value.most, name),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel(f"{MEASURES[measure].unit} (median, least to most)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(MEASURES[measure].title, loc="left")


def scaling(axes: Axes, results: Results, measure: str) -> None:
    """Draw how many times the speed of one several have, beside as many times as they are."""
    ratios = results.ratios(measure)
    numbers = [int(name.split()[0]) for name in ratios]
    medians = [ratio.median for ratio in ratios.values()]
    below = [ratio.median - ratio.least for ratio in ratios.values()]
    above = [ratio.most - ratio.median for ratio in ratios.values()]
    axes.plot(numbers, numbers, color=GREY, linestyle="--", label="N times the speed of one")
    nearly = [NEARLY * number for number in numbers]
    axes.plot(numbers, nearly, color=GREY, linestyle=":", label=f"{NEARLY} of that")
    axes.errorbar(
        numbers, medians, yerr=(below, above), color=BLUE, marker="o", capsize=3, label="measured"
    )
    axes.set_xticks(numbers)
    axes.set_xlabel(f"N, the number of {list(ratios)[-1].split()[1]}")
    axes.set_ylabel("times the speed of one\n(median, least to most)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title(MEASURES[measure].title, loc="left")


def timelines(figure: Figure, results: Results) -> None:
    """Draw for each variant of "dispatch" which worker was busy when, and with what."""
    all_axes = figure.subplots(len(results.timelines), sharex=True)
    colours = {"heavy": ORANGE, "light": BLUE}
    for axes, (variant, tasks) in zip(all_axes, results.timelines.items(), strict=True):
        for task in tasks:
            axes.barh(
                f"worker {task.worker}",
                task.ended - task.began,
                left=task.began,
                color=colours[task.name],
                edgecolor="white",
                height=0.6,
            )
        last = max(task.ended for task in tasks)
        axes.axvline(last, color=GREY, linestyle="--")
        axes.annotate(
            f"all done\nafter {last:.2f} s",
            (last, 0.5),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
        axes.invert_yaxis()
        axes.set_title(f"Dispatch: {variant}", loc="left")
    all_axes[-1].margins(x=0.15)
    all_axes[-1].set_xlim(left=0)
    all_axes[-1].set_xlabel("seconds since the tasks were sent")
    all_axes[0].legend(
        handles=[Patch(color=colour, label=f"{name} task") for name, colour in colours.items()],
        frameon=False,
        ncols=2,
        loc="lower right",
        bbox_to_anchor=(1, 1),
    )


def sending(figure: Figure, results: Results) -> None:
    """Part II: from one channel, and from several producers."""
    one, several = figure.subplots(2)
    bars(one, results, "sending")
    bars(several, results, "producers")


def working(figure: Figure, results: Results) -> None:
    """Part II: how fast workers take tasks without work."""
    bars(figure.subplots(), results, "working")


def workers(figure: Figure, results: Results) -> None:
    """Part II: how much faster more workers are."""
    scaling(figure.subplots(), results, "workers")


def receivers(figure: Figure, results: Results) -> None:
    """Part III: what more receivers cost."""
    bars(figure.subplots(), results, "receivers")


def rpc(figure: Figure, results: Results) -> None:
    """Part VI: calls in flight, and more servers."""
    calls, servers = figure.subplots(2, height_ratios=(1, 2))
    bars(calls, results, "in_flight")
    scaling(servers, results, "servers")


#: Each picture's file, how high it is in inches, and what draws it.
PICTURES: dict[str, tuple[float, Callable[[Figure, Results], None]]] = {
    "sending.png": (5.0, sending),
    "working.png": (3.0, working),
    "workers.png": (4.0, workers),
    "dispatch.png": (4.0, timelines),
    "receivers.png": (2.4, receivers),
    "rpc.png": (6.0, rpc),
}


def draw(results: Results, folder: Path) -> None:
    """Write the pictures to the folder, on white, so that dark pages show them too."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        for name, (height, picture) in PICTURES.items():
            layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
            figure = Figure(figsize=(WIDTH, height), layout=layout, facecolor="white")
            picture(figure, results)
            figure.supxlabel(results.conditions, fontsize=8, color=GREY, x=0.01, ha="left")
            # Without its version a picture of the same figures stays the same.
            figure.savefig(folder / name, dpi=150, metadata={"Software": None})


def main() -> None:
    """Draw the pictures of the last full run."""
    draw(Results.read(), FILE.parent)


if __name__ == "__main__":
    main()
