"""What a network must be: its layers by name, the images and targets it takes, parts of a pass.

Everything below takes any ``torch.nn.Module`` that maps images (B×3×H×W) to logits (B×classes).
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter


def fingerprint(model: nn.Module) -> str:
    """Hash of a network, 16 hexadecimal digits: its innermost modules as they print, and every
    weight and buffer by name, type, shape and value."""
    model = unwrapped(model)
    leaves = [(name, m) for name, m in model.named_modules() if next(m.children(), None) is None]
    printed = re.sub(r"0x\w+|inplace=\w+", "", repr(leaves))  # what does not change the outputs
    digest = hashlib.blake2b(printed.encode(), digest_size=8)
    kept = model.state_dict()
    for name, value in (kept | dict(model.named_buffers())).items():  # also buffers it leaves out
        if not isinstance(value, Tensor):  # extra state
            digest.update(f"{name} {value!r}".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any type on any device, for a hash."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data


def hash_of(tensors: Iterable[Tensor]) -> hashlib.blake2b:
    """A hash of the bytes of tensors, to which more may be added."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(bytes_of(tensor))
    return digest


def state_of(model: nn.Module) -> tuple:
    """A key that changes when weights, buffers, modules, their hooks or plain attributes do.

    Much cheaper than :func:`fingerprint`, and valid within one process only. Per weight and buffer
    its name, address and version, and a sum over all in which every row has another weight: it
    detects writes that PyTorch does not count (``weight.data``). Tensors that are plain attributes
    of a module are not looked at.
    """
    model = unwrapped(model)
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors = tuple(
        # tensors of inference mode have no version
        (name, x.data_ptr(), 0 if x.is_inference() else x._version)
        for name, x in weights.items()
    )
    rows = [torch.atleast_1d(x)[..., None].flatten(1).sum(1) for x in weights.values()]
    kinds: dict[tuple, list[Tensor]] = {}
    for x in rows:
        kinds.setdefault((x.device, x.dtype), []).append(x)  # for one transfer each
    sums = [torch.cat(group).to("cpu", torch.float64) for group in kinds.values()]
    rows = torch.cat(sums or [torch.zeros(1)]).nan_to_num(1.0)
    weighted_sum = (rows @ torch.arange(1, len(rows) + 1).to(rows)).item()
    modules = ((name, type(module), _settings(module)) for name, module in model.named_modules())
    return tensors, weighted_sum, tuple(modules)


def _settings(module: nn.Module) -> tuple:
    """What a module computes with beside tensors and modules: hooks, numbers, texts, functions."""
    kept = []
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            kept.append(tuple(value.values()))  # not their ids, which are used again
        elif isinstance(value, (int, float, str, tuple, list)) and not tensors_in(value):
            kept.append((name, repr(value)))
        elif callable(value):
            kept.append((name, value))
    return tuple(kept)


# --- layers ----------------------------------------------------------------------------------


def layer_names(model: nn.Module) -> list[str]:
    """The dotted names of all layers and blocks of ``model``, in the order of definition."""
    return [name for name, _ in unwrapped(model).named_modules() if name]


def names_through(model: nn.Module, layer: str) -> list[str]:
    """:func:`layer_names` up to ``layer`` and what lies inside it; errors as :func:`find_layer`."""
    find_layer(model, layer)
    names = layer_names(model)
    last = max(k for k, name in enumerate(names) if f"{name}.".startswith(f"{layer}."))
    return names[: last + 1]


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The module called ``layer``.

    Raises
    ------
    ValueError
        There is none; the message lists near matches.
    """
    model = unwrapped(model)
    modules = dict(model.named_modules())
    if layer and layer in modules:
        return modules[layer]
    near = near_matches(layer, layer_names(model))
    raise ValueError(
        f"{type(model).__name__} has no layer {layer!r}; {near} "
        "(riba.network.layer_names(model) lists all)"
    )


def near_matches(name: object, names: Iterable[str]) -> str:
    """For a message about an unknown ``name``: up to five of ``names`` that look like it."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=5, cutoff=0.3) or names[:5]
    return f"near matches: {', '.join(near)}"


# --- the contract of a network ---------------------------------------------------------------

NORMALISED = 30
"""Images with larger values look like 0–255 and are refused (:func:`takes_any_range`)."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, out of ``DataParallel`` and ``torch.compile``.

    Raises
    ------
    ValueError
        It is TorchScript, or no ``torch.nn.Module`` at all.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, parallel) else model._orig_mod
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("TorchScript cannot be explained: pass the network that it was made from")
    if not isinstance(model, nn.Module):
        raise ValueError(f"the network is a {type(model).__name__}: pass a torch.nn.Module")
    return model


def takes_any_range(model: nn.Module) -> nn.Module:
    """Say that ``model`` takes images of any range, such as Caffe's −120 to 150; returns it."""
    unwrapped(model).takes_any_range = True
    return model


def device_of(model: nn.Module) -> torch.device:
    """Where the network is; the CPU for one without weights."""
    return next(unwrapped(model).parameters(), torch.empty(0, device="cpu")).device


def shape_or_type(value: object) -> tuple[int, ...] | str:
    """For messages: the shape of a tensor, the name of the type of anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


INSTEAD = {
    "ndarray": "use torch.from_numpy(images)",
    "Image": "use wb.prepare.image(numpy.asarray(picture))[None]",
    "list": "use torch.stack(images)",
    "tuple": "use torch.stack(images)",
}
"""What to pass in place of images that are no tensor."""


def check_images(model: nn.Module, images: Tensor) -> None:
    """Refuse what would silently give a wrong map.

    Raises
    ------
    ValueError
        ``model`` is in training mode; ``images`` is not a float B×C×H×W tensor, is empty, holds
        NaN or infinity, looks like 0–255, or is of another type or device than the model.
    """
    model = unwrapped(model)
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        part = f"the part {training!r} of the model" if training else "the model"
        raise ValueError(f"{part} is in training mode: call model.eval() first")
    if not isinstance(images, Tensor):
        kind = type(images).__name__
        instead = INSTEAD.get("Image" if "Image" in kind else kind, "pass a tensor")
        raise ValueError(f"images must be a B×C×H×W tensor, got {kind}: {instead}")
    if images.ndim != 4:
        instead = "for one image use image[None]" if images.ndim == 3 else "only maps are explained"
        raise ValueError(f"images must be B×C×H×W, got {tuple(images.shape)}: {instead}")
    if images.numel() == 0:
        raise ValueError(f"images {tuple(images.shape)} are empty: pass at least one image")
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}: convert to float and normalise as the network expects"
        )
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinite values: clean them first")
    if images.abs().max() > NORMALISED and not getattr(model, "takes_any_range", False):
        raise ValueError(
            f"images reach {images.abs().max():.0f}, which looks like 0–255: normalise them as the "
            "network expects, or call riba.network.takes_any_range(model) first"
        )
    weight = next(model.parameters(), images)
    if weight.device != images.device:
        raise ValueError(
            f"images are on {images.device}, the model on {weight.device}: "
            f"use images.to({str(weight.device)!r})"
        )
    if weight.dtype != images.dtype:
        passed, expected = (str(x.dtype).removeprefix("torch.") for x in (images, weight))
        raise ValueError(
            f"images are {passed}, the network {expected}: use images.to(torch.{expected})"
        )


def check_logits(output: object, count: int) -> Tensor:
    """What a network returned for ``count`` images, if it is a matrix of logits.

    Raises
    ------
    ValueError
        It is not.
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
        one = "; of one image, too: flatten(1) in place of squeeze()" if count == 1 else ""
        raise ValueError(
            f"the network must return logits, images × classes, and not {shape_or_type(output)}: "
            f"wrap it in a module that does{one}"
        )
    return output


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B×classes) of images that :func:`check_images` has passed.

    Raises
    ------
    ValueError
        The network does not take such images, or returns anything but finite logits of two or
        more classes: says what to do.

    Warns
    -----
    UserWarning
        The outputs look like probabilities: of a softmax, or of sigmoids.
    """
    with errors_in_words(images):
        # a copy: the network's first step may write to what it is given
        output = check_logits(model(images.clone()), len(images))
    if output.shape[1] < 2:
        raise ValueError(
            "the network has one output, which leaves no other class: wrap it in a module that "
            "returns torch.cat([torch.zeros_like(y), y], 1)"
        )
    if not torch.isfinite(output).all():
        raise ValueError("the network returns NaN or infinite logits for these images: check both")
    unit_sums = ((output.sum(1) - 1).abs() < 1e-3).all()
    if (output >= 0).all() and output.max() <= 1 and (unit_sums or output.max() > 0.5):
        warnings.warn(
            "the outputs of the network look like probabilities: remove its last softmax or "
            "sigmoid, or all probabilities and maps will be wrong",
            stacklevel=3,
        )
    return output


@contextmanager
def errors_in_words(images: Tensor) -> Iterator[None]:
    """Translates what the network raises for ``images`` it does not take into one sentence.

    Raises
    ------
    ValueError
        In place of the network's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, TypeError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the network does not take images of {'×'.join(map(str, images.shape[1:]))} "
            f"({reason}): pass images as it was trained on"
        ) from error


def as_targets(targets: Tensor | list[int], images: Tensor) -> Tensor:
    """Targets as a tensor, one entry (a class, or a row of a set) for each of B images.

    Raises
    ------
    ValueError
        They are no numbers, or not one for each image.
    """
    try:
        targets = torch.as_tensor(targets, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"targets must be one class number an image, got {str(targets)[:40]!r}: "
            "use model(images).argmax(1) for what is predicted"
        ) from error
    one_each = targets.shape == (len(images),)
    if targets.ndim == 0 or not (one_each or targets.dtype == torch.bool):
        raise ValueError(
            f"one target an image: expected {len(images)} class numbers, "
            f"got shape {tuple(targets.shape)}"
        )
    return targets


def check_targets(targets: Tensor | list[int], logits: Tensor) -> Tensor:
    """Targets as a tensor on the device of ``logits``: B ints, or B×classes bool for sets.

    Raises
    ------
    ValueError
        Wrong shape or type, a class out of range, or an empty set of classes.
    """
    targets, (batch, classes) = as_targets(targets, logits), logits.shape
    if targets.dtype == torch.bool:
        if targets.shape != logits.shape:
            raise ValueError(
                f"boolean targets must be {batch}×{classes} (images × classes), "
                f"got {'×'.join(map(str, targets.shape)) or 'one value'}"
            )
        if not targets.any(dim=1).all():
            raise ValueError("a row of the boolean targets selects no class: select at least one")
        return targets
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"targets must be class numbers (integers), got {targets.dtype}")
    if targets.min() < 0 or targets.max() >= classes:
        wrong = targets[(targets < 0) | (targets >= classes)][0].item()
        raise ValueError(
            f"class {wrong} is out of range: the network knows classes 0 to {classes - 1}"
        )
    return targets.long()


def class_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit to explain, per image (B): of the class, or logsumexp over a set of classes."""
    if targets.dtype == torch.bool:
        return logits.masked_fill(~targets, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, targets[:, None])[:, 0]


# --- private copies ------------------------------------------------------------------------------


@torch.inference_mode(False)  # tensors made in inference mode could not serve a backward pass
def frozen_copy(model: nn.Module, *, share: bool = False) -> nn.Module:
    """A copy in evaluation mode whose weights take no gradients.

    Parameters
    ----------
    share
        Weights share their memory with the model's; modules are copied all the same.
    """
    memo: dict[int, object] = {}
    model = unwrapped(model)
    for module in model.modules():
        for tensor in tensors_in(list(vars(module).values())):  # also features that a module keeps
            plain = tensor.detach()
            if not share or tensor.is_inference():
                plain = plain.clone()
            if isinstance(tensor, nn.Parameter):
                plain = nn.Parameter(plain, requires_grad=False)
            memo[id(tensor)] = plain
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_iter(value) if isinstance(leaf, Tensor)]


# --- running a part of a network ---------------------------------------------------------------


class _Stop(Exception):
    """Raised by a hook to end a forward pass; carries the output of the layer."""


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Callable[[Tensor], object]]) -> Iterator[None]:
    """Within this context every layer of ``hooks`` passes its output to the function given for it.

    What a function returns replaces the output; None leaves the output as it is.
    """
    with ExitStack() as handles:
        for layer, function in hooks.items():
            module = find_layer(model, layer)
            hook = lambda _module, _inputs, output, function=function: function(output)  # noqa: E731
            handles.callback(module.register_forward_hook(hook).remove)
        yield


def run_until(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Features of ``layer`` (B×C×h×w): a forward pass that ends there.

    The output is the layer's own, before an in-place ReLU behind it can overwrite it. A private
    copy runs: other threads may be using the network.

    Raises
    ------
    ValueError
        The layer is defined but the forward pass never runs it.
    """

    def stop(output: Tensor) -> None:
        raise _Stop(output)

    private = frozen_copy(model, share=True)
    try:
        with hooked(private, {layer: stop}), errors_in_words(images):
            private(images.clone())
    except _Stop as reached:
        return reached.args[0]
    raise ValueError(f"the forward pass never runs layer {layer!r}: choose another layer")
