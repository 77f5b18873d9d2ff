"""What of a client's arrays is averaged, and how: the difference that is sent, and the arrays that come of the mean.

What no client changed stays bit for bit where the type has no room for noise (integers, booleans, and everything that can't be
averaged) or the value has none (infinities, NaN). Floats that no client changed move by at most the error of quantisation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EncodingError

#: Arrays under what errors call them: a number from 0 in the workflow API, a name in the Message API.
Label = int | str
Arrays = dict[Label, NDArray[Any]]
_Arrays = Mapping[Label, NDArray[Any]]

#: From here on the difference of two integers may not fit 64 bits; it is far beyond any clip.
_FAR = 2.0**62


def check_labels(setting: str, labels: Collection[Label], arrays: _Arrays) -> None:
    """Raises ``EncodingError`` unless every label of a setting is that of an array."""
    for label in labels:
        if label not in arrays:
            raise EncodingError(f"{setting} names array {label}; there are {len(arrays)}: {_listed(arrays)}")


def _listed(labels: Collection[Label], most: int = 20) -> str:
    names = [str(label) for label in labels]
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def dimension(arrays: _Arrays, excluded: Collection[Label] = ()) -> int:
    """Elements of the arrays that are averaged."""
    return sum(array.size for label, array in arrays.items() if label not in excluded)


def runs(arrays: _Arrays, excluded: Collection[Label], clip: float, clips: Mapping[Label, float]) -> list[tuple[int, float]]:
    """Elements of each array that is averaged, and their clip."""
    return [(array.size, clips.get(label, clip)) for label, array in arrays.items() if label not in excluded and array.size]


def difference(after: _Arrays, before: _Arrays, excluded: Collection[Label] = ()) -> NDArray[np.float32]:
    """The update: ``after`` minus ``before``, all arrays but the excluded ones one after the other, in the order of ``before``.

    Raises ``EncodingError``: an array too many or too few, or of another shape; an element that was changed and can't be averaged, by
    array and index.
    """
    _check_same(after, before)
    update = np.empty(dimension(before, excluded), np.float32)
    start = 0
    for label, array in before.items():
        if label in excluded:
            continue
        # A view of the update, in the array's shape.
        part = update[start : start + array.size].reshape(array.shape)
        _subtract(np.asarray(after[label]), np.asarray(array), part, label)
        start += array.size
    return update


def _check_same(after: _Arrays, before: _Arrays) -> None:
    """Raises ``EncodingError`` unless a client returned the arrays that it was sent."""
    if lacking := [label for label in before if label not in after]:
        raise EncodingError(f"the client did not return array {_listed(lacking)}; it returned {_listed(after) or 'none'}")
    if unknown := [label for label in after if label not in before]:
        raise EncodingError(f"the client returned array {_listed(unknown)}, which it was not sent; it was sent {_listed(before)}")
    for label, array in before.items():
        if after[label].shape != array.shape:
            raise EncodingError(
                f"the client returned array {label} in other shapes than it was sent: {list(after[label].shape)}, not "
                f"{list(array.shape)}"
            )


def beyond(
    update: NDArray[np.float32], bounds: NDArray[np.float32], arrays: _Arrays, excluded: Collection[Label] = ()
) -> dict[Label, float]:
    """Which share of the elements of which array lies beyond its bound, one for each element of the update, and is cut; arrays of which
    nothing is cut are not there."""
    shares: dict[Label, float] = {}
    start = 0
    for label, array in arrays.items():
        if label in excluded or array.size == 0:
            continue
        place = slice(start, start + array.size)
        start += array.size
        if share := float(np.count_nonzero(np.abs(update[place]) > bounds[place])) / array.size:
            shares[label] = share
    return shares


def _subtract(a: NDArray[Any], b: NDArray[Any], out: NDArray[np.float32], label: Label) -> None:
    kinds = {a.dtype.kind, b.dtype.kind}
    if kinds <= {"i", "u"}:
        out[...] = _integer_difference(a, b)
    elif kinds <= {"f", "i", "u"}:
        # float32 in place: rounded once either way. Integers of 8 bytes and the like need more than its 24 bits.
        dtype = np.float32 if a.dtype == b.dtype == np.float32 else np.float64
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(a, b, out=out, dtype=dtype, casting="unsafe")
        if not np.isfinite(out).all():
            # An infinity less itself is NaN, and so is NaN less itself.
            same = (a == b) | ((a != a) & (b != b))
            out[same] = 0.0
            # A difference that float32 can't hold is beyond any clip.
            far = np.isinf(out) & np.isfinite(a) & np.isfinite(b)
            out[far] = np.copysign(np.finfo(np.float32).max, out[far])
            _refuse(~np.isfinite(out), label, f"is {a.dtype} and was changed from or to what is not finite", a, b)
    else:
        changed = np.asarray(a != b) if a.dtype == b.dtype else np.ones(b.shape, bool)
        if a.dtype == b.dtype and a.dtype.kind in "cmM":
            # NaN and NaT are not equal to themselves.
            changed &= ~((a != a) & (b != b))
        _refuse(changed, label, f"is {a.dtype}, which has no average, and was changed", a, b)
        out[...] = 0.0


def _integer_difference(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    rough: NDArray[np.float64] = np.subtract(a, b, dtype=np.float64, casting="unsafe")
    # Exact modulo 2^64, so exact where it is not far.
    with np.errstate(over="ignore"):
        exact = (a.astype(np.uint64) - b.astype(np.uint64)).view(np.int64)
    return np.where(np.abs(rough) < _FAR, exact.astype(np.float64), rough)


def _refuse(wrong: NDArray[np.bool_], label: Label, why: str, a: NDArray[Any], b: NDArray[Any]) -> None:
    if wrong.any():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
        raise EncodingError(
            f"element {list(at)} of array {label} {why} ({b[at]} to {a[at]}): leave the array as it is, or leave it out "
            f"on the server (exclude=[{label!r}])"
        )


def add(base: _Arrays, mean: NDArray[Any], excluded: Collection[Label] = ()) -> Arrays:
    """The arrays plus the mean update, in their shapes and types: integers rounded and kept within their range. Excluded arrays, and
    those that can't be averaged, come back as they are."""
    result: Arrays = {}
    start = 0
    for label, array in base.items():
        if label in excluded:
            result[label] = array
            continue
        step = np.asarray(mean[start : start + array.size], np.float64).reshape(array.shape)
        start += array.size
        result[label] = _moved(array, step)
    return result


def _moved(array: NDArray[Any], step: NDArray[np.float64]) -> NDArray[Any]:
    if array.dtype.kind == "f":
        largest = np.finfo(array.dtype).max
        moved: NDArray[Any] = np.clip(array + step, -largest, largest).astype(array.dtype)
        # Where the base is not finite, nobody has changed it.
        return np.where(np.isfinite(array), moved, array)
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        step = np.rint(step)
        rough = array.astype(np.float64) + step
        with np.errstate(over="ignore"):
            # Modulo the type's range, so exact within it.
            exact = array + step.astype(np.int64).astype(array.dtype)
        above = (step > 0.0) & ((exact < array) | (rough > limits.max))
        below = (step < 0.0) & ((exact > array) | (rough < limits.min))
        return np.where(above, limits.max, np.where(below, limits.min, exact)).astype(array.dtype)
    return array
