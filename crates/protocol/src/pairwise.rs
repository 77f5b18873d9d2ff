//! What the secrets of one client, and of two neighbours, are turned into (sections 3 to 6).
//!
//! Both sides use these: the coordinator, after it has rebuilt a secret, derives what its owner derived.

use unisono_crypto::kdf::{Label, derive_bytes, derive_secret, hash, label, mac};
use unisono_crypto::kem::{COINS_LEN, DecapsulationKey, EncapsulationKey};
use unisono_crypto::prg::Seed;
use unisono_crypto::secret::Secret32;
use unisono_crypto::shamir::{SecretScalar, Share};
use zeroize::Zeroizing;

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

/// Seed of a client's self mask.
pub(crate) fn self_mask(self_secret: &SecretScalar, cohort: CohortId) -> Seed {
    Seed::from_secret(&derive_secret(label::SELF_MASK, self_secret.to_secret().expose(), &[&cohort.0]))
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

/// Seed of a pair's mask, from the secret in `mask_ct`.
pub(crate) fn pair_mask(secret: &Secret32, cohort: CohortId, encapsulator: End, other: End, mask_ct: &[u8]) -> Seed {
    let context: [&[u8]; 6] = [
        &cohort.0,
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

/// Key between two neighbours: `sent` is the secret that client `own` encapsulated, `received` the one it got from `other`.
pub(crate) fn channel_key(cohort: CohortId, own: u32, other: u32, sent: &Secret32, received: &Secret32) -> Secret32 {
    let (low, high) = if own < other { (sent, received) } else { (received, sent) };
    let material = Zeroizing::new([low.expose().as_slice(), high.expose()].concat());
    derive_secret(label::CHANNEL_KEY, &material, &[&cohort.0])
}

/// What a consistency tag covers. The sender is part of it: otherwise a tag could be sent back to its own sender as the
/// other end's.
pub(crate) fn tag_parts<'a>(cohort: &'a CohortId, sender: &'a [u8; 4], survivors: &'a [u8; 32]) -> [&'a [u8]; 3] {
    [&cohort.0, sender, survivors]
}

/// Tag of `sender` over the hash of the survivors.
pub(crate) fn tag(channel: &Secret32, cohort: CohortId, sender: u32, survivors: &[u8; 32]) -> [u8; 16] {
    mac(channel, TAG_LABEL, &tag_parts(&cohort, &sender.to_le_bytes(), survivors))
}

/// Label of consistency tags.
pub(crate) const TAG_LABEL: Label = label::CONSISTENCY_TAG;
