"""The device SDK: one device that takes part in the rounds of a running coordinator."""

from __future__ import annotations

import asyncio

from . import _unisono

__all__ = ["Client"]


class Client(_unisono.Client):
    """One device's part in one task.

    ``Client(endpoint, task, keys, trainer, *, registrar_key=None, token=None, policy=None, state_dir=None,
    max_failures=None)``

    ``trainer(round)`` gets a :class:`TrainingRound` and returns ``(update, weight)`` or ``(update, weight, metrics)``: the new
    weights minus the base model's, and a weight above 0 up to ``round.max_weight``. The update is named arrays, in any order
    (``{name: new[name] - base for name, base in round.tensors.items()}``), or one float32 array in the order of
    ``round.parameters``. It is called on a thread of
    its own; an exception makes the device miss the round. ``state_dir`` holds the durable record; without it a restart
    forgets in which rounds this device took part.
    ``token`` is the text of the token file that devices of a coordinator in semi-honest mode share with it; without it they get no
    model there.
    ``max_failures`` is how many rounds in a row may be missed (0 or more) before the client gives up; None: it never does.
    A mistake in the arguments is an ``Error`` at once.

    :meth:`open_release` fetches and opens the released model. The client only dials out, and repeats what got lost.
    """

    async def run_async(self) -> dict[str, int]:
        """:meth:`run`, on a thread. Cancelling the task does not stop the round at hand."""
        return await asyncio.to_thread(self.run)

    async def run_round_async(self) -> bool | None:
        """:meth:`run_round`, on a thread. Cancelling the task does not stop the round at hand."""
        return await asyncio.to_thread(self.run_round)

    async def open_release_async(self, model_id: str, *, max_payload: int = 1 << 30) -> tuple[bytes, int]:
        """:meth:`open_release`, on a thread."""
        return await asyncio.to_thread(lambda: self.open_release(model_id, max_payload=max_payload))
