"""What panels read of a workbench: a copy that is safe in the background, and its test samples."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from riba.method.network import frozen_copy
from riba.show.panels.paint import Picture
from riba.testbed.datasets import Sample
from riba.workbench import Workbench


def private_copy(wb: Workbench) -> Workbench:
    """The workbench with a copy of its network on the CPU, and with a memory of its own.

    A panel works in the background while a cell may be changing the network.

    Raises
    ------
    ValueError
        There is nothing to show.
    """
    if not len(wb.test):
        cure = "load it with data=, or pass photos to Workbench.of"
        raise ValueError(f"this workbench has no photos to show: {cure}")
    return replace(wb, model=frozen_copy(wb.model).cpu(), precision=None)


def sample(wb: Workbench, scene: int) -> Sample:
    """A test scene; stored, because drawing one takes as long as painting the panel."""
    return wb.memory.once(("sample", scene), lambda: wb.test[scene])


def at_layer(wb: Workbench, layer: str) -> Workbench:
    """The workbench with its bottleneck at another layer; stored, and with it what it computes."""
    return wb.memory.once(("layer", layer), lambda: wb.at(layer))


def network_input(wb: Workbench, scene: int) -> tuple[Tensor, Tensor]:
    """A test scene as a batch of one (1×3×H×W), and the classes to explain it by.

    Where nothing is known about a photo, that is what the network sees first.
    """
    chosen = sample(wb, scene)
    images = chosen.image[None]
    if chosen.label is None:
        return images, wb.predict(images).argmax(1)
    return images, wb.targets([chosen.label])


def mask(wb: Workbench, scene: int) -> Tensor:
    """The mask of a test scene's object, H×W bool.

    Raises
    ------
    ValueError
        There is none.
    """
    chosen = sample(wb, scene)
    if chosen.mask is None:
        raise ValueError("this photo has no mask to hold a map against: show it in the explorer")
    return chosen.mask


def picture(wb: Workbench, scene: int, mark: tuple[float, float] | None = None) -> Picture:
    """A test scene with the outline of its object, titled by its class t."""
    chosen = sample(wb, scene)
    if chosen.label is None:
        title = f"t = {wb.class_names[network_input(wb, scene)[1].item()]} (predicted)"
    else:
        title = f"t = {wb.label_names[chosen.label]}"
    return Picture(rgb=wb.to_rgb(chosen.image), title=title, outline=chosen.mask, mark=mark)
