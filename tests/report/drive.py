"""Runs in the Python that has Playwright: opens a page in Chromium, does what a reader does, prints what was seen as JSON.

Usage: drive.py PAGE. Every request beyond the page itself, every message of the console and every error is told.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright  # type: ignore[import-not-found]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
TIP = "#tip"


def tip(page: Page) -> str | None:
    """What the tip says; None where none is shown."""
    return page.locator(TIP).text_content() if page.locator(TIP).is_visible() else None


def wide(page: Page) -> bool:
    """Whether the page is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def read(page: Page, file: Path) -> dict[str, Any]:
    """Hover, filter, press keys."""
    seen: dict[str, Any] = {}
    page.goto(file.as_uri())
    seen["title"] = page.title()
    terms = page.locator("#memory svg.bar .term")
    seen["terms"] = []
    for number in range(terms.count()):
        terms.nth(number).hover()
        seen["terms"].append(tip(page))
    page.mouse.move(0, 0)
    seen["left"] = tip(page)
    page.locator("#choices .point.chosen[role=img]").first.hover()
    seen["chosen"] = tip(page)
    visible = "#choices svg.chart .point:not(.hidden)"
    seen["points"] = page.locator(visible).count()
    page.fill("#filter", "awq")
    seen["filtered"] = page.locator(visible).count()
    seen["said"] = page.text_content("#shown")
    page.fill("#filter", "")
    page.uncheck("[name=lost]")
    seen["standing"] = page.locator(visible).count()
    page.check("[name=lost]")
    seen["again"] = page.locator(visible).count()
    seen["stops"] = page.locator("#choices svg.chart [tabindex='0']").count()
    page.locator("#choices svg.chart [tabindex='0']").first.focus()
    seen["focused"] = tip(page)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    seen["moved"] = tip(page)
    page.keyboard.press("Escape")
    seen["closed"] = tip(page)
    page.locator("#bits td").first.hover()
    seen["bits"] = tip(page)
    page.locator("#choices summary").click()
    seen["reasons"] = page.locator("#candidates tbody tr td:last-child").all_text_contents()
    return seen


def main() -> None:
    """Print what was seen."""
    file, trouble = Path(sys.argv[1]).resolve(), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))

        def opened(**options: Any) -> Page:
            page = browser.new_page(**options)
            page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.on(
                "request", lambda request: request.url.startswith(("file:", "data:")) or trouble.append(request.url)
            )
            return page

        desk = opened(viewport={"width": 1200, "height": 800})
        seen = read(desk, file)
        seen["ground"] = {}
        for scheme in ("light", "dark"):
            desk.emulate_media(color_scheme=scheme)
            seen["ground"][scheme] = desk.evaluate("getComputedStyle(document.body).backgroundColor")
        desk.emulate_media(media="print", color_scheme="light")
        seen["printed"] = {"filter": desk.locator(".filter").is_visible(), "bytes": len(desk.pdf())}
        phone = opened(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
        phone.goto(file.as_uri())
        seen["wide"] = {"desk": wide(desk), "phone": wide(phone)}
        phone.locator("#memory svg.bar .weights").tap()
        seen["tapped"] = tip(phone)
        bare = opened(java_script_enabled=False)
        bare.goto(file.as_uri())
        seen["bare"] = bare.locator("#candidates tbody tr").count()
        browser.close()
    print(json.dumps(seen | {"trouble": trouble}))


if __name__ == "__main__":
    main()
