"""The primitives: they undo each other, and refuse what does not fit with an exception."""

import numpy as np
import pytest
import unisono


@pytest.mark.parametrize("bits", [1, 12, 16, 17, 21, 32, 33, 64])
def test_unmasking_undoes_masking_in_place(bits):
    rng = np.random.default_rng(bits)
    dtype = unisono.ring_dtype(bits)
    values = rng.integers(0, 2**bits, 20_000, dtype=np.uint64, endpoint=False).astype(dtype) if bits < 64 else (
        rng.integers(0, 2**64 - 1, 20_000, dtype=np.uint64, endpoint=True)
    )
    vector = values.copy()
    seeds = {"add": [b"a" * 32, b"b" * 32], "subtract": [b"c" * 32]}
    unisono.mask(vector, bits, **seeds)
    assert (vector != values).mean() > 0.3
    assert int(vector.max()) < 2**bits
    unisono.unmask(vector, bits, **seeds)
    np.testing.assert_array_equal(vector, values)


def test_pairwise_masks_cancel_in_the_sum():
    one, two = np.arange(100, dtype=np.uint32), np.arange(100, dtype=np.uint32)[::-1].copy()
    plain = one + two
    unisono.mask(one, 20, add=[b"s" * 32])
    unisono.mask(two, 20, subtract=[b"s" * 32])
    np.testing.assert_array_equal((one + two) % 2**20, plain)


def test_arrays_that_do_not_fit_are_refused_with_what_to_do():
    seed = [b"s" * 32]
    read_only = np.zeros(8, np.uint32)
    read_only.flags.writeable = False
    for array, words in [
        ([1, 2, 3], "numpy.asarray"),
        (None, "NoneType"),
        (np.zeros(8), "astype"),
        (np.zeros(8, np.int32), "uint32"),
        (np.zeros(8, ">u4"), "needed"),
        (np.zeros((2, 4), np.uint32), "ravel"),
        (np.zeros(16, np.uint32)[::2], "ascontiguousarray"),
        (read_only, "read-only"),
    ]:
        with pytest.raises(unisono.ArrayError, match=words):
            unisono.mask(array, 20, add=seed)
    for bits in (0, 65):
        with pytest.raises(unisono.CryptoError, match="1..=64"):
            unisono.mask(np.zeros(8, np.uint32), bits)
    with pytest.raises(unisono.CryptoError, match="add is a bytes of length 5; 32 bytes"):
        unisono.mask(np.zeros(8, np.uint32), 20, add=[b"short"])
    with pytest.raises(unisono.ParamsError, match="modulus_bits is -1"):
        unisono.mask(np.zeros(8, np.uint32), -1)


def test_an_empty_vector_is_masked_to_an_empty_vector():
    vector = np.zeros(0, np.uint16)
    unisono.mask(vector, 16, add=[b"s" * 32])
    assert vector.size == 0


def test_quantised_updates_sum_to_the_weighted_mean():
    rng = np.random.default_rng(3)
    quantiser = unisono.Quantiser(bits=20, clip=2.0, max_weight=50.0, metrics=[(0.0, 1.0)])
    bits = unisono.modulus_bits(20, 5)
    updates = [rng.uniform(-2, 2, 300).astype(np.float32) for _ in range(5)]
    weights = [3.0, 50.0, 7.5, 20.0, 11.0]
    encoded = [unisono.quantise(u, w, quantiser, bits, metrics=[0.5]) for u, w in zip(updates, weights)]
    aggregate = unisono.dequantise(sum(encoded), quantiser, bits, 300, 5)
    mean = np.average(updates, axis=0, weights=weights)
    assert np.abs(aggregate.mean - mean).max() <= aggregate.error_bound + 1e-5
    assert aggregate.mean.dtype == np.float32 and aggregate.metrics == pytest.approx([0.5], abs=1e-3)


def test_a_seed_repeats_the_rounding_and_its_absence_does_not():
    quantiser = unisono.Quantiser(clip=1.0, bits=4)
    update = np.full(1000, 0.123, np.float32)
    once = unisono.quantise(update, 1.0, quantiser, 8, seed=b"x" * 32)
    np.testing.assert_array_equal(once, unisono.quantise(update, 1.0, quantiser, 8, seed=b"x" * 32))
    assert (once != unisono.quantise(update, 1.0, quantiser, 8)).any()


def test_what_can_not_be_quantised_is_named():
    quantiser = unisono.Quantiser(clip=1.0, bits=16)
    bad = np.zeros(5, np.float32)
    bad[4] = np.inf
    with pytest.raises(unisono.EncodingError, match="element 4 of the update is inf"):
        unisono.quantise(bad, 1.0, quantiser, 20)
    with pytest.raises(unisono.EncodingError, match="overflow"):
        unisono.dequantise(np.zeros(6, np.uint32), quantiser, 20, 5, 1000)
    with pytest.raises(unisono.EncodingError, match="at least 1"):
        unisono.modulus_bits(16, 0)
    with pytest.raises(TypeError, match="clip"):
        unisono.Quantiser()
    for settings in ({"bits": 0}, {"clip": float("nan")}, {"max_weight": 0.0}, {"rounding": "up"}):
        with pytest.raises(unisono.EncodingError, match="quantiser setting|allowed"):
            unisono.Quantiser(**{"clip": 1.0, **settings})


@pytest.mark.parametrize("bits", [3, 16, 21, 40, 64])
def test_packing_is_undone_by_unpacking(bits):
    vector = (np.arange(77, dtype=np.uint64) * 0x9E3779B97F4A7C15 % 2 ** min(bits, 63)).astype(unisono.ring_dtype(bits))
    packed = unisono.pack(vector, bits)
    assert len(packed) == -(-77 * bits // 8)
    np.testing.assert_array_equal(unisono.unpack(packed, bits, 77), vector)
    with pytest.raises(unisono.CryptoError, match="packed vector"):
        unisono.unpack(packed[:-1], bits, 77)
    if bits not in (16, 64):
        vector[70] = 2**bits
        with pytest.raises(unisono.CryptoError, match="ring element"):
            unisono.pack(vector, bits)
    assert unisono.pack(vector[:0], bits) == b"" and unisono.unpack(b"", bits, 0).size == 0


def test_shares_rebuild_the_secret_and_wrong_ones_are_found():
    secret = unisono.random_secret()
    shares = unisono.split_secret(secret, 3, range(1, 8))
    assert unisono.rebuild_secret(shares[2:5], 3) == (secret, [])
    at, value = shares[4]
    wrong = [*shares[:4], (at, unisono.random_secret()), *shares[5:]]
    assert unisono.rebuild_secret(wrong, 3) == (secret, [at])
    with pytest.raises(unisono.CryptoError):
        unisono.rebuild_secret(shares[:2], 3)
    with pytest.raises(unisono.CryptoError):
        unisono.split_secret(secret, 8, range(1, 8))
    with pytest.raises(unisono.CryptoError, match="abscissa"):
        unisono.split_secret(secret, 2, [0, 1, 2])
    with pytest.raises(unisono.CryptoError):
        unisono.split_secret(b"\xff" * 32, 2, [1, 2, 3])


def test_both_ends_of_an_encapsulation_get_one_secret():
    key = unisono.DecapsulationKey.generate()
    ciphertext, secret = unisono.encapsulate(key.encapsulation_key)
    assert key.decapsulate(ciphertext) == secret
    assert unisono.DecapsulationKey.generate(key.seed()).decapsulate(ciphertext) == secret
    assert unisono.DecapsulationKey.generate().decapsulate(ciphertext) != secret
    with pytest.raises(unisono.CryptoError, match="1120"):
        key.decapsulate(b"")
    with pytest.raises(unisono.CryptoError):
        unisono.encapsulate(b"\xff" * 1216)


def test_the_worked_values_of_the_specification():
    found = unisono.find_degree(1000, gamma=0.05, delta=0.05)
    assert (found.degree, found.threshold, found.window_bound) == (90, 65, 30)
    assert (found.committee, found.quorum, found.tolerated_drop_outs) == (58, 45, None)
    tolerated = {3: 0, 4: 0, 5: 1, 6: 1, 7: 2, 8: 2, 9: 3, 10: 3, 12: 4, 16: 6, 20: 8, 24: 10, 32: 14}
    assert {n: unisono.find_degree(n).tolerated_drop_outs for n in tolerated} == tolerated
    found = unisono.find_degree(1000, gamma=0.05, delta=0.05, mode="semi-honest")
    assert (found.degree, found.threshold) == (30, 17)
    assert (found.window_bound, found.committee, found.quorum) == (None, None, None)
    assert unisono.find_degree(12, min_colluders=4).tolerated_drop_outs == 3
    with pytest.raises(unisono.ParamsError, match="feasible would be"):
        unisono.find_degree(10, gamma=0.3, delta=0.4)
    with pytest.raises(unisono.ParamsError):
        unisono.find_degree(0)
