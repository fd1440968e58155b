"""How fast the bottleneck is against the published procedure, and how cost and memory grow.

    python -m benchmarks.speed             # a quarter of an hour on an idle machine
    python -m benchmarks.speed growth      # one part alone: procedure, growth, memory or gpu

Writes ``benchmarks/speed.csv`` and, with what the other scripts measured, ``benchmarks/README.md``.
Everything that is compared takes turns in one run. Networks of torchvision have random weights
here: what they compute means nothing, how long it takes does not depend on it.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.models import get_model

import riba
from riba.method import bottleneck, network, relevance
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets, networks
from riba.testbed.networks import torchvision_input

HERE = Path(__file__).parent
TABLE, PAGE = HERE / "speed.csv", HERE / "README.md"
STEPS, SAMPLES, BETA, LR, ALPHA = 10, 10, 10.0, 1.0, 5.0
"""The published settings."""
CASES = {"vgg16": "features.17", "resnet50": "layer2", "scenenet": "features.14"}
"""Networks, and where the bottleneck sits."""
ROUNDS = 2
PAIRED = {"samples": 6, "antithetic": True}
"""Noise in pairs, as good as ten independent copies (``fidelity.csv``): the default."""
HALF = torch.bfloat16
BATCH = 8
TOGETHER = f"{BATCH} images together"
"""A stage: six copies in bf16, seconds for each image."""
BESIDE = ("made once", "LRP descent")
"""Timed with the stages of the procedure, and none of them."""


# --- the published procedure ---------------------------------------------------------------------


def published(
    model: nn.Module,
    layer: str,
    stats: FeatureStatistics,
    image: Tensor,
    target: int,
    noise: Tensor,
    frozen: bool,
) -> Tensor:
    """Capacity (C×h×w) as Schulz et al. (2020) optimise it: the whole network on ten copies.

    Every step runs ten copies of the image through all layers; a hook mixes the noise in, and the
    backward pass reaches every weight and the image's first layer.

    Parameters
    ----------
    noise
        steps×samples×C×h×w.
    frozen
        Without gradients for the weights: the one change by which the next stage is faster.
    """
    model.requires_grad_(not frozen)
    std = stats.std.clamp(min=bottleneck.MIN_STD)
    alpha = torch.full_like(stats.mean, ALPHA).requires_grad_()
    adam = torch.optim.Adam([alpha], lr=LR)
    kept = {}

    def restrict(_module: nn.Module, _inputs: tuple, r: Tensor) -> Tensor:
        lambda_ = bottleneck.smooth(torch.sigmoid(alpha)[None], 1.0)
        lambda_ = lambda_.expand(SAMPLES, -1, -1, -1)
        kept["nats"] = stats.active * bottleneck.capacity(r, stats.mean, std, lambda_)
        mixed = lambda_ * r + (1 - lambda_) * (kept["noise"] * std + stats.mean)
        return mixed * stats.active

    copies = image.expand(SAMPLES, -1, -1, -1)
    targets = torch.full((SAMPLES,), target, device=image.device)
    handle = network.find_layer(model, layer).register_forward_hook(restrict)
    try:
        for draw in noise:
            kept["noise"] = draw
            loss = F.cross_entropy(model(copies), targets) + BETA * kept["nats"].mean()
            adam.zero_grad()
            model.zero_grad()
            loss.backward()
            adam.step()
    finally:
        handle.remove()
        model.requires_grad_(False)
    return kept["nats"].detach().mean(0)


# --- against it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network with an image to explain, and the noise for both procedures."""

    name: str
    model: nn.Module
    layer: str
    stats: FeatureStatistics
    image: Tensor
    target: int
    noise: Tensor


def case(name: str, layer: str) -> Case:
    """Weights of torchvision's networks are random; statistics are of sixteen scenes."""
    pictures = datasets.drawn("train", 16).images
    if name == "scenenet":
        model, prepare = networks.scenenet(), datasets.SCENES
    else:
        torch.manual_seed(0)
        model, prepare = get_model(name).eval(), torchvision_input(name)[0]
    images = torch.stack([prepare.image(picture) for picture in pictures])
    stats = FeatureStatistics.fit(model, layer, images, few=True)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(STEPS, SAMPLES, *stats.mean.shape, generator=draw)
    with torch.no_grad():
        target = model(images[:1]).argmax().item()
    return Case(name, model, layer, stats, images[:1], target, noise)


def ours(given: Case, **settings: object) -> riba.InformationBottleneck:
    """The same as :class:`riba.InformationBottleneck`, which runs the layers above only."""
    settings = {"steps": STEPS, "samples": SAMPLES, "beta": BETA, **settings}
    return riba.InformationBottleneck(given.model, given.layer, given.stats, **settings)


def procedure() -> pd.DataFrame:
    """Seconds of every stage from the published procedure to ours, and how far the maps agree."""
    rows = []
    for name, layer in CASES.items():
        given = case(name, layer)
        given.model.to(memory_format=torch.channels_last)
        stages = stages_of(given)
        timed(stages, rounds=1)  # the first call cuts the network and checks it
        seconds, maps = timed(stages)
        if TOGETHER in seconds:
            seconds[TOGETHER] /= BATCH
        for stage, spent in seconds.items():
            nats = maps["published" if stage in BESIDE else stage]
            agreement = spearmanr(nats.flatten(), maps["published"].flatten())[0]
            rows.append(
                {
                    "part": "procedure",
                    "case": f"{name}, {layer}",
                    "stage": stage,
                    "value": spent,
                    "unit": "s",
                    "ratio": seconds["published"] / spent,
                    "difference": (nats - maps["published"]).abs().max().item(),
                    "rank_correlation": agreement,
                }
            )
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def stages_of(given: Case) -> dict[str, Callable[[], object]]:
    """From the published procedure to ours: each returns the nats of one image, but for
    :data:`BESIDE`."""
    layer = given.layer
    first = given.model, layer, given.stats, given.image, given.target, given.noise
    alone, pairs, half = ours(given), ours(given, **PAIRED), ours(given, precision=HALF)
    both = ours(given, **PAIRED, precision=HALF)
    images, targets = given.image.repeat(BATCH, 1, 1, 1), BATCH * [given.target]
    form = alone.explicit(given.image)
    nats = alone(given.image, [given.target]).nats

    def one(bottle: riba.InformationBottleneck, noise: Tensor | None = None) -> Tensor:
        return bottle(given.image, [given.target], noise).published_nats[0]

    stages = {
        "published": lambda: published(*first, frozen=False),
        "weights frozen": lambda: published(*first, frozen=True),
        "layers above only": lambda: one(alone, given.noise),
        "6 antithetic copies": lambda: one(pairs),
    }
    if has_bf16() or given.name == "scenenet":  # emulated, VGG16 would take twenty minutes
        stages |= {
            "in bf16": lambda: one(half, given.noise),
            "6 copies in bf16": lambda: one(both),
            TOGETHER: lambda: both(images, targets).published_nats[0],
        }
    return stages | {
        "made once": lambda: ours(given).explicit(given.image).ruled(layer, given.image),
        "LRP descent": lambda: relevance.descend(form, layer, given.image, nats),
    }


def timed(
    stages: dict[str, Callable[[], object]], rounds: int = ROUNDS
) -> tuple[dict[str, float], dict[str, object]]:
    """The shortest of the rounds of each stage, taking turns, and what it gave."""
    seconds, maps = {}, {}
    for _ in range(rounds):
        for stage, run in stages.items():
            began = time.perf_counter()
            maps[stage] = run()
            spent = time.perf_counter() - began
            seconds[stage] = min(spent, seconds.get(stage, spent))
    return seconds, maps


# --- growth --------------------------------------------------------------------------------------


def growth() -> pd.DataFrame:
    """Seconds of the bottleneck on the bundled network by images together, samples and size."""
    rows = []

    def add(case: str, stages: dict[str, Callable[[], object]], counts: dict[str, int]) -> None:
        seconds, _ = timed(stages)
        first, *_ = stages
        for stage, spent in seconds.items():
            value = spent / counts.get(stage, 1)
            rows.append(
                {
                    "part": "growth",
                    "case": case,
                    "stage": stage,
                    "value": value,
                    "unit": "s / image",
                    "ratio": value / (seconds[first] / counts.get(first, 1)),
                }
            )
            print(rows[-1], flush=True)

    wb = riba.load()
    images, labels, _ = datasets.stack([wb.validation[index] for index in range(16)])
    method = riba.InformationBottleneck(wb.model, wb.layer, wb.statistics)
    together = {f"{count} images": count for count in (1, 4, 16)}
    stages = {
        name: lambda count=count: method(images[:count], labels[:count])
        for name, count in together.items()
    }
    add("images together", stages, together)
    sampled = {
        f"{samples} copies": lambda samples=samples: riba.InformationBottleneck(
            wb.model, wb.layer, wb.statistics, samples=samples
        )(images[:4], labels[:4])
        for samples in (1, 5, 10, 20)
    }
    add("noisy copies", sampled, dict.fromkeys(sampled, 4))
    sized = {}
    for size in (64, 128, 256):
        large = F.interpolate(images, (size, size), mode="bilinear")
        stats = FeatureStatistics.fit(wb.model, wb.layer, large, few=True)
        bottle = riba.InformationBottleneck(wb.model, wb.layer, stats)
        sized[f"{size} pixels"] = lambda bottle=bottle, large=large: bottle(large[:4], labels[:4])
    add("side of the image", sized, dict.fromkeys(sized, 4))
    return pd.DataFrame(rows)


# --- memory --------------------------------------------------------------------------------------


def memory() -> pd.DataFrame:
    """Most memory at once, each in a process of its own."""
    rows = []
    for count in (50, 500):
        peak = in_its_own_process(evaluation, count)
        rows.append(("evaluation of the bundled network", f"{count} images", peak))
    for stage in ("published", "weights frozen", "layers above only"):
        peak = in_its_own_process(one_map, stage)
        rows.append((f"one map, vgg16, {CASES['vgg16']}", stage, peak))
    table = pd.DataFrame(rows, columns=["case", "stage", "value"])
    first = table.groupby("case")["value"].transform("first")
    return table.assign(part="memory", unit="MB", ratio=table["value"] / first)


def in_its_own_process(work: Callable, argument: object) -> float:
    """Most megabytes that ``work`` took beyond what was there before it.

    Without what the allocator would keep of memory that was freed, which differs from run to run.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # bytes; glibc reads it at a process's start
    with get_context("spawn").Pool(1) as pool:
        peak = pool.apply(work, (argument,))
    print(work.__name__, argument, f"{peak:.0f} MB", flush=True)
    return peak


def evaluation(count: int) -> float:
    """Two methods on so many scenes."""
    wb = riba.load()
    methods = ["lrp-epsilon-plus", "edges"]
    riba.evaluate(wb, methods, datasets.Scenes("validation", 200))  # what is made once
    with Peak() as peak:
        riba.evaluate(wb, methods, datasets.Scenes("test", count))
    return peak.megabytes


def one_map(stage: str) -> float:
    """One map of VGG16 at a stage of the procedure."""
    given = case("vgg16", CASES["vgg16"])
    inputs = given.model, given.layer, given.stats, given.image, given.target, given.noise[:2]
    with Peak() as peak:
        if stage == "layers above only":
            ours(given)(given.image, [given.target], given.noise)
        else:
            published(*inputs, frozen=stage == "weights frozen")
    return peak.megabytes


class Peak:
    """Most memory of this process within the context beyond what it has at its start; on Linux."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_error: object) -> None:
        self.megabytes = self._read("VmHWM") - self.before

    @staticmethod
    def _read(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


# --- on a GPU ------------------------------------------------------------------------------------


def gpu() -> pd.DataFrame:
    """Milliseconds an image on a GPU: the published procedure, and ours for batches."""
    rows = []
    for name in ("vgg16", "resnet50"):
        here = case(name, CASES[name])
        given = Case(name, here.model.cuda(), here.layer, here.stats.to("cuda"),
                     here.image.cuda(), here.target, here.noise.cuda())  # fmt: skip
        first = given.model, given.layer, given.stats, given.image, given.target, given.noise
        stages = {"published": (1, lambda first=first: published(*first, frozen=False))}
        for count in (1, 8, 32):
            for precision, note in ((None, ""), (torch.bfloat16, ", bf16")):
                bottle = ours(given, **PAIRED, precision=precision)
                batch = given.image.expand(count, -1, -1, -1).contiguous()
                targets = [given.target] * count
                stages[f"batch of {count}{note}"] = (
                    count,
                    lambda b=bottle, x=batch, t=targets: b(x, t).nats,
                )
        work = {stage: synchronised(run) for stage, (_, run) in stages.items()}
        timed(work)  # kernels are chosen and memory is taken
        seconds, _ = timed(work)
        each = {stage: 1000 * spent / stages[stage][0] for stage, spent in seconds.items()}
        for stage, spent in each.items():
            ratio = each["published"] / spent
            label = f"{name}, {given.layer}, {torch.cuda.get_device_name()}"
            rows.append(("gpu", label, stage, spent, "ms / image", ratio))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows, columns=["part", "case", "stage", "value", "unit", "ratio"])


def synchronised(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same, done when it returns."""

    def done() -> Tensor:
        result = run()
        torch.cuda.synchronize()
        return result

    return done


# --- the page ------------------------------------------------------------------------------------


def page(table: pd.DataFrame) -> str:
    """``benchmarks/README.md``: what was measured, with the command for each."""
    procedures = table[table["part"] == "procedure"]
    gpu_note = [
        "The ratio on a GPU: how many times faster an image is than by the published procedure on",
        "the same GPU, an image at a time; bf16 is that of the layers above the bottleneck. One",
        "image alone gains nothing there: our noise is drawn on the CPU, so that every device has",
        "the same map, and the network is compared with its explicit form at every call. The",
        "published procedure has its noise drawn beforehand. Measured before weights were rounded",
        "once an optimisation.",
    ]
    emulated = [
        "This processor does not know bf16: it is emulated, slower than float32, and timed on the",
        "small network only.",
    ]
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks.speed`; what is compared took turns in one run.",
        f"Measured with {torch.get_num_threads()} threads on {machine()}, PyTorch "
        f"{torch.__version__.split('+')[0]}, "
        f"{'with' if has_bf16() else 'without'} bf16 in hardware.",
        "",
        "## From the published procedure to ours",
        "",
        "One image, published settings (10 steps, 10 copies, β 10), the same noise for all but the",
        "antithetic copies, which come in pairs ([fidelity.csv](fidelity.csv)). The",
        "published procedure runs the whole network on ten copies at every step, with gradients",
        "for its weights. *Difference* is the largest one of any element's capacity, in nats.",
        f"*{TOGETHER}*: one image {BATCH} times, 6 copies in bf16, in seconds for each.",
        "Torchvision's networks have random weights here.",
        *([] if has_bf16() else emulated),
        "",
        "| network, layer | stage | seconds | times faster | difference | rank correlation |",
        "|---|---|---|---|---|---|",
    ]
    for row in procedures.itertuples():
        against = f"{row.ratio:.1f} | {row.difference:.1e} | {row.rank_correlation:.4f}"
        if row.stage in BESIDE:
            against = " | | "
        lines.append(f"| {row.case} | {row.stage} | {row.value:.2f} | {against} |")
    lines += [
        "",
        "*Made once*: for a network and layer its statistics are checked, it is cut at the layer,",
        "and every step below is given its rule; no other row holds this. The LRP descent is what",
        "Relevance-IBA adds to the bottleneck, once an image:",
    ]
    for name, rows in procedures.groupby("case", sort=False):
        spent = rows.set_index("stage")["value"]
        share = spent["LRP descent"] / (spent["LRP descent"] + spent["layers above only"])
        lines.append(f"{share:.0%} of its time on {name};")
    lines[-1] = lines[-1][:-1] + "."
    memory_note = [
        "Memory is the most at once beyond what was there before the work began, in a process of",
        "its own, without what the allocator keeps of memory that was freed. The evaluation reads",
        "samples when their turn comes, so that its memory does not grow with their number:",
        kept(table),
    ]
    sections = {
        "growth": ("How cost grows", []),
        "memory": ("Memory", ["", *memory_note]),
        "gpu": ("On a GPU", ["", *gpu_note]),
    }
    for part, (title, note) in sections.items():
        if part not in set(table["part"]):
            continue
        lines += ["", f"## {title}", "", "| | | | ratio |", "|---|---|---|---|"]
        lines += [
            f"| {row.case} | {row.stage} | {row.value:.3g} {row.unit} | {row.ratio:.2f} |"
            for row in table[table["part"] == part].itertuples()
        ]
        lines += note
    lines += [
        "",
        "## The other scripts",
        "",
        "| script | what it measures | where |",
        "|---|---|---|",
        f"| `cost.py` | {costs()} | [cost.csv](cost.csv) |",
        f"| `input_iba.py` | {priors()} | [input_iba.csv](input_iba.csv), "
        "[input_iba_speed.csv](input_iba_speed.csv) |",
        "| `study.py` | how the defaults of the joint bottlenecks were chosen, on validation "
        "scenes | [study.csv](study.csv) |",
        f"| `fidelity.py` | {fidelities()} | [fidelity.csv](fidelity.csv), "
        "![cost against fidelity](fidelity.png) |",
        "| `detail.py` | does the detail of a map belong to its image? Ways of propagating beside "
        "the same information without LRP, smoothed maps, and another image's detail; with "
        "`--strengths`, how much of which detail a score should take | "
        "[detail.csv](detail.csv) |",
        "| `trust.py` | the tests of notebook 07 on a hundred scenes and montages, beside the "
        "controls without LRP | [trust.csv](trust.csv) |",
        f"| `seams.py` | {seams()} | [seams.csv](seams.csv) |",
        "| `networks.py` | what holds on other seeds and on a small ResNet | "
        "[networks.csv](networks.csv) |",
        *([] if "gpu" in set(table["part"]) else ["", "On a GPU nothing of this was measured."]),
    ]
    return "\n".join(lines) + "\n"


def kept(table: pd.DataFrame) -> str:
    """How much more many samples took than few, against what they hold themselves."""
    rows = table[table["part"] == "memory"].set_index("stage")["value"]
    more = rows["500 images"] - rows["50 images"]
    sample = datasets.Scenes("test", 1)[0]
    held = 450 * (sample.image.nbytes + sample.mask.nbytes) / 1e6
    return f"450 more took {more:.0f} MB; they hold {held:.0f} MB."


def costs() -> str:
    """The cascade's cost in a sentence."""
    times = pd.read_csv(HERE / "cost.csv").set_index("method")["times_iba"]
    cascade, at_input = times["relevance-iba-cascade"], times["input-iba"]
    return (
        f"methods against plain IBA: the cascade takes {cascade:.1f} times as long, "
        f"InputIBA {at_input:.0f} times"
    )


def priors() -> str:
    """InputIBA against its published objective in a sentence."""
    speed = pd.read_csv(HERE / "input_iba_speed.csv").set_index("prior")["speed_up"]
    agreement = pd.read_csv(HERE / "input_iba.csv").groupby("prior")["rank_correlation"].mean()
    return (
        "InputIBA against the published procedure (its fit, ten copies): "
        f"{speed['moments']:.1f} times faster, without any fit {speed['untouched']:.1f} times; "
        f"rank correlation of the maps {agreement['moments']:.3f} and {agreement['untouched']:.3f}"
    )


def seams() -> str:
    """What the seam of what was pasted does to the maps of montages."""
    table = pd.read_csv(HERE / "seams.csv", index_col="method")
    change = (table["hard"] - table["soft"]).abs().max()
    drawn = table["null"] / table["area of the paste"]
    return (
        f"whether a ranking on {table['n'].iloc[0]} montages hangs on the seam of what was pasted: "
        f"hard edges change no method's allocation area by more than {change:.3f}; a pasted piece "
        f"of *background* holds {drawn['iba']:.1f} times its share of IBA's map, at most "
        f"{drawn.max():.1f} times (`{drawn.idxmax()}`), {drawn['edges']:.1f} times that of *edges*"
    )


def fidelities() -> str:
    """What antithetic copies are worth, in a sentence per case."""
    table = pd.read_csv(HERE / "fidelity.csv")
    table = table[table["steps"] == "default"].set_index(["case", "copies", "antithetic"])
    sentences = []
    for case in dict.fromkeys(table.index.get_level_values("case")):
        copies = (bottleneck.SEVERAL if "joint" in case else bottleneck.Settings()).samples
        ten, pairs = table.loc[(case, 10, False)], table.loc[(case, copies, True)]
        sentences.append(
            f"{case}: {copies} copies in pairs {pairs['correlation_mean']:.4f}, "
            f"{pairs['correlation_worst']:.3f}, ten independent ones "
            f"{ten['correlation_mean']:.4f}, {ten['correlation_worst']:.3f}"
        )
    return "how many noisy copies a map needs: correlation with 200, mean and worst; " + "; ".join(
        sentences
    )


def machine() -> str:
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether this processor computes in bf16 itself."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    return "avx512_bf16" in text or "amx_bf16" in text


PARTS = {"procedure": procedure, "growth": growth, "memory": memory, "gpu": gpu}


def main() -> None:
    """Measure the parts that were asked for; the others stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"by default all: {', '.join(PARTS)}")
    possible = [part for part in PARTS if part != "gpu" or torch.cuda.is_available()]
    asked = parser.parse_args().parts or possible
    for unknown in set(asked) - set(PARTS):
        parser.error(f"no part {unknown!r}: choose from {', '.join(PARTS)}")
    old = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=["part"])
    for part in asked:
        fresh = PARTS[part]()
        old = pd.concat([old[old["part"] != part], fresh], ignore_index=True)
        old.to_csv(TABLE, index=False, float_format="%.4g")
    table = pd.read_csv(TABLE)
    PAGE.write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    main()
