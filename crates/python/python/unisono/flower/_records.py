"""The arrays, weight and metrics in the messages of both APIs, as arrays under labels.

The workflow API (``client_fn``, ``DefaultWorkflow``) numbers arrays from 0; the Message API (``@app.train``, ``Strategy.start``) names
them by the keys of its ``ArrayRecord``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ArrayRecord, RecordDict
from flwr.common import Code, parameters_to_ndarrays

from ..errors import EncodingError, ParamsError
from ._averaging import Arrays
from ._compat import recorddict_compat

_SENT = "fitins.parameters"
_RETURNED = "fitres.parameters"


@dataclass
class Returned:
    """What a client's training gave."""

    arrays: Arrays
    #: Number of examples.
    weight: float
    metrics: Mapping[str, object]


def sent_arrays(content: RecordDict) -> Arrays:
    """The arrays that a training message carries. Raises ``ParamsError`` unless they are in one record."""
    if _SENT in content.array_records:
        parameters = recorddict_compat.recorddict_to_fitins(content, keep_input=True).parameters
        return dict(enumerate(parameters_to_ndarrays(parameters)))
    return named(content.array_records[arrays_key(content)])


def arrays_key(content: RecordDict) -> str:
    """The key of the one ``ArrayRecord`` in a training message of the Message API."""
    keys = list(content.array_records)
    if keys == [_SENT]:
        raise ParamsError("a SecureGrid is for Strategy.start: with DefaultWorkflow, pass fit_workflow=UnisonoWorkflow(..)")
    if len(keys) != 1:
        raise ParamsError(f"a training message must have one ArrayRecord, whose update is aggregated; it has {_listed(keys)}")
    return keys[0]


def named(record: ArrayRecord) -> Arrays:
    """The arrays of a record under their names."""
    return {name: array.numpy() for name, array in record.items()}


def returned(content: RecordDict, weight_key: str) -> Returned:
    """What a client's training returned. Raises ``EncodingError`` for another layout than one ``ArrayRecord``, and one
    ``MetricRecord`` with a number under ``weight_key``."""
    if _RETURNED in content.array_records:
        result = recorddict_compat.recorddict_to_fitres(content, keep_input=True)
        if result.status.code != Code.OK:
            raise EncodingError(f"the client's fit failed with {result.status.code.name}: {result.status.message}")
        arrays: Arrays = dict(enumerate(parameters_to_ndarrays(result.parameters)))
        return Returned(arrays, float(result.num_examples), result.metrics)
    records, metrics = list(content.array_records), list(content.metric_records)
    if len(records) != 1 or len(metrics) != 1:
        raise EncodingError(
            "the reply of a train function must have one ArrayRecord and one MetricRecord; this one has the array records "
            f"{_listed(records)} and the metric records {_listed(metrics)}"
        )
    values = cast("Mapping[str, object]", content.metric_records[metrics[0]])
    weight = number(values, weight_key, f'as the weight of the update (unisono_mod(weight_key="{weight_key}"))')
    return Returned(named(content.array_records[records[0]]), weight, values)


def number(values: Mapping[str, object], name: str, why: str) -> float:
    """One number of a client's metrics, or ``EncodingError``."""
    value: Any = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        have = "which it lacks" if name not in values else f"which is {type(value).__name__} and not a number"
        raise EncodingError(f'the client\'s metrics must have "{name}" {why}, {have}; there are {_listed(values)}')
    return float(value)


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"
