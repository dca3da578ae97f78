"""The documentation site, by one command.

    python docs/site/build.py [--out DIR] [--check]

Writes all pages as Markdown (the tutorial from the files that are its tests, with what they print; the reference from
docstrings and from the operations; tables from the recorded results; pictures by the layouts' functions), then lets
Sphinx make HTML of them. Any warning, such as a link to nothing, is an error. `--check` finds them without HTML.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "docs" / "site"
sys.path[:0] = [str(ROOT), str(HERE)]

import reference  # noqa: E402
import tutorial  # noqa: E402

TEXTS = ("design.md", "performance.md", "benchmarks.md", "contributing.md")  # of docs/, as they are


def write_pages(source: Path) -> None:
    """All pages, below `source`."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE / "pages", source)
    shutil.copy(HERE / "conf.py", source)
    shutil.copytree(ROOT / "docs" / "charts", source / "charts")
    for name in TEXTS:
        shutil.copy(ROOT / "docs" / name, source)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (source / "changelog.md").write_text(changes, encoding="utf-8")
    tutorial.write_steps(ROOT / "docs" / "tutorial", source / "tutorial")
    tutorial.write_examples(ROOT / "examples" / "kernels", source / "examples.md")
    reference.write_reference(source / "reference")
    for page in source.rglob("*.md"):
        _fill(page)


def _fill(page: Path) -> None:
    """Puts in the tables and pictures that a page asks for."""
    text = page.read_text(encoding="utf-8")
    found = re.sub(r"^(picture|table): (.+)$", lambda m: tutorial.inserted(m[1], m[2], page.parent), text, flags=re.M)
    page.write_text(found, encoding="utf-8")


def main() -> int:
    """Sphinx's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="the directory to fill")
    parser.add_argument("--check", action="store_true", help="read the pages and follow their links, and write no HTML")
    given = parser.parse_args()
    out, builder = given.out.resolve(), "dummy" if given.check else "html"
    os.chdir(ROOT)  # what steps print names files from here
    write_pages(out / "source")
    return build_main(["-q", "-W", "-n", "--keep-going", "-b", builder, str(out / "source"), str(out / builder)])


if __name__ == "__main__":
    sys.exit(main())
