"""Feature statistics: what a layer looks like on ordinary images, and their cache on disk.

The noise of the bottleneck resembles the features it replaces: per feature element it has their
mean and standard deviation (Schulz et al., "Restricting the Flow: Information Bottlenecks for
Attribution", ICLR 2020, section 3.2).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from riba import progress, storage
from riba.method.network import check_images, device_of, fingerprint, hash_of, run_until
from riba.storage import DATA

CACHE = DATA / "cache"
BATCH = 32
FEW_IMAGES = 1000
ACTIVE_SHARE = 0.01
"""An element is active where it is non-zero in more than this share of the images."""

Images = Tensor | Iterable[Tensor] | Iterable[tuple[Tensor, ...]]


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean, spread and activity of every element of a layer's features.

    Attributes
    ----------
    mean, std
        C×h×w float32, in the units of the features; ``std`` with n − 1 and without any floor.
    active
        C×h×w bool: non-zero in more than 1 % of the images.
    layer
        Name of the module.
    fingerprint
        :func:`riba.network.fingerprint` of the network.
    count
        Number of images.
    size
        Height and width of the images in pixels.
    dataset
        Name of where the images came from.
    """

    mean: Tensor
    std: Tensor
    active: Tensor
    layer: str
    fingerprint: str
    count: int
    size: tuple[int, int] | None = None
    dataset: str = ""

    @classmethod
    def fit(
        cls, model: nn.Module, layer: str, images: Images, *, few: bool = False
    ) -> FeatureStatistics:
        """Statistics of ``layer`` over ``images``, in one pass.

        Parameters
        ----------
        model, layer
            The network, in evaluation mode, and the name of one of its modules.
        images
            B×3×H×W, or an iterable of such batches of any length; of batches that are tuples the
            first item is taken. Batches are moved to the device of the model.
        few
            Few images are meant: do not warn of them.

        Raises
        ------
        ValueError
            Fewer than two images, images of different sizes, images the network does not take
            (:func:`riba.network.check_images`), no such layer, or a layer without maps.

        Warns
        -----
        UserWarning
            Fewer than 1,000 images: the statistics are rough then.
        """
        total, size = _Moments(), None
        for batch in progress.track(_batches(model, images), "feature statistics"):
            features = _features(model, layer, batch)
            if size not in (None, batch.shape[2:]):
                raise ValueError(
                    f"images of different sizes ({_by(size)} and {_by(batch.shape[2:])} pixels): "
                    "resize them to one size"
                )
            size = tuple(batch.shape[2:])
            total = total.joined(features)
        count = total.count
        if count < 2:
            raise ValueError(f"statistics need at least two images, got {count}")
        if count < FEW_IMAGES and not few:
            warnings.warn(
                f"feature statistics from {count} images only: take {FEW_IMAGES} or more",
                stacklevel=2,
            )
        return cls(
            mean=total.mean.float(),
            std=(total.squares / (count - 1)).sqrt().float(),
            active=total.nonzero > ACTIVE_SHARE * count,
            layer=layer,
            fingerprint=fingerprint(model),
            count=count,
            size=size,
        )

    @classmethod
    def cached(
        cls,
        model: nn.Module,
        layer: str,
        images: Images | Callable[[], Images],
        *,
        dataset: str,
        count: int | None,
        size: int | tuple[int, int],
        folder: Path | str = CACHE,
    ) -> FeatureStatistics:
        """The statistics from disk where they are there, else fitted and stored.

        The file's name says what it holds: data set, layer, number and size of the images, and
        the fingerprint of the weights. On a hit ``images`` is not touched, so that it may be a
        lazy iterable, or a function without arguments that returns what :meth:`fit` takes.

        Parameters
        ----------
        dataset
            Name of the images' source: whatever changes the images must change it.
        count, size
            Number of images (None: as many as there are, the data set's name tells which), and
            their height and width in pixels (an int: square).
        folder
            Where the files lie.

        Raises
        ------
        ValueError
            The file, or what ``images`` yields, does not match the arguments; or as :meth:`fit`.

        Warns
        -----
        UserWarning
            The file is corrupt, and was rebuilt; or it cannot be written.
        """
        size = (size, size) if isinstance(size, int) else tuple(size)
        weights = fingerprint(model)
        facts = dict(zip(_FACTS, (layer, weights, count, size, dataset), strict=True))
        name = "-".join([dataset, layer, str(count or "all"), _by(size, "x"), weights])
        path = storage.place(folder) / (re.sub(r"[^\w.-]", "_", name) + ".safetensors")
        if path.is_file():
            try:
                stats = cls.load(path)
            except ValueError as error:
                warnings.warn(f"{error}; they are computed again", stacklevel=2)
            else:
                stats._require(facts, f"the statistics in {path} (delete it to have it rebuilt)")
                return stats
        stats = cls.fit(model, layer, images() if callable(images) else images)
        stats = replace(stats, dataset=dataset)
        stats._require(facts, "the images")
        with storage.unless_full("feature statistics"):
            stats.save(path)
        return stats

    def save(self, path: Path | str) -> None:
        """Write a ``.safetensors`` file; a reader sees the old file or the new, never a part."""
        path = storage.place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {name: getattr(self, name) for name in _FACTS}
        metadata = {"facts": json.dumps(facts), "checksum": self.digest}
        with storage.whole(path) as part:
            part.write_bytes(safetensors.torch.save(self._tensors(), metadata))

    @classmethod
    def load(cls, path: Path | str) -> FeatureStatistics:
        """Read what :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ValueError
            The file is truncated, altered or something else.
        """
        path = storage.place(path)
        if not path.is_file():
            raise FileNotFoundError(f"no feature statistics at {path}: fit and save them first")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(metadata["facts"])
            facts["size"] = facts["size"] and tuple(facts["size"])
            stats = cls(**tensors, **facts)
            if metadata["checksum"] != stats.digest:
                raise ValueError("its checksum is wrong")
            return stats
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold sound feature statistics: {error}") from error

    def check(self, model: nn.Module, layer: str) -> None:
        """Refuse statistics of another layer or of another network.

        Raises
        ------
        ValueError
            ``layer`` or the fingerprint of ``model`` is not what the statistics were fitted on.
        """
        if self.layer != layer:
            raise ValueError(f"the statistics are of layer {self.layer!r}, not of {layer!r}")
        if self.fingerprint != fingerprint(model):
            raise ValueError(
                "the statistics are of another network, or its weights have changed: "
                "fit them again on this one"
            )

    def check_features(self, features: Tensor) -> None:
        """Refuse features (B×C×h×w) of another size than the statistics (C×h×w).

        Raises
        ------
        ValueError
            The sizes differ: as a rule, the images do.
        """
        if features.shape[1:] != self.mean.shape:
            pixels = f" ({_by(self.size)} pixels)" if self.size else ""
            raise ValueError(
                f"wrong size for the statistics: features are {_by(features.shape[1:])}, the "
                f"statistics {_by(self.mean.shape)}: use images of their size{pixels} or fit anew"
            )

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """The same statistics on another device."""
        return replace(self, **{name: x.to(device) for name, x in self._tensors().items()})

    @property
    def digest(self) -> str:
        """Hash of the values: 16 hexadecimal digits."""
        return hash_of(x for _, x in sorted(self._tensors().items())).hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std, "active": self.active}

    def _require(self, facts: dict[str, object], what: str) -> None:
        """Refuse statistics of other ``facts``; None stands for any."""
        wrong = [name for name in facts if facts[name] not in (None, getattr(self, name))]
        if wrong:
            actual = ", ".join(f"{name} {getattr(self, name)!r}" for name in wrong)
            expected = ", ".join(f"{name} {facts[name]!r}" for name in wrong)
            raise ValueError(f"{what} have {actual}, expected {expected}")


def check_statistics(*statistics: FeatureStatistics | None) -> None:
    """Refuse to go on without statistics.

    Raises
    ------
    ValueError
        One is None: says how to get them.
    """
    if any(stats is None for stats in statistics):
        raise ValueError(
            "no statistics: fit them first, FeatureStatistics.fit(model, layer, images)"
        )


_FACTS = ("layer", "fingerprint", "count", "size", "dataset")


# --- one pass over the images ------------------------------------------------------------------


@dataclass(frozen=True)
class _Moments:
    """Per element (C×h×w, float64): mean, summed squared deviations from it, non-zero values."""

    count: int = 0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    nonzero: Tensor | int = 0

    def joined(self, features: Tensor) -> _Moments:
        """With those of a batch (Chan, Golub and LeVeque 1979): no large sums cancel."""
        features, count = features.double(), self.count + len(features)
        mean = features.mean(0)
        shift = mean - self.mean
        within = (features - mean).square().sum(0)
        squares = self.squares + within + shift.square() * (self.count * len(features) / count)
        mean = self.mean + shift * (len(features) / count)
        return _Moments(count, mean, squares, self.nonzero + (features != 0).sum(0))


def _batches(model: nn.Module, images: Images) -> Iterator[Tensor]:
    device = device_of(model)
    for batch in images.split(BATCH) if isinstance(images, Tensor) else images:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        yield batch.to(device) if isinstance(batch, Tensor) else batch


@torch.no_grad()
def _features(model: nn.Module, layer: str, batch: Tensor) -> Tensor:
    """Features of one batch on the CPU, where float64 is always to be had."""
    check_images(model, batch)
    features = run_until(model, layer, batch)
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise ValueError(f"layer {layer!r} does not return maps (B×C×h×w): choose another layer")
    return features.cpu()


def _by(shape: Iterable[int], sign: str = "×") -> str:
    return sign.join(map(str, shape))
