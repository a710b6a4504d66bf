"""Pictures of the explorer for the README: `python bench/gallery.py RUN --images docs/images`.

Needs Chromium and Playwright (`pip install '.[test]'`); finished runs alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click

SIZE = {"width": 1280, "height": 800}
# name of the picture, address, text that is there when the view is drawn
VIEWS = (
    ("explorer_cortex", "#cortex?subject=subj01&mode=patch_mean&map=patch_mean.held_out&vertex=left,10151", "Best 5 units"),
    ("explorer_unit", "#unit?kind=patch&hook=block05.resid&unit=20", "How it fires"),
    ("explorer_units", "#units?kind=patch&judge=labels&concept=word", "block0"),
    ("explorer_picture", "#picture?image=21&kind=patch&hook=block04.resid&patches=18,19,26,27", "By region"),
    ("explorer_edits", "#edits?image=24&hook=block04.resid&units=13&how=clamp&value=2&patches=0,1,2,8,9,10", "By region"),
)  # fmt: skip


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), default=Path("docs/images"), show_default=True)
@click.option("--head", type=click.Path(path_type=Path), help="Segmentation head, for the edits.")
def main(run: Path, images: Path, head: Path | None) -> None:
    """Draw every view of the explorer of RUN."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    words = [sys.executable, "-m", "sbm_jax.cli.main", "serve", str(run), "--port", "0"]
    words += ["--head", str(head)] if head else []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = next(line.strip() for line in server.stdout if re.match(r"http://127", line))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)  # pyright: ignore[reportArgumentType]
        for name, address, text in VIEWS:
            page.goto("about:blank")
            page.goto(url + address)
            page.get_by_text(text).first.wait_for(timeout=180_000)
            page.wait_for_load_state("networkidle")
            path = images / f"{name}.png"
            page.screenshot(path=path)
            Image.open(path).convert("RGB").save(path, optimize=True)
            click.echo(str(path))
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
