"""The client mod: what a device does in a round."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from logging import WARN
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app import MessageType
from numpy.typing import NDArray

from .. import ClientRound, EncodingError, ParamsError, Policy, RecordError
from ._averaging import Arrays, Label, beyond, difference
from ._compat import log
from ._exchange import CUT, MESSAGE
from ._keys import ContextRecord, device_keys, registrar_key_of
from ._records import number, returned, sent_arrays

_STATE = "unisono.state"

#: A step of a client app: the rest of the mods, and at last the app's own function.
Step = Callable[[Message, Context], Message]


def is_training(message: Message) -> bool:
    """Whether a message asks for training: ``"train"``, or ``"train.<action>"`` for a named function."""
    return message.metadata.message_type.partition(".")[0] == MessageType.TRAIN


def unisono_mod(
    provisioning: str | os.PathLike[str] | None = None,
    *,
    policy: Policy | None = None,
    metrics: Collection[str] = (),
    weight_key: str = "num-examples",
) -> Callable[[Message, Context, Step], Message]:
    """The client mod, for both APIs: ``ClientApp(client_fn, mods=[unisono_mod(folder)])``, ``ClientApp(mods=[unisono_mod(folder)])``
    or ``@app.train(mods=[unisono_mod(folder)])``. It takes the place of ``secaggplus_mod``.

    Parameters
    ----------
    provisioning : folder with the device's key and ``registrar.pub``; without it, the device takes part in semi-honest rounds only.
    policy : what the device accepts, whatever the server proposes: least noise (``max_epsilon``, ``max_total_epsilon``), smallest sum
        and others. The default is ``Policy(min_interval_s=0)``, since rounds may follow each other within seconds here: sums of
        at least 10 updates, or what the whole roster can give where that is less (:meth:`Policy.smallest_sum`); in semi-honest
        mode of at least 3.
    metrics : names of the training metrics whose weighted mean the server may learn, numbers in what training returns. They
        must be those that the server declares (``metrics=`` there, with bounds); a server that asks for others is refused, since
        one that asks each device for another metric could tell them apart. All other metrics stay on the device.
    weight_key : in the Message API, the name of the update's weight in the ``MetricRecord`` of a train function's reply.

    Training starts only when the device has seen who else takes part. A check that fails raises, so the server counts the
    device as dropped; nothing secret has left it then. A training message without a round of secure aggregation is refused with
    ``RecordError``. Messages of other kinds (evaluation, queries) pass as they are.

    Raises ``ParamsError`` where ``metrics`` is one text instead of a list of names.
    """
    if isinstance(metrics, str):
        raise ParamsError(f"metrics is {metrics!r}; a list of names is needed: metrics=[{metrics!r}]")
    folder = None if provisioning is None else Path(provisioning)
    policy = policy or Policy(allow_semi_honest=folder is None, min_interval_s=0)
    declared = sorted(set(metrics))

    def mod(msg: Message, context: Context, call_next: Step) -> Message:
        if not is_training(msg):
            return call_next(msg, context)
        if MESSAGE not in msg.content.config_records:
            raise RecordError("the server asked for a plain update; this device takes part in secure aggregation only")
        if _STATE not in context.state.config_records:
            context.state.config_records[_STATE] = ConfigRecord({})
        state = context.state.config_records[_STATE]
        incoming = msg.content.config_records[MESSAGE]
        keys = device_keys(folder or Path(), context, state, folder is not None)
        record = ContextRecord(state)
        trust: dict[str, Any] = {
            "record": record,
            "registrar_key": registrar_key_of(folder) if folder else None,
            "policy": policy,
        }
        started = perf_counter()
        trained = 0.0
        reply: dict[str, Any] = {}
        if "offer" in incoming:
            offer = cast(bytes, incoming["offer"])
            try:
                client = ClientRound(offer, keys, **trust)
            except RecordError:
                # Of another workflow, or before the server began anew: it goes on above.
                if (last := record.last_round(str(incoming.get("task", "")))) is None:
                    raise
                return _reply(msg, {"last_round": last})
            state["offer"] = offer
            reply["message"] = client.message()
        else:
            if "saved" not in state:
                raise RecordError("the server goes on with a round that this device has not joined")
            client = ClientRound.resume(cast(bytes, state["saved"]), cast(bytes, state["offer"]), keys, **trust)
            view = cast(bytes, incoming["view"])
            # Whatever comes of it: a state that has taken this step is saved below, and one that was erased is forgotten.
            del state["saved"]
            if client.awaits == "mask":
                base = sent_arrays(msg.content)
                asked = _asked(incoming, client, declared)
                del msg.content.config_records[MESSAGE]
                before = perf_counter()
                out = call_next(msg, context)
                trained = perf_counter() - before
                if out.has_error():
                    return out
                result = returned(out.content, weight_key)
                excluded = cast("list[Label]", incoming.get("exclude", []))
                update = difference(result.arrays, base, excluded)
                reply["message"] = client.receive(
                    view,
                    update=update,
                    # With differential privacy all updates count alike.
                    weight=1.0 if incoming.get("equal") else result.weight,
                    metrics=_values(asked, result.metrics, update, base, excluded, client),
                )
                reply["upload"] = client.upload()
            else:
                reply["message"] = client.receive(view)
        # The new state replaces the old one before the message leaves: a share can't be released twice.
        state["saved"] = client.save()
        reply["seconds"] = perf_counter() - started - trained
        return _reply(msg, reply)

    return mod


def _reply(msg: Message, record: dict[str, Any]) -> Message:
    return Message(RecordDict({MESSAGE: ConfigRecord(record)}), reply_to=msg)


def _asked(incoming: ConfigRecord, client: ClientRound, declared: list[str]) -> list[str]:
    """The metrics that the server asks for, or ``EncodingError`` where they are not those that this device declares."""
    asked = cast("list[str]", incoming.get("metrics", []))
    if len(asked) != client.metrics:
        raise EncodingError(f"the server names {len(asked)} metrics for a round with {client.metrics}")
    # A round without metrics reveals none.
    if asked and [name for name in asked if name != CUT] != declared:
        names = [name for name in asked if name != CUT]
        raise EncodingError(
            f"the server asks for the training metrics {names}; this device lets it learn the mean of {declared}: declare the same "
            "names in unisono_mod(metrics=[..]) on devices and in metrics={..} on the server"
        )
    return asked


def _values(
    asked: list[str],
    metrics: Mapping[str, object],
    update: NDArray[np.float32],
    base: Arrays,
    excluded: Collection[Label],
    client: ClientRound,
) -> list[float]:
    """The values of the metrics that the server asks for. The share of elements that the clip cuts is logged by array."""
    values = []
    for name in asked:
        if name != CUT:
            values.append(number(metrics, name, "for its mean over the clients"))
            continue
        lengths, clips = zip(*(client.clips or [(update.size, client.clip)]), strict=True)
        cut = beyond(update, np.repeat(np.asarray(clips, np.float32), lengths), base, excluded)
        for array, share in cut.items():
            log(WARN, "%.3g %% of array %s lies beyond its clip and is cut", 100 * share, array)
        elements = sum(share * base[array].size for array, share in cut.items())
        values.append(min(1.0, elements / max(1, update.size)))
    return values
