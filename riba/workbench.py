"""One handle for a study: network, layer, statistics, data and class names."""

from __future__ import annotations

from dataclasses import dataclass

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
        return load(layer=layer, model=self.model)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities, B×classes."""
        models.check_images(self.model, images)
        return self.model(images).softmax(dim=1)


def load(
    name: str = "scenenet", *, layer: str = models.SCENENET_LAYER, model: nn.Module | None = None
) -> Workbench:
    """The bundled workbench, ready to explain; statistics are fitted once and cached on disk.

    Parameters
    ----------
    name
        ``"scenenet"``, the bundled network on procedural scenes.
    layer
        Where the bottleneck sits; ``features.6``, ``.11`` and ``.14`` have stride 2, 4 and 8.
    model
        A network of the same kind to use in place of the bundled weights.

    Raises
    ------
    ValueError
        Unknown name or layer; the statistics cached for it are of something else.
    FileNotFoundError
        The bundled weights are missing.
    """
    if name != "scenenet":
        raise ValueError(f"no workbench called {name!r}: choose 'scenenet'")
    if model is None:  # in this memory format convolutions are a third faster on a CPU
        model = models.scenenet().to(memory_format=torch.channels_last)
    models.find_layer(model, layer)
    return Workbench(
        model=model,
        layer=layer,
        statistics=scene_statistics(model, layer),
        train=datasets.Scenes("train", 20_000),
        validation=datasets.Scenes("validation", 1000),
        test=datasets.Scenes("test", 1000),
        class_names=scenes.CLASS_NAMES,
        depths=(layer, *_below(model, layer)),
        top=models.SCENENET_TOP,
    )


def _below(model: nn.Module, layer: str) -> list[str]:
    """Those of the default depths that lie below ``layer``."""
    order = models.layer_names(model).index
    return [name for name in models.SCENENET_DEPTHS if order(name) < order(layer)]


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
