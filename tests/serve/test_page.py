"""The page: nothing from elsewhere, names are text, and a browser predicts a picture with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def test_the_page_asks_nobody_and_runs_nothing_else(open_client) -> None:
    answer = open_client(token="a secret").get("/")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/html")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("sha256-") == 2
    assert re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"']?(?:https?:)?//", answer.text) == []
    assert "innerHTML" not in answer.text and not re.search(r"\son\w+=", answer.text)


@pytest.fixture(scope="module")
def address(served_run: Path) -> Iterator[str]:
    """Where the service of a run listens."""
    environment = {name: value for name, value in os.environ.items() if name != "HEADSTART_TOKEN"}
    command = [sys.executable, "-m", "headstart", "serve", str(served_run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield re.search(r"at (http://\S+)", process.stdout.readline())[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing")
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1400, "dark")])
def test_a_browser_predicts_a_picture(address, pictures, tmp_path, width: int, scheme: str) -> None:
    from playwright.sync_api import sync_playwright

    name = "<img src=x onerror=alert(1)>.png"
    (tmp_path / name).write_bytes(pictures["01.png"])
    (tmp_path / "torn.png").write_bytes(b"no picture")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        told: list[str] = []
        view.on("console", lambda message: told.append(message.text))
        view.on("pageerror", lambda error: told.append(str(error)))
        view.on(
            "request",
            lambda request: told.append(request.url) if not request.url.startswith((address, "blob:", "data:")) else 0,
        )
        view.goto(address)
        view.wait_for_selector("#card:not([hidden])")
        view.keyboard.press("Tab")
        assert view.evaluate("document.activeElement.id") == "files", (
            "the file picker is the first stop of the keyboard"
        )
        view.set_input_files("#files", [str(tmp_path / name), str(tmp_path / "torn.png")])
        view.wait_for_selector("#answers > li:nth-child(2)")
        shown = view.inner_text("#answers")
        assert name in shown and "Could not be read" in shown and "%" in shown
        assert "1 of 2 pictures answered." in view.inner_text("#status")
        assert view.evaluate("document.querySelector('.bar > i').getBoundingClientRect().width") > 5
        assert view.evaluate("document.documentElement.scrollWidth") == width
        paper = view.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
        if folder := os.environ.get("HEADSTART_SHOTS"):
            view.screenshot(path=f"{folder}/page-{width}.png", full_page=True)
        browser.close()
        assert [line for line in told if "torn" not in line] == []
