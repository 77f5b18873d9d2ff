//! Labelled key derivation and hashing on BLAKE3 (`docs/protocol.md` section 2).
//!
//! Every use has its own [`Label`] `unisono/v1/<purpose>`; there is no way to make one outside this file. Inputs of more
//! than one part are length-prefixed (64 bits, little-endian), so that different parts never give the same bytes.

use zeroize::Zeroizing;

use crate::secret::Secret32;

/// What a derivation, hash, tag or signature is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(&'static str);

impl Label {
    /// The label's text, ASCII.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

/// Every label of version 1.
pub mod label {
    use super::Label;

    macro_rules! labels {
        ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
            $($(#[$doc])* pub const $name: Label = Label(concat!("unisono/v1/", $text));)*
            /// All labels, for the test that they differ.
            #[cfg(test)]
            pub(super) const ALL: &[Label] = &[$($name),*];
        };
    }

    labels! {
        /// Round id from the encoded `RoundParams`.
        ROUND_ID = "round-id";
        /// Cohort id from the encoded `Cohort`.
        COHORT_ID = "cohort-id";
        /// Hash of the members' places in the roster.
        MEMBERS = "members";
        /// Seed of the graph's permutation.
        GRAPH_SEED = "graph-seed";
        /// Mask key pair from the mask secret.
        MASK_KEY = "mask-key";
        /// Coins of an encapsulation from the mask secret.
        MASK_COINS = "mask-coins";
        /// Seed of a pair's mask.
        PAIR_MASK = "pair-mask";
        /// Seed of a client's self mask.
        SELF_MASK = "self-mask";
        /// Commitment to the self-mask secret.
        SELF_MASK_COMMITMENT = "self-mask-commitment";
        /// ChaCha20 key of the mask PRG.
        PRG = "prg";
        /// Stream of a chunk's noise for privacy.
        NOISE = "noise";
        /// Stream of signs of a round's rotation, public.
        ROTATION = "rotation";
        /// AEAD key of a message with shares.
        SHARE_KEY = "share-key";
        /// Commitment of a dealer to one share.
        SHARE_COMMITMENT = "share-commitment";
        /// Hash of the set of clients that shared keys, U1.
        SHARERS = "sharers";
        /// Hash of the set of survivors, U2.
        SURVIVORS = "survivors";
        /// Seed of the permutation whose first places are the committee.
        COMMITTEE_SEED = "committee-seed";
        /// A client's place in the draw of a cohort's members.
        COHORT_DRAW = "cohort-draw";
        /// Hash of an accepted step, for the coordinator to tell a retry from a conflict.
        LEDGER = "ledger";
        /// Name of a signature that simulated devices need not verify again; never sent.
        SHARED_CHECK = "shared-check";
        /// Hash of an upload.
        UPLOAD = "upload";
        /// Hash of a release key in a roster leaf.
        RELEASE_KEY_HASH = "release-key-hash";
        /// Hash of a device's identity key, for the registrar to tell that two devices have one.
        IDENTITY_KEY_HASH = "identity-key-hash";
        /// Chain of the registrar's log of events.
        REGISTRAR_LOG = "registrar-log";
        /// Hash of a release header.
        RELEASE_HEADER = "release-header";
        /// Hash of a release body.
        RELEASE_BODY = "release-body";
        /// Key of a release's chunks.
        CHUNK_KEY = "chunk-key";
        /// Commitment of a release header to its content key.
        KEY_COMMITMENT = "key-commitment";
        /// Hash of a publisher's verifying key.
        PUBLISHER_ID = "publisher-id";
        /// Key that wraps a content key at rest.
        WRAP_KEY = "wrap-key";
        /// Key that wraps a content key in a grant.
        GRANT_KEY = "grant-key";
        /// Key of a consortium's token.
        TOKEN_KEY = "token-key";
        /// Proof of the token on a client's request outside a round.
        MAC_CLIENT_REQUEST = "mac-client-request";
        /// Proof of the token on a grant.
        MAC_GRANT = "mac-grant";
        /// Hash of a request for a grant, by which a repeated one is known; never sent.
        GRANT_REQUEST = "grant-request";
        /// Hash of a model.
        MODEL_HASH = "model-hash";
        /// Ed25519 half of a hybrid signing key's seed.
        SIGN_ED25519 = "sign-ed25519";
        /// ML-DSA half of a hybrid signing key's seed.
        SIGN_ML_DSA = "sign-ml-dsa";
        /// Prefix of Ed25519's nonce in a hedged signature.
        SIGN_HEDGE = "sign-hedge";
        /// Signature of a device on its enrolment.
        SIG_ENROLMENT = "sig-enrolment";
        /// Signature on a roster head.
        SIG_ROSTER = "sig-roster";
        /// Signature on round parameters.
        SIG_ROUND_PARAMS = "sig-round-params";
        /// Signature of a publisher on a round's base model.
        SIG_BASE_MODEL = "sig-base-model";
        /// Signature on a cohort.
        SIG_COHORT = "sig-cohort";
        /// Signature on an advert.
        SIG_ADVERT = "sig-advert";
        /// Signature on the root over a sender's shares.
        SIG_SHARES = "sig-shares";
        /// Signature on an upload's header.
        SIG_UPLOAD = "sig-upload";
        /// Signature of a committee member on the pair (U1, U2).
        SIG_ENDORSEMENT = "sig-endorsement";
        /// Signature on revealed shares.
        SIG_UNMASK = "sig-unmask";
        /// Signature of a device on its leaving a round.
        SIG_LEAVE = "sig-leave";
        /// Signature on a release.
        SIG_RELEASE = "sig-release";
        /// Signature on a grant.
        SIG_GRANT = "sig-grant";
        /// Signature on a client's request outside a round.
        SIG_CLIENT_REQUEST = "sig-client-request";
        /// Signature on a coordinator's word that a task is finished.
        SIG_TASK_FINISHED = "sig-task-finished";
        /// Merkle tree of a roster.
        TREE_ROSTER = "tree-roster";
        /// Merkle tree of a cohort's adverts.
        TREE_ADVERTS = "tree-adverts";
        /// Merkle tree of a sender's shares.
        TREE_SHARES = "tree-shares";
    }
}

fn absorb(hasher: &mut blake3::Hasher, part: &[u8]) {
    hasher.update(&(part.len() as u64).to_le_bytes());
    hasher.update(part);
}

/// Derives `N` secret bytes from `key_material` and public `context` (BLAKE3 `derive_key` mode, label as context string).
pub fn derive_bytes<const N: usize>(label: Label, key_material: &[u8], context: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let mut hasher = blake3::Hasher::new_derive_key(label.as_str());
    absorb(&mut hasher, key_material);
    context.iter().for_each(|part| absorb(&mut hasher, part));
    let mut out = Zeroizing::new([0; N]);
    hasher.finalize_xof().fill(out.as_mut_slice());
    out
}

/// Derives one 32-byte secret; see [`derive_bytes`].
pub fn derive_secret(label: Label, key_material: &[u8], context: &[&[u8]]) -> Secret32 {
    Secret32::from_bytes(*derive_bytes::<32>(label, key_material, context))
}

/// Hashes public parts under a label, 32 bytes.
pub fn hash(label: Label, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(label.as_str());
    parts.iter().for_each(|part| absorb(&mut hasher, part));
    *hasher.finalize().as_bytes()
}

/// A labelled hash over a byte stream. Unlike [`hash`] it has no length prefix: only the concatenation counts, so chunks
/// may be cut anywhere.
#[derive(Clone)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// An empty stream under `label`.
    pub fn new(label: Label) -> Self {
        Self(blake3::Hasher::new_derive_key(label.as_str()))
    }

    /// Appends bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// The hash of all bytes so far, 32 bytes.
    pub fn finalize(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn labels_are_all_different_and_versioned() {
        let texts: BTreeSet<_> = label::ALL.iter().map(|l| l.as_str()).collect();
        assert_eq!(texts.len(), label::ALL.len());
        assert!(texts.iter().all(|text| text.starts_with("unisono/v1/")));
    }

    #[test]
    fn moving_a_byte_between_parts_changes_the_output() {
        assert_ne!(hash(label::UPLOAD, &[b"ab", b"c"]), hash(label::UPLOAD, &[b"a", b"bc"]));
        let one = derive_secret(label::PRG, b"ab", &[b"c"]);
        assert!(!one.ct_eq(&derive_secret(label::PRG, b"a", &[b"bc"])));
        assert!(!one.ct_eq(&derive_secret(label::SELF_MASK, b"ab", &[b"c"])));
    }

    #[test]
    fn a_streamed_hash_does_not_depend_on_the_cuts() {
        let whole = Hasher::new(label::UPLOAD).update(b"abcdef").finalize();
        assert_eq!(whole, Hasher::new(label::UPLOAD).update(b"ab").update(b"cdef").finalize());
    }
}
