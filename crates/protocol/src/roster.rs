//! The roster (section 1): which devices exist, in the registrar's words.
//!
//! A leaf and its Merkle path replace a certificate; revocation is the next epoch without the leaf. The registrar signs
//! only the head, so the file can be carried by anybody.

use unisono_crypto::kdf::{hash, label};
use unisono_crypto::merkle;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};

use crate::ids::ClientId;
use crate::proto::{self, Signed};
use crate::signed::{self, SignedError, fixed};

mod file;
mod whole;

pub use file::{MAX_HEAD, MAX_LEAF, ReadAt, Scanned, append_head, append_leaf, head_of_file, scan};
pub use whole::Roster;

/// Why a roster, a head or a leaf was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Signature or encoding.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// Two leaves have one client id, or they are not in order of client id.
    #[error("client {0} is in the roster twice, or out of order")]
    Order(ClientId),
    /// The leaves do not hash to the signed root.
    #[error("the leaves do not give the root that the registrar signed for epoch {epoch}")]
    Root {
        /// Epoch of the head.
        epoch: u64,
    },
    /// The file can't be read, or is not any more what it was when it was verified.
    #[error("the roster's file can't be read: {0}")]
    Unreadable(String),
    /// The leaf does not lead to the root.
    #[error("the leaf of client {0} is not in the roster")]
    NotInRoster(ClientId),
    /// The head has expired.
    #[error(
        "the roster of epoch {epoch} was valid until {valid_until} (Unix time); it is {now}: a newer one is needed \
         (`unisono registrar publish`)"
    )]
    HeadExpired {
        /// Its epoch.
        epoch: u64,
        /// Last second of validity.
        valid_until: u64,
        /// Time of the check.
        now: u64,
    },
    /// The leaf is not valid yet.
    #[error("the enrolment of client {client} begins at {not_before} (Unix time); it is {now}")]
    NotYetValid {
        /// Whose leaf.
        client: ClientId,
        /// Start of validity.
        not_before: u64,
        /// Time of the check.
        now: u64,
    },
    /// The leaf has expired.
    #[error("the enrolment of client {client} ended at {not_after} (Unix time); it is {now}: enrol the device again")]
    Expired {
        /// Whose leaf.
        client: ClientId,
        /// End of validity.
        not_after: u64,
        /// Time of the check.
        now: u64,
    },
}

/// A parsed leaf.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaf {
    /// The device.
    pub client_id: ClientId,
    /// Verifies what the device signs (Ed25519 + ML-DSA-44).
    pub identity_key: VerifyingKey,
    /// Hash of its X-Wing encapsulation key for released models.
    pub release_key_hash: [u8; 32],
    /// First second of validity, Unix time.
    pub not_before: u64,
    /// Last second of validity, Unix time.
    pub not_after: u64,
}

impl Leaf {
    /// Decodes a `RosterLeaf`.
    ///
    /// # Errors
    /// [`RosterError::Signed`] when a field has a wrong length or the identity key is no ML-DSA-44 hybrid key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RosterError> {
        const WHAT: &str = "roster leaf";
        let wire: proto::RosterLeaf = signed::canonical(bytes, WHAT)?;
        let identity_key = VerifyingKey::from_bytes(&wire.identity_key).map_err(|e| SignedError::malformed(WHAT, e))?;
        if identity_key.level() != Level::L44 {
            return Err(SignedError::malformed(WHAT, "an identity key is Ed25519 + ML-DSA-44").into());
        }
        Ok(Self {
            client_id: ClientId(fixed(&wire.client_id, WHAT)?),
            identity_key,
            release_key_hash: fixed(&wire.release_key_hash, WHAT)?,
            not_before: wire.not_before,
            not_after: wire.not_after,
        })
    }

    /// Refuses a leaf that is not valid at `now` (Unix time in seconds).
    ///
    /// # Errors
    /// [`RosterError::NotYetValid`] or [`RosterError::Expired`].
    pub fn check_validity(&self, now: u64) -> Result<(), RosterError> {
        let client = self.client_id;
        if now < self.not_before {
            return Err(RosterError::NotYetValid { client, not_before: self.not_before, now });
        }
        if now > self.not_after {
            return Err(RosterError::Expired { client, not_after: self.not_after, now });
        }
        Ok(())
    }
}

/// Hash by which a leaf names a device's release key (X-Wing encapsulation key, 1216 bytes).
pub fn release_key_hash(encapsulation_key: &[u8]) -> [u8; 32] {
    hash(label::RELEASE_KEY_HASH, &[encapsulation_key])
}

/// A head whose signature was verified under the registrar's key.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Strictly increasing.
    pub epoch: u64,
    /// Merkle root over the leaves.
    pub root: [u8; 32],
    /// Number of leaves.
    pub size: u64,
    /// When it was signed, Unix time.
    pub issued_at: u64,
    /// Last second in which it counts, Unix time; `u64::MAX`: without end.
    pub valid_until: u64,
    /// Keys that may open rounds.
    pub coordinator_keys: Vec<VerifyingKey>,
    /// Keys that may sign releases.
    pub publisher_keys: Vec<VerifyingKey>,
}

impl Head {
    /// Verifies and parses a signed `RosterHead`.
    ///
    /// # Errors
    /// [`RosterError::Signed`].
    pub fn verify(head: &Signed, registrar: &VerifyingKey) -> Result<Self, RosterError> {
        const WHAT: &str = "roster head";
        let wire: proto::RosterHead = signed::verify(head, label::SIG_ROSTER, Some(registrar), WHAT)?;
        let keys = |keys: &[Vec<u8>]| -> Result<Vec<VerifyingKey>, SignedError> {
            let key = |bytes: &Vec<u8>| {
                let key = VerifyingKey::from_bytes(bytes).map_err(|e| SignedError::malformed(WHAT, e))?;
                if key.level() != Level::L65 {
                    let why = "a coordinator's or publisher's key is Ed25519 + ML-DSA-65";
                    return Err(SignedError::malformed(WHAT, why));
                }
                Ok(key)
            };
            keys.iter().map(key).collect()
        };
        Ok(Self {
            epoch: wire.epoch,
            root: fixed(&wire.root, WHAT)?,
            size: wire.size,
            issued_at: wire.issued_at,
            valid_until: if wire.valid_until == 0 { u64::MAX } else { wire.valid_until },
            coordinator_keys: keys(&wire.coordinator_keys)?,
            publisher_keys: keys(&wire.publisher_keys)?,
        })
    }

    /// Refuses a head that is over at `now` (Unix time in seconds).
    ///
    /// # Errors
    /// [`RosterError::HeadExpired`].
    pub fn check_validity(&self, now: u64) -> Result<(), RosterError> {
        let Self { epoch, valid_until, .. } = *self;
        if now > valid_until {
            return Err(RosterError::HeadExpired { epoch, valid_until, now });
        }
        Ok(())
    }

    /// Checks that `proof` leads to this head's root and that the leaf is valid at `now`.
    ///
    /// # Errors
    /// Any [`RosterError`]. A leaf whose path does not verify is parsed for its name in the error alone.
    pub fn check_leaf(&self, proof: &proto::RosterProof, now: u64) -> Result<Leaf, RosterError> {
        let path = signed::path(&proof.path)?;
        let verified = merkle::verify(label::TREE_ROSTER, &self.root, self.size, proof.index, &proof.leaf, &path);
        let leaf = Leaf::from_bytes(&proof.leaf)?;
        verified.map_err(|_| RosterError::NotInRoster(leaf.client_id))?;
        leaf.check_validity(now)?;
        Ok(leaf)
    }
}

/// What a head says beside its keys and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadTerms {
    /// Strictly increasing.
    pub epoch: u64,
    /// Unix time in seconds.
    pub issued_at: u64,
    /// Last second in which it counts, Unix time; 0: without end.
    pub valid_until: u64,
}

impl HeadTerms {
    /// Without an end.
    pub fn new(epoch: u64, issued_at: u64) -> Self {
        Self { epoch, issued_at, valid_until: 0 }
    }
}

/// Signs the head of a roster whose leaves, encoded and in order of client id, are those of `tree` ([`label::TREE_ROSTER`]).
pub fn sign_head(
    tree: &merkle::Tree,
    terms: HeadTerms,
    coordinators: &[VerifyingKey],
    publishers: &[VerifyingKey],
    registrar: &SigningKey,
) -> Signed {
    let keys = |keys: &[VerifyingKey]| keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    let HeadTerms { epoch, issued_at, valid_until } = terms;
    let head = proto::RosterHead {
        epoch,
        root: tree.root().to_vec(),
        size: tree.len() as u64,
        issued_at,
        coordinator_keys: keys(coordinators),
        publisher_keys: keys(publishers),
        valid_until,
    };
    signed::sign(&head, label::SIG_ROSTER, Some(registrar))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    fn leaf(i: u8) -> proto::RosterLeaf {
        proto::RosterLeaf {
            client_id: vec![i; 16],
            identity_key: SigningKey::generate(Level::L44, &mut ChaCha8Rng::seed_from_u64(i.into()))
                .verifying_key()
                .as_bytes()
                .to_vec(),
            release_key_hash: vec![i; 32],
            not_before: 1,
            not_after: 2,
            attributes: Vec::new(),
        }
    }

    /// A file of these leaves, as they are, under a head that fits them.
    fn file(leaves: &[proto::RosterLeaf], registrar: &SigningKey) -> Vec<u8> {
        let leaves: Vec<Vec<u8>> = leaves.iter().map(Message::encode_to_vec).collect();
        let tree = merkle::Tree::new(label::TREE_ROSTER, &leaves);
        let mut file = Vec::new();
        append_head(&sign_head(&tree, HeadTerms::new(3, 4), &[], &[], registrar), &mut file);
        leaves.iter().for_each(|leaf| append_leaf(leaf, &mut file));
        file
    }

    #[test]
    fn a_file_of_anything_else_is_refused() {
        let registrar = SigningKey::generate(Level::L65, &mut ChaCha8Rng::seed_from_u64(5));
        let open = |file: &[u8]| Roster::from_bytes(file, &registrar.verifying_key()).map(drop);
        let malformed = |file: &[u8], words: &str| match open(file) {
            Err(RosterError::Signed(SignedError::Malformed { why, .. })) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?} for {words}"),
        };
        let good = file(&[leaf(1), leaf(2), leaf(3)], &registrar);
        open(&good).unwrap();
        let mut last = Vec::new();
        append_leaf(&leaf(3).encode_to_vec(), &mut last);
        let shorter = good.len() - last.len();
        malformed(&[], "no head");
        malformed(&good[..10], "copied in part");
        malformed(&good[..good.len() - 1], "copied in part");
        malformed(&good[..shorter + 1], "copied in part");
        assert_eq!(open(&good[..shorter]), Err(RosterError::Root { epoch: 3 }));
        assert_eq!(open(&[&good[..], &last].concat()), Err(RosterError::Order(ClientId([3; 16]))));
        malformed(&[&good[..], &[0x18, 1]].concat(), "nothing else");
        malformed(&last, "nothing else");
        malformed(&[&good[..], &[0x12, 0xff, 0xff, 0xff, 0x7f]].concat(), "65536 at most");
        malformed(&[&[0x0a, 0xff, 0xff, 0xff, 0x7f], &good[..]].concat(), "1048576");
        assert_eq!(open(&file(&[leaf(2), leaf(1)], &registrar)), Err(RosterError::Order(ClientId([1; 16]))));
        assert_eq!(open(&file(&[leaf(2), leaf(2)], &registrar)), Err(RosterError::Order(ClientId([2; 16]))));
        let short = proto::RosterLeaf { release_key_hash: vec![0; 31], ..leaf(1) };
        malformed(&file(&[short], &registrar), "");
        let larger = registrar.verifying_key().as_bytes().to_vec();
        malformed(&file(&[proto::RosterLeaf { identity_key: larger, ..leaf(1) }], &registrar), "ML-DSA-44");
        let other = SigningKey::generate(Level::L65, &mut ChaCha8Rng::seed_from_u64(6));
        let refused = Roster::from_bytes(&good, &other.verifying_key()).err();
        assert!(matches!(refused, Some(RosterError::Signed(SignedError::Signature { .. }))));
    }

    #[test]
    fn a_leaf_whose_key_is_none_concerns_its_device_alone() {
        let registrar = SigningKey::generate(Level::L65, &mut ChaCha8Rng::seed_from_u64(5));
        // The Ed25519 half is of small order.
        let mut identity_key = leaf(2).identity_key;
        identity_key[..32].fill(0);
        let file = file(&[leaf(1), proto::RosterLeaf { identity_key, ..leaf(2) }], &registrar);
        let roster = Roster::from_bytes(&file, &registrar.verifying_key()).unwrap();
        assert!(roster.leaf(ClientId([1; 16])).unwrap().is_some());
        assert!(matches!(roster.leaf(ClientId([2; 16])), Err(RosterError::Signed(SignedError::Malformed { .. }))));
    }

    #[test]
    fn a_roster_file_written_in_pieces_is_the_file_written_at_once() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let registrar = SigningKey::generate(Level::L65, &mut rng);
        for size in [0u8, 1, 3] {
            let leaves: Vec<_> = (0..size).map(leaf).collect();
            let keys = [registrar.verifying_key()];
            let roster = Roster::publish(leaves.clone(), HeadTerms::new(3, 4), &keys, &keys, &registrar).unwrap();
            let leaves: Vec<Vec<u8>> = leaves.iter().map(Message::encode_to_vec).collect();
            let tree = merkle::Tree::new(label::TREE_ROSTER, &leaves);
            let head = sign_head(&tree, HeadTerms::new(3, 4), &keys, &keys, &registrar);
            assert_eq!(&head, roster.signed_head());
            let mut file = Vec::new();
            append_head(&head, &mut file);
            leaves.iter().for_each(|leaf| append_leaf(leaf, &mut file));
            assert_eq!(file, roster.to_bytes().unwrap());
            assert_eq!(head_of_file(&file), Some(head));
            assert_eq!(head_of_file(&file[..100]), None);
        }
    }
}
