"""Participation records: what keeps a device from masking two inputs for one round, and from an older roster.

:class:`ClientRound` takes any object with the methods of :class:`Record`. On a real device the record must be durable:
:class:`FileRecord` is; :class:`MemoryRecord` is for simulation.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Commitment", "FileRecord", "MemoryRecord", "Record"]

#: Round number, hash of the cohort, hash of the survivors.
Commitment = tuple[int, bytes, bytes | None]


class Record(Protocol):
    """What a record answers and notes. A change must be on stable storage when a method returns."""

    def last(self, task: str) -> tuple[int, int] | None:
        """Round number and Unix time of the last participation in ``task``."""

    def spend(self, task: str, round_number: int, at: int) -> None:
        """Marks the round as spent; an exception keeps the device from uploading."""

    def commitment(self, task: str) -> Commitment | None:
        """What the last :meth:`commit` for ``task`` noted."""

    def commit(self, task: str, round_number: int, cohort: bytes, survivors: bytes | None) -> None:
        """Notes the one cohort of a round and the one set of survivors (a hash; None before) that the device answers for.

        It replaces what was noted for ``task``; an exception keeps the device from answering.
        """

    def roster_epoch(self) -> int:
        """The highest roster epoch seen; 0 before the first."""

    def see_roster_epoch(self, epoch: int) -> None:
        """Notes a roster epoch."""


class MemoryRecord:
    """A record that is forgotten with the process."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[int, int]] = {}
        self._commitments: dict[str, Commitment] = {}
        self._epoch = 0

    def last(self, task: str) -> tuple[int, int] | None:
        """Round number and Unix time of the last participation in ``task``."""
        return self._spent.get(task)

    def spend(self, task: str, round_number: int, at: int) -> None:
        """Marks the round as spent."""
        self._spent[task] = (round_number, at)

    def commitment(self, task: str) -> Commitment | None:
        """What the last :meth:`commit` for ``task`` noted."""
        return self._commitments.get(task)

    def commit(self, task: str, round_number: int, cohort: bytes, survivors: bytes | None) -> None:
        """Notes cohort and survivors."""
        self._commitments[task] = (round_number, cohort, survivors)

    def roster_epoch(self) -> int:
        """The highest roster epoch seen; 0 before the first."""
        return self._epoch

    def see_roster_epoch(self, epoch: int) -> None:
        """Notes a roster epoch."""
        self._epoch = max(self._epoch, epoch)


class FileRecord:
    """A record in a JSON file, written aside, synced and renamed: a crash leaves the old or the new one.

    A file that can't be read is an error, never taken for an empty record.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def _read(self) -> dict[str, Any]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {"spent": {}, "roster_epoch": 0}
        content: dict[str, Any] = json.loads(text)
        return content

    def _write(self, content: dict[str, Any]) -> None:
        folder = self._path.parent
        handle, name = tempfile.mkstemp(dir=folder, prefix=self._path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if os.name == "posix":
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def last(self, task: str) -> tuple[int, int] | None:
        """Round number and Unix time of the last participation in ``task``."""
        found = self._read()["spent"].get(task)
        return None if found is None else (found[0], found[1])

    def spend(self, task: str, round_number: int, at: int) -> None:
        """Marks the round as spent."""
        content = self._read()
        content["spent"][task] = [round_number, at]
        self._write(content)

    def commitment(self, task: str) -> Commitment | None:
        """What the last :meth:`commit` for ``task`` noted."""
        found = self._read().get("commitments", {}).get(task)
        if found is None:
            return None
        round_number, cohort, survivors = found
        return round_number, bytes.fromhex(cohort), None if survivors is None else bytes.fromhex(survivors)

    def commit(self, task: str, round_number: int, cohort: bytes, survivors: bytes | None) -> None:
        """Notes cohort and survivors."""
        content = self._read()
        noted = [round_number, cohort.hex(), None if survivors is None else survivors.hex()]
        content.setdefault("commitments", {})[task] = noted
        self._write(content)

    def roster_epoch(self) -> int:
        """The highest roster epoch seen; 0 before the first."""
        return int(self._read()["roster_epoch"])

    def see_roster_epoch(self, epoch: int) -> None:
        """Notes a roster epoch."""
        content = self._read()
        if epoch > content["roster_epoch"]:
            content["roster_epoch"] = epoch
            self._write(content)
