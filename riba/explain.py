"""Maps of a photo or of a folder of photos, from a shell: ``python -m riba.explain --help``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from riba import files, plots, progress, segmentation
from riba.methods import METHODS, find_method, unit
from riba.models import fingerprint, near_matches
from riba.workbench import NETWORKS, SCENES, Workbench, load, photo_reference

TABLE = "maps.csv"
SETTINGS = "settings.json"


def run(arguments: argparse.Namespace) -> tuple[pd.DataFrame, list[str]]:
    """Explain every photo that can be read.

    Each photo's files are written when its map is there; what lies in the folder already, of the
    same settings, is not computed again.

    Returns
    -------
    A row per photo, as in the table that is written, and a sentence per photo that was left out.

    Raises
    ------
    ValueError, FileNotFoundError
        A setting does not fit, or a file is missing; says which.
    """
    find_method(arguments.method)
    wb = bench(arguments)
    photos = segmentation.unmasked(arguments.photos, wb.prepare, wb.class_names)
    wanted = None if arguments.label is None else class_number(wb, arguments.label)
    opened(arguments.out, wb, arguments.method, wanted)
    rows, bad = [], []
    for place in progress.track(range(len(photos)), arguments.method):
        try:
            rows.append(explained(wb, photos, place, arguments, wanted))
        except (OSError, ValueError) as error:
            bad.append(f"{photos.entries[place].name}: {error}")
            continue
        table = pd.DataFrame(rows)
        with files.whole(arguments.out / TABLE) as part:
            table.to_csv(part, index=False)
    if not rows:
        raise ValueError(f"nothing could be explained: {'; '.join(bad)}")
    return table, bad


def bench(arguments: argparse.Namespace) -> Workbench:
    """The network that was asked for, with statistics of the reference photos, if there are any."""
    settings = {"weights": arguments.weights, "layer": arguments.layer, "device": arguments.device}
    wb = load(arguments.model, **settings)
    if arguments.reference is None:
        return wb
    reference = photo_reference(segmentation.unmasked(arguments.reference, wb.prepare))
    return replace(wb, reference=reference, statistics=reference.statistics(wb.model, wb.layer))


def class_number(wb: Workbench, label: str) -> int:
    """A class by its number or name.

    Raises
    ------
    ValueError
        There is none; near matches listed.
    """
    if label.isdecimal() and int(label) < len(wb.class_names):
        return int(label)
    if label not in wb.class_names:
        raise ValueError(f"no class {label!r}; {near_matches(label, wb.class_names)}")
    return wb.class_names.index(label)


def opened(out: Path, wb: Workbench, method: str, wanted: int | None) -> None:
    """Make the folder, or see that what it holds is of these very settings."""
    settings = {
        "model": fingerprint(wb.model),
        "layer": wb.layer,
        "statistics": wb.statistics and [wb.statistics.dataset, wb.statistics.count],
        "method": method,
        "class": wanted,
    }
    path = out / SETTINGS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{out} holds maps of other settings: choose another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    with files.whole(path) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def explained(
    wb: Workbench,
    photos: segmentation.Photos,
    place: int,
    arguments: argparse.Namespace,
    wanted: int | None,
) -> dict[str, object]:
    """One photo: its row of the table; its map and overlay are written, if not there already."""
    name = photos.entries[place].name
    path = arguments.out / f"{name}.npz"
    image = photos[place].image
    probability = wb.predict(image[None])[0]
    target = probability.argmax().item() if wanted is None else wanted
    if path.is_file():
        with np.load(path) as kept:
            values = torch.from_numpy(kept["map"])
    else:
        values = METHODS[arguments.method](wb, image[None], [target], seed=arguments.seed)[0].cpu()
        with files.whole(arguments.out / f"{name}.png") as part:
            sheet(wb.to_rgb(image).numpy(), values).save(part, "PNG")
        with files.whole(path) as part, part.open("wb") as file:
            np.savez(file, map=values.numpy(), target=target, probability=probability.numpy())
    return {
        "photo": name,
        "class": wb.class_names[target],
        "probability": round(probability[target].item(), 6),
        "predicted": wb.class_names[probability.argmax().item()],
        "unit": unit(arguments.method),
        "sum": float(f"{values.double().sum().item():.6g}"),
        "largest": float(f"{values.max().item():.6g}"),
    }


def sheet(rgb: np.ndarray, values: torch.Tensor) -> Image.Image:
    """Photo (H×W×3 in 0–1), map (H×W) on its own scale, and map over the photo, side by side."""
    row = np.concatenate([rgb, plots.in_colour(values), plots.overlay(rgb, values)], axis=1)
    return Image.fromarray((row * 255).round().astype(np.uint8))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m riba.explain --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m riba.explain",
        description="Explain a photo, or every photo of a folder. Of each: NAME.npz with the map "
        f"(H×W, as the network saw the photo) and NAME.png to look at; {TABLE} lists all. Run it "
        "again after a stop: it goes on where it was.",
    )
    parser.add_argument("photos", type=Path, help="a photo, or a folder of photos")
    parser.add_argument("--out", type=Path, required=True, help="folder for the maps")
    parser.add_argument("--model", default="scenenet", help=f"one of {', '.join(NETWORKS)}")
    parser.add_argument("--method", default="relevance-iba", help="a name out of riba.METHODS")
    parser.add_argument("--label", help="class to explain, its number or name; else the prediction")
    parser.add_argument("--layer", help="where the bottleneck sits; else the network's default")
    parser.add_argument("--weights", help="file of weights, or name of published ones")
    parser.add_argument(
        "--reference",
        type=Path,
        help="folder of a thousand or more ordinary photos for the feature statistics; needed by "
        f"the bottlenecks of all networks but {' and '.join(SCENES)}",
    )
    parser.add_argument("--device", help="cuda, or cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        table, bad = run(arguments)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(table.to_string(index=False))
    print(f"{len(table)} maps in {arguments.out}")
    for sentence in bad:
        print(f"left out: {sentence}")


if __name__ == "__main__":
    main()
