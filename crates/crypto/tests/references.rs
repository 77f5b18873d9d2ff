//! What this crate builds from standard primitives, built once more here from other public parts: hybrid signatures and the
//! AEAD with its fixed nonce. The public interface alone is used, so that another implementation behind it is judged alike.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use ed25519_dalek::Signer;
use ml_dsa::{MlDsa44, MlDsa65, MlDsaParams};
use proptest::prelude::*;
use unisono_crypto::aead;
use unisono_crypto::kdf::{Label, derive_secret, label};
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};

/// Key and signature after section 2 of docs/protocol.md, RFC 8032 and FIPS 204 (deterministic variant).
fn reference<P: MlDsaParams>(seed: &[u8; 32], purpose: Label, message: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let half = |label| *derive_secret(label, seed, &[]).expose();
    let ed = ed25519_dalek::SigningKey::from_bytes(&half(label::SIGN_ED25519));
    let ml = ml_dsa::SigningKey::<P>::from_seed(&half(label::SIGN_ML_DSA).into());
    let ml = ml.expanded_key();
    let key = [ed.verifying_key().as_bytes().as_slice(), &ml.verifying_key().encode()].concat();
    let context = purpose.as_str().as_bytes();
    let bytes = [context, &[0], message].concat();
    let ml_signature = ml.sign_deterministic(&bytes, context).unwrap().encode();
    (key, [ed.sign(&bytes).to_bytes().as_slice(), &ml_signature].concat())
}

/// Whether the ML-DSA half of a changed signature still verifies under the reference.
fn reference_verifies<P: MlDsaParams>(key: &[u8], purpose: Label, message: &[u8], signature: &[u8]) -> bool {
    let context = purpose.as_str().as_bytes();
    let bytes = [context, &[0], message].concat();
    let Ok(signature) = ml_dsa::Signature::<P>::try_from(signature) else { return false };
    let key = ml_dsa::VerifyingKey::<P>::decode(key.try_into().unwrap());
    key.verify_with_context(&bytes, context, &signature)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn hybrid_keys_and_signatures_are_those_of_rfc_8032_and_fips_204(
        seed: [u8; 32], message in proptest::collection::vec(any::<u8>(), 0..300), strong: bool,
    ) {
        let level = if strong { Level::L65 } else { Level::L44 };
        let ours = SigningKey::from_seed(level, &Secret32::from_bytes(seed));
        let purpose = label::SIG_COHORT;
        let (key, signature) =
            if strong { reference::<MlDsa65>(&seed, purpose, &message) } else { reference::<MlDsa44>(&seed, purpose, &message) };
        let public = ours.verifying_key();
        prop_assert_eq!(public.as_bytes(), key.as_slice());
        prop_assert_eq!(&ours.sign(purpose, &message), &signature);
        let read = VerifyingKey::from_bytes(&key).unwrap();
        prop_assert_eq!(read.verify(purpose, &message, &signature), Ok(()));
    }

    #[test]
    fn a_changed_ml_dsa_half_is_refused_wherever_the_reference_refuses_it(
        seed: [u8; 32], at in any::<prop::sample::Index>(), byte: u8, strong: bool,
    ) {
        let level = if strong { Level::L65 } else { Level::L44 };
        let key = SigningKey::from_seed(level, &Secret32::from_bytes(seed));
        let mut signature = key.sign(label::SIG_COHORT, b"message");
        let at = 64 + at.index(signature.len() - 64);
        signature[at] = byte;
        let public = key.verifying_key();
        let half = (&public.as_bytes()[32..], &signature[64..]);
        let expected = if strong {
            reference_verifies::<MlDsa65>(half.0, label::SIG_COHORT, b"message", half.1)
        } else {
            reference_verifies::<MlDsa44>(half.0, label::SIG_COHORT, b"message", half.1)
        };
        prop_assert_eq!(public.verify(label::SIG_COHORT, b"message", &signature).is_ok(), expected);
    }

    #[test]
    fn the_single_use_aead_is_rfc_8439_with_a_nonce_of_zero(
        key: [u8; 32], data in proptest::collection::vec(any::<u8>(), 0..80), text in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let sealed = aead::seal(&Secret32::from_bytes(key), &data, &text).unwrap();
        let cipher = ChaCha20Poly1305::new(&key.into());
        let expected = cipher.encrypt(&Nonce::from([0; 12]), Payload { msg: &text, aad: &data }).unwrap();
        prop_assert_eq!(&sealed, &expected);
        prop_assert_eq!(&*aead::open(&Secret32::from_bytes(key), &data, &sealed).unwrap(), &text);
    }
}

/// The hints of an ML-DSA signature have one encoding (FIPS 204, algorithm 21): counts that fall, positions that repeat or
/// descend, and bytes behind the last position are refused.
#[test]
fn hints_in_any_but_their_one_encoding_are_refused() {
    for (level, k, omega) in [(Level::L44, 4, 80), (Level::L65, 6, 55)] {
        let key = SigningKey::from_seed(level, &Secret32::from_bytes([5; 32]));
        let signature = key.sign(label::SIG_COHORT, b"message");
        assert!(key.verifying_key().verify(label::SIG_COHORT, b"message", &signature).is_ok());
        let start = signature.len() - omega - k;
        let count = usize::from(signature[signature.len() - 1]);
        let first = usize::from(signature[start + omega]);
        assert!(count < omega && first >= 2, "another message is needed: {count} hints, {first} in the first row");
        let refused = |what: &str, change: &dyn Fn(&mut [u8])| {
            let mut changed = signature.clone();
            change(&mut changed[start..]);
            assert_ne!(changed, signature, "{what}");
            assert!(key.verifying_key().verify(label::SIG_COHORT, b"message", &changed).is_err(), "{level:?}: {what}");
        };
        refused("a byte behind the last position", &|hints| hints[count] = 1);
        refused("positions out of order", &|hints| hints.swap(0, 1));
        refused("a position twice", &|hints| hints[1] = hints[0]);
        refused("more hints than there may be", &|hints| hints[omega + k - 1] = omega as u8 + 1);
        refused("a count below the one before", &|hints| hints[omega + 1] = hints[omega] - 1);
    }
}
