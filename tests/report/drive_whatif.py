"""Runs in the Python that has Playwright: moves the controls of a served what-if page in Chromium, prints what was seen as JSON.

Usage: drive_whatif.py URL. Every request to elsewhere, every message of the console and every error is told.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from drive import FLAGS, tip, wide  # type: ignore[import-not-found]
from playwright.sync_api import Page, sync_playwright  # type: ignore[import-not-found]

PLAN = "#plan[data-state='{}']:not(.waits)"


def stands(page: Page, state: str) -> dict[str, Any]:
    """What the page says once it stands at a state."""
    plan = page.locator(PLAN.format(state))
    plan.wait_for(timeout=60_000)
    seen: dict[str, Any] = plan.evaluate(
        "p => ({head: p.querySelector('h2').textContent, took: +p.dataset.took, text: p.textContent})"
    )
    return seen | {"hash": page.evaluate("location.hash"), "bars": page.locator("#plan svg.bar .term").count()}


def main() -> None:
    """Print what was seen."""
    url, trouble = sys.argv[1], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))

        def opened(address: str, **options: Any) -> Page:
            page = browser.new_page(**options)
            page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.on("request", lambda request: request.url.startswith((url, "data:")) or trouble.append(request.url))
            page.goto(address)
            return page

        desk = opened(url, viewport={"width": 1200, "height": 800})
        seen: dict[str, Any] = {"first": stands(desk, "")}
        near = desk.locator("#others li").first
        near.wait_for(timeout=60_000)
        seen["near"] = desk.locator("#others").inner_text()
        desk.locator("#context").focus()
        desk.keyboard.press("ArrowRight")
        seen["context"] = stands(desk, "context=16384")
        desk.select_option("#kv", "fp8")
        seen["cache"] = stands(desk, "context=16384&kv=fp8")
        desk.locator("#plan svg.bar .weights").hover()
        seen["tip"] = tip(desk)
        desk.locator("#loss").focus()
        desk.keyboard.press("End")
        seen["loss"] = stands(desk, "context=16384&kv=fp8&loss=any")
        desk.locator("button[type=reset]").click()
        seen["again"] = stands(desk, "")
        phone = opened(f"{url}#context=16384&kv=fp8", viewport={"width": 360, "height": 740}, is_mobile=True)
        seen["linked"] = stands(phone, "context=16384&kv=fp8")
        seen["wide"] = {"desk": wide(desk), "phone": wide(phone)}
        browser.close()
    print(json.dumps(seen | {"trouble": trouble}))


if __name__ == "__main__":
    main()
