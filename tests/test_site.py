"""The site, where ``make html`` built it: links, pictures, search; nothing from afar."""

import base64
import hashlib
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site" / "_build" / "html"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = [*NOTEBOOKS, ROOT / "README.md", *ROOT.glob("site/*.*"), *ROOT.glob("[!.]*/*.md")]
START = SITE / "index.html"
CURRENT = START.exists() and START.stat().st_mtime > max(p.stat().st_mtime for p in SOURCES)
PAGES = [p for p in sorted(SITE.rglob("*.html")) if CURRENT and "_static" not in p.parts]

pytestmark = pytest.mark.skipif(not CURRENT, reason="no site of what is here now: `make html`")


class Page(HTMLParser):
    """What a page has (anchors, pictures), where it leads, and what it loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.images, self.links, self.loads = set(), [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given.get("id"), given.get("name")} - {None}
        if tag == "img":
            self.images.append(given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link":
            self.loads.append(given["href"])
        elif given.get("src"):
            self.loads.append(given["src"])


read = cache(Page)


def of(notebook):
    return SITE / "notebooks" / f"{notebook.stem}.html"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(SITE)))
def test_every_link_and_anchor_is_there(path):
    for link in (*read(path).links, *read(path).loads):
        address = urlsplit(link)
        if address.scheme:
            continue
        target = (path.parent / unquote(address.path)).resolve() if address.path else path
        assert target.is_file(), link
        if address.fragment and target.suffix == ".html":
            assert unquote(address.fragment) in read(target).anchors, link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(SITE)))
def test_nothing_is_loaded_from_elsewhere(path):
    for address in read(path).loads:
        assert not urlsplit(address).netloc, address


def test_style_sheets_load_nothing_from_elsewhere():
    for path in SITE.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text), path


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(SITE)))
def test_every_picture_says_what_it_shows(path):
    for image in read(path).images:
        assert re.search(r"\w \w", image.get("alt") or ""), image  # words, not a name of a file


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_all_its_pictures_and_every_panel_as_a_still(notebook):
    page = of(notebook).read_text(encoding="utf-8")
    assert "widget-view" not in page
    panels = 0
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            panels += "a panel" in "".join(data.get("text/plain", ""))
            if "image/png" in data:
                picture = base64.b64decode("".join(data["image/png"]))
                name = f"../_images/{hashlib.sha256(picture).hexdigest()}.png"
                assert name in [image["src"] for image in read(of(notebook)).images]
                assert (SITE / "notebooks" / name).read_bytes() == picture
    assert page.count("The panel as it first looks") == panels


def test_the_front_page_leads_to_every_notebook():
    assert "README.html" in START.read_text(encoding="utf-8")
    links = {link.partition("#")[0] for link in read(SITE / "README.html").links}
    for page in (*map(of, NOTEBOOKS), SITE / "notebooks" / "glossary.html"):
        assert page.relative_to(SITE).as_posix() in links


def test_search_finds_a_word_where_it_stands():
    text = (SITE / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    found = {index["docnames"][k] for k in index["terms"]["capac"]}  # the stem of "capacity"
    assert found >= {"notebooks/02_bottleneck", "notebooks/glossary"}
