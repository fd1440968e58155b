"""The series as pages to read: ``make html``. Nothing is executed, and nothing comes from afar."""

from pathlib import Path

from docutils import nodes

project, author = "riba", "The riba authors"
root_doc = "README"
include_patterns = ["README.md", "notebooks/*", "data/*.md", "benchmarks/README.md"]
exclude_patterns = [".*", "site", "notebooks/*.py"]  # .venv is not even walked

extensions = ["myst_nb", "sphinx-mathjax-offline"]
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_render_markdown_format = "gfm"  # tables among the outputs
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "sphinx_book_theme"
html_title = "The Relevance-IBA workbook"
html_theme_options = {"navbar_persistent": []}  # the search field of the sidebar is enough
html_static_path = html_css_files = ["site.css"]
START = '<!doctype html><title>riba</title><meta http-equiv="refresh" content="0;url=README.html">'


def add_menu(app, page, text):
    """The menu; the pages themselves need not know that they are part of a site."""
    if page == "README":
        text[0] += menu(":caption: The series", "notebooks/[0-9]*")
        data = "Data, photos, weights <data/README>"
        text[0] += menu(":caption: To look up", "notebooks/[a-z]*", data, "benchmarks/README")
    elif page == "data/README":
        text[0] += menu("[a-z]*")
    elif not text[0].startswith(("# ", "{")):  # a piece that other pages show, too
        text[0] = f"# {page}.md\n\n{text[0]}"


def menu(*lines):
    return "\n".join(["\n\n```{toctree}", ":hidden:", ":glob:", *lines, "```\n"])


def describe(app, doctree):
    """Alternative text of a cell's picture, from the caption below it; and say what a still is."""
    for image in doctree.findall(lambda node: isinstance(node, nodes.image) and "alt" not in node):
        bundle = image.parent.parent
        cell = bundle.parent.parent
        below = cell.next_node(nodes.paragraph, descend=False, siblings=True)
        title = cell.parent.next_node(nodes.title).astext()
        captioned = below is not None and below.astext().startswith("Figure")
        image["alt"] = below.astext() if captioned else f"{title}: what the cell above shows"
        if "a panel" in bundle.astext():
            image["alt"] = f"{title}: the panel's first picture"
            still = "The panel as it first looks. In JupyterLab it answers: make lab."
            image.parent += nodes.paragraph("", "", nodes.emphasis("", still))


def setup(app):
    app.connect("source-read", add_menu)
    app.connect("doctree-read", describe)
    app.connect("build-finished", lambda *_: Path(app.outdir, "index.html").write_text(START))
