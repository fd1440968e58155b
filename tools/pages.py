"""Tables and verdict of the README, written from the committed tables: ``python -m tools.pages``.

Reads ``data/*evaluation.csv``, ``data/*comparisons.csv`` and ``benchmarks/detail.csv``. Writes
``data/verdict.md`` and ``data/headline.md``, which notebooks 06 and 07 show too, puts both into the
README, and writes the tables of all methods to ``data/results.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from riba.compare.evaluation import CONTRAST
from riba.storage import DATA

README = DATA.parent / "README.md"
DETAIL = DATA.parent / "benchmarks" / "detail.csv"
WORLDS = {"": "drawn scenes", "photos_": "photographs"}
"""Prefix of a world's tables in ``data/``, and what its pictures are."""
HEADLINE = {
    "iba": "IBA",
    "input-iba": "InputIBA",
    "integrated-gradients": "Integrated Gradients",
    "guided-grad-cam": "Guided Grad-CAM",
    "lrp-epsilon-plus": "LRP (ε, z⁺)",
    "relevance-iba": "**Relevance-IBA**, as published",
    "relevance-iba-detail-separate": "**several depths**, `relevance-iba-detail-separate`",
    "capacity-product-squared-separate": "the same without LRP",
}
"""Methods of the short table."""
RIVALS = {
    "deeplift": "DeepLIFT",
    "integrated-gradients": "Integrated Gradients",
    "guided-backprop": "Guided-BP",
    "guided-grad-cam": "Guided Grad-CAM",
    "input-iba": "InputIBA",
}
"""What the publication compares with, besides IBA."""
PLAIN, TOGETHER, WITHOUT = "relevance-iba", "relevance-iba-detail", "capacity-product-squared"
"""The published form; that of several depths, found together; and its information without LRP."""
OURS, CONTROL = f"{TOGETHER}-separate", f"{WITHOUT}-separate"
"""A bottleneck by itself at each depth, and the square root of the detail; its information."""
NO_LRP = {
    "iba": "IBA",
    "iba-joint": "the shallowest of joint bottlenecks",
    "iba-depth-2": "IBA at the second depth",
    "iba-depth-3": "IBA at the third depth",
    "capacity-product": "the product of joint capacities",
    WITHOUT: "the product of joint capacities, the shallowest twice",
    "capacity-product-separate": "the product of capacities found at each depth alone",
    CONTROL: "the product of capacities found at each depth alone, the shallowest twice",
}
"""Maps of a bottleneck's information that nothing was propagated for."""
SMOOTH = ", smoothed 8 px"
AREA, MASS = "allocation_area", "mass_accuracy"
SIGNIFICANT = 0.01
"""Below this p, after Holm, two methods are said to differ."""


class World:
    """The tables of one kind of picture."""

    def __init__(self, prefix: str, name: str) -> None:
        self.name = name
        self.summary = pd.read_csv(DATA / f"{prefix}evaluation.csv")
        self.rows = self.summary.set_index(["method", "metric", "mask"])
        table = pd.read_csv(DATA / f"{prefix}comparisons.csv")
        self.compared = table.set_index(["against", "method", "metric", "mask"])

    def mean(self, method: str, metric: str = AREA) -> float:
        """Mean over the world's pictures, border left out."""
        return self.rows.loc[(method, metric, "banded"), "mean"]

    def number(self, method: str, metric: str = AREA) -> str:
        """The mean with two decimals; a dash where it was not measured."""
        measured = (method, metric, "banded") in self.rows.index
        return f"{self.mean(method, metric):.2f}" if measured else "–"

    def lead(self, method: str, over: str, metric: str = AREA) -> float:
        """By how much a method is ahead of another; 0 where that may be luck."""
        row = self.compared.loc[(method, over, metric, "banded")]
        return -row["difference"] if row["p_holm"] < SIGNIFICANT else 0.0

    def verdict(self, method: str, over: str, metric: str = AREA) -> str:
        """``ahead (+0.020)``, ``behind (…)`` or ``level (…)``."""
        lead = self.lead(method, over, metric)
        word = "ahead" if lead > 0 else "behind" if lead < 0 else "level"
        row = self.compared.loc[(method, over, metric, "banded")]
        return f"{word} ({-row['difference']:+.3f})"

    def beaten(self, method: str, rivals: dict[str, str], suffix: str = "") -> list[str]:
        """Names of the rivals that a method is ahead of in area; with a suffix, of their maps so
        treated."""
        return [name for key, name in rivals.items() if self.lead(method, key + suffix) > 0]


def listed(names: list[str]) -> str:
    """``a, b and c``; ``none`` of an empty list."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names) or "none"


def results_table(summary: pd.DataFrame) -> str:
    """The headline numbers of :func:`summarise` as a Markdown table, the best method first.

    Methods are ordered by allocation area, border left out; smoothed maps are not among them.
    """
    summary = summary[~summary["method"].str.contains(", smoothed ")]
    columns = {
        "allocation area": ("allocation_area", "banded"),
        "strict": ("allocation_area", "strict"),
        "rank accuracy": ("rank_accuracy", "banded"),
        "mass accuracy": ("mass_accuracy", "banded"),
        "mass, strict": ("mass_accuracy", "strict"),
        "two-object contrast": (CONTRAST, "banded"),
    }
    entries = {tuple(row[:3]): row for row in summary.itertuples(index=False)}
    order = sorted(
        summary["method"].unique(),
        key=lambda method: -getattr(entries.get((method, "allocation_area", "banded")), "mean", 0),
    )
    lines = [f"| method | {' | '.join(columns)} | scenes |", f"|---|{'---|' * len(columns)}---|"]
    for method in order:
        row = [entries.get((method, *column)) for column in columns.values()]
        cells = [
            "–" if entry is None else f"{entry.mean:.3f} ± {(entry.high - entry.low) / 2:.3f}"
            for entry in row
        ]
        scenes = max((entry.n for entry in row if entry is not None), default=0)
        lines.append(f"| `{method}` | {' | '.join(cells)} | {scenes} |")
    return "\n".join(lines)


def headline(scenes: World, photos: World) -> str:
    """The short table, both worlds; without what was not measured in one of them."""
    columns = {
        "area": lambda method: (method, AREA),
        "smoothed": lambda method: (method + SMOOTH, AREA),
        "mass": lambda method: (method, MASS),
        "contrast": lambda method: (method, CONTRAST),
    }
    table = {
        f"{world.name}: {name}": [world.number(*of(method)) for method in HEADLINE]
        for world in (scenes, photos)
        for name, of in columns.items()
        if (*of(PLAIN), "banded") in world.rows.index
    }
    lines = [f"| | {' | '.join(table)} |", f"|---|{'---|' * len(table)}"]
    for label, cells in zip(HEADLINE.values(), zip(*table.values(), strict=True), strict=True):
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_detail(network: str, layer: str, start: str) -> str:
    """Insertion gained by a map's own detail over another image's, with its interval."""
    table = pd.read_csv(DETAIL).set_index(["network", "metric", "method"])
    row = table.loc[(network, "insertion", f"{start}, z+, from {layer} | own detail")]
    low, high = row["difference_low"], row["difference_high"]
    return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def verdict(scenes: World, photos: World) -> str:
    """What the evaluation says, in five answers: their numbers and words follow the tables."""

    def each(say: Callable[[World], str]) -> str:
        return ", ".join(f"{say(world)} on {world.name}" for world in (scenes, photos))

    def against(method: str, over: str, metric: str = AREA) -> str:
        return each(lambda world: world.verdict(method, over, metric))

    def beaten(suffix: str = "") -> str:
        return each(lambda world: listed(world.beaten(PLAIN, RIVALS, suffix)))

    def without_lrp(world: World) -> str:
        best = max(NO_LRP, key=world.mean)
        ours = f"`{OURS}` is {world.verdict(OURS, best)}"
        return f"{NO_LRP[best]} (`{best}`, {world.number(best)}; {ours})"

    smooth = each(lambda w: f"{w.number(PLAIN + SMOOTH)} and {w.number('iba' + SMOOTH)}")
    on_object = each(lambda w: f"{w.number(OURS, MASS)} against {w.number('iba', MASS)}")
    places = ("scenenet", "features.6"), ("efficientnet-lite0", "blocks.1")
    nats, logit = (
        " and ".join(of_detail(*place, start) for place in places)
        for start in ("nats", "logit × nats")
    )
    answers = {
        "Than IBA at the same layer?": f"In area, the published form is {against(PLAIN, 'iba')}. "
        f"Smoothed by 8 pixels, it and IBA have {smooth}.",
        "Than the publication's other rivals?": f"As they are, it is ahead of {beaten()}; once "
        f"they are smoothed, of {beaten(SMOOTH)}.",
        "With several depths?": f"`{OURS}` is, against IBA, {against(OURS, 'iba')} in area, and "
        f"{against(OURS, 'iba', MASS)} in mass on the object ({on_object}). With bottlenecks "
        f"optimised together (`{TOGETHER}`) it is, in area, {against(TOGETHER, 'iba')}.",
        "Thanks to LRP?": "Against the same information without LRP that form is "
        f"{against(OURS, CONTROL)} (optimised together {against(TOGETHER, WITHOUT)}); the best map "
        f"without LRP is {each(without_lrp)}.",
        "Is the detail the image's own?": "Own less another image's detail, in insertion, on "
        f"validation scenes and photographs: {nats} for the nats that the published form "
        f"propagates, {logit} where the class's relevance times the nats is propagated.",
    }
    lines = [f"- **{question}** {answer}" for question, answer in answers.items()]
    advice = (
        f"*Ahead* and *behind* are sure in pairs (p < {SIGNIFICANT}), as a small difference can be "
        "and a larger one need not. So read *where* from information at several depths, propagated "
        "or not; compare a map that LRP propagated as it is and smoothed; and take no contour for "
        "evidence."
    )
    return "\n".join([*lines, "", advice])


def fill_in(page: Path, mark: str, text: str) -> None:
    """Put a text between the lines ``<!-- mark -->`` and ``<!-- end of mark -->`` of a page.

    Raises
    ------
    ValueError
        The page does not hold each of the two lines once.
    """
    start, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    whole = page.read_text(encoding="utf-8")
    if whole.count(start) != 1 or whole.count(end) != 1:
        raise ValueError(f"{page.name} has no place for the {mark}: put {start} and {end} into it")
    before, rest = whole.split(start)
    page.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    """Write all pages."""
    worlds = [World(*world) for world in WORLDS.items()]
    texts = {"verdict": verdict(*worlds), "headline": headline(*worlds)}
    for name, text in texts.items():
        (DATA / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        fill_in(README, name, text)
    tables = [f"## On {world.name}\n\n{results_table(world.summary)}\n" for world in worlds]
    (DATA / "results.md").write_text("\n".join(["# Every method\n", *tables]), encoding="utf-8")


if __name__ == "__main__":
    main()
