"""The README's picture of the demo page, made by the program itself: `python scripts/demo_picture.py ARTEFACT docs/demo.png`.

Needs Chromium and `pip install playwright`. The source is the generated pattern, unless --source names another.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--source", default="pattern")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long the demo has run when the picture is taken")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=860)
    parser.add_argument("--theme", choices=["light", "dark"], default="dark")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "dtkd_edge", "demo", str(options.artifact), "--source", options.source, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as demo, sync_playwright() as driver:
        assert demo.stderr is not None
        address = next(m.group() for line in demo.stderr if (m := re.search(r"http://127\.0\.0\.1:\d+\S*", line)))
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        size = {"width": options.width, "height": options.height}
        page = browser.new_page(viewport=size, color_scheme=options.theme)  # type: ignore[arg-type]
        page.goto(address)
        time.sleep(options.seconds)
        options.picture.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(options.picture))
        browser.close()
        demo.terminate()
    print(options.picture)


if __name__ == "__main__":
    main()
