"""Folders of results that can be continued: their settings, and tables that are stored in parts."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from riba import storage

SETTINGS = "settings.json"


def open_folder(folder: Path, settings: dict[str, object], results: str | None = None) -> None:
    """Make a folder for results, or check that those in it were made with the same settings.

    Parameters
    ----------
    settings
        What the results depend on, as JSON holds it; stored in ``settings.json``.
    results
        Pattern of the names of the files of results; where there are none, the settings are
        replaced. None: settings are never replaced, as several runs may share the folder.

    Raises
    ------
    ValueError
        The folder holds results of other settings; says which differ.
    """
    path = folder / SETTINGS
    if path.is_file() and (results is None or any(folder.glob(results))):
        stored = json.loads(path.read_text(encoding="utf-8"))
        differences = [
            f"{name} {stored.get(name)!r} there, {value!r} here"
            for name, value in settings.items()
            if stored.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"{folder} holds results of other settings ({'; '.join(differences)}): "
                "choose another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with storage.whole(path) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def read_parts(folder: Path) -> pd.DataFrame:
    """A table out of its parts, those that can be read.

    Warns
    -----
    UserWarning
        A part is damaged; it is left out, to be measured again.
    """
    parts = [pa.table({})]
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            parts.append(parquet.read_table(path, partitioning=None))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path} is unreadable ({error}); measured again", stacklevel=3)
    table = pa.concat_tables(parts, promote_options="permissive")
    return table.to_pandas(integer_object_nulls=True)


def write_part(folder: Path, frame: pd.DataFrame, keys: list[str], replace: bool = True) -> None:
    """Store a part of a table, whole or not at all.

    Parameters
    ----------
    keys
        Columns that identify a row: the file is named by a hash of them.
    replace
        Whether a file that is there already is written anew.
    """
    text = "\n".join(frame[keys].map(str).agg("|".join, axis=1))
    path = folder / f"part-{hashlib.sha256(text.encode()).hexdigest()[:20]}.parquet"
    if replace or not path.is_file():
        with storage.whole(path) as part:
            frame.to_parquet(part, index=False)
