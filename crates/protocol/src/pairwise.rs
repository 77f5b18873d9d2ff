//! What the secrets of one client, and of two neighbours, are turned into (sections 3 to 6).
//!
//! Both sides use these: the coordinator, after it has rebuilt a secret, derives what its owner derived.

use unisono_crypto::kdf::{derive_bytes, derive_secret, hash, label};
use unisono_crypto::kem::{COINS_LEN, DecapsulationKey, EncapsulationKey};
use unisono_crypto::prg::Seed;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{SecretScalar, Share};
use zeroize::Zeroizing;

use crate::bitmap;
use crate::cohort::Advert;
use crate::ids::{ClientId, CohortId, RoundId};
use crate::proto::SecretKind;

/// The mask key pair of a mask secret.
pub(crate) fn mask_key(mask_secret: &SecretScalar, round: RoundId) -> DecapsulationKey {
    DecapsulationKey::from_seed(&derive_secret(label::MASK_KEY, mask_secret.to_secret().expose(), &[&round.0]))
}

/// Coins with which the owner of `mask_secret` encapsulates to the mask key of client `to`.
pub(crate) fn mask_coins(
    mask_secret: &SecretScalar,
    cohort: CohortId,
    to: u32,
    to_key: &EncapsulationKey,
) -> Zeroizing<[u8; COINS_LEN]> {
    let context: [&[u8]; 3] = [&cohort.0, &to.to_le_bytes(), to_key.as_bytes()];
    derive_bytes(label::MASK_COINS, mask_secret.to_secret().expose(), &context)
}

/// Hash of the set of clients that shared keys, U1, as masks and endorsements are bound to it.
pub(crate) fn sharers_hash(sharers: &[bool]) -> [u8; 32] {
    hash(label::SHARERS, &[&bitmap::to_bytes(sharers)])
}

/// Hash of the set of survivors, U2, as endorsements cover it.
pub(crate) fn survivors_hash(survivors: &[bool]) -> [u8; 32] {
    hash(label::SURVIVORS, &[&bitmap::to_bytes(survivors)])
}

/// What committee members sign (section 6): 100 bytes.
pub(crate) fn endorsement(cohort: CohortId, sharers: &[u8; 32], survivors: &[bool]) -> Vec<u8> {
    let count = bitmap::count(survivors) as u32;
    [&cohort.0[..], sharers, &survivors_hash(survivors), &count.to_le_bytes()].concat()
}

/// Seed of the self mask of a client that masked for the set with hash `sharers`.
pub(crate) fn self_mask(self_secret: &SecretScalar, cohort: CohortId, sharers: &[u8; 32]) -> Seed {
    Seed::from_secret(&derive_secret(label::SELF_MASK, self_secret.to_secret().expose(), &[&cohort.0, sharers]))
}

/// Commitment to a self-mask secret. It hides because the secret is uniform.
pub(crate) fn commitment(self_secret: &SecretScalar, round: RoundId, client: ClientId) -> [u8; 32] {
    hash(label::SELF_MASK_COMMITMENT, &[self_secret.to_secret().expose(), &round.0, &client.0])
}

/// One end of a pair: cohort index and advert.
#[derive(Clone, Copy)]
pub(crate) struct End<'a> {
    pub index: u32,
    pub advert: &'a Advert,
}

/// What a pair's mask depends on beside the secret in its ciphertext.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub cohort: CohortId,
    /// Hash of U1.
    pub sharers: &'a [u8; 32],
    pub encapsulator: End<'a>,
    pub other: End<'a>,
}

/// Seed of a pair's mask, from the secret in `mask_ct`.
pub(crate) fn pair_mask(secret: &Secret32, pair: Pair<'_>, mask_ct: &[u8]) -> Seed {
    let Pair { cohort, sharers, encapsulator, other } = pair;
    let context: [&[u8]; 7] = [
        &cohort.0,
        sharers,
        &encapsulator.index.to_le_bytes(),
        &other.index.to_le_bytes(),
        encapsulator.advert.mask_ek.as_bytes(),
        other.advert.mask_ek.as_bytes(),
        mask_ct,
    ];
    Seed::from_secret(&derive_secret(label::PAIR_MASK, secret.expose(), &context))
}

/// AEAD key of the shares that `from` sends `to`.
pub(crate) fn share_key(secret: &Secret32, cohort: CohortId, from: End, to: End) -> Secret32 {
    let context: [&[u8]; 7] = [
        &cohort.0,
        &from.index.to_le_bytes(),
        &to.index.to_le_bytes(),
        &from.advert.client_id.0,
        &to.advert.client_id.0,
        from.advert.channel_ek.as_bytes(),
        to.advert.channel_ek.as_bytes(),
    ];
    derive_secret(label::SHARE_KEY, secret.expose(), &context)
}

/// Length of a commitment to a share. Only its dealer could look for collisions, and has nothing from one.
pub(crate) const SHARE_COMMITMENT_LEN: usize = 16;

/// Commitment of `from` to a share of its secret of the given kind. It hides because a share is uniform.
pub(crate) fn share_commitment(
    share: &Share,
    kind: SecretKind,
    cohort: CohortId,
    from: u32,
) -> [u8; SHARE_COMMITMENT_LEN] {
    let (from, to) = (from.to_le_bytes(), (share.abscissa() - 1).to_le_bytes());
    let value = share.value_bytes();
    let parts: [&[u8]; 5] = [value.as_slice(), &cohort.0, &from, &to, &[kind as u8]];
    let mut commitment = [0; SHARE_COMMITMENT_LEN];
    commitment.copy_from_slice(&hash(label::SHARE_COMMITMENT, &parts)[..SHARE_COMMITMENT_LEN]);
    commitment
}
