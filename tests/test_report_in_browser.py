"""The report in a real browser: it fits a phone, its filters work, it asks for nothing. Skipped without Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evaluated import evaluated

from promptcdm.evaluation_report import evaluation_report

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine"),
]
LONG = "averyveryveryveryveryveryveryveryverylongword"
# Appended to a copy of the page, which itself has no script.
PROBE = """<script>
const seen = s => [...document.querySelectorAll(s)].filter(e => e.offsetParent).length;
const found = [document.documentElement.scrollWidth <= innerWidth, performance.getEntriesByType("resource").length];
for (const id of ["show-all", "show-wrong", "show-differs"]) {
  document.getElementById(id).click(); found.push(seen(".questions li"));
}
const hidden = e => getComputedStyle(e).display === "none" || e.tabIndex < 0;
found.push([...document.querySelectorAll("a, input, summary")].filter(hidden).length);
document.title = "probe " + found.join(" ");
</script></body>"""


def probed(page: Path, width: int, folder: Path) -> list[str]:
    """What the probe finds in a frame of this many pixels: the browser's own windows have a least width."""
    copy, frame = folder / "copy.html", folder / "frame.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    told = "document.title = document.querySelector('iframe').contentDocument.title"
    frame.write_text(
        f'<iframe src="copy.html" style="width:{width}px;height:800px;border:0" onload="{told}"></iframe>',
        encoding="utf-8",
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += [f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=3000", "--dump-dom"]
    printed = subprocess.run(
        [CHROMIUM, *flags, frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    (title,) = re.findall(r"<title>probe (.*?)</title>", printed)
    return title.split()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Three runs of two sources, one with a name that does not break."""
    runs = [
        evaluated(tmp_path / "all.json", range(8), {LONG: 0.75, "cars": 0.25}),
        evaluated(tmp_path / f"{LONG}.json", range(6), {LONG: 1.0}),
        evaluated(tmp_path / "cars.json", range(4), {"cars": 1.0}),
    ]
    return evaluation_report(runs, tmp_path / "report.html")


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_it_fits_filters_and_asks_for_nothing(page: Path, width: int, tmp_path: Path) -> None:
    fits, requests, everything, wrong, differing, unreachable = probed(page, width, tmp_path)
    assert fits == "true"
    assert requests == "0"
    # 9 captions of 2 questions: caption 8 is wrong in every run, 4 to 7 in one or two, 0 to 3 in none.
    assert (everything, wrong, differing) == ("18", "10", "8")
    assert unreachable == "0"
