"""Pages of `evolve report --html` in headless Chromium: size, time to open, errors, requests, hover, click, evil names.

Four subjects: a run on digits, a search, a made-up run with a thousand mutations, and a run whose every name is markup,
a script or an escape sequence. Each page is opened at three widths, light and dark, and printed.

    pip install playwright && apt-get install chromium
    python benchmarks/report_page.py --pictures pictures
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from evolve.lineage import Reasons, Record, Weighed

ROOT = Path(__file__).parents[1]
WIDTHS, SCHEMES = (400, 900, 1600), ("light", "dark")
EVIL = (
    "</script><script>window.hit=1</script><img src=http://x.invalid/ onerror='window.hit=1'>\x1b[2J\u202e\"&{{ 7*7 }}"
)


def command(*words: str) -> None:
    """Runs evolve."""
    subprocess.run([sys.executable, "-m", "evolve", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def a_run(folder: Path) -> Path:
    """Trains a small residual network on digits, with a mutation after most epochs."""
    where = folder / "digits"
    settings = (
        "training.epochs=10",
        "evolution.schedule.options={epochs: 1, stop: 9}",
        "evolution.policy.name=gradient",
    )
    command("run", "configs/quickstart.yaml", *settings, "evolution.limits.params=150000", f"output.dir={where}")
    return where


def a_search(folder: Path) -> Path:
    """Searches for small networks for a minute."""
    where, settings = folder / "search", ("search.budget.evaluations=40", "search.start=3")
    command("search", "configs/search_quickstart.yaml", *settings, f"output.dir={where}")
    return where


def record(number: int, text: str, **changes: Any) -> Record:
    """Returns a made-up record with twenty candidates."""
    others = [Weighed(operator=text, site=f"{text}{n}", value=n / 7, note=text) for n in range(20)]
    choice = Reasons(policy=text, by=text, chosen=others[0], others=others[1:])
    status = ("applied", "rejected", "rolled_back")[number % 3]
    fields = {
        "operator": text,
        "site": text,
        "message": text * 2,
        "reason": text,
        "preserves": "exact",
        "choice": choice,
    }
    sizes = {"params_before": 1000 + number, "params_after": 1001 + number, "flops_before": 9, "flops_after": 9}
    place = {"index": number, "step": 10 * number, "epoch": number}
    return Record(**{**fields, **sizes, **place, "status": status, "success": number % 3 == 0, **changes})


def made_up(folder: Path, mutations: int, text: str) -> Path:
    """Writes a run folder in which `text` stands for every name."""
    folder.mkdir(parents=True)
    records = [record(number, text) for number in range(1, mutations + 1)]
    (folder / "lineage.jsonl").write_text("".join(f"{r.model_dump_json()}\n" for r in records), encoding="utf-8")
    known = {"train_loss": 0.5, "val_accuracy": 0.9, "params": 1000, f"val_{text}": 0.5}
    lines = [{**known, "epoch": n, "step": 10 * n, "val_loss": 1 / n} for n in range(1, mutations + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    module = {"kind": text, "settings": text, "params": 3}
    modules = [{**module, "name": ""}, {**module, "name": text}]
    architecture = {"first": modules, "last": [*modules, {**module, "name": f"{text}2"}]}
    (folder / "architecture.json").write_text(json.dumps(architecture))
    session = {"begun": text, "versions": {text: text}, "system": text, "processor": text, "devices": [text]}
    (folder / "environment.json").write_text(json.dumps({"sessions": [session]}))
    (folder / "config.yaml").write_text(f"seed: {text}\n", encoding="utf-8")
    return folder


class Watch:
    """What a page does that it should not."""

    def __init__(self, page: Page) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))


def opened(page: Page, file: Path) -> float:
    """Opens a page; returns the seconds until it was drawn."""
    started = time.perf_counter()
    page.goto(file.as_uri())
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.perf_counter() - started


def pointed(page: Page) -> dict[str, bool]:
    """Points at the first plot, clicks what is there, and goes on by the keyboard."""
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    hover = click = False
    for part in range(5, 100):
        page.mouse.move(box["x"] + box["width"] * part / 100, box["y"] + box["height"] * 0.5)
        hover = hover or page.locator("#tip").is_visible()
        page.mouse.click(box["x"] + box["width"] * part / 100, box["y"] + box["height"] * (0.03 if part % 2 else 0.5))
        if page.locator(".record").first.is_visible():
            click = True
            break
    found = {"hover": hover, "click": click}
    if page.locator(".attempts tbody tr").count():
        plot.focus()
        before = page.locator(".record").first.inner_text()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        found["keys"] = page.locator(".record").first.inner_text() != before
        page.locator(".attempts tbody tr").last.click()
        found["row"] = page.locator(".attempts tbody tr").last.get_attribute("class") == "chosen"
    return found


def looked_at(browser: Browser, name: str, file: Path, pictures: Path | None) -> None:
    """Prints what a page does at each width and in each scheme."""
    print(f"\n{name}: {file.stat().st_size / 1000:,.0f} kB")
    for width in WIDTHS:
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
            watch = Watch(page)
            seconds = opened(page, file)
            if pictures is not None:
                page.screenshot(path=pictures / f"{name}-{width}-{scheme}.png", full_page=True)
            done = pointed(page)
            wide = page.evaluate("document.documentElement.scrollWidth") > width
            hit = page.evaluate("window.hit !== undefined || document.querySelector('img') !== null")
            others = [url for url in watch.requests if url != file.as_uri() and not url.startswith("data:")]
            told = [f"opens in {seconds:.2f} s", f"{len(watch.errors)} errors", f"{len(others)} requests"]
            told += [f"{what} {'works' if works else 'FAILS'}" for what, works in done.items()]
            told += ["too wide" if wide else "fits", "NOT INERT" if hit else "inert"]
            print(f"  {width:>4} px, {scheme:<5}  {', '.join(told)}")
            for line in [*watch.errors, *others][:5]:
                print(f"    {line[:200]}")
            page.close()
    page = browser.new_page(color_scheme="dark")
    page.goto(file.as_uri())
    printed = page.pdf(path=pictures / f"{name}.pdf" if pictures else None, format="A4", print_background=True)
    print(f"  printed: {printed.count(b'/Type /Page') - printed.count(b'/Type /Pages')} pages")
    page.close()


def main() -> None:
    """Makes the subjects and looks at their pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--pictures", type=Path, help="Folder for screenshots and PDFs.")
    parser.add_argument("--only", help="One of run, search, thousand, hostile.")
    arguments = parser.parse_args()
    if arguments.pictures is not None:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        subjects: dict[str, Callable[[], Path]] = {
            "run": lambda: a_run(root),
            "search": lambda: a_search(root),
            "thousand": lambda: made_up(root / "thousand", 1000, "stage1.conv "),
            "hostile": lambda: made_up(root / "hostile", 30, EVIL),
        }
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        for name, subject in subjects.items():
            if arguments.only not in (None, name):
                continue
            command("report", str(subject()), "--html", str(root / f"{name}.html"))
            looked_at(browser, name, root / f"{name}.html", arguments.pictures)
        browser.close()


if __name__ == "__main__":
    main()
