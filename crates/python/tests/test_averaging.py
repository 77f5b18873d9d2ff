"""What is averaged of a client's arrays: what nobody changed stays, and what has no average is refused by its place."""

import numpy as np
import pytest
import unisono

pytest.importorskip("flwr")

from unisono.flower import _averaging
from unisono.flower._averaging import beyond, check_labels


def difference(after, before, excluded=()):
    return _averaging.difference(dict(enumerate(after)), dict(enumerate(before)), excluded)


def add(base, mean, excluded=()):
    return list(_averaging.add(dict(enumerate(base)), mean, excluded).values())


def test_the_difference_is_one_float32_vector():
    before = [np.float32([[1, 2], [3, 4]]), np.array(7, np.int64), np.zeros(2)]
    after = [np.float32([[2, 2], [3, 5]]), np.array(9, np.int64), np.array([0.25, -1.0])]
    update = difference(after, before)
    assert update.dtype == np.float32 and update.tolist() == [1, 0, 0, 1, 2, 0.25, -1]
    assert difference(after, before, [0]).tolist() == [2, 0.25, -1] and _averaging.dimension(dict(enumerate(before)), [0]) == 3
    with pytest.raises(unisono.EncodingError, match="did not return array 2; it returned 0, 1"):
        difference(after[:2], before)
    with pytest.raises(unisono.EncodingError, match="returned array 3, which it was not sent"):
        difference([*after, after[0]], before)
    with pytest.raises(unisono.EncodingError, match=r"array 0 in other shapes than it was sent: \[4\], not \[2, 2\]"):
        difference([after[0].reshape(4), *after[1:]], before)
    moved = add(before, np.arange(7, dtype=np.float32))
    assert [m.dtype for m in moved] == [b.dtype for b in before]
    assert moved[0].tolist() == [[1, 3], [5, 7]] and moved[1] == 11 and moved[2].tolist() == [5, 6]
    kept = add(before, np.arange(3, dtype=np.float32), [0])
    assert kept[0] is before[0] and kept[1] == 7 and kept[2].tolist() == [1, 2]
    with pytest.raises(unisono.EncodingError, match="exclude names array 3; there are 3: 0, 1, 2"):
        check_labels("exclude", [3], dict(enumerate(before)))


#: Arrays that come back bit for bit although the mean of a quantised sum is never exactly zero.
STAY = {
    "bool": np.tril(np.ones((3, 3), bool)),
    "complex": np.array([1 + 2j, np.nan + 1j], np.complex64),
    "text": np.array(["a", "b"]),
    "int64 above 2^53": np.array([2**53 + 1, -(2**62) - 1, 2**63 - 1], np.int64),
    "uint64": np.array([2**64 - 1, 0], np.uint64),
    "uint8 scalar": np.array(255, np.uint8),
    "no time": np.array(["NaT", "2020-01-01"], "datetime64[s]"),
    "infinite": np.float32([-np.inf, np.inf, np.nan]),
    "float16 infinite": np.float16([-np.inf]),
}


@pytest.mark.parametrize("array", STAY.values(), ids=STAY.keys())
def test_what_nobody_changed_stays_bit_for_bit(array):
    assert not difference([array.copy()], [array]).any()
    noise = np.full(array.size, 3e-5, np.float32) * np.float32([1, -1, 1, -1, 1, -1, 1, -1, 1])[: array.size]
    (back,) = add([array], noise)
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


def test_integers_are_rounded_as_integers_and_stay_in_their_range():
    before = [np.array([2**60 + 1, 5], np.int64), np.array([250, 3], np.uint8), np.array([2**63 - 2], np.int64)]
    after = [np.array([2**60 + 4, 2], np.int64), np.array([255, 0], np.uint8), np.array([2**63 - 1], np.int64)]
    assert difference(after, before).tolist() == [3, -3, 5, -3, 1]
    moved = add(before, np.float32([2.6, -2.4, 300, -300, 7]))
    assert moved[0].tolist() == [2**60 + 4, 3] and moved[1].tolist() == [255, 0] and moved[2].tolist() == [2**63 - 1]
    far = difference([np.array([2**63 - 1], np.int64)], [np.array([-(2**63)], np.int64)])
    assert far[0] == pytest.approx(2.0**64)
    assert difference([np.array([0], np.uint64)], [np.array([3], np.uint64)]).tolist() == [-3]


def test_floats_stay_finite():
    before = [np.float32([3e38, 0]), np.float64([0.0]), np.float16([65500])]
    after = [np.float32([-3e38, 1]), np.float64([1e300]), np.float16([65504])]
    largest = np.finfo(np.float32).max
    assert difference(after, before).tolist() == [-largest, 1, largest, 0]
    moved = add(before, np.float32([0, 0, 0, 100]))
    assert moved[2].dtype == np.float16 and moved[2].tolist() == [65504]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (np.array([True, False]), np.array([True, True]), r"element \[1\] of array 1 is bool, which has no average"),
        (np.array([1 + 2j]), np.array([1 + 3j]), r"element \[0\] of array 1 is complex128"),
        (np.array(["a"]), np.array(["b"]), r"element \[0\] of array 1 is <U1"),
        (np.zeros((2, 2), np.float32), np.float32([[0, 0], [np.nan, 0]]), r"element \[1, 0\] of array 1 is float32 and was"),
        (np.array(np.inf), np.array(1.0), r"element \[\] of array 1 is float64 and was"),
        (np.float32([np.inf]), np.float32([-np.inf]), r"element \[0\] of array 1 is float32 and was"),
        (np.array([True]), np.array([1]), r"element \[0\] of array 1 is int64"),
    ],
)
def test_what_has_no_average_is_refused_by_array_and_element(before, after, words):
    good = np.zeros(3, np.float32)
    with pytest.raises(unisono.EncodingError, match=words + r"(.|\n)*exclude=\[1\]"):
        difference([good, after], [good, before])
    assert difference([good, after], [good, before], [1]).tolist() == [0, 0, 0]


def test_what_lies_beyond_the_clip_is_counted_by_array():
    base = [np.zeros(4), np.zeros(2), np.zeros(0), np.zeros(1)]
    update = np.float32([0.5, -0.6, 0.1, 2, 9, 9, -0.5])
    base = dict(zip("abcd", base, strict=True))
    bounds = np.full(7, 0.5, np.float32)
    assert beyond(update, bounds, base) == {"a": 0.5, "b": 1.0}
    assert beyond(update[4:], bounds[4:], base, ["a"]) == {"b": 1.0}
    bounds[4:6] = 10
    assert beyond(update, bounds, base) == {"a": 0.5}


def test_named_arrays_are_taken_by_name_and_not_by_order():
    before = {"b": np.zeros(2, np.float32), "a": np.zeros(1, np.float32)}
    after = {"a": np.float32([3]), "b": np.float32([1, 2])}
    assert _averaging.difference(after, before).tolist() == [1, 2, 3]
    assert {name: array.tolist() for name, array in _averaging.add(before, np.float32([5, 6, 7])).items()} == {"b": [5, 6], "a": [7]}
    assert _averaging.difference(after, before, ["b"]).tolist() == [3]
    with pytest.raises(unisono.EncodingError, match="did not return array a; it returned b, c"):
        _averaging.difference({"b": after["b"], "c": after["a"]}, before)
