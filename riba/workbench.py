"""One handle for a study: network, layer, statistics, data and class names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from riba.method import network
from riba.method.explicit import Explicit, explicit
from riba.method.statistics import FeatureStatistics
from riba.storage import Memory
from riba.testbed import datasets, networks, photos, scenes, segmentation
from riba.testbed.datasets import Preparation, Sample
from riba.testbed.segmentation import Photos

REFERENCE_IMAGES = 1000
"""Training scenes, or photos, that the feature statistics are taken over."""


@dataclass(frozen=True)
class Reference:
    """Ordinary images, for feature statistics of any layer.

    Attributes
    ----------
    dataset
        What they are called; whatever changes the images changes it.
    size
        Their height and width in pixels.
    count
        How many there are; None: as many as can be read.
    batches
        Gives them as batches (B×3×H×W), when asked.
    """

    dataset: str
    size: int
    count: int | None
    batches: Callable[[], Iterable[Tensor]]

    def statistics(self, model: nn.Module, layer: str) -> FeatureStatistics:
        """From the cache on disk where it has them, else fitted and kept there."""
        return FeatureStatistics.cached(
            model, layer, self.batches, dataset=self.dataset, count=self.count, size=self.size
        )


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
        Feature statistics of that layer; None where there were no images to take them over.
    train, validation, test
        Sequences of :class:`riba.datasets.Sample`.
    class_names
        Name of each class of the network.
    depths
        Layers for methods with several bottlenecks, the deepest (``layer``) first.
    top
        The last layer with maps, for Grad-CAM.
    name
        The network's, as :func:`load` knows it.
    prepare
        How pictures become input of the network.
    reference
        Images to take the statistics of another layer over; None: there are none.
    sets
        Of each label of the data, its classes of the network; empty where it has no counterpart.
        None: the labels are the network's classes.
    label_names
        Name of each label of the data.
    precision
        Of the passes through the network while a bottleneck in it is optimised, such as
        ``torch.bfloat16``; None: that of the weights. InputIBA and the panels do not read it.
    memory
        What was computed for this workbench lately; a workbench made from it has a new one.
    """

    model: nn.Module
    layer: str
    statistics: FeatureStatistics | None
    train: Sequence[Sample]
    validation: Sequence[Sample]
    test: Sequence[Sample]
    class_names: tuple[str, ...]
    depths: tuple[str, ...]
    top: str
    name: str = "scenenet"
    prepare: Preparation = datasets.SCENES
    reference: Reference | None = None
    sets: tuple[tuple[int, ...], ...] | None = None
    label_names: tuple[str, ...] = scenes.CLASS_NAMES
    precision: torch.dtype | None = None
    others: Mapping[str, FeatureStatistics] = field(default_factory=dict)
    memory: Memory = field(init=False, repr=False, default_factory=Memory)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layer: str,
        photos: Photos,
        *,
        reference: Photos | None = None,
        class_names: Sequence[str] | None = None,
        sets: Sequence[Sequence[int]] | None = None,
        depths: Sequence[str] = (),
        top: str | None = None,
        name: str = "",
        precision: torch.dtype | None = None,
    ) -> Workbench:
        """A network of your own, on photos of your own.

        Parameters
        ----------
        model
            Images (B×3×H×W) to logits (B×classes), in evaluation mode.
        layer
            Where the bottleneck sits.
        photos
            To be explained (``wb.test``), with the way they are prepared.
        reference
            Photos for the feature statistics, a thousand or more; by default ``photos``.
        class_names
            Name of each class of the network; by default the photos', where there are as many.
        sets
            As in :class:`Workbench`.
        depths
            Layers for methods with several bottlenecks; those below ``layer`` are taken.
        top
            The last layer with maps; by default ``layer``.

        Raises
        ------
        ValueError
            No such layer, near matches listed; or :meth:`FeatureStatistics.fit` refuses.
        """
        for wanted in (layer, *depths, *filter(None, [top])):
            network.find_layer(model, wanted)
        reference = photos if reference is None else reference
        images = photo_reference(reference) if len(reference) else None
        return cls(
            model=model,
            layer=layer,
            statistics=images and images.statistics(model, layer),
            train=reference,
            validation=reference,
            test=photos,
            class_names=tuple(class_names or _class_names(model, photos)),
            depths=(layer, *_below(model, layer, depths)),
            top=top or layer,
            name=name,
            prepare=photos.prepare,
            reference=images,
            sets=None if sets is None else tuple(map(tuple, sets)),
            label_names=photos.class_names,
            precision=precision,
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return network.device_of(self.model)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value a pixel can have, as the network sees it, each 3×1×1."""
        return tuple(bound.to(self.device) for bound in self.prepare.bounds)

    @property
    def facts(self) -> dict[str, object]:
        """What a folder of results must agree with, as JSON has it: network, layers, statistics."""
        return {
            "model": network.fingerprint(self.model),
            "layer": self.layer,
            "depths": list(self.depths),
            "statistics": self.statistics and [self.statistics.dataset, self.statistics.count],
        }

    def to_rgb(self, image: Tensor) -> Tensor:
        """Undo the normalisation: 3×H×W as the network sees it to H×W×3 in 0–1."""
        return self.prepare.to_rgb(image)

    def to(self, device: torch.device | str) -> Workbench:
        """The same workbench with its network on another device, which moves there."""
        return replace(self, model=self.model.to(device))

    def statistics_at(self, layer: str) -> FeatureStatistics | None:
        """Statistics."""
        if layer == self.layer:
            return self.statistics
        if layer in self.others:
            return self.others[layer]
        return self.memory.once(("statistics", layer), lambda: self.at(layer).statistics)

    def explicit(self, layers: Sequence[str], images: Tensor) -> Explicit:
        """Form."""
        key = ("explicit", tuple(layers), tuple(images.shape[1:]))
        return self.memory.put(key, explicit(self.model, layers, images, self.memory.get(key)))

    def at(self, layer: str) -> Workbench:
        """The same workbench with the bottleneck at another layer.

        Raises
        ------
        ValueError
            No such layer, near matches listed; or there are no images to take statistics over.
        """
        network.find_layer(self.model, layer)
        if self.reference is None:
            raise ValueError(NO_STATISTICS.format(layer))
        known = NETWORKS[self.name].depths if self.name in NETWORKS else self.depths
        return replace(
            self,
            layer=layer,
            statistics=self.reference.statistics(self.model, layer),
            depths=(layer, *_below(self.model, layer, known)),
        )

    def classes(self, label: int) -> tuple[int, ...]:
        """Classes of the network that a label of the data stands for; may be empty."""
        return (label,) if self.sets is None else self.sets[label]

    def targets(self, labels: Sequence[int] | Tensor) -> Tensor:
        """What to explain for labels of the data: B class numbers, or B×classes bool for sets.

        Raises
        ------
        ValueError
            A label has no counterpart among the network's classes.
        """
        if self.sets is None:
            return torch.as_tensor(labels)
        return segmentation.as_targets(
            [self.label_names[label] for label in labels],
            dict(zip(self.label_names, self.sets, strict=True)),
            len(self.class_names),
        )

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities, B×classes, on the device of the images."""
        there = images.to(self.device)
        network.check_images(self.model, there)
        with network.errors_in_words(there):
            return self.model(there).softmax(dim=1).to(images.device)


NO_STATISTICS = (
    "no images to take feature statistics of {} over: load the workbench with data=, "
    "or pass photos to Workbench.of"
)

# --- networks by name ----------------------------------------------------------------------------


Input = tuple[Preparation, tuple[str, ...]]
"""How pictures become input of a network, and the names of its classes."""


def torchvision_input(name: str, weights: Path | str | None = None) -> Input:
    """How pictures become input of a network of torchvision, and the names of its classes.

    Parameters
    ----------
    weights
        Name of published weights; for a file of weights, or None, the first published ones count.

    Raises
    ------
    ValueError
        These weights have no classes: they are of the layers below alone.
    """
    published = {entry.name: entry for entry in get_model_weights(name)}
    chosen = published.get(str(weights), next(iter(published.values())))
    if not chosen.meta.get("categories"):
        raise ValueError(f"{weights} of {name} know no classes: take {next(iter(published))}")
    return Preparation.of(chosen.transforms()), tuple(chosen.meta["categories"])


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
    input
        Of photos, by weights; None: the network takes drawn scenes.
    """

    build: Callable[[Path | str | None], nn.Module]
    weights: Path | None
    depths: tuple[str, ...]
    top: str
    input: Callable[[Path | str | None], Input] | None = None


def _of_torchvision(name: str, depths: Sequence[str], top: str) -> Network:
    build, named = partial(networks.torchvision_network, name), partial(torchvision_input, name)
    return Network(build, None, tuple(depths), top, named)


SCENES = {
    "scenenet": Network(
        networks.scenenet,
        networks.SCENENET_WEIGHTS,
        networks.SCENENET_DEPTHS,
        networks.SCENENET_TOP,
    ),
    "small-resnet": Network(
        networks.small_resnet, None, ("features.5", "features.4", "features.3"), "features.6"
    ),
}
"""Networks of the procedural scenes, by name."""

IMAGENET = {
    name: _of_torchvision(name, (f"features.{conv}", *(f"features.{k}" for k in relus)), top)
    for name, conv, relus, top in (
        ("vgg11", 11, (9, 7, 4), "features.19"),
        ("vgg11_bn", 16, (13, 10, 6), "features.27"),
        ("vgg13", 15, (13, 11, 8), "features.23"),
        ("vgg13_bn", 22, (19, 16, 12), "features.33"),
        ("vgg16", 17, (15, 11, 8), "features.29"),
        ("vgg16_bn", 25, (22, 16, 12), "features.42"),
        ("vgg19", 19, (17, 11, 8), "features.35"),
        ("vgg19_bn", 28, (25, 16, 12), "features.51"),
    )
} | {
    name: _of_torchvision(name, ("layer2", "layer1", "relu"), "layer4")
    for name in (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
    )
}
"""Networks of torchvision, by name. The layer is the published one for VGG16 (conv4_1, stride 8)
and its like elsewhere; the depths mirror the bundled network's, and were not chosen on photos."""

LITE0 = "efficientnet-lite0"
REAL = {
    LITE0: Network(
        *(networks.efficientnet_lite0, None, ("blocks.4", "blocks.2", "blocks.1"), "bn2"),
        lambda weights: (photos.LITE0, torchvision_input("resnet50")[1]),
    )
}
"""The network of ImageNet whose weights an installation brings; its depths, at strides 16, 8 and 4,
were not chosen on photos either."""

NETWORKS = SCENES | REAL | IMAGENET


def load(
    name: str = "scenenet",
    *,
    layer: str | None = None,
    weights: Path | str | None = None,
    model: nn.Module | None = None,
    data: str | Photos | None = None,
    root: Path | str | None = None,
    device: torch.device | str | None = None,
    precision: torch.dtype | None = None,
) -> Workbench:
    """A workbench ready to explain; statistics are fitted once and cached on disk.

    Parameters
    ----------
    name
        ``"scenenet"``, the bundled network on procedural scenes; ``"small-resnet"``, which needs
        ``weights`` of your own training; ``"efficientnet-lite0"``, an ImageNet network that the
        installation brings, on a few photos; or a VGG or ResNet of torchvision (``"vgg16"``,
        ``"resnet50"``, …; :data:`NETWORKS` has all). For another network: :meth:`Workbench.of`.
    layer
        Where the bottleneck sits; scenenet's ``features.6``, ``.9``, ``.11`` and ``.14`` have
        stride 2, 4, 4 and 8. VGG16's default is ``features.17``, ResNet's ``layer2``.
    weights
        A file of weights in place of the bundled ones or torchvision's; for a network of
        torchvision also the name of published weights (``"IMAGENET1K_V1"`` is the default).
    model
        A network of the same kind to use as it is.
    data, root
        Photos for a network of torchvision: ``"voc"``, ``"pet"``, or ``"imagenet-s"``, and the
        folder that holds them (``data/README.md``); or what :mod:`riba.segmentation` gives.
        Without them nothing that needs feature statistics works.
    device
        Where to put the network: ``"cuda"``; by default it stays where it is.
    precision
        As in :class:`Workbench`.

    Raises
    ------
    ValueError
        Unknown name, layer or data; a network that is not bundled and no weights; data for the
        bundled network; the statistics cached for it are of something else.
    FileNotFoundError
        The weights are missing, or the data.
    """
    if name not in NETWORKS:
        near = network.near_matches(name, NETWORKS)
        raise ValueError(f"no workbench called {name!r}; {near} (riba.workbench.NETWORKS has all)")
    known = NETWORKS[name]
    if name in SCENES and data is not None:
        raise ValueError(f"{name} knows drawn scenes only: for photos load {LITE0} or another")
    named = known.input and known.input(weights)
    if model is None:  # in this memory format convolutions are a third faster on a CPU
        weights = weights or known.weights
        if weights is None and name == "small-resnet":
            raise ValueError(
                f"{name} is not bundled: train it (`python -m tools.training {name} --out FILE`) "
                "and pass weights=FILE"
            )
        model = known.build(weights).to(memory_format=torch.channels_last)
    if device is not None:
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"no device {str(device)!r} on this machine ({reason})") from error
    layer = known.depths[0] if layer is None else layer
    network.find_layer(model, layer)
    if named is not None:
        return _on_photos(name, model, layer, named, data, root, precision)
    reference = scene_reference()
    return Workbench(
        model=model,
        layer=layer,
        statistics=reference.statistics(model, layer),
        train=datasets.Scenes("train", 20_000),
        validation=datasets.Scenes("validation", 1000),
        test=datasets.Scenes("test", 1000),
        class_names=scenes.CLASS_NAMES,
        depths=(layer, *_below(model, layer, known.depths)),
        top=known.top,
        name=name,
        reference=reference,
        precision=precision,
    )


def _on_photos(
    name: str,
    model: nn.Module,
    layer: str,
    named: Input,
    data: str | Photos | None,
    root: Path | str | None,
    precision: torch.dtype | None,
) -> Workbench:
    prepare, class_names = named
    known = NETWORKS[name]
    settings = {"depths": known.depths, "top": known.top, "name": name, "precision": precision}
    settings["class_names"] = class_names
    if data is None and name in REAL:
        test, reference = photos.examples(class_names), crop_reference()
        bare = Workbench.of(model, layer, test[:0], **settings)
        stats = reference.statistics(model, layer)
        return replace(bare, test=test, reference=reference, statistics=stats)
    if data is None:
        return Workbench.of(
            model, layer, Photos([], prepare, class_names, segmentation.silhouette), **settings
        )
    test = reference = data
    if not isinstance(data, Photos):
        test, reference = segmentation.splits(data, root, prepare)
    sets = segmentation.sets_of(test)
    return Workbench.of(model, layer, test, reference=reference, sets=sets, **settings)


def _class_names(model: nn.Module, photos: Photos) -> tuple[str, ...]:
    """The photos' names of classes if they may be the network's, else numbers."""
    image = torch.zeros(1, 3, photos.prepare.crop, photos.prepare.crop)
    with torch.no_grad():
        classes = model(image.to(network.device_of(model))).shape[1]
    if len(photos.class_names) == classes:
        return photos.class_names
    return tuple(f"class {number}" for number in range(classes))


def _below(model: nn.Module, layer: str, depths: Iterable[str]) -> list[str]:
    """Those of ``depths`` that lie below ``layer``."""
    order = network.layer_names(model).index
    return [name for name in depths if order(name) < order(layer)]


# --- images for the statistics -------------------------------------------------------------------


def scene_reference() -> Reference:
    """The first training scenes."""
    dataset = f"scenes-train-{datasets.drawing_code()}"
    return Reference(dataset, scenes.SIZE, REFERENCE_IMAGES, reference_images)


def reference_images() -> list[Tensor]:
    """The reference scenes as batches of network input."""
    pictures = datasets.drawn("train", REFERENCE_IMAGES).images
    batches = [pictures[row : row + 100] for row in range(0, len(pictures), 100)]
    return [torch.stack([datasets.SCENES.normalise(p) for p in rows]) for rows in batches]


def crop_reference() -> Reference:
    """A thousand crops of the photos that an installation brings."""
    dataset = f"crops-{photos.digest()}"
    crops = partial(photos.crops, REFERENCE_IMAGES)
    return Reference(dataset, photos.LITE0.crop, REFERENCE_IMAGES, crops)


def photo_reference(photos: Photos) -> Reference:
    """Up to a thousand photos, evenly spread over ``photos``."""
    some = photos.spread(REFERENCE_IMAGES)
    return Reference(some.digest(), photos.prepare.crop, None, partial(segmentation.batches, some))
