"""Executes the notebooks in examples/: what CI does to see that they still run.

    UNISONO_QUICK=1 python notebooks.py         # small settings, outputs thrown away
    python notebooks.py --write                 # full settings, outputs stored in the notebooks

Needs the package with its extra `notebooks`.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LIMIT = 300_000
FOLDER = Path(__file__).resolve().parent / "examples"


def executed(path):
    notebook = nbformat.read(path, as_version=4)
    begun = time.monotonic()
    # Its folder has the modules that it imports.
    place = {"metadata": {"path": str(path.parent)}}
    # A cell that raises raises here, with its traceback.
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=place).execute()
    print(f"{path.name}: {time.monotonic() - begun:.0f} s")
    return notebook


def stored(path):
    """Whether the notebook is committed with its outputs, within the size that a repository bears."""
    size, notebook = path.stat().st_size, nbformat.read(path, as_version=4)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    if size > LIMIT or not pictures:
        sys.exit(f"{path.name} has {size} bytes and {len(pictures)} pictures; run notebooks.py --write, limit {LIMIT} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store the outputs")
    write = parser.parse_args().write
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = executed(path)
        if write:
            # Which Python it was is of no interest to a reader, and would change the file.
            notebook.metadata.pop("language_info", None)
            nbformat.write(notebook, path)
        stored(path)


if __name__ == "__main__":
    main()
