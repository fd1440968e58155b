"""One handle for a study: network, layer, statistics, data and class names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from riba import datasets, models, scenes
from riba.statistics import FeatureStatistics

REFERENCE_IMAGES = 1000
"""Training scenes that the feature statistics are taken over."""


@dataclass(frozen=True, eq=False)
class Workbench:
    """What every method needs beside the images themselves.

    Attributes
    ----------
    model
        Network in evaluation mode, images (B×3×H×W) to logits (B×classes).
    layer
        Name of the bottleneck layer.
    statistics
        Feature statistics of that layer.
    train, validation, test
        Sequences of :class:`riba.datasets.Sample`.
    class_names
        Name of each class.
    depths
        Layers for methods with several bottlenecks, the deepest (``layer``) first.
    top
        The last layer with maps, for Grad-CAM.
    name
        The network's, as :func:`load` knows it.
    """

    model: nn.Module
    layer: str
    statistics: FeatureStatistics
    train: datasets.Scenes
    validation: datasets.Scenes
    test: datasets.Scenes
    class_names: tuple[str, ...]
    depths: tuple[str, ...]
    top: str
    name: str = "scenenet"

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value a pixel can have, as the network sees it."""
        return (0 - datasets.MEAN) / datasets.STD, (1 - datasets.MEAN) / datasets.STD

    def to_rgb(self, image: Tensor) -> Tensor:
        """Undo the normalisation: 3×H×W as the network sees it to H×W×3 in 0–1."""
        return (image * datasets.STD + datasets.MEAN).clamp(0, 1).movedim(-3, -1)

    def at(self, layer: str) -> Workbench:
        """The same workbench with the bottleneck at another layer.

        Raises
        ------
        ValueError
            No such layer; the message lists near matches.
        """
        return load(self.name, layer=layer, model=self.model)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities, B×classes."""
        models.check_images(self.model, images)
        return self.model(images).softmax(dim=1)


@dataclass(frozen=True)
class Network:
    """A network that :func:`load` knows: how it is built, and where its bottlenecks sit.

    Attributes
    ----------
    build
        From a weights file.
    weights
        The bundled file; None where there is none.
    depths, top
        As in :class:`Workbench`; the first of the depths is the default layer.
    """

    build: Callable[[Path | str], nn.Module]
    weights: Path | None
    depths: tuple[str, ...]
    top: str


NETWORKS = {
    "scenenet": Network(
        models.scenenet, models.SCENENET_WEIGHTS, models.SCENENET_DEPTHS, models.SCENENET_TOP
    ),
    "small-resnet": Network(
        models.small_resnet, None, ("features.5", "features.4", "features.3"), "features.6"
    ),
}
"""Networks of the procedural scenes, by name."""


def load(
    name: str = "scenenet",
    *,
    layer: str | None = None,
    weights: Path | str | None = None,
    model: nn.Module | None = None,
) -> Workbench:
    """The bundled workbench, ready to explain; statistics are fitted once and cached on disk.

    Parameters
    ----------
    name
        ``"scenenet"``, the bundled network on procedural scenes, or ``"small-resnet"``, which
        needs ``weights`` of your own training.
    layer
        Where the bottleneck sits; scenenet's ``features.6``, ``.9``, ``.11`` and ``.14`` have
        stride 2, 4, 4 and 8.
    weights
        A ``.safetensors`` file in place of the bundled one.
    model
        A network of the same kind to use as it is.

    Raises
    ------
    ValueError
        Unknown name or layer, or a network that is not bundled and no weights; the statistics
        cached for it are of something else.
    FileNotFoundError
        The weights are missing.
    """
    if name not in NETWORKS:
        raise ValueError(f"no workbench called {name!r}: choose one of {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    if model is None:  # in this memory format convolutions are a third faster on a CPU
        weights = weights or network.weights
        if weights is None:
            raise ValueError(
                f"{name} is not bundled: train it (`python -m riba.training {name} --out FILE`) "
                "and pass weights=FILE"
            )
        model = network.build(weights).to(memory_format=torch.channels_last)
    layer = network.depths[0] if layer is None else layer
    models.find_layer(model, layer)
    return Workbench(
        model=model,
        layer=layer,
        statistics=scene_statistics(model, layer),
        train=datasets.Scenes("train", 20_000),
        validation=datasets.Scenes("validation", 1000),
        test=datasets.Scenes("test", 1000),
        class_names=scenes.CLASS_NAMES,
        depths=(layer, *_below(model, layer, network.depths)),
        top=network.top,
        name=name,
    )


def _below(model: nn.Module, layer: str, depths: tuple[str, ...]) -> list[str]:
    """Those of ``depths`` that lie below ``layer``."""
    order = models.layer_names(model).index
    return [name for name in depths if order(name) < order(layer)]


def scene_statistics(model: nn.Module, layer: str) -> FeatureStatistics:
    """Statistics of ``layer`` over the first training scenes, from the cache where it has them."""
    dataset = f"scenes-train-{datasets.drawing_code()}"
    return FeatureStatistics.cached(
        model, layer, reference_images, dataset=dataset, count=REFERENCE_IMAGES, size=scenes.SIZE
    )


def reference_images() -> list[Tensor]:
    """The reference scenes as batches of network input."""
    pictures = datasets.drawn("train", REFERENCE_IMAGES).images
    batches = [pictures[row : row + 100] for row in range(0, len(pictures), 100)]
    return [torch.stack([datasets.normalise(p) for p in rows]) for rows in batches]
