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
WORLDS = {
    "": ("drawn scenes", "scenes", "scenenet"),
    "photos_": ("photographs", "photos", "efficientnet-lite0"),
}
"""Prefix of a world's tables in ``data/``: what its pictures are, in one word, and its network."""
HEADLINE = {
    "iba": "IBA",
    "input-iba": "InputIBA",
    "integrated-gradients": "Integrated Gradients",
    "guided-grad-cam": "Guided Grad-CAM",
    "lrp-epsilon-plus": "LRP (ε, z⁺)",
    "relevance-iba": "**Relevance-IBA**, as published",
    "relevance-iba-detail-separate": "**depths × detail**",
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
"""The published form; depths × detail of joint bottlenecks; and its information without LRP."""
OURS, CONTROL = f"{TOGETHER}-separate", f"{WITHOUT}-separate"
"""A bottleneck by itself at each depth, and the square root of the detail; its information."""
NO_LRP = (
    *("iba", "iba-joint", "iba-depth-2", "iba-depth-3"),
    *("capacity-product", WITHOUT, "capacity-product-separate", CONTROL),
)
"""Maps of a bottleneck's information that nothing was propagated for."""
SMOOTH, FINAL = ", smoothed 8 px", "product × √detail"
AREA, MASS, FAITHFUL = "allocation_area", "mass_accuracy", ("insertion", "deletion")
SIGNIFICANT = 0.01
"""Below this p, after Holm, two methods are said to differ."""


class World:
    """The tables of one kind of picture."""

    def __init__(self, prefix: str) -> None:
        self.name, self.short, self.network = WORLDS[prefix]
        self.summary = pd.read_csv(DATA / f"{prefix}evaluation.csv")
        self.rows = self.summary.set_index(["method", "metric", "mask"])
        table = pd.read_csv(DATA / f"{prefix}comparisons.csv")
        self.compared = table.set_index(["against", "method", "metric", "mask"])
        self.details = pd.read_csv(DETAIL).set_index(["network", "metric", "method"])

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

    def tested(self, form: str, metric: str = "insertion") -> pd.Series:
        """A measure of a form on test pictures; of own detail also less that of another image's."""
        return self.details.loc[(f"{self.network}, test", metric, form)]

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
        f"{world.short}: {name}": [world.number(*of(method)) for method in HEADLINE]
        for world in (scenes, photos)
        for name, of in columns.items()
        if (*of(PLAIN), "banded") in world.rows.index
    }
    lines = [f"| | {' | '.join(table)} |", f"|---|{'---:|' * len(table)}"]
    for label, cells in zip(HEADLINE.values(), zip(*table.values(), strict=True), strict=True):
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(scenes: World, photos: World) -> str:
    """What the evaluation says: a paragraph and a table; words and numbers follow the tables."""

    def gain(row: pd.Series) -> str:
        low, high = row["difference_low"], row["difference_high"]
        return f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"

    def detail(world: World) -> str:
        forms = f"{FINAL} | own detail", f"{FINAL} | white noise", "product"
        own, noise, none = (f"{world.tested(form)['mean']:.3f}" for form in forms)
        gains = "; ".join(gain(world.tested(forms[0], metric)) for metric in FAITHFUL)
        return f"{gains}. It inserts {own}, white noise in its place {noise}, no detail {none}"

    def without_lrp(world: World) -> str:
        best = max(NO_LRP, key=world.mean)
        return f"{world.verdict(OURS, best)}: `{best}`, {world.number(best)}"

    def several(w: World) -> str:
        masses = f"{w.number(OURS, MASS)} against {w.number('iba', MASS)}"
        return f"area {w.verdict(OURS, 'iba')}; mass {w.verdict(OURS, 'iba', MASS)}, {masses}"

    def rivals(world: World) -> str:
        return "; smoothed: ".join(
            listed(world.beaten(PLAIN, RIVALS, suffix)) for suffix in ("", SMOOTH)
        )

    rows: dict[str, Callable[[World], str]] = {
        "**as published**, against IBA at the same layer: area": lambda w: w.verdict(PLAIN, "iba"),
        "it and IBA, both smoothed by 8 pixels: area": lambda w: " and ".join(
            w.number(name + SMOOTH) for name in (PLAIN, "iba")
        ),
        "rivals of the publication that it is ahead of": rivals,
        f"**depths × detail**, `{OURS}`, against IBA": several,
        "it, against the same information without LRP: area": lambda w: w.verdict(OURS, CONTROL),
        "it, against the best map without LRP: area": without_lrp,
        "its **own detail** less another image's (07): insertion; deletion, low is good": detail,
    }
    worlds = (scenes, photos)
    lines = [f"| | {' | '.join(world.name for world in worlds)} |", "|---|---|---|"]
    lines += [f"| {row} | {' | '.join(map(cell, worlds))} |" for row, cell in rows.items()]

    def each(method: str, metric: str) -> str:
        words = [world.verdict(method, "iba", metric).split()[0] for world in worlds]
        if len({*words}) == 1:
            return f"{words[0]} on both"
        return " and ".join(f"{w} on {world.name}" for w, world in zip(words, worlds, strict=True))

    apart = max(abs(world.mean(OURS) - world.mean(CONTROL)) for world in worlds)
    short = (
        f"Against IBA in area, Relevance-IBA as published is {each(PLAIN, AREA)}; *depths × "
        f"detail* is {each(OURS, AREA)}, and in mass on the object {each(OURS, MASS)}. "
        f"The same information without LRP has an area within {apart:.3f} of it."
    )
    advice = (
        f"*Ahead* and *behind*: p < {SIGNIFICANT} in pairs, however small the difference; *level* "
        "says that none was shown, not that there is none. So read *where* from information at "
        "several depths, propagated or not; look at a propagated map both raw and smoothed; and "
        "take no contour for evidence."
    )
    return "\n".join([short, "", *lines, "", advice])


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
    worlds = [World(prefix) for prefix in WORLDS]
    texts = {"verdict": verdict(*worlds), "headline": headline(*worlds)}
    for name, text in texts.items():
        (DATA / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        fill_in(README, name, text)
    tables = [f"## On {world.name}\n\n{results_table(world.summary)}\n" for world in worlds]
    (DATA / "results.md").write_text("\n".join(["# Every method\n", *tables]), encoding="utf-8")


if __name__ == "__main__":
    main()
