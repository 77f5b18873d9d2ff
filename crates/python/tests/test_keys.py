"""Keys, rosters and releases; secrets are never shown, and never pickled."""

import pickle

import numpy as np
import pytest
import unisono


def test_a_signature_holds_for_its_purpose_message_and_key():
    key = unisono.SigningKey.generate("publisher")
    signature = key.sign("release", b"m")
    unisono.verify(key.verifying_key, "release", b"m", signature)
    for purpose, message in (("grant", b"m"), ("release", b"n")):
        with pytest.raises(unisono.CryptoError, match="does not verify"):
            unisono.verify(key.verifying_key, purpose, message, signature)
    with pytest.raises(unisono.CryptoError, match="purpose"):
        key.sign("anything", b"m")
    with pytest.raises(unisono.CryptoError):
        unisono.verify(b"", "release", b"m", signature)


def test_keys_survive_their_text_and_are_not_shown():
    key = unisono.SigningKey.generate("registrar")
    assert unisono.SigningKey.from_text("registrar", key.to_text()).verifying_key == key.verifying_key
    with pytest.raises(unisono.KeyFileError):
        unisono.SigningKey.from_text("coordinator", key.to_text())
    device = unisono.DeviceKeys.generate()
    again = unisono.DeviceKeys.from_text(device.to_text())
    assert again.client_id == device.client_id and again.enrolment() == device.enrolment()
    for secret, text in ((key, key.to_text()), (device, device.to_text())):
        words = [word for word in text.split() if len(word) >= 64]
        assert words and not any(word in repr(secret) for word in words)
    assert repr(unisono.DecapsulationKey.generate()) == "DecapsulationKey(..)"
    with pytest.raises(unisono.KeyFileError, match="role"):
        unisono.SigningKey.generate("king")


def test_a_roster_is_read_under_its_registrar_only():
    registrar = unisono.SigningKey.generate("registrar")
    devices = [unisono.DeviceKeys.generate() for _ in range(3)]
    coordinator = unisono.SigningKey.generate("coordinator").verifying_key
    enrolments = [device.enrolment() for device in devices]
    roster = unisono.Roster.publish(enrolments, registrar, epoch=4, coordinators=[coordinator])
    file = roster.to_bytes()
    read = unisono.Roster.from_bytes(file, registrar.verifying_key)
    assert (read.epoch, len(read)) == (4, 3)
    assert read.client_ids == sorted(device.client_id for device in devices)
    other = unisono.SigningKey.generate("registrar").verifying_key
    with pytest.raises(unisono.RosterError):
        unisono.Roster.from_bytes(file, other)
    with pytest.raises(unisono.RosterError):
        unisono.Roster.from_bytes(file[:-40], registrar.verifying_key)
    with pytest.raises(unisono.RosterError, match="twice"):
        unisono.Roster.publish(enrolments * 2, registrar, epoch=5, coordinators=[coordinator])


def test_a_release_opens_for_its_device_under_its_publisher_and_goes_back_to_no_older_one():
    publisher = unisono.SigningKey.generate("publisher")
    keys = [publisher.verifying_key]
    device, thief = unisono.DeviceKeys.generate(), unisono.DeviceKeys.generate()
    model = np.random.default_rng(0).bytes(200_000)
    release, content_key = unisono.seal(model, publisher, model_id="digits", version=2)
    granted = unisono.grant(
        release, content_key, publisher, client_id=device.client_id, release_key=device.release_key
    )
    received = unisono.Release.from_bytes(release.to_bytes())
    received.verify(keys)
    key = unisono.Grant.from_bytes(granted.to_bytes()).open(received, device, keys)
    assert received.open(key, keys, model_id="digits", seen=2) == model
    with pytest.raises(unisono.ReleaseError):
        granted.open(received, thief, keys)
    with pytest.raises(unisono.ReleaseError, match="3"):
        received.open(key, keys, seen=3)
    with pytest.raises(unisono.ReleaseError):
        received.open(key, [unisono.SigningKey.generate("publisher").verifying_key])
    changed = bytearray(release.to_bytes())
    changed[len(changed) // 2] ^= 1
    with pytest.raises(unisono.ReleaseError):
        unisono.Release.from_bytes(bytes(changed)).open(key, keys)
    with pytest.raises(unisono.ReleaseError):
        unisono.Release.from_bytes(b"")
    assert repr(key) == "ContentKey(..)"


def test_a_key_serves_its_role_only():
    keys = {role: unisono.SigningKey.generate(role) for role in ("registrar", "coordinator", "publisher")}
    device = unisono.DeviceKeys.generate()
    release, content = unisono.seal(b"m", keys["publisher"], model_id="m", version=1)
    enrolments = [unisono.DeviceKeys.generate().enrolment() for _ in range(3)]
    roster = unisono.Roster.publish(
        enrolments, keys["registrar"], epoch=1, coordinators=[keys["coordinator"].verifying_key]
    )
    params = unisono.RoundParams(
        dimension=10, n_min=3, n_max=3, gamma=0.0, quantiser=unisono.Quantiser(clip=1.0), roster=roster
    )
    calls = {
        "registrar": lambda key: unisono.Roster.publish(enrolments, key, epoch=2, coordinators=[]),
        "coordinator": lambda key: unisono.ServerRound(params, coordinator_key=key, roster=roster),
        "publisher": lambda key: unisono.seal(b"m", key, model_id="m", version=2),
    }
    for wanted, call in calls.items():
        for role, key in keys.items():
            if role != wanted:
                with pytest.raises(unisono.KeyFileError, match=f"is a {role} key; a {wanted} key is needed"):
                    call(key)
    call(keys["publisher"])
    with pytest.raises(unisono.KeyFileError, match="issuer's key is a coordinator key"):
        unisono.grant(
            release, content, keys["coordinator"], client_id=device.client_id, release_key=device.release_key
        )


def test_settings_are_pickled_and_secrets_are_not():
    for settings in (
        unisono.Policy(n_min=4, min_gamma=0.02, allow_semi_honest=True, max_dimension=77),
        unisono.Policy(max_epsilon=3.5, privacy_delta=1e-6),
        unisono.Policy(max_total_epsilon=9.0, signed_base_model=True),
        unisono.Policy(min_honest=3, min_colluders=2, max_rounds=7, max_round_s=60, min_interval_s=0),
        unisono.Quantiser(bits=9, clip=0.5, l2_clip=2.0, rounding="deterministic", metrics=[(0.0, 2.0)]),
    ):
        again = pickle.loads(pickle.dumps(settings))
        assert repr(again) == repr(settings)
    for secret in (unisono.DeviceKeys.generate(), unisono.SigningKey.generate("registrar")):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(secret)


def test_one_key_in_the_place_of_a_list_is_refused_by_name():
    registrar, publisher = unisono.SigningKey.generate("registrar"), unisono.SigningKey.generate("publisher")
    coordinator = unisono.SigningKey.generate("coordinator").verifying_key
    devices = [unisono.DeviceKeys.generate().enrolment() for _ in range(3)]
    for wrong in ({"publishers": publisher.verifying_key}, {"publishers": [publisher]}, {"coordinators": coordinator}):
        settings = {"epoch": 1, "coordinators": [coordinator], **wrong}
        (name,) = wrong
        with pytest.raises(unisono.KeyFileError, match=rf"{name}=\[key\]"):
            unisono.Roster.publish(devices, registrar, **settings)
