//! Vectors of what rounds are built from: labelled functions, signatures, Merkle trees, sharing, the mask stream, packing.

use hex::encode as hex;
use serde_json::{Value, json};
use unisono_crypto::kdf::{self, Hasher, label};
use unisono_crypto::merkle;
use unisono_crypto::prg::{self, Seed, Sign};
use unisono_crypto::ring::{Modulus, RingVector};
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{self, Interpolator, SecretScalar, Share};
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};

use super::{Again, Drawn, check, derivation};

#[test]
fn labelled_functions_are_those_in_the_vectors() {
    let key = Secret32::from_bytes([7; 32]);
    let parts: [&[u8]; 3] = [b"", b"unisono", &[0xff; 70]];
    let hexed: Vec<String> = parts.iter().map(hex).collect();
    let one = |label: kdf::Label| {
        json!({
            "label": label.as_str(),
            "hash": hex(kdf::hash(label, &parts)),
            "derive_secret": hex(kdf::derive_secret(label, key.expose(), &parts).expose()),
            "derive_64": hex(kdf::derive_bytes::<64>(label, key.expose(), &parts).as_slice()),
            "stream_hash": hex(Hasher::new(label).update(parts[1]).update(parts[2]).finalize()),
        })
    };
    // Those of signatures and trees have files of their own; `ledger` and `shared-check` are for one process alone, and noise
    // is each implementation's own.
    let labels = [
        label::ROUND_ID,
        label::COHORT_ID,
        label::MEMBERS,
        label::GRAPH_SEED,
        label::MASK_KEY,
        label::MASK_COINS,
        label::PAIR_MASK,
        label::SELF_MASK,
        label::SELF_MASK_COMMITMENT,
        label::SHARE_COMMITMENT,
        label::PRG,
        label::ROTATION,
        label::SHARE_KEY,
        label::SHARERS,
        label::SURVIVORS,
        label::COMMITTEE_SEED,
        label::UPLOAD,
        label::RELEASE_KEY_HASH,
        label::RELEASE_HEADER,
        label::RELEASE_BODY,
        label::CHUNK_KEY,
        label::KEY_COMMITMENT,
        label::PUBLISHER_ID,
        label::WRAP_KEY,
        label::GRANT_KEY,
        label::TOKEN_KEY,
        label::MAC_CLIENT_REQUEST,
        label::MAC_GRANT,
        label::MODEL_HASH,
        label::SIGN_ED25519,
        label::SIGN_ML_DSA,
        label::SIGN_HEDGE,
    ];
    let entries: Vec<Value> = labels.into_iter().map(one).collect();
    check("kdf.json", &json!({ "key": hex(key.expose()), "parts": hexed, "labels": entries }));
}

#[test]
fn hybrid_signatures_are_those_in_the_vectors() {
    let mut cases = Vec::new();
    for (level, name) in [(Level::L44, "Ed25519 + ML-DSA-44"), (Level::L65, "Ed25519 + ML-DSA-65")] {
        for (byte, label, message) in [
            (1u8, label::SIG_ADVERT, &b""[..]),
            (2, label::SIG_ROSTER, b"message"),
            (3, label::SIG_GRANT, &[0xab; 300]),
        ] {
            let key = SigningKey::from_seed(level, &Secret32::from_bytes([byte; 32]));
            let signature = key.sign(label, message);
            let public = VerifyingKey::from_bytes(key.verifying_key().as_bytes()).unwrap();
            assert_eq!(public.verify(label, message, &signature), Ok(()));
            cases.push(json!({
                "level": name, "seed": hex([byte; 32]), "label": label.as_str(), "message": hex(message),
                "verifying_key": hex(public.as_bytes()), "signature": hex(&signature), "hedged": hedged(&key, label, message),
            }));
        }
    }
    check("signatures.json", &Value::Array(cases));
}

/// A device's signature, with the bytes that it took. Another implementation's devices may draw otherwise.
fn hedged(key: &SigningKey, label: kdf::Label, message: &[u8]) -> Value {
    let mut rng = Drawn::new(message.len() as u64);
    let signature = key.sign_hedged(label, message, &mut rng);
    let drawn = rng.take();
    assert_eq!(key.verifying_key().verify(label, message, &signature), Ok(()));
    assert_ne!(signature, key.sign(label, message));
    assert_eq!(signature, key.sign_hedged(label, message, &mut Again(&drawn)), "nothing else makes it");
    json!({ "drawn_ed25519": hex(&drawn[..32]), "drawn_ml_dsa": hex(&drawn[32..]), "signature": hex(signature) })
}

#[test]
fn merkle_roots_and_paths_are_those_in_the_vectors() {
    let trees = [(label::TREE_ROSTER, "roster"), (label::TREE_ADVERTS, "adverts"), (label::TREE_SHARES, "shares")];
    let mut cases = Vec::new();
    for size in 0..=9usize {
        let (label, _) = trees[size % 3];
        let leaves: Vec<Vec<u8>> = (0..size).map(|i| vec![i as u8; i]).collect();
        let tree = merkle::Tree::new(label, &leaves);
        let path = |i| tree.path(i).unwrap().iter().map(hex).collect::<Vec<String>>();
        for (i, leaf) in leaves.iter().enumerate() {
            let path = tree.path(i).unwrap();
            assert!(merkle::verify(label, &tree.root(), size as u64, i as u64, leaf, &path).is_ok());
        }
        cases.push(json!({
            "label": label.as_str(), "leaves": leaves.iter().map(hex).collect::<Vec<_>>(), "root": hex(tree.root()),
            "paths": (0..size).map(path).collect::<Vec<_>>(),
        }));
    }
    check("merkle.json", &Value::Array(cases));
}

#[test]
fn shares_and_what_they_rebuild_are_those_in_the_vectors() {
    let mut cases = Vec::new();
    for (threshold, abscissas) in [(1usize, vec![5u32]), (2, vec![1, 2, 3]), (4, vec![2, 3, 5, 7, 11, 1 << 20])] {
        let mut rng = Drawn::new(threshold as u64);
        let secret = SecretScalar::random(&mut rng);
        let drawn = rng.take();
        let shares = shamir::split(&secret, threshold, &abscissas, &mut rng).unwrap();
        let coefficients = rng.take();
        assert_eq!(coefficients.len(), 64 * (threshold - 1));
        let rebuilt = Interpolator::new(&abscissas[..threshold]).unwrap().reconstruct(&shares[..threshold]).unwrap();
        assert!(rebuilt.to_secret().ct_eq(&secret.to_secret()));
        // One share too many by one, where a surplus of two allows it to be found.
        let mut wrong = shares.clone();
        let mut corrected = Value::Null;
        if shares.len() >= threshold + 2 {
            let mut value = *wrong[0].value_bytes();
            value[0] ^= 1;
            wrong[0] = Share::from_bytes(abscissas[0], &value).unwrap();
            let decoded = shamir::decode(&wrong, threshold).unwrap().unwrap();
            assert!(decoded.secret.to_secret().ct_eq(&secret.to_secret()));
            corrected = json!({ "wrong_share_0": hex(value), "reported": decoded.wrong });
        }
        cases.push(json!({
            "drawn_secret": hex(&drawn), "secret": hex(secret.to_secret().expose()), "threshold": threshold,
            "drawn_coefficients": coefficients.chunks(64).map(hex).collect::<Vec<_>>(), "abscissas": abscissas,
            "shares": shares.iter().map(|share| hex(share.value_bytes().as_slice())).collect::<Vec<_>>(),
            "corrected": corrected,
        }));
    }
    check("shamir.json", &Value::Array(cases));
}

fn elements<T: prg::StreamElement + Default + Into<u64>>(seed: &Seed, offset: u64) -> Vec<u64> {
    let mut out = vec![T::default(); 24];
    prg::apply(seed, offset, Sign::Add, &mut out).unwrap();
    out.into_iter().map(Into::into).collect()
}

#[test]
fn the_mask_stream_is_the_one_in_the_vectors_at_every_width_and_offset() {
    let mut cases = Vec::new();
    for byte in [0u8, 0x42] {
        let secret = Secret32::from_bytes([byte; 32]);
        let seed = Seed::from_secret(&secret);
        let mut first_group = [0u32; 256];
        prg::apply(&seed, 0, Sign::Add, &mut first_group).unwrap();
        let mut at = Vec::new();
        for offset in [0u64, 1, 255, 256, 511, 512, 1000, 1 << 20, (1 << 36) - 24] {
            // The stream ends after 2^38 bytes: 2^37, 2^36 and 2^35 elements.
            let w64 = if offset < 1 << 35 {
                json!(elements::<u64>(&seed, offset).iter().map(u64::to_string).collect::<Vec<_>>())
            } else {
                Value::Null
            };
            at.push(json!({
                "offset": offset, "width_16": elements::<u16>(&seed, offset), "width_32": elements::<u32>(&seed, offset),
                "width_64_decimal": w64,
            }));
        }
        cases.push(json!({
            "secret": hex(secret.expose()), "chacha20_key": hex(derivation::prg_key(&secret).expose()),
            "first_group_words": first_group.to_vec(), "elements": at,
        }));
    }
    check("prg-stream.json", &Value::Array(cases));
}

#[test]
fn packed_vectors_are_those_in_the_vectors() {
    let mut cases = Vec::new();
    for bits in [1u32, 2, 3, 5, 7, 8, 9, 13, 16, 17, 19, 24, 31, 32, 33, 47, 63, 64] {
        let modulus = Modulus::new(bits).unwrap();
        let values: Vec<u64> = (1..=11u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & modulus.mask()).collect();
        let packed = RingVector::from_u64(modulus, &values).unwrap().pack();
        assert_eq!(packed, derivation::pack(&values, bits));
        cases.push(json!({
            "bits": bits, "values_decimal": values.iter().map(u64::to_string).collect::<Vec<_>>(), "packed": hex(&packed),
        }));
    }
    check("packing.json", &Value::Array(cases));
}
