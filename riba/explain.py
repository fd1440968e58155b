"""Explain a photo, or every photo of a folder, from a shell: ``python -m riba.explain``.

Of each: NAME.npz with the map (H×W, as the network saw the photo) and NAME.png to look at; maps.csv
lists all. Run it again after a stop: it goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from zipfile import BadZipFile

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from riba import progress, storage
from riba.compare.methods import METHODS, find_method
from riba.compare.results import open_folder
from riba.method.network import bytes_of, layer_names
from riba.show import plots
from riba.testbed import datasets, segmentation
from riba.testbed.networks import NETWORKS, input_of, load_weights
from riba.testbed.segmentation import Photos
from riba.workbench import Workbench, load, photo_reference

TABLE = "maps.csv"


def run(arguments: argparse.Namespace) -> tuple[pd.DataFrame, list[str]]:
    """Explain every photo that can be read.

    Each photo's files are written when its map is computed; what is in the folder already, of the
    same settings, is not computed again.

    Returns
    -------
    A row per photo, as in the table that is written, and a sentence per photo that was left out.

    Raises
    ------
    ValueError, FileNotFoundError
        A setting does not fit, or a file is missing; says which.
    """
    method = find_method(arguments.method)
    wb = workbench(arguments)
    if arguments.reference is not None:
        reference = photo_reference(segmentation.unmasked(arguments.reference, wb.prepare))
        wb = replace(wb, reference=reference, statistics=reference(wb.model, wb.layer))
    parts = [segmentation.unmasked(place, wb.prepare) for place in arguments.photos]
    entries = {entry.image.resolve(): entry for part in parts for entry in part.entries}
    photos = replace(parts[0], entries=list(entries.values()))
    names = unique_names([entry.image for entry in photos.entries])
    label = None if arguments.label is None else wb.class_number(arguments.label)
    settings = {"method": arguments.method, "class": label, "seed": arguments.seed}
    settings["version"] = method.version
    open_folder(arguments.out, wb.facts | settings, "*.npz")
    rows, unreadable = [], []
    for place in progress.track(range(len(photos)), arguments.method):
        name = names[place]
        try:
            image = photos[place].image
        except (OSError, ValueError) as error:
            unreadable.append(f"{name}: {error}")
            continue
        try:
            rows.append(explained(wb, image, label, arguments, name))
        except ValueError as error:
            if wb.statistics is None and "statistics" in str(error):
                raise ValueError(f"{error}; pass --reference FOLDER of ordinary photos") from error
            raise
        with storage.whole(arguments.out / TABLE) as part:
            pd.DataFrame(rows).to_csv(part, index=False)
    if not rows:
        raise ValueError(f"nothing could be explained: {'; '.join(unreadable)}")
    return pd.DataFrame(rows), unreadable


def workbench(arguments: argparse.Namespace) -> Workbench:
    """The network that was asked for: one by name, or what a function of the user returns.

    Raises
    ------
    ValueError
        There is no such function, or the layer of the bottleneck was not named.
    """
    names = {name: getattr(arguments, name) for name in ("weights", "layer", "device")}
    if ":" not in arguments.model:
        return load(arguments.model, **names)
    module, function = arguments.model.split(":", 1)
    try:
        build = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model takes package.module:function ({error})") from error
    made = build()
    model, prepare = made if isinstance(made, tuple) else (made, input_of("resnet50")[0])
    if not isinstance(model, nn.Module) or not isinstance(prepare, datasets.Preparation):
        raise ValueError(f"{arguments.model} must return a network, or network and Preparation")
    if arguments.layer is None:
        last = ", ".join(layer_names(model)[-5:])
        raise ValueError(f"name the bottleneck layer with --layer (the last ones are {last})")
    if arguments.weights is not None:
        load_weights(model, arguments.weights)
    model = model.eval().to(arguments.device or "cpu")
    nothing = Photos([], prepare, (), segmentation.silhouette)
    return Workbench.of(model, arguments.layer, nothing)


def unique_names(files: Sequence[Path]) -> list[str]:
    """Names of different files, with as many folders before them as tell them apart."""
    names = [file.name for file in files]
    parts = [file.resolve().parts[1:] for file in files]
    for depth in range(2, 1 + max(map(len, parts))):
        if len(set(names)) == len(names):
            break
        names = ["-".join(path[-depth:]) for path in parts]
    return names


def explained(
    wb: Workbench, image: Tensor, label: int | None, arguments: argparse.Namespace, name: str
) -> dict[str, object]:
    """One photo: its row of the table; its map and sheet are written, if not there already."""
    path = arguments.out / f"{name}.npz"
    probability = wb.predict(image[None])[0]
    predicted = probability.argmax().item()
    target = predicted if label is None else label
    digest = hashlib.sha256(bytes_of(image)).hexdigest()[:16]
    values = stored_map(path, digest, target)
    if values is None:
        values = METHODS[arguments.method](wb, image[None], [target], seed=arguments.seed)[0]
        values = values.to("cpu", torch.promote_types(values.dtype, torch.float32))
        said = f"{wb.class_names[target]}, p = {probability[target]:.2f}"
        figure = sheet(wb.to_rgb(image).numpy(), values, said, arguments.method)
        with storage.whole(path.with_suffix(".png")) as part:
            figure.savefig(part, format="png", dpi=150, metadata={"Software": None})
        with storage.whole(path) as part, part.open("wb") as file:
            facts = {"target": target, "probability": probability.double().numpy(), "photo": digest}
            np.savez(file, map=values.numpy(), **facts)
    return {
        "photo": name,
        "class": wb.class_names[target],
        "probability": round(probability[target].item(), 6),
        "predicted": wb.class_names[predicted],
        "unit": METHODS[arguments.method].unit,
        "sum": float(f"{values.double().sum().item():.6g}"),
        "largest": float(f"{values.max().item():.6g}"),
    }


def stored_map(path: Path, digest: str, target: int) -> Tensor | None:
    """The map at ``path``, if it is of this very photo and class."""
    with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(path) as stored:
        if (stored["photo"], stored["target"]) == (digest, target):
            return torch.from_numpy(stored["map"])
    return None


def sheet(rgb: np.ndarray, values: Tensor, title: str, method: str) -> Figure:
    """Photo (H×W×3 in 0–1), map (H×W) on its own scale, and map over the photo, side by side.

    The title stands above the photo, the method's name above its map.
    """
    unit, signed = METHODS[method].unit, bool((values < 0).any())
    with matplotlib.style.context(plots.STYLE):
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        photo, alone, over = figure.subplots(1, 3)
        plots.show_image(photo, rgb, title)
        plots.show_map(alone, values, method, unit=f"{unit or 'no unit'} / pixel", signed=signed)
        total = f"{values.double().sum():.1f} {unit} in all" if unit else "over the photo"
        plots.show_image(over, plots.overlay(rgb, values), total)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m riba.explain --help``."""
    progress.printable()
    parser = argparse.ArgumentParser(prog="python -m riba.explain", description=__doc__)
    add = parser.add_argument
    add("photos", type=storage.place, nargs="+", help="photos, or folders of photos")
    add("--out", type=storage.place, required=True, help="folder for the maps")
    own = "or package.module:function, which returns your network, or network and Preparation "
    own += "(without one, photos are prepared as ResNet50 takes them)"
    add("--model", default="scenenet", help=f"one of {', '.join(NETWORKS)}; {own}")
    add("--method", default="relevance-iba", help="a name out of riba.METHODS")
    add("--label", help="class to explain, its number or name; else the prediction")
    add("--layer", help="where the bottleneck sits; else the network's default")
    add("--weights", help="file of weights, or name of published ones")
    add("--reference", type=storage.place, help="1,000 or more ordinary photos, for statistics")
    add("--device", help="cuda, or cpu")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        table, unreadable = run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        parser.error(str(error))
    print(table.to_string(index=False))
    print(f"{len(table)} maps in {arguments.out}")
    for sentence in unreadable:
        print(f"left out: {sentence}")


if __name__ == "__main__":
    main()
