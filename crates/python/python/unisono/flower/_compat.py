"""What differs between the versions of Flower, in one place: which are supported, and where names lie in them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Oldest supported version, and the first that is too new. The extra ``flower`` in pyproject.toml names the same.
OLDEST, TOO_NEW = (1, 22), (1, 43)


def check_version(installed: str | None) -> None:
    """Raises ``ImportError`` unless ``installed``, the version of ``flwr`` or ``None`` without one, is supported."""
    needed = f"flwr>={OLDEST[0]}.{OLDEST[1]},<{TOO_NEW[0]}.{TOO_NEW[1]}"
    if installed is not None:
        major, minor, *_ = [*installed.split("."), "0"]
        number = (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)
        if OLDEST <= number < TOO_NEW:
            return
    found = "flwr is not installed" if installed is None else f"flwr {installed} is installed"
    raise ImportError(f"unisono.flower needs {needed}; {found}. Install it with: pip install 'flwr[simulation]{needed[4:]}'")


def _installed() -> str | None:
    try:
        return version("flwr")
    except PackageNotFoundError:
        return None


def _first(*names: str) -> Any:
    """The first module of these that there is."""
    for name in names[:-1]:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    return import_module(names[-1])


check_version(_installed())

#: Conversions between records and the types of the workflow API. They moved in 1.32.
recorddict_compat: Any = _first("flwr.compat.common.recorddict_compat", "flwr.common.recorddict_compat")
#: ``log(level, text, *values)`` of Flower's logger. It moved in 1.36.
log: Callable[..., None] = getattr(import_module("flwr.supercore"), "log", None) or import_module("flwr.common.logger").log
