"""Participation records: what binds a device to one cohort, one masked input and one set of survivors in a round.

:class:`ClientRound` takes any object with the methods of :class:`Record`. On a real device the record must be durable:
:class:`FileRecord` is; :class:`MemoryRecord` is for simulation. A device whose record was lost, copied or set back is enrolled anew.
"""

from __future__ import annotations

import os
from typing import Protocol

from . import _unisono

__all__ = ["FileRecord", "MemoryRecord", "Record"]


class Record(Protocol):
    """What a record answers and notes. A change must be on stable storage when a method returns.

    It holds one entry for each task: bytes (JSON below 4 KiB) that it need not understand. The rules are unisono's. Nothing may
    change an entry but :meth:`replace`, which compares and sets in one step, also where threads or processes share what the record
    is kept in. An exception keeps the device from going on. A method must not call a round: it would wait for itself, so
    that is refused with ``StateError``.
    """

    def entry(self, task: str) -> bytes | None:
        """What the last successful :meth:`replace` for ``task`` stored; None before the first."""

    def replace(self, task: str, expected: bytes | None, new: bytes) -> bool:
        """Stores ``new`` for ``task`` if its entry still is ``expected`` (None: if there is none), and returns whether it did."""

    def roster_epoch(self) -> int:
        """The highest roster epoch seen; 0 before the first."""

    def see_roster_epoch(self, epoch: int) -> None:
        """Notes a roster epoch; a lower one than the highest changes nothing."""


class MemoryRecord(_unisono.StoredRecord):
    """A record that is forgotten with the process, for simulation and tests. Refused in a forked process (``StateError``)."""

    def __new__(cls) -> MemoryRecord:
        """Makes an empty one."""
        return super().__new__(cls, None)


class FileRecord(_unisono.StoredRecord):
    """The durable record of a device in a folder of its own: the same that a ``Client(state_dir=..)`` keeps.

    The folder is made if missing. ``record.json`` in it is replaced as a whole and is on stable storage before a method returns.
    A lock keeps a second object or process from using it, until this object and the rounds made with it are gone. Threads
    may share one object. In a forked process an object of the parent is refused (``StateError``).

    Raises :class:`RecordError` when the folder can't be used, is in use, or holds a damaged record, which is never taken for an
    empty one; and from every method when the file can't be written: then nothing has changed.
    """

    def __new__(cls, folder: str | os.PathLike[str]) -> FileRecord:
        """Opens the record in ``folder``."""
        return super().__new__(cls, folder)
