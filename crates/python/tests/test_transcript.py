"""The first ten minutes of docs/python.md: what it shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# Beside the tests in an environment that CI made, above the package in the repository.
DOCS = next(path for path in (HERE.parent / "docs", HERE.parents[2] / "docs") if (path / "python.md").exists())


def blocks(language):
    """The fenced blocks of the section, without its fences."""
    section = (DOCS / "python.md").read_text().partition("## The first ten minutes")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def close(one, other):
    """Whether two lines have the same words, and numbers that differ by what rounding by chance explains."""
    number = r"\d+\.\d+"
    same = re.sub(number, "#", one) == re.sub(number, "#", other)
    return same and all(abs(float(a) - float(b)) < 0.02 for a, b in zip(re.findall(number, one), re.findall(number, other)))


def test_first_steps_prints_what_the_page_shows():
    pytest.importorskip("sklearn")
    shown = [line for block in blocks("text") for line in block.splitlines() if line.startswith("round ")]
    script = HERE.parent / "examples" / "first_steps.py"
    printed = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(shown) == len(printed) > 3
    for one, other in zip(shown, printed):
        assert close(one, other), f"docs/python.md shows {one!r}, the script prints {other!r}"


def test_the_pages_python_runs():
    found = blocks("python")
    assert len(found) >= 2
    names = {}
    for block in found:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["costs"].quantity("sent_bytes").runs == 5
