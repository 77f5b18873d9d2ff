"""Settings of the quantiser for a task, from a first local update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._unisono import Quantiser
from .errors import ArrayError, ParamsError

__all__ = ["suggest_quantiser"]

#: Bits from which, and up to which, a number is chosen.
_BITS = (8, 24)


def suggest_quantiser(
    update: Mapping[str, Any] | NDArray[Any],
    *,
    weight: float = 1.0,
    headroom: float = 4.0,
    error: float = 0.01,
    per_tensor: bool = False,
) -> Quantiser:
    """A :class:`Quantiser` for updates like this one.

    Parameters
    ----------
    update : a first local update, trained weights minus the base model's: one array, or named arrays of any shapes. Later updates are
        smaller as a rule, those of other devices may be larger.
    weight : its weight (above 0), for instance the number of examples. ``max_weight`` is ``headroom`` times as much.
    headroom : by how much (1 or more) an element of another update may be larger than the largest one here before it is cut.
    error : what rounding may add to an element at most, as a part (above 0) of the update's root mean square; the smallest number of
        bits that keeps it is taken, from 8 to 24.
    per_tensor : named arrays have a clip each (``Quantiser.clips``), in order of name: for models with tensors that move by steps of
        different sizes. It goes with no rotation and no noise.

    Raises
    ------
    ArrayError : arrays that are no real numbers, or have none. ParamsError : the other arguments, and an update of zeros.
    """
    for name, value, least in (("weight", weight, 0.0), ("error", error, 0.0), ("headroom", headroom, 1.0)):
        if not (math.isfinite(value) and value >= least and value > 0.0):
            raise ParamsError(f"{name} is {value}; a finite number above 0{', from 1 on' if least else ''} is needed")
    if per_tensor and not isinstance(update, Mapping):
        raise ParamsError("per_tensor=True needs named arrays: {name: array}")
    named = update if isinstance(update, Mapping) else {"update": update}
    arrays = {name: _real(name, named[name]) for name in sorted(named)}
    largest = {name: float(np.abs(array).max(initial=0.0)) for name, array in arrays.items()}
    widest = max(largest.values(), default=0.0)
    if widest == 0.0:
        raise ParamsError("the update has nothing but zeros: train before, and subtract the base model's weights")
    # A tensor that did not move here may move elsewhere.
    still = min(value for value in largest.values() if value > 0.0)
    clips = [(array.size, headroom * (largest[name] or still)) for name, array in arrays.items() if array.size]
    squares = [(array.size, float(np.dot(array, array))) for array in arrays.values() if array.size]
    if per_tensor:
        fits = [(clip, math.sqrt(total / size)) for (_, clip), (size, total) in zip(clips, squares, strict=True)]
    else:
        size, total = (sum(column) for column in zip(*squares, strict=True))
        fits = [(headroom * widest, math.sqrt(total / size))]
    # An element of the mean is off by 3 clips a step at most (docs/protocol.md, section 7), and an update of this weight has a share of
    # one over the headroom of the largest weight, and so of the steps.
    steps = [3.0 * headroom * clip / (error * rms) for clip, rms in fits if rms > 0.0]
    bits = min(max(_BITS[0], math.ceil(math.log2(max(steps) + 1.0))), _BITS[1])
    return Quantiser(
        clip=headroom * widest,
        bits=bits,
        max_weight=headroom * weight,
        clips=clips if per_tensor else [],
    )


def _real(name: str, array: Any) -> NDArray[np.float64]:
    values = np.asarray(array)
    if values.dtype.kind not in "fiu" or hasattr(array, "mask"):
        raise ArrayError(f"{name} has dtype {values.dtype}, or a mask; an array of real numbers is needed")
    values = values.astype(np.float64).ravel()
    if not np.isfinite(values).all():
        index = int(np.argmin(np.isfinite(values)))
        raise ArrayError(f"element {index} of {name} is {values[index]}; only finite numbers can be sent")
    return values
