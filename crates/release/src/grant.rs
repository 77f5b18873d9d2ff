//! The content key of one sealed model for one device: X-Wing KEM-DEM, bound to header, device and roster epoch, and signed.

use prost::Message;
use rand_core::CryptoRng;
use unisono_crypto::aead;
use unisono_crypto::kdf::{derive_secret, hash, label};
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};

use crate::proto::{Grant, SignedGrant};
use crate::{ContentKey, Header, ReleaseError, SUITE_V1, Token};

/// Who issues a grant.
#[derive(Clone, Copy)]
pub enum Issuer<'a> {
    /// Signs it (Ed25519 + ML-DSA-65): the publisher of a release, the coordinator of a base model.
    Key(&'a SigningKey),
    /// Proves the token, in semi-honest mode.
    Token(&'a Token),
}

/// Whose grants a device takes.
#[derive(Clone, Copy)]
pub enum Issuers<'a> {
    /// Those that one of these (Ed25519 + ML-DSA-65) signed; keys of another level sign none.
    Keys(&'a [VerifyingKey]),
    /// Those with a proof of the token.
    Token(&'a Token),
}

impl Issuers<'_> {
    fn issued(&self, signed: &SignedGrant) -> bool {
        let (payload, signature) = (&signed.payload, &signed.signature);
        match self {
            Self::Keys(keys) => keys
                .iter()
                .any(|key| key.level() == Level::L65 && key.verify(label::SIG_GRANT, payload, signature).is_ok()),
            Self::Token(token) => token.verify(label::MAC_GRANT, payload, signature),
        }
    }
}

/// The device that a grant is for, as its roster leaf has it; in semi-honest mode, as it says itself.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// Its id, 16 bytes.
    pub client_id: [u8; 16],
    /// Its X-Wing key for released models. That it is the one of the leaf is for the issuer to check.
    pub key: EncapsulationKey,
    /// Epoch of the roster in which the issuer found it; 0 in semi-honest mode.
    pub roster_epoch: u64,
}

fn release_key_hash(key: &EncapsulationKey) -> [u8; 32] {
    hash(label::RELEASE_KEY_HASH, &[key.as_bytes()])
}

/// The key that seals the content key: from the encapsulated secret and every other field of the grant.
fn sealing_key(secret: &Secret32, grant: &Grant) -> Secret32 {
    let unsealed = Grant { sealed_key: Vec::new(), ..grant.clone() };
    derive_secret(label::GRANT_KEY, secret.expose(), &[&unsealed.encode_to_vec()])
}

/// Issues a grant of the release with the given header.
///
/// # Errors
/// [`ReleaseError::WrongContentKey`] when `key` is not the one to which the header commits; [`ReleaseError::PublisherKey`] when the
/// issuer's key has another level.
pub fn grant<R: CryptoRng + ?Sized>(
    header: &Header,
    key: &ContentKey,
    recipient: &Recipient,
    issuer: Issuer<'_>,
    rng: &mut R,
) -> Result<SignedGrant, ReleaseError> {
    if key.commitment(&header.fields.salt) != header.fields.key_commitment.as_slice() {
        return Err(ReleaseError::WrongContentKey);
    }
    if matches!(issuer, Issuer::Key(key) if key.level() != Level::L65) {
        return Err(ReleaseError::PublisherKey);
    }
    let (kem_ct, secret) = recipient.key.encapsulate(rng);
    let mut grant = Grant {
        suite: SUITE_V1,
        header_hash: header.hash.to_vec(),
        client_id: recipient.client_id.to_vec(),
        release_key_hash: release_key_hash(&recipient.key).to_vec(),
        roster_epoch: recipient.roster_epoch,
        kem_ct,
        sealed_key: Vec::new(),
    };
    grant.sealed_key = aead::seal(&sealing_key(&secret, &grant), &header.hash, key.0.expose())
        .map_err(|_| ReleaseError::WrappedKey)?;
    let payload = grant.encode_to_vec();
    let signature = match issuer {
        Issuer::Key(key) => key.sign(label::SIG_GRANT, &payload),
        Issuer::Token(token) => token.prove(label::MAC_GRANT, &payload),
    };
    Ok(SignedGrant { payload, signature })
}

/// Takes the content key out of a grant for this device.
///
/// # Errors
/// [`ReleaseError`]: each of a forged signature, another release, another device, another key and an older roster than
/// `min_roster_epoch` is its own.
pub fn open_grant(
    signed: &SignedGrant,
    header: &Header,
    client_id: [u8; 16],
    key: &DecapsulationKey,
    issuers: Issuers<'_>,
    min_roster_epoch: u64,
) -> Result<ContentKey, ReleaseError> {
    if !issuers.issued(signed) {
        return Err(ReleaseError::GrantSignature);
    }
    let malformed = |why: &dyn ToString| ReleaseError::GrantMalformed { why: why.to_string() };
    let grant = Grant::decode(signed.payload.as_slice()).map_err(|e| malformed(&e))?;
    if grant.suite != SUITE_V1 {
        return Err(ReleaseError::UnsupportedSuite { what: "grant", got: grant.suite, supported: SUITE_V1 });
    }
    // A restriction that this version does not know must not be overlooked.
    if grant.encode_to_vec() != signed.payload {
        return Err(malformed(&"it is not in canonical form: unknown or repeated fields, or padding"));
    }
    if grant.header_hash != header.hash {
        return Err(ReleaseError::GrantOfAnotherRelease);
    }
    if grant.client_id != client_id {
        return Err(ReleaseError::GrantOfAnotherDevice);
    }
    if grant.release_key_hash != release_key_hash(&key.encapsulation_key()) {
        return Err(ReleaseError::GrantOfAnotherKey);
    }
    if grant.roster_epoch < min_roster_epoch {
        let (got, minimum) = (grant.roster_epoch, min_roster_epoch);
        return Err(ReleaseError::OlderRoster { what: "grant", got, minimum });
    }
    let secret = key.decapsulate(&grant.kem_ct).map_err(|e| malformed(&e))?;
    let content = aead::open(&sealing_key(&secret, &grant), &header.hash, &grant.sealed_key);
    content.ok().and_then(|content| ContentKey::from_slice(&content)).ok_or(ReleaseError::GrantNotOpened)
}
