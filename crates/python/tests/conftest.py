"""Fixtures that several test files share."""

import logging
from pathlib import Path

import pytest


class _Kept(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        # Not what Flower itself logs.
        if "unisono" in Path(record.pathname).parts:
            self.lines.append((record.levelno, record.getMessage()))


@pytest.fixture
def flower_log():
    """What the plug-in gives Flower's logger during the test: (level, text)."""
    kept = _Kept()
    logging.getLogger("flwr").addHandler(kept)
    yield kept.lines
    logging.getLogger("flwr").removeHandler(kept)
