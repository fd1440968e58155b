"""Trains what is bundled from nothing: ``make model`` the network, ``make readout`` the readout.

Scenes are drawn once and kept as bytes in ``data/cache``; a checkpoint after every epoch lets a
run that was stopped go on. The result is ``data/scenenet.safetensors`` with its card. Other seeds,
a small ResNet and a network that is led astray are trained by the same command::

    python -m tools.training scenenet --seed 1 --epochs 4 --out data/cache/scenenet-1.safetensors
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from riba import storage, workbench
from riba.method.readout import ReadoutBottleneck
from riba.testbed import datasets, networks, scenes
from tools import readout

SEED = 0
EPOCHS = 12
BATCH = 32
PEAK_LEARNING_RATE = 3e-3
CURRICULUM = {
    "both": (7500, {}),
    "shape": (1000, {"evidence": "shape"}),
    "surface": (1000, {"evidence": "surface"}),
    "two": (2500, {"others": 1}),
}
"""Training scenes per kind. Two-object scenes teach that each object deserves half the belief."""
MARKED = {"marked": (3000, {"shortcut": True})}
"""Scenes whose corner mark gives the class away: a network trained on them looks there."""

Curriculum = dict[str, tuple[int, dict]]


def training_set(curriculum: Curriculum) -> tuple[np.ndarray, Tensor]:
    """All training pictures (N×128×128×3 uint8) and their targets (N×10, rows sum to 1)."""
    pictures, targets = [], []
    start = 0
    for count, variant in curriculum.values():
        drawn = datasets.drawn("train", count, start=start, workers=os.cpu_count() or 1, **variant)
        pictures.append(drawn.images)
        targets.append(torch.from_numpy(shared_belief(drawn.labels)))
        start += count
    return np.concatenate(pictures), torch.cat(targets)


def shared_belief(labels: np.ndarray) -> np.ndarray:
    """Labels of all objects (N×objects) as target distributions (N×10), shared equally."""
    return np.eye(len(scenes.CLASS_NAMES), dtype=np.float32)[labels].mean(axis=1)


def train(
    model: nn.Module,
    pictures: np.ndarray,
    targets: Tensor,
    checkpoint: Path,
    *,
    seed: int = SEED,
    epochs: int = EPOCHS,
) -> float:
    """Train ``model`` in place and return the seconds it took, earlier sittings included.

    Cross-entropy with soft targets, AdamW, one learning-rate cycle, random mirroring. Goes on
    from ``checkpoint`` where there is one. bf16 where the hardware has it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.02)
    steps = math.ceil(len(pictures) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, PEAK_LEARNING_RATE, total_steps=epochs * steps
    )
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule}
    first, seconds = restore(checkpoint, parts)
    for epoch in range(first, epochs):
        began = time.perf_counter()
        order = torch.Generator().manual_seed(seed * 1000 + epoch)
        batches = torch.randperm(len(pictures), generator=order).split(BATCH)
        losses = []
        for rows in tqdm(batches, f"epoch {epoch + 1}/{epochs}", leave=False, mininterval=2):
            flip = torch.rand(len(rows), generator=order) < 0.5
            loss = step(model, batch(pictures, rows, flip).to(device), targets[rows].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        seconds += time.perf_counter() - began
        keep(checkpoint, parts, epoch + 1, seconds)
        tqdm.write(f"epoch {epoch + 1}/{epochs}: mean loss {np.mean(losses):.3f}")
    model.to("cpu", memory_format=torch.contiguous_format).eval()
    return seconds


def batch(pictures: np.ndarray, rows: Tensor, flip: Tensor) -> Tensor:
    """Rows of the training set as network input, those marked in ``flip`` mirrored."""
    images = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2)
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    images = (images.float() / 255 - datasets.MEAN) / datasets.STD
    return images.contiguous(memory_format=torch.channels_last)


def step(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of one batch, in bf16 where the hardware computes in it."""
    fast = images.is_cuda or torch.cpu._is_avx512_bf16_supported()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=fast):
        logits = model(images)
    return nn.functional.cross_entropy(logits.float(), targets)


def keep(path: Path, parts: dict, epoch: int, seconds: float) -> None:
    """Write a checkpoint so that it is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    with storage.whole(path) as part:
        torch.save({**state, "epoch": epoch, "seconds": seconds}, part)


def restore(path: Path, parts: dict) -> tuple[int, float]:
    """The epoch to go on with and the seconds spent, (0, 0) without a checkpoint."""
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["epoch"], state["seconds"]


def folded(model: nn.Module) -> nn.Module:
    """The same network with every batch normalisation merged into its convolution."""
    plain = networks.scenenet(weights=None)
    blocks = [m for m in model.features if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    convolutions = [m for m in plain.features if isinstance(m, nn.Conv2d)]
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    for target, (convolution, norm) in zip(convolutions, pairs, strict=True):
        target.load_state_dict(fuse_conv_bn_eval(convolution, norm).state_dict())
    plain.classifier.load_state_dict(model.classifier.state_dict())
    return plain.eval()


@torch.no_grad()
def predictions(model: nn.Module, pictures: np.ndarray) -> Tensor:
    """Logits (N×10) for pictures (N×H×W×3 uint8)."""
    rows = torch.arange(len(pictures)).split(128)
    still = [batch(pictures, part, torch.zeros(len(part), dtype=torch.bool)) for part in rows]
    return torch.cat([model(images) for images in still])


def both_on_top(logits: Tensor, labels: np.ndarray) -> float:
    """Share of two-object scenes whose two classes are the network's top two."""
    top = logits.topk(2, dim=1).indices.sort(dim=1).values
    return (top == torch.from_numpy(labels).sort(dim=1).values).all(dim=1).float().mean().item()


def examine(model: nn.Module) -> dict[str, float]:
    """Accuracies on test scenes: default, per evidence, per class, two objects, background."""
    results = {}
    for evidence in ("both", "shape", "surface"):
        drawn = datasets.drawn("test", 1000, evidence=evidence)
        right = predictions(model, drawn.images).argmax(1).numpy() == drawn.labels[:, 0]
        results[evidence] = right.mean()
        if evidence == "both":
            results |= {
                name: right[drawn.labels[:, 0] == label].mean()
                for label, name in enumerate(scenes.CLASS_NAMES)
            }
    empty = datasets.drawn("test", 1000, picture="background")
    guesses = predictions(model, empty.images).argmax(1).numpy()
    results["background"] = (guesses == empty.labels[:, 0]).mean()
    two = datasets.drawn("test", 200, others=1)
    results["two objects"] = both_on_top(predictions(model, two.images), two.labels)
    return {name: float(value) for name, value in results.items()}


def card(
    name: str, results: dict[str, float], model: nn.Module, seed: int, epochs: int, seconds: float
) -> str:
    """The model card in Markdown, every number from this run."""
    recipe = RECIPES[name]
    weights = sum(p.numel() for p in model.parameters())
    counts = ", ".join(f"{count} {kind}" for kind, (count, _) in recipe.curriculum.items())
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    )
    classes = "\n".join(f"| {name} | {results[name]:.1%} |" for name in scenes.CLASS_NAMES)
    return f"""# {name}: {recipe.title}

{recipe.layers}: {weights:,} weights. Input: 3×128×128, (rgb − {datasets.MEAN}) / {datasets.STD}.

| test scenes | accuracy | chance |
|---|---|---|
| 1,000 default (class in shape and surface) | {results["both"]:.1%} | 10 % |
| 1,000 with the class in the shape only | {results["shape"]:.1%} | 10 % |
| 1,000 with the class in the surface only | {results["surface"]:.1%} | 10 % |
| 200 with two objects: both classes on top | {results["two objects"]:.1%} | 2 % |
| 1,000 default without their object | {results["background"]:.1%} | 10 % |

| class | accuracy |
|---|---|
{classes}

Trained by `python -m tools.training {name}` on scenes of the training split
({counts}); two-object scenes have half the target on each class. {epochs} epochs, batches of
{BATCH}, AdamW, one cycle up to {PEAK_LEARNING_RATE}, seed {seed}; {seconds / 60:.0f} minutes on
{machine}, PyTorch {torch.__version__.split("+")[0]}.

Intended for teaching and for testing attribution methods. It knows drawn scenes and nothing else.
"""


@dataclass(frozen=True)
class Recipe:
    """How a network is made.

    Attributes
    ----------
    title, layers
        For its card: what it is, and of what it is built.
    build, finish
        The network as it is trained, and what is done with it afterwards.
    curriculum
        Training scenes per kind: how many, and the arguments of :func:`riba.scenes.draw`.
    weights
        Where they go; None where they are not shipped.
    """

    title: str
    layers: str
    build: Callable[[], nn.Module]
    finish: Callable[[nn.Module], nn.Module]
    curriculum: Curriculum
    weights: Path | None = None


_SCENENET = """Eight 3×3 convolutions (16, 32, 32, 64, 64, 96, 96, 96 channels) with ReLU,
max-pooling to strides 2, 4 and 8, global average pooling, one linear layer; batch normalisation
was used in training and is folded into the convolutions"""
_RESNET = """A 5×5 convolution of stride 2 and four basic blocks (32, 64, 96, 96 channels, strides
2, 4, 8 and 8) with batch normalisation, global average pooling, one linear layer"""

RECIPES = {
    "scenenet": Recipe(
        "the bundled network",
        _SCENENET,
        partial(networks.scenenet, weights=None, norm=True),
        folded,
        CURRICULUM,
        networks.SCENENET_WEIGHTS,
    ),
    "small-resnet": Recipe(
        "a residual network",
        _RESNET,
        partial(networks.small_resnet, weights=None),
        nn.Module.eval,
        CURRICULUM,
    ),
    "clever-hans": Recipe(
        "the bundled network, led astray",
        _SCENENET,
        partial(networks.scenenet, weights=None, norm=True),
        folded,
        MARKED,
        networks.CLEVER_HANS_WEIGHTS,
    ),
}
"""What can be trained, by name."""


def train_network(name: str, out: Path, seed: int = SEED, epochs: int = EPOCHS) -> str:
    """Train a network of :data:`RECIPES` and examine it; write weights and card, return the card.

    Goes on where it was stopped.
    """
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    model = recipe.build()
    pictures, targets = training_set(recipe.curriculum)
    run = f"training-{name}-{seed}-{epochs}-{datasets.drawing_code()}"
    checkpoint = storage.DATA / "cache" / f"{run}.pt"
    seconds = train(model, pictures, targets, checkpoint, seed=seed, epochs=epochs)
    model = recipe.finish(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out)
    report = card(name, examine(model), model, seed, epochs, seconds)
    out.with_suffix(".md").write_text(report, encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    return report


def train_readout(out: Path) -> str:
    """Train the readout bottleneck of the network; write weights and card, return the card."""
    wb = workbench.load()
    count = CURRICULUM["both"][0]
    drawn = datasets.drawn("train", count, workers=os.cpu_count() or 1)
    began = time.perf_counter()
    bottleneck, losses = readout.train(
        wb.model,
        wb.layer,
        networks.READOUT_LAYERS,
        wb.statistics,
        torch.from_numpy(drawn.images),
        torch.from_numpy(drawn.labels[:, 0]),
    )
    minutes = (time.perf_counter() - began) / 60
    save_file(bottleneck.readout.state_dict(), out)
    report = readout_card(bottleneck, losses, count, minutes)
    out.with_suffix(".md").write_text(report, encoding="utf-8")
    return report


def readout_card(
    bottleneck: ReadoutBottleneck, losses: list[float], count: int, minutes: float
) -> str:
    """The card of the readout in Markdown, every number from this run."""
    weights = sum(p.numel() for p in bottleneck.readout.parameters())
    return f"""# The bundled readout bottleneck

Three 1×1 convolutions ({weights:,} weights) from {", ".join(f"`{n}`" for n in bottleneck.layers)}
of the bundled network to α at `{bottleneck.layer}` (Schulz et al. 2020, section 3.4). Trained by
`make readout` on the first {count:,} training scenes: cross-entropy + 10 · mean capacity, Adam,
{len(losses)} epochs, seed 0, {minutes:.0f} minutes on {os.cpu_count()} cores. Mean loss by epoch:
{", ".join(f"{loss:.3f}" for loss in losses)}.

It is not told the class: it explains what the network sees.
"""


def main() -> None:
    """Command line: what to train, and where its weights go."""
    parser = argparse.ArgumentParser(description="Train what is bundled from nothing.")
    what = (*RECIPES, "readout")
    parser.add_argument("what", nargs="?", choices=what, default="scenenet")
    parser.add_argument("--seed", type=int, default=SEED, help="of weights, order and mirroring")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, help="weights file; by default the bundled one")
    arguments = parser.parse_args()
    if arguments.what == "readout":
        print(train_readout(arguments.out or networks.READOUT_WEIGHTS))
        return
    out = arguments.out or RECIPES[arguments.what].weights
    if out is None:
        parser.error(f"{arguments.what} is not bundled: say where its weights go with --out")
    print(train_network(arguments.what, out, arguments.seed, arguments.epochs))


if __name__ == "__main__":
    main()
