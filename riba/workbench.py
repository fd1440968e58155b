"""One handle for a study: network, layer, statistics, data and class names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from riba.method import network
from riba.method.explicit import Explicit, explicit
from riba.method.statistics import FeatureStatistics
from riba.storage import Memory
from riba.testbed import datasets, photos, scenes, segmentation
from riba.testbed.datasets import Preparation, Sample, Scenes
from riba.testbed.networks import BETAS, NETWORKS, SCENE_NETWORKS, build, input_of
from riba.testbed.photos import Montages
from riba.testbed.segmentation import Photos

REFERENCE_IMAGES = 1000
"""Number of training scenes, or of photos, that the feature statistics are taken over."""


Reference = Callable[[nn.Module, str], FeatureStatistics]
"""Takes a network and a layer; returns the layer's statistics over a set of ordinary images, from
the cache on disk where they are there."""


@dataclass(frozen=True, eq=False)
class Workbench:
    """Everything that a method needs apart from the images that it explains.

    Attributes
    ----------
    model
        Network in evaluation mode, images (B×3×H×W) to logits (B×classes).
    layer
        Name of the bottleneck layer.
    statistics
        Feature statistics of that layer; None where there were no images to take them over.
    train, validation, test
        Sequences of :class:`riba.datasets.Sample`; ``test`` is what is explained.
    class_names
        Name of each class of the network.
    depths
        Layers for methods with several bottlenecks, the deepest (``layer``) first.
    top
        The last layer with maps, for Grad-CAM.
    name
        Name of the network in :data:`riba.networks.NETWORKS`.
    prepare
        How pictures become input of the network.
    reference
        Gives the statistics of other layers; None: there are no images to take them over.
    sets
        For each label of the data, the classes of the network that it stands for; empty where it
        has no counterpart. None: the labels are the network's classes.
    label_names
        Name of each label of the data.
    precision
        Data type of the passes through the network while a bottleneck is optimised, such as
        ``torch.bfloat16``; None: that of the weights. InputIBA and the panels do not use it.
    others
        Feature statistics of other layers that are known already, by layer.
    betas
        Calibrated β of a bottleneck by the name of its layer, or by those of several with spaces
        between them (:mod:`riba.compare.calibration`); methods use it with ``beta="calibrated"``.
    memory
        Recently computed values of this workbench; a workbench made from it has a new one.
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
    betas: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(init=False, repr=False, default_factory=Memory)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layer: str,
        photos: Photos | Scenes | Montages,
        *,
        reference: Photos | Montages | Reference | None = None,
        class_names: Sequence[str] | None = None,
        sets: Sequence[Sequence[int]] | None = None,
        depths: Sequence[str] = (),
        top: str | None = None,
    ) -> Workbench:
        """A workbench of any network and any photos.

        Parameters
        ----------
        model
            Images (B×3×H×W) to logits (B×classes), in evaluation mode.
        layer
            Name of the bottleneck layer.
        photos
            Samples to explain (``wb.test``), with their preparation.
        reference
            A thousand or more photos for the feature statistics, which also become ``wb.train``
            and ``wb.validation``; or a function that gives statistics. By default ``photos``.
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
        for layer_name in (layer, *depths, top or layer):
            network.find_layer(model, layer_name)
        if callable(reference):
            fit, samples = reference, ()
        else:
            samples = photos if reference is None else reference
            fit = photo_reference(samples) if len(samples) else None
        return cls(
            model=model,
            layer=layer,
            statistics=fit and fit(model, layer),
            train=samples,
            validation=samples,
            test=photos,
            class_names=tuple(class_names or _class_names(model, photos)),
            depths=_depths(model, layer, depths),
            top=top or layer,
            name="",
            prepare=photos.prepare,
            reference=fit,
            sets=None if sets is None else tuple(map(tuple, sets)),
            label_names=photos.class_names,
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return network.device_of(self.model)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of a normalised pixel, each 3×1×1."""
        return tuple(bound.to(self.device) for bound in self.prepare.bounds)

    @property
    def facts(self) -> dict[str, object]:
        """Network, layers and statistics as JSON values, to identify a folder of results."""
        known = self.statistics
        return {
            "model": network.fingerprint(self.model),
            "layer": self.layer,
            "depths": list(self.depths),
            "statistics": known and [known.dataset, known.count, known.digest],
            "prepare": str(self.prepare),
            "betas": dict(self.betas),
        }

    def to_rgb(self, image: Tensor) -> Tensor:
        """Undo the normalisation: 3×H×W network input to H×W×3 in 0–1."""
        return self.prepare.to_rgb(image)

    def at(self, layer: str) -> Workbench:
        """The same workbench with the bottleneck at another layer.

        Raises
        ------
        ValueError
            No such layer, near matches listed; or as :meth:`statistics_at`.
        """
        network.find_layer(self.model, layer)
        depths = NETWORKS[self.name].depths if self.name in NETWORKS else self.depths
        depths = _depths(self.model, layer, depths)
        return replace(self, layer=layer, statistics=self.statistics_at(layer), depths=depths)

    def statistics_at(self, layer: str) -> FeatureStatistics | None:
        """Feature statistics of any layer; those of ``self.layer`` may be None.

        Raises
        ------
        ValueError
            The statistics of this layer are not known, and there are no images to fit them on.
        """
        if layer == self.layer:
            return self.statistics
        if layer in self.others:
            return self.others[layer]
        if self.reference is None:
            cure = "load the workbench with data=, or pass photos to Workbench.of"
            raise ValueError(f"no images to take feature statistics of {layer} over: {cure}")
        fit = partial(self.reference, self.model, layer)
        return self.memory.once(("statistics", layer), fit)

    def explicit(self, layers: Sequence[str], images: Tensor) -> Explicit:
        """The explicit form of the network, cut behind ``layers``, for images (B×3×H×W).

        Raises
        ------
        ValueError
            As :func:`riba.method.explicit.explicit`.
        """
        key = ("explicit", tuple(layers), tuple(images.shape[1:]))
        return self.memory.put(key, explicit(self.model, layers, images, self.memory.get(key)))

    def classes(self, label: int) -> tuple[int, ...]:
        """Classes of the network that a label of the data stands for; may be empty."""
        return (label,) if self.sets is None else self.sets[label]

    def targets(self, labels: Sequence[int] | Tensor) -> Tensor:
        """Targets of labels of the data: B class numbers, or B×classes bool where there are sets.

        Of a set of classes, the logsumexp of their logits is explained
        (:func:`riba.network.class_logit`).

        Raises
        ------
        ValueError
            A label is missing, or has no counterpart among the network's classes.
        """
        if any(label is None or label < 0 for label in labels):
            raise ValueError("a sample has no label: pass class numbers as targets")
        if self.sets is None:
            return torch.as_tensor(labels)
        targets = torch.zeros(len(labels), len(self.class_names), dtype=torch.bool)
        for row, label in zip(targets, labels, strict=True):
            if not self.sets[label]:
                name = self.label_names[label]
                raise ValueError(f"{name!r} has no counterpart in this network: omit its samples")
            row[list(self.sets[label])] = True
        return targets

    def batch(self, images: Tensor) -> Tensor:
        """Images (B×3×H×W) checked, and as a copy on the network's device.

        Raises
        ------
        ValueError
            As :func:`riba.network.check_images`.
        """
        if isinstance(images, Tensor):
            images = images.detach().to(self.device, copy=True)  # no tensor of inference mode
        network.check_images(self.model, images)
        return images

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B×classes) of images that :meth:`batch` has passed.

        Raises
        ------
        ValueError
            As :func:`riba.network.logits_of`, or there are more or fewer classes than names.
        """
        logits = network.logits_of(self.model, images)
        if logits.shape[1] != len(self.class_names):
            raise ValueError(
                f"the network has {logits.shape[1]} classes, the workbench "
                f"{len(self.class_names)} class names: pass one name a class"
            )
        return logits

    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities, B×classes, on the device of the images."""
        return self.logits(self.batch(images)).softmax(dim=1).to(images.device)

    def class_number(self, name: str) -> int:
        """Number of a class by its name; else by its number as text.

        Raises
        ------
        ValueError
            There is no such class; near matches listed.
        """
        if name not in self.class_names:
            if name.isdecimal() and int(name) < len(self.class_names):
                return int(name)
            raise ValueError(f"no class {name!r}; {network.near_matches(name, self.class_names)}")
        return self.class_names.index(name)


# --- a network by name ---------------------------------------------------------------------------


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
    """A workbench for a network by name; its statistics are fitted once and cached on disk.

    Parameters
    ----------
    name
        ``"scenenet"``, the bundled network on procedural scenes; ``"small-resnet"``, which needs
        ``weights`` that you trained; ``"efficientnet-lite0"``, an ImageNet network whose weights
        are installed, on a few photos; or a VGG or ResNet of torchvision (``"vgg16"``,
        ``"resnet50"``, …; :data:`riba.networks.NETWORKS` has all). For another network:
        :meth:`Workbench.of`.
    layer
        Name of the bottleneck layer; scenenet's ``features.6``, ``.9``, ``.11`` and ``.14`` have
        stride 2, 4, 4 and 8. VGG16's default is ``features.17``, ResNet's ``layer2``.
    weights
        A file of weights in place of the bundled ones or torchvision's; for a network of
        torchvision also the name of published weights (``"IMAGENET1K_V1"`` is the default).
    model
        A network of the same architecture, used as it is, in place of a new one.
    data, root
        Photos for an ImageNet network: ``"photos"``, the montages that ``make photos`` gets the
        pictures of; ``"voc"``, ``"pet"``, or ``"imagenet-s"``, and the folder that holds them
        (``data/README.md``); or :class:`riba.segmentation.Photos`. A network of torchvision
        without them has no feature statistics, and methods that need them are refused.
    device
        Device that the network is moved to, such as ``"cuda"``; by default it is not moved.
    precision
        As in :class:`Workbench`.

    Raises
    ------
    ValueError
        Unknown name, layer or data; a network that is not bundled and no weights; data for the
        bundled network; a device that this machine lacks; wrong statistics in the cache.
    FileNotFoundError
        The weights are missing, or the data.
    """
    _check_name(name, data)
    known = NETWORKS[name]
    prepare, class_names = input_of(name, weights)
    own_weights = weights is None and model is None
    if model is None:
        model = _build(name, weights)
    if device is not None:
        _move(model, device)
    layer = known.depths[0] if layer is None else layer
    network.find_layer(model, layer)
    if _class_count(model, prepare) != len(class_names):  # fine-tuned: the names are not its own
        if data is not None and (not isinstance(data, Photos) or data.sets is not None):
            raise ValueError(
                f"this {name} does not have the {len(class_names)} classes of ImageNet that the "
                "data stand for: use riba.Workbench.of with photos of its own classes"
            )
        class_names = None
    splits = {}
    if isinstance(data, Photos):
        test = reference = data
    elif data == "photos":
        collection = photos.fetched(class_names)
        counts = {"train": REFERENCE_IMAGES, "validation": 1000, "test": 1000}
        reference, splits["validation"], test = (
            Montages(collection, *split, prepare=prepare) for split in counts.items()
        )
    elif data is not None:
        test, reference = segmentation.splits(data, root, prepare)
    else:
        test, reference = _default_images(name, prepare, class_names or ())
    if name in SCENE_NETWORKS:
        splits = {"train": Scenes("train", 20_000), "validation": Scenes("validation", 1000)}
    wb = Workbench.of(
        model,
        layer,
        test,
        reference=reference,
        class_names=class_names,
        sets=None if data is None else test.sets,
        depths=known.depths,
        top=known.top,
    )
    own = BETAS[(BETAS["network"] == name) & own_weights]
    betas = dict(zip(own["layers"], own["beta"], strict=True))
    return replace(wb, name=name, precision=precision, betas=betas, **splits)


def _check_name(name: str, data: str | Photos | None) -> None:
    if name not in NETWORKS:
        near = network.near_matches(name, NETWORKS)
        raise ValueError(f"no workbench called {name!r}; {near} (riba.networks.NETWORKS has all)")
    if name in SCENE_NETWORKS and data is not None:
        raise ValueError(f"{name} knows drawn scenes only: load another network for photos")


def _build(name: str, weights: Path | str | None) -> nn.Module:
    if weights is None and name == "small-resnet":
        command = f"`python -m tools.training {name} --out FILE`"
        raise ValueError(f"{name} is not bundled: train it ({command}) and pass weights=FILE")
    return build(name, weights).to(memory_format=torch.channels_last)  # a third faster on a CPU


def _move(model: nn.Module, device: torch.device | str) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        problem = f"no device {str(device)!r} on this machine ({str(error).splitlines()[0]})"
        raise ValueError(f"{problem}: use 'cpu'") from error


def _default_images(name: str, prepare: Preparation, class_names: tuple[str, ...]) -> tuple:
    """Samples to explain, and a reference or None, where no data were passed."""
    if name in SCENE_NETWORKS:
        return Scenes("test", 1000), scene_reference()
    if name == "efficientnet-lite0":
        return photos.examples(class_names), crop_reference()
    return Photos([], prepare, class_names, segmentation.silhouette), None


def _class_names(model: nn.Module, photos: Photos | Scenes) -> tuple[str, ...]:
    """Class names of the photos where the network has as many classes, else numbers."""
    count = _class_count(model, photos.prepare)
    numbered = tuple(f"class {number}" for number in range(count))
    return photos.class_names if len(photos.class_names) == count else numbered


@torch.no_grad()
def _class_count(model: nn.Module, prepare: Preparation) -> int:
    grey = torch.zeros(1, len(prepare.mean), prepare.crop, prepare.crop)
    weight = next(model.parameters(), grey)
    grey = grey.to(weight)
    network.check_images(model, grey)  # in training mode it would change the network
    return network.logits_of(model, grey).shape[1]


def _depths(model: nn.Module, layer: str, depths: Iterable[str]) -> tuple[str, ...]:
    """``layer``, and those of ``depths`` that lie below it."""
    order = network.layer_names(model).index
    return layer, *(name for name in depths if order(name) < order(layer))


# --- images for the statistics -------------------------------------------------------------------


def scene_reference() -> Reference:
    """Statistics over the first thousand training scenes."""
    dataset = f"scenes-train-{datasets.drawing_code()}"
    return _reference(reference_images, dataset, REFERENCE_IMAGES, scenes.SIZE)


def reference_images() -> list[Tensor]:
    """The reference scenes as batches of network input."""
    pictures = datasets.drawn("train", REFERENCE_IMAGES).images
    images = torch.stack([datasets.SCENES.normalise(picture) for picture in pictures])
    return list(images.split(100))


def crop_reference() -> Reference:
    """Statistics over a thousand crops of the photographs of scikit-image."""
    crops = partial(photos.crops, REFERENCE_IMAGES)
    return _reference(crops, f"crops-{photos.digest()}", REFERENCE_IMAGES, photos.LITE0.crop)


def photo_reference(photos: Photos | Montages) -> Reference:
    """Statistics over up to a thousand photos, evenly spread over ``photos``; of all montages."""
    if isinstance(photos, Montages):
        return _reference(photos.batches, photos.digest(), len(photos), photos.prepare.crop)
    chosen = photos.spread(REFERENCE_IMAGES)
    batches = partial(segmentation.batches, chosen)
    return _reference(batches, chosen.digest(), None, photos.prepare.crop)


def _reference(batches: Callable, dataset: str, count: int | None, size: int) -> Reference:
    facts = {"dataset": dataset, "count": count, "size": size}
    return partial(FeatureStatistics.cached, images=batches, **facts)
