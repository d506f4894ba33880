"""The page in a real browser, headless Chromium: what it loads, what it says, how it sorts, how it fits."""

import json
import re
import shutil
import subprocess

import pytest
from synthetic import cells, write_run

from analysis.report import build

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; Debian: apt-get install chromium"),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=20000",
    "--dump-dom",
]

# Runs in the page once it has loaded, in a frame of a given width, and leaves what it saw in the outer document.
PROBE = """
<!doctype html><meta charset="utf-8"><iframe id="frame" style="width: WIDTHpx; height: 900px; border: 0"></iframe>
<pre id="seen"></pre>
<script>
const frame = document.getElementById("frame");
frame.srcdoc = PAGE;
frame.addEventListener("load", () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  const column = (table, place) => [...table.tBodies[0].rows].map((row) => row.cells[place].textContent.trim());
  const sorted = [...page.querySelectorAll("table.sortable")].filter((table) => table.tBodies[0].rows.length > 1)
    .map((table) => [...table.tHead.rows[0].cells].map((head, place) => {
      const states = [column(table, place)];
      for (let click = 0; click < 2; click++) {
        head.querySelector("button").click();
        states.push(column(table, place), head.getAttribute("aria-sort"));
      }
      return states;
    }));
  const drawings = [...page.querySelectorAll(".drawing svg")];
  document.getElementById("seen").textContent = JSON.stringify({
    requests: view.performance.getEntriesByType("resource").map((entry) => entry.name)
      .filter((name) => !name.startsWith("data:")),
    images: [...page.querySelectorAll("img")].map((image) => image.complete && image.naturalWidth > 0),
    pictures: [...page.querySelectorAll("svg image")].map((image) => image.getBoundingClientRect().width),
    drawings: drawings.map((svg) => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height]),
    overflow: page.documentElement.scrollWidth - view.innerWidth,
    headings: page.querySelectorAll("h2").length,
    ink: view.getComputedStyle(page.body).color, paper: view.getComputedStyle(page.body).backgroundColor,
    text: drawings.length ? view.getComputedStyle(drawings[0]).color : null,
    sorted,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return build([write_run(folder / "run", list(cells(batches=(1, 4), taus=(0.1, 0.5))))])


def look(page, tmp_path, width, *flags):
    """What the probe saw, and what the browser's console said."""
    markup = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)).replace("PAGE", markup), encoding="utf-8")
    command = [
        CHROMIUM,
        *FLAGS,
        *flags,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1700,1000",
        probe.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)[1]
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    for code, letter in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        seen = seen.replace(code, letter)
    return json.loads(seen), told


@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_loads_fits_and_sorts(page, tmp_path, width):
    seen, console = look(page, tmp_path, width)
    assert console == []
    assert seen["requests"] == []
    assert all(seen["images"]) and seen["pictures"] and min(seen["pictures"]) > 3  # a colour bar is narrow
    assert len(seen["drawings"]) >= 11
    assert all(side > 100 for sides in seen["drawings"] for side in sides)
    assert seen["overflow"] <= 0
    assert seen["sorted"]
    for table in seen["sorted"]:
        for before, up, ascending, down, descending in table:
            assert (ascending, descending) == ("ascending", "descending")
            assert sorted(before) == sorted(up) == sorted(down)
            known = [value for value in up if value not in ("", "–")]
            numbers = [re.match(r"-?[\d.,]+(e-?\d+)?", value) for value in known]
            if known and all(numbers):
                values = [float(number[0].replace(",", "")) for number in numbers]
                assert values == sorted(values)
                assert [value for value in down if value not in ("", "–")][0] == max(
                    known, key=lambda v: values[known.index(v)]
                )
            assert all(value in ("", "–") for value in up[len(known) :])


def test_dark_and_light_differ_and_drawings_follow(page, tmp_path):
    light, _ = look(page, tmp_path, 1600)
    dark, console = look(page, tmp_path, 1600, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert console == []
    assert light["paper"] == "rgb(255, 255, 255)" != dark["paper"]
    for seen in (light, dark):
        assert seen["text"] == seen["ink"]
