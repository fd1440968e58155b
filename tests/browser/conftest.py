"""JupyterLab in a real browser: of each worker one server, one browser, a copy of the notebooks."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOW = (
    'no browser: install Chromium and `pip install -e ".[browser]"`, '
    "or set RIBA_BROWSER to the path of one, and run `make browser`"
)
FEWER = {
    "range(40)": "range(8)",
    "range(110)": "range(16)",
    "FEW = 40": "FEW = 8",
    "range(128)": "range(32)",
    "range(12)": "range(6)",
    "range(60)": "range(24)",
    "[:12, 0]": "[:4, 0]",
    "plots.use_style()": 'plots.use_style(); plots.FIGURES = plots.Path(\\"figures\\")',
    ', \\"down to stride 4\\": 5, \\"everything\\": 9': "",
    '(\\"lynx\\", real), (\\"espresso\\", real), ': "",
    'index=[\\"lynx\\", \\"espresso\\", \\"new weights\\"]': 'index=[\\"new weights\\"]',
    "for index in (0, 1, 2)": "for index in (0,)",
    "SCENES = (3, 6, 9)": "SCENES = (3,)",
    '\\"InputIBA\\": \\"input-iba\\",': "",
}
"""Fewer scenes than the notebooks take: here it matters that they run, and that panels answer.
Figures of so few are not those that are committed, and go elsewhere."""
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "recordTiming": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """All tests of a notebook go to one worker, which runs its cells once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByNotebook(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return re.search(r"\d\d_\w+", nodeid)[0]

    return ByNotebook(config, log)


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, or a skip that says how to get it."""
    playwright = pytest.importorskip("playwright.sync_api", reason=HOW)
    path = os.environ.get("RIBA_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(HOW)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    """Address of a JupyterLab on a copy of the notebooks, with settings of its own."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, home / "notebooks")
    missed = set(FEWER)
    for path in (home / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        missed -= {many for many in missed if many in text}
        for many, few in FEWER.items():
            text = text.replace(many, few)
        path.write_text(text, encoding="utf-8")
    assert not missed, f"no notebook has {missed}"
    for name, values in SETTINGS.items():
        plugin, setting = name.split("/")
        folder = home / "settings" / "@jupyterlab" / plugin
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{setting}.jupyterlab-settings").write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={home / 'notebooks'}"]
    command += ["--LabApp.expose_app_in_browser=True", "--ServerApp.allow_root=True"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _await(address, server, home / "log")
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _await(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"JupyterLab did not start: {log.read_text()}")
