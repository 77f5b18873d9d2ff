//! Hybrid signatures: Ed25519 (RFC 8032) and ML-DSA (FIPS 204), both of which must verify (`docs/protocol.md` section 1).
//!
//! Both sign `label | 0 | message`; ML-DSA has the label as its context too. Devices sign hedged ([`SigningKey::sign_hedged`]):
//! a fault or a side channel in one computation can't be repeated. Servers sign deterministically ([`SigningKey::sign`]), so that
//! a replay after a restart gives the same bytes.

use std::fmt;

use ed25519_dalek::Signer;
use ed25519_dalek::hazmat::{ExpandedSecretKey, raw_sign};
use libcrux_ml_dsa::ml_dsa_44::{self, MLDSA44Signature, MLDSA44SigningKey, MLDSA44VerificationKey};
use libcrux_ml_dsa::ml_dsa_65::{self, MLDSA65Signature, MLDSA65SigningKey, MLDSA65VerificationKey};
use rand_core::CryptoRng;
use rayon::prelude::*;
use sha2::Sha512;
use zeroize::Zeroize;

use crate::CryptoError;
use crate::kdf::{Label, derive_secret, label};
use crate::secret::Secret32;

const ED_KEY_LEN: usize = 32;
const ED_SIG_LEN: usize = 64;

/// The ML-DSA parameter set beside Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// ML-DSA-44, for the identity keys of clients.
    L44,
    /// ML-DSA-65, for registrar, coordinator and publisher.
    L65,
}

impl Level {
    /// Bytes of a verifying key: Ed25519 (32) then ML-DSA (1312 or 1952).
    pub fn verifying_key_len(self) -> usize {
        ED_KEY_LEN + if self == Self::L44 { 1312 } else { 1952 }
    }

    /// Bytes of a signature: Ed25519 (64) then ML-DSA (2420 or 3309).
    pub fn signature_len(self) -> usize {
        ED_SIG_LEN + if self == Self::L44 { 2420 } else { 3309 }
    }
}

/// ML-DSA's expanded key, erased when dropped.
#[derive(Clone)]
enum MlDsaKey {
    L44(Box<MLDSA44SigningKey>),
    L65(Box<MLDSA65SigningKey>),
}

impl Drop for MlDsaKey {
    fn drop(&mut self) {
        match self {
            Self::L44(key) => key.as_mut_slice().zeroize(),
            Self::L65(key) => key.as_mut_slice().zeroize(),
        }
    }
}

/// A signing key: one seed for both halves. Erased when dropped; neither printed nor compared.
#[derive(Clone)]
pub struct SigningKey {
    seed: Secret32,
    ed: ed25519_dalek::SigningKey,
    ml: MlDsaKey,
    verifying: VerifyingKey,
}

const SIGNS: &str = "a label is shorter than a context may be, and 814 rejections in a row are not to be seen";

fn message_bytes(label: Label, message: &[u8]) -> Vec<u8> {
    [label.as_str().as_bytes(), &[0], message].concat()
}

impl SigningKey {
    /// A fresh key.
    pub fn generate<R: CryptoRng + ?Sized>(level: Level, rng: &mut R) -> Self {
        Self::from_seed(level, &Secret32::random(rng))
    }

    /// The key of a 32-byte seed; each half has its own seed, derived from this one.
    pub fn from_seed(level: Level, seed: &Secret32) -> Self {
        let ed = ed25519_dalek::SigningKey::from_bytes(derive_secret(label::SIGN_ED25519, seed.expose(), &[]).expose());
        let ml_seed = derive_secret(label::SIGN_ML_DSA, seed.expose(), &[]);
        let mut bytes = ed.verifying_key().to_bytes().to_vec();
        let ml = match level {
            Level::L44 => {
                let pair = ml_dsa_44::generate_key_pair(*ml_seed.expose());
                bytes.extend_from_slice(pair.verification_key.as_slice());
                MlDsaKey::L44(Box::new(pair.signing_key))
            }
            Level::L65 => {
                let pair = ml_dsa_65::generate_key_pair(*ml_seed.expose());
                bytes.extend_from_slice(pair.verification_key.as_slice());
                MlDsaKey::L65(Box::new(pair.signing_key))
            }
        };
        let verifying = VerifyingKey { level, ed: ed.verifying_key(), bytes };
        Self { seed: seed.clone(), ed, ml, verifying }
    }

    /// The seed, for storage.
    pub fn seed(&self) -> &Secret32 {
        &self.seed
    }

    /// The ML-DSA level.
    pub fn level(&self) -> Level {
        self.verifying.level
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.verifying.clone()
    }

    /// Signs `message` for one purpose: [`Level::signature_len`] bytes, the same for the same message (FIPS 204, section 3.4,
    /// deterministic variant; RFC 8032).
    pub fn sign(&self, label: Label, message: &[u8]) -> Vec<u8> {
        let bytes = message_bytes(label, message);
        self.both(label, &bytes, self.ed.sign(&bytes), [0; 32])
    }

    /// Signs `message` for one purpose, with fresh randomness in both nonces: [`Level::signature_len`] bytes, others each time
    /// (FIPS 204, section 3.4, hedged variant; for Ed25519 the prefix from which RFC 8032 derives the nonce is mixed with
    /// randomness). Without good randomness it is as strong as [`Self::sign`].
    pub fn sign_hedged<R: CryptoRng + ?Sized>(&self, label: Label, message: &[u8], rng: &mut R) -> Vec<u8> {
        let bytes = message_bytes(label, message);
        let fresh = Secret32::random(rng);
        let mut expanded = ExpandedSecretKey::from(&self.ed.to_bytes());
        expanded.hash_prefix = *derive_secret(label::SIGN_HEDGE, &expanded.hash_prefix, &[fresh.expose()]).expose();
        let ed = raw_sign::<Sha512>(&expanded, &bytes, &self.ed.verifying_key());
        self.both(label, &bytes, ed, *Secret32::random(rng).expose())
    }

    fn both(&self, label: Label, bytes: &[u8], ed: ed25519_dalek::Signature, randomness: [u8; 32]) -> Vec<u8> {
        let mut signature = ed.to_bytes().to_vec();
        let context = label.as_str().as_bytes();
        match &self.ml {
            MlDsaKey::L44(key) => {
                let ml = ml_dsa_44::sign(key, bytes, context, randomness);
                signature.extend_from_slice(ml.unwrap_or_else(|_| unreachable!("{SIGNS}")).as_slice());
            }
            MlDsaKey::L65(key) => {
                let ml = ml_dsa_65::sign(key, bytes, context, randomness);
                signature.extend_from_slice(ml.unwrap_or_else(|_| unreachable!("{SIGNS}")).as_slice());
            }
        }
        signature
    }
}

/// A verifying key: Ed25519 then ML-DSA, the level told by the length.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    level: Level,
    ed: ed25519_dalek::VerifyingKey,
    bytes: Vec<u8>,
}

impl VerifyingKey {
    /// Reads a key of [`Level::verifying_key_len`] bytes.
    ///
    /// # Errors
    /// [`CryptoError::Length`] for another length, [`CryptoError::Encoding`] when the Ed25519 half is no point or of small order.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        let level = [Level::L44, Level::L65].into_iter().find(|level| level.verifying_key_len() == bytes.len());
        let expected = Level::L65.verifying_key_len();
        let level = level.ok_or(CryptoError::Length { what: "verifying key", expected, got: bytes.len() })?;
        let bad = CryptoError::Encoding("Ed25519 verifying key");
        let ed = bytes[..ED_KEY_LEN].try_into().ok().and_then(|b| ed25519_dalek::VerifyingKey::from_bytes(b).ok());
        let ed = ed.filter(|ed| !ed.is_weak()).ok_or(bad)?;
        Ok(Self { level, ed, bytes: bytes.to_vec() })
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The ML-DSA level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Verifies both halves of a signature for one purpose.
    ///
    /// # Errors
    /// [`CryptoError::Signature`] names the label.
    pub fn verify(&self, label: Label, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let error = || CryptoError::Signature(label.as_str());
        if signature.len() != self.level.signature_len() {
            return Err(error());
        }
        let bytes = message_bytes(label, message);
        let (ed, ml) = signature.split_at(ED_SIG_LEN);
        let ed = ed25519_dalek::Signature::from_slice(ed).map_err(|_| error())?;
        self.ed.verify_strict(&bytes, &ed).map_err(|_| error())?;
        if self.verify_ml(label, &bytes, ml) { Ok(()) } else { Err(error()) }
    }

    fn verify_ml(&self, label: Label, bytes: &[u8], ml: &[u8]) -> bool {
        let (key, context) = (&self.bytes[ED_KEY_LEN..], label.as_str().as_bytes());
        match self.level {
            Level::L44 => key.try_into().ok().zip(ml.try_into().ok()).is_some_and(|(key, ml)| {
                let (key, ml) = (MLDSA44VerificationKey::new(key), MLDSA44Signature::new(ml));
                ml_dsa_44::verify(&key, bytes, context, &ml).is_ok()
            }),
            Level::L65 => key.try_into().ok().zip(ml.try_into().ok()).is_some_and(|(key, ml)| {
                let (key, ml) = (MLDSA65VerificationKey::new(key), MLDSA65Signature::new(ml));
                ml_dsa_65::verify(&key, bytes, context, &ml).is_ok()
            }),
        }
    }
}

/// A signature that is claimed.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// Whose.
    pub key: &'a VerifyingKey,
    /// For which purpose.
    pub label: Label,
    /// Over which bytes.
    pub message: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
}

/// Verifies each claim as [`VerifyingKey::verify`] does, on all cores; results in order. Ed25519 halves are verified in batches, in
/// less than half the time, and one by one where a batch does not hold. A batch may accept what only the owner of a key can make: a
/// signature of which a point has a component of small order.
///
/// # Errors
/// [`CryptoError::Signature`] for each that does not verify.
pub fn verify_all(claims: &[Claim<'_>]) -> Vec<Result<(), CryptoError>> {
    // What a batch saves for each grows little beyond sixteen.
    let batch = claims.len().div_ceil(rayon::current_num_threads()).max(16);
    let in_batch: Vec<bool> = claims.par_chunks(batch).flat_map_iter(|part| vec![holds(part); part.len()]).collect();
    let check = |(claim, in_batch): (&Claim<'_>, bool)| {
        if !in_batch {
            return claim.key.verify(claim.label, claim.message, claim.signature);
        }
        let bytes = message_bytes(claim.label, claim.message);
        let holds = claim.key.verify_ml(claim.label, &bytes, &claim.signature[ED_SIG_LEN..]);
        if holds { Ok(()) } else { Err(CryptoError::Signature(claim.label.as_str())) }
    };
    claims.par_iter().zip(in_batch).map(check).collect()
}

/// Whether the Ed25519 halves of all claims hold, in one batch.
fn holds(claims: &[Claim<'_>]) -> bool {
    let signature = |c: &Claim<'_>| {
        let whole = c.signature.len() == c.key.level.signature_len();
        ed25519_dalek::Signature::from_slice(whole.then(|| &c.signature[..ED_SIG_LEN])?).ok()
    };
    let Some(signatures) = claims.iter().map(signature).collect::<Option<Vec<_>>>() else { return false };
    let messages: Vec<Vec<u8>> = claims.iter().map(|c| message_bytes(c.label, c.message)).collect();
    let bytes: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
    let keys: Vec<_> = claims.iter().map(|c| c.key.ed).collect();
    ed25519_dalek::verify_batch(&bytes, &signatures, &keys).is_ok()
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.bytes.iter().take(4).fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        write!(f, "VerifyingKey({:?}, {id}..)", self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_only_with_both_halves_its_label_and_its_message() {
        let levels = if cfg!(miri) { &[Level::L44][..] } else { &[Level::L44, Level::L65] };
        for &level in levels {
            let key = SigningKey::from_seed(level, &Secret32::from_bytes([3; 32]));
            let public = VerifyingKey::from_bytes(key.verifying_key().as_bytes()).unwrap();
            assert_eq!((public.level(), public.as_bytes().len()), (level, level.verifying_key_len()));
            let signature = key.sign(label::SIG_ADVERT, b"m");
            assert_eq!(signature.len(), level.signature_len());
            assert_eq!(signature, key.sign(label::SIG_ADVERT, b"m"));
            assert_eq!(public.verify(label::SIG_ADVERT, b"m", &signature), Ok(()));
            assert!(public.verify(label::SIG_COHORT, b"m", &signature).is_err());
            assert!(public.verify(label::SIG_ADVERT, b"n", &signature).is_err());
            assert!(public.verify(label::SIG_ADVERT, b"m", &signature[1..]).is_err());
            for at in [0, 63, 64, signature.len() - 1] {
                let mut bad = signature.clone();
                bad[at] ^= 1;
                assert!(public.verify(label::SIG_ADVERT, b"m", &bad).is_err(), "byte {at}");
            }
            // Halves of two keys make no signature of either.
            let other = SigningKey::from_seed(level, &Secret32::from_bytes([4; 32]));
            let mixed = [&signature[..64], &other.sign(label::SIG_ADVERT, b"m")[64..]].concat();
            assert!(public.verify(label::SIG_ADVERT, b"m", &mixed).is_err());
            assert!(other.verifying_key().verify(label::SIG_ADVERT, b"m", &mixed).is_err());
        }
    }

    /// The keys and signatures of the `ml-dsa` crate, an implementation of its own.
    fn other_implementation<P: ml_dsa::MlDsaParams>(level: Level) {
        let seed = Secret32::from_bytes([5; 32]);
        let key = SigningKey::from_seed(level, &seed);
        let ml_seed = derive_secret(label::SIGN_ML_DSA, seed.expose(), &[]);
        let theirs = ml_dsa::SigningKey::<P>::from_seed(ml_seed.expose().into());
        assert_eq!(key.verifying_key().as_bytes()[ED_KEY_LEN..], theirs.expanded_key().verifying_key().encode()[..]);
        for message in [&b""[..], b"m", &[7; 3000]] {
            let bytes = message_bytes(label::SIG_SHARES, message);
            let context = label::SIG_SHARES.as_str().as_bytes();
            let signature = theirs.expanded_key().sign_deterministic(&bytes, context).unwrap();
            assert_eq!(key.sign(label::SIG_SHARES, message)[ED_SIG_LEN..], signature.encode()[..]);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "the other implementation takes long, and its memory is not ours")]
    fn another_implementation_gives_the_same_keys_and_signatures() {
        other_implementation::<ml_dsa::MlDsa44>(Level::L44);
        other_implementation::<ml_dsa::MlDsa65>(Level::L65);
    }

    #[test]
    fn hedged_signatures_differ_and_verify_and_without_randomness_no_nonce_repeats_over_messages() {
        struct Constant;
        impl rand_core::TryRng for Constant {
            type Error = std::convert::Infallible;
            fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
                Ok(7)
            }
            fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
                Ok(7)
            }
            fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
                bytes.fill(7);
                Ok(())
            }
        }
        impl rand_core::TryCryptoRng for Constant {}
        let key = SigningKey::from_seed(Level::L44, &Secret32::from_bytes([3; 32]));
        let public = key.verifying_key();
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let signatures: Vec<_> = (0..3).map(|_| key.sign_hedged(label::SIG_ADVERT, b"m", &mut rng)).collect();
        for (i, signature) in signatures.iter().enumerate() {
            assert_eq!(public.verify(label::SIG_ADVERT, b"m", signature), Ok(()));
            assert!(public.verify(label::SIG_ADVERT, b"n", signature).is_err());
            for other in &signatures[..i] {
                assert_ne!(signature[..32], other[..32], "Ed25519's nonce point");
                assert_ne!(signature[ED_SIG_LEN..][..32], other[ED_SIG_LEN..][..32], "ML-DSA's challenge");
            }
        }
        let [m, n] = [b"m", b"n"].map(|message| key.sign_hedged(label::SIG_ADVERT, message, &mut Constant));
        assert_ne!(m[..32], n[..32], "one nonce for two messages gives the key away");
        assert_ne!(m[..32], key.sign(label::SIG_ADVERT, b"m")[..32]);
    }

    #[test]
    fn keys_of_a_wrong_length_or_of_small_order_are_refused() {
        assert!(matches!(VerifyingKey::from_bytes(&[0; 32]), Err(CryptoError::Length { .. })));
        let mut identity = vec![0; Level::L44.verifying_key_len()];
        identity[0] = 1;
        assert!(matches!(VerifyingKey::from_bytes(&identity), Err(CryptoError::Encoding(_))));
    }

    #[test]
    fn many_claims_are_judged_as_each_alone() {
        let keys: Vec<SigningKey> = (0..70u8)
            .map(|i| {
                SigningKey::from_seed(if i % 3 == 0 { Level::L65 } else { Level::L44 }, &Secret32::from_bytes([i; 32]))
            })
            .collect();
        let public: Vec<VerifyingKey> = keys.iter().map(SigningKey::verifying_key).collect();
        let mut signatures: Vec<Vec<u8>> = keys.iter().map(|key| key.sign(label::SIG_SHARES, b"m")).collect();
        let judge = |signatures: &[Vec<u8>]| {
            let claims: Vec<Claim<'_>> = public
                .iter()
                .zip(signatures)
                .map(|(key, signature)| Claim { key, label: label::SIG_SHARES, message: b"m", signature })
                .collect();
            let alone: Vec<_> = claims.iter().map(|c| c.key.verify(c.label, c.message, c.signature)).collect();
            assert_eq!(verify_all(&claims), alone);
            alone.iter().filter(|result| result.is_err()).count()
        };
        assert_eq!(judge(&signatures), 0);
        // The ML-DSA half, then the Ed25519 half, then the length, then another key's.
        signatures[3][ED_SIG_LEN + 100] ^= 1;
        assert_eq!(judge(&signatures), 1);
        signatures[40][5] ^= 1;
        assert_eq!(judge(&signatures), 2);
        signatures[69].pop();
        assert_eq!(judge(&signatures), 3);
        signatures.swap(10, 11);
        assert_eq!(judge(&signatures), 5);
        assert!(verify_all(&[]).is_empty());
    }
}
