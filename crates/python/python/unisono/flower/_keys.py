"""Keys and records of devices in Flower apps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

from flwr.app import ConfigRecord, Context

from .. import DeviceKeys, ParamsError, RecordError, Roster, SigningKey, read_public_key


def provision(folder: str | os.PathLike[str], devices: int) -> Path:
    """Makes keys and a roster for a simulation of ``devices`` devices, and returns the folder.

    Writes ``registrar.pub``, ``roster.bin``, ``coordinator.key`` and, for each partition id, ``device-<id>.key``. The
    registrar's signing key is forgotten. Key files are readable by their owner only.
    """
    if devices < 3:
        raise ParamsError(f"devices is {devices}; a cohort has at least 3 members")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    registrar, coordinator = SigningKey.generate("registrar"), SigningKey.generate("coordinator")
    keys = [DeviceKeys.generate() for _ in range(devices)]
    roster = Roster.publish(
        [key.enrolment() for key in keys], registrar, epoch=1, coordinators=[coordinator.verifying_key]
    )
    (folder / "registrar.pub").write_text(registrar.public_text(), encoding="ascii")
    (folder / "roster.bin").write_bytes(roster.to_bytes())
    _write_secret(folder / "coordinator.key", coordinator.to_text())
    for i, key in enumerate(keys):
        _write_secret(folder / f"device-{i}.key", key.to_text())
    return folder


def _write_secret(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)


def registrar_key_of(folder: Path) -> bytes:
    return read_public_key("registrar", (folder / "registrar.pub").read_text("ascii"))


class ContextRecord:
    """A participation record in the client's Flower context, which outlives the message."""

    def __init__(self, state: ConfigRecord) -> None:
        self._state = state

    def entry(self, task: str) -> bytes | None:
        return cast("bytes | None", self._state.get(f"entry:{task}"))

    def last_round(self, task: str) -> int | None:
        """Number of the last round of a task in which this device shared its keys."""
        entry = self.entry(task)
        return None if entry is None else int(json.loads(entry)["round"])

    def replace(self, task: str, expected: bytes | None, new: bytes) -> bool:
        if self.entry(task) != expected:
            return False
        self._state[f"entry:{task}"] = new
        return True

    def roster_epoch(self) -> int:
        return cast(int, self._state.get("roster_epoch", 0))

    def see_roster_epoch(self, epoch: int) -> None:
        self._state["roster_epoch"] = max(epoch, self.roster_epoch())


def device_keys(provisioning: Path, context: Context, state: ConfigRecord, malicious: bool) -> DeviceKeys:
    """The device's keys: of its partition, or of the one device in the folder; without signatures any will do."""
    if "device" in state:
        return DeviceKeys.from_text(cast(str, state["device"]))
    if not malicious:
        keys = DeviceKeys.generate()
        state["device"] = keys.to_text()
        return keys
    path = provisioning / "device.key"
    if not path.exists():
        if "partition-id" not in context.node_config:
            raise RecordError(f"there is no {path}, and no partition-id in the node's configuration to choose a key by")
        path = provisioning / f"device-{context.node_config['partition-id']}.key"
    return DeviceKeys.from_text(path.read_text(encoding="ascii"))
