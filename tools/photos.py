"""Cut-outs and backgrounds from Debian's packages: ``python -m tools.photos``, or ``make photos``.

Needs neither root nor dpkg: packages are downloaded with apt-get where it is, or taken from
``data/cache/photos`` if somebody put them there, and what ``data/cutouts.csv`` and
``data/backgrounds.csv`` list is taken out of them. What is there already is not fetched again.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pandas as pd

from riba.testbed.photos import FETCHED, TABLES

HASH_DIGITS = 16


def listed(place: Path) -> pd.DataFrame:
    """What the tables list: columns ``package``, ``source``, ``sha256`` and ``path``, below
    ``place``."""
    tables = []
    for kind, file in TABLES.items():
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        table["path"] = [place / kind / name for name in table["file"]]
        tables.append(table[["package", "source", "sha256", "path"]])
    return pd.concat(tables)


def get(place: Path) -> None:
    """Put everything that the tables list below ``place``, and check it.

    Raises
    ------
    OSError, ValueError
        A package cannot be had or lacks a file, or a file is not the one of the tables: says which
        and what to do.
    """
    table = listed(place)
    for package, rows in table.groupby("package"):
        missing = {row.source: row for row in rows.itertuples() if not sound(row.path, row.sha256)}
        if missing:
            print(f"{package}: {len(missing)} pictures to get", flush=True)
            with tempfile.TemporaryDirectory(dir=place) as folder:
                take_out(archive(package, place, Path(folder)), missing)
        print(f"{package}: {len(rows)} pictures are in {place}", flush=True)


def sound(path: Path, digest: str) -> bool:
    """Whether there is a file of this content."""
    return path.is_file() and digest_of(path.read_bytes()) == digest


def digest_of(content: bytes) -> str:
    """As in the tables: the first hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


def archive(package: str, place: Path, folder: Path) -> Path:
    """The file of a package: the one in ``place``, or downloaded with apt-get to ``folder``.

    Raises
    ------
    OSError
        It is not there, and cannot be downloaded.
    """
    for name in sorted(place.glob(f"{package}_*.deb")):
        return name
    if shutil.which("apt-get") is None:
        raise OSError(
            f"{package} is not here and there is no apt-get: download Debian's package {package} "
            f"and put its .deb into {place}"
        )
    for command in (["download", package], ["update"], ["download", package]):
        run = subprocess.run(
            ["apt-get", "--quiet", *command], cwd=folder, capture_output=True, text=True
        )
        for name in folder.glob(f"{package}_*.deb"):
            return name
    errors = [line for line in run.stderr.splitlines() if line.startswith("E:")]
    reason = errors[0] if errors else "it gives no reason"
    raise OSError(
        f"apt-get cannot download {package} ({reason}): try again, or put its .deb into {place}"
    )


def take_out(path: Path, missing: dict[str, object]) -> None:
    """Take the ``missing`` files (rows of :func:`listed`, by source) out of a package.

    Raises
    ------
    ValueError
        The package lacks a file, holds another one of that name, or cannot be read.
    """
    left = dict(missing)
    try:
        with path.open("rb") as file, content(file) as members:
            for member in members:
                row = left.pop(member.name.removeprefix("./"), None)
                if row is None:
                    continue
                picture = members.extractfile(member).read()
                if digest_of(picture) != row.sha256:
                    raise ValueError(
                        f"{path.name} holds another {row.source} than the tables were made with: "
                        "take the package of Debian 12"
                    )
                row.path.parent.mkdir(parents=True, exist_ok=True)
                row.path.write_bytes(picture)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be unpacked ({error}): take the package of Debian 12 again"
        ) from error
    if left:
        raise ValueError(
            f"{path.name} lacks {len(left)} files ({next(iter(left))}, …): "
            "take the package of Debian 12"
        )


def content(file: IO[bytes]) -> tarfile.TarFile:
    """The files of an open package: its member ``data.tar`` within the ``ar`` archive.

    Raises
    ------
    tarfile.ReadError
        It is no package, or compressed in a way that Python does not know.
    """
    for name, start in ar_members(file):
        if name.startswith("data.tar"):
            file.seek(start)
            return tarfile.open(fileobj=file, mode="r|*")
    raise tarfile.ReadError("it is not a Debian package")


def ar_members(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Name and place of each member of an ``ar`` archive."""
    if file.read(8) != b"!<arch>\n":
        return
    while len(header := file.read(60)) == 60:
        start, size = file.tell(), int(header[48:58])
        yield header[:16].decode("ascii").strip(), start
        file.seek(start + size + size % 2)


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m tools.photos --help``."""
    parser = argparse.ArgumentParser(prog="python -m tools.photos", description=__doc__)
    parser.add_argument("--out", type=Path, default=FETCHED, help="folder of the pictures")
    place = parser.parse_args(argv).out
    try:
        place.mkdir(parents=True, exist_ok=True)
        get(place)
    except (OSError, ValueError) as error:
        sys.exit(f"no photographs: {error}")


if __name__ == "__main__":
    main()
