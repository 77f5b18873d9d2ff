"""The device SDK: one device that takes part in the rounds of a running coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from . import _unisono

__all__ = ["Client"]

_T = TypeVar("_T")


class Client(_unisono.Client):
    """One device's part in one task.

    ``Client(endpoint, task, keys, trainer, *, registrar_key=None, token=None, policy=None, state_dir=None, accepts=None,
    max_failures=None, give_up_after=None, authority=None, certificate=None)``

    ``trainer(round)`` gets a :class:`TrainingRound` and returns ``(update, weight)`` or ``(update, weight, metrics)``: the new
    weights minus the base model's, and a weight above 0 up to ``round.max_weight``. The update is named arrays, in any order
    (``{name: new[name] - base for name, base in round.tensors.items()}``), or one float32 array in the order of
    ``round.parameters``. ``None`` declines the round. It is called on a thread of its own; an exception makes the device miss the
    round. In both cases the others do not wait for this device.
    ``accepts(params)`` gets the :class:`RoundParams` of a round that is offered, before keys are sent; a false value declines it, an
    exception makes the device miss it. By default all that the policy allows are accepted.
    ``state_dir`` holds the durable record; without it a restart forgets in which rounds this device took part.
    ``token`` is the text of the token file that devices of a coordinator in semi-honest mode share with it; without it they get no
    model there.
    ``max_failures`` is how many rounds in a row may be missed (0 or more): with one more, :meth:`run` raises. ``give_up_after`` is how
    many seconds (0 or more) the coordinator may be unreachable. ``None``: the client never gives up.
    ``authority`` is the PEM text of the authorities that may have issued the certificate of an ``https://`` endpoint: these alone are
    trusted then, in place of the public ones. ``certificate`` is this device's certificate chain and private key, two PEM texts, for a
    coordinator that asks for one.
    A mistake in the arguments is an ``Error`` at once.

    What happens is told to ``logging`` under ``"unisono.client"``: missed rounds and failing calls as warnings, rounds as information.

    :meth:`stop`, from any thread, ends :meth:`run` and :meth:`run_round`: at once while the client waits for a round, otherwise when
    its part in the round at hand is over; ``stop(now=True)`` drops out of that round, and the call raises ``StateError``. A stopped client stays stopped.
    :meth:`open_release` fetches and opens the released model. The client only dials out, and repeats what got lost.
    """

    async def run_async(self) -> dict[str, int]:
        """:meth:`run`, on a thread. When the task is cancelled, the thread ends as after :meth:`stop`; the client can be run again."""
        return await _on_a_thread(self.run)

    async def run_round_async(self) -> bool | None:
        """:meth:`run_round`, on a thread; cancelled as :meth:`run_async`."""
        return await _on_a_thread(self.run_round)

    async def open_release_async(self, model_id: str, *, max_payload: int = 1 << 30) -> tuple[bytes, int]:
        """:meth:`open_release`, on a thread."""
        return await asyncio.to_thread(lambda: self.open_release(model_id, max_payload=max_payload))


async def _on_a_thread(call: Callable[[_unisono.Stop], _T]) -> _T:
    stop = _unisono.Stop()
    # A thread of its own: those of the loop's executor are few, and clients of one cohort wait for each other.
    executor = ThreadPoolExecutor(1, "unisono")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, call, stop)
    except asyncio.CancelledError:
        stop.ask()
        raise
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
