"""The report of a real training, in a real browser without a network."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.journey,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        CHROMIUM is None and "PERFUSE_REQUIRE_SERVERS" not in os.environ, reason="needs Debian's package chromium"
    ),
]


def test_the_report_of_a_training_opens_offline(
    verb: Any, scans: Path, workdir: Path, tiny_settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from playwright import sync_api as playwright

    words = ["train", "quickstart", "--data", scans, "--name", "tubes", *tiny_settings, "--local"]
    uri = verb(*words)
    said = capsys.readouterr().err
    assert "Report: " in said
    path = Path(said.split("Report: ")[1].split("\n")[0])
    assert path.parent.parent == workdir / "runs"
    assert "steps/s" in said
    assert said.count("on the validation scans, at threshold") == 3
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        page, asked, complaints = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(path.as_uri())
        widths = page.evaluate("[...document.images].map(i => i.complete ? i.naturalWidth : 0)")
        wide = page.evaluate("document.documentElement.scrollWidth")
        text = page.inner_text("body")
        page.screenshot(path=str(tmp_path / "report.png"), full_page=True)
        browser.close()
    assert len(widths) == 3
    assert min(widths) > 500
    assert wide <= 1200
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == complaints == []
    for wanted in (uri, "Scores on the validation scans", "plateau", "crop: 32", "c.ome.zarr"):
        assert wanted in text
