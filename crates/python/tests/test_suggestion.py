"""A quantiser that fits an update cuts nothing of it, and rounds it as little as is asked for."""

import numpy as np
import pytest
import unisono

RNG = np.random.default_rng(5)
UPDATE = {
    "bn.running_var": RNG.normal(0, 20, 8).astype(np.float32),
    "conv.weight": RNG.normal(0, 0.01, (4, 3, 3)).astype(np.float32),
    "still": np.zeros(2, np.float32),
}
FLAT = np.concatenate([UPDATE[name].ravel() for name in sorted(UPDATE)])


def error_of(quantiser, weight):
    """Of each element, what the mean of three equal updates is off by."""
    size = FLAT.size
    result = unisono.simulate(
        3, size, mode="semi-honest", quantiser=quantiser, updates=lambda client, round: (FLAT, weight)
    )
    return np.abs(result.means[0] - FLAT)


def test_one_clip_or_one_for_each_tensor():
    one = unisono.suggest_quantiser(UPDATE, weight=100)
    assert one.clip == pytest.approx(4 * np.abs(FLAT).max()) and one.max_weight == 400 and one.clips == []
    assert unisono.suggest_quantiser(FLAT).clip == one.clip
    assert error_of(one, 100.0).max() < 0.01 * np.sqrt(np.mean(FLAT**2))
    each = unisono.suggest_quantiser(UPDATE, per_tensor=True)
    assert [elements for elements, _ in each.clips] == [8, 36 + 2]  # what did not move has the smallest clip
    off = error_of(each, 1.0)
    assert off[8:44].max() < 0.01 * np.sqrt(np.mean(FLAT[8:44] ** 2)), "the small tensor is not rounded away"
    # Fewer bits would not do.
    assert error_of(unisono.Quantiser(clip=one.clip, bits=one.bits - 5, max_weight=400), 100.0).max() > 0.01 * np.sqrt(np.mean(FLAT**2))
    assert unisono.suggest_quantiser(UPDATE, error=1e-4).bits > one.bits


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(update=np.zeros(3, np.float32)), unisono.ParamsError, "zeros"),
        (dict(update={}), unisono.ParamsError, "zeros"),
        (dict(update=np.array([1.0, np.nan])), unisono.ArrayError, "element 1 of update"),
        (dict(update={"w": np.array([True])}), unisono.ArrayError, "w has dtype bool"),
        (dict(update=np.ma.masked_array([1.0], mask=[True])), unisono.ArrayError, "mask"),
        (dict(update=FLAT, headroom=0.5), unisono.ParamsError, "headroom is 0.5"),
        (dict(update=FLAT, weight=0), unisono.ParamsError, "weight is 0"),
        (dict(update=FLAT, error=float("nan")), unisono.ParamsError, "error is nan"),
        (dict(update=FLAT, per_tensor=True), unisono.ParamsError, "named arrays"),
    ],
)
def test_what_gives_no_quantiser_is_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        unisono.suggest_quantiser(**arguments)


def test_runs_of_elements_have_clips_of_their_own():
    quantiser = unisono.Quantiser(clip=1.0, clips=[(2, 0.5), (1, 0.5), (3, 10.0)])
    assert quantiser.clips == [(3, 0.5), (3, 10.0)]
    update = np.float32([0.25, 9, -9, 9, -9, 20])
    result = unisono.simulate(
        3, 6, mode="semi-honest", quantiser=quantiser, updates=lambda client, round: (update, 1.0)
    )
    np.testing.assert_allclose(result.means[0], [0.25, 0.5, -0.5, 9, -9, 10], atol=1e-3)
    with pytest.raises(unisono.EncodingError, match="as many as the update has"):
        unisono.RoundParams(dimension=7, n_max=5, quantiser=quantiser, mode="semi-honest")
    with pytest.raises(unisono.EncodingError, match="clips"):
        unisono.Quantiser(clip=1.0, clips=[(1, 0.5), (1, -1.0)])
    with pytest.raises(unisono.EncodingError, match="rotation"):
        unisono.Quantiser(clip=1.0, clips=[(1, 0.5), (1, 1.0)], rotate=True)
    with pytest.raises(unisono.ParamsError, match="clips"):
        unisono.Quantiser(clip=1.0, clips=[(-1, 0.5)])
