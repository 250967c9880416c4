"""Runs in the Python that has Playwright: takes pictures of pages in Chromium.

Usage: shoot.py JOBS, a file of JSON: a list of {url, to, width, height, dark, phone, print, hover, at, wait}, each picture into `to` (`print`:
as a PDF). `hover`: what the pointer rests on; `at`: what is scrolled to the top; `wait`: what must be there first.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright  # type: ignore[import-not-found]

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")


def take(browser: Browser, job: dict[str, Any]) -> None:
    """Take one picture."""
    phone = bool(job.get("phone"))
    page = browser.new_page(
        viewport={"width": job["width"], "height": job["height"]}, is_mobile=phone, has_touch=phone,
        color_scheme="dark" if job.get("dark") else "light",
    )  # fmt: skip
    page.goto(job["url"])
    if "wait" in job:
        page.locator(job["wait"]).first.wait_for(timeout=60_000)
    if "at" in job:
        page.evaluate("name => document.querySelector(name).scrollIntoView()", job["at"])
    if "hover" in job:
        page.locator(job["hover"]).first.hover()
    if job.get("print"):
        page.pdf(path=job["to"], format="A4", print_background=False)
    else:
        page.screenshot(path=job["to"], full_page=bool(job.get("whole")))
    page.close()


def main() -> None:
    """Take all."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
            take(browser, job)
        browser.close()


if __name__ == "__main__":
    main()
