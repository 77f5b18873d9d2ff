//! The roster (section 1): which devices exist, in the registrar's words.
//!
//! A leaf and its Merkle path replace a certificate; revocation is the next epoch without the leaf. The registrar signs
//! only the head, so the file can be carried by anybody.

use std::collections::BTreeMap;

use prost::Message;
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::merkle;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};

use crate::ids::ClientId;
use crate::proto::{self, Signed};
use crate::signed::{self, SignedError, fixed};

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
    /// The leaf does not lead to the root.
    #[error("the leaf of client {0} is not in the roster")]
    NotInRoster(ClientId),
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
        let wire = proto::RosterLeaf::decode(bytes).map_err(|e| SignedError::malformed(WHAT, e))?;
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
            coordinator_keys: keys(&wire.coordinator_keys)?,
            publisher_keys: keys(&wire.publisher_keys)?,
        })
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

/// Signs the head of a roster whose leaves, encoded and in order of client id, are those of `tree` ([`label::TREE_ROSTER`]).
pub fn sign_head(
    tree: &merkle::Tree,
    epoch: u64,
    issued_at: u64,
    coordinators: &[VerifyingKey],
    publishers: &[VerifyingKey],
    registrar: &SigningKey,
) -> Signed {
    let keys = |keys: &[VerifyingKey]| keys.iter().map(|key| key.as_bytes().to_vec()).collect();
    let head = proto::RosterHead {
        epoch,
        root: tree.root().to_vec(),
        size: tree.len() as u64,
        issued_at,
        coordinator_keys: keys(coordinators),
        publisher_keys: keys(publishers),
    };
    signed::sign(&head, label::SIG_ROSTER, Some(registrar))
}

/// Appends what a roster file begins with: its head. The leaves follow by [`append_leaf`], in order.
pub fn append_head(head: &Signed, out: &mut Vec<u8>) {
    append_field(1, &head.encode_to_vec(), out);
}

/// Appends the next leaf, encoded, of a roster file. A file may be written in pieces by these two.
pub fn append_leaf(leaf: &[u8], out: &mut Vec<u8>) {
    append_field(2, leaf, out);
}

/// The head that a roster file begins with, of its first bytes; not verified. `None` when they are not the start of such a file.
pub fn head_of_file(start: &[u8]) -> Option<Signed> {
    let mut rest = start.strip_prefix(&[1 << 3 | 2])?;
    let len = prost::decode_length_delimiter(&mut rest).ok()?;
    Signed::decode(rest.get(..len)?).ok()
}

/// A field of `RosterFile` with a length in front (wire type 2).
fn append_field(number: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    // A vector grows.
    let _ = prost::encode_length_delimiter(content.len(), out);
    out.extend_from_slice(content);
}

/// A whole roster, as the registrar publishes it and the coordinator uses it.
pub struct Roster {
    head: Head,
    signed_head: Signed,
    leaves: Vec<Vec<u8>>,
    by_id: BTreeMap<ClientId, (usize, Leaf)>,
    tree: merkle::Tree,
}

impl Roster {
    /// Signs a roster of the next `epoch` over `leaves` (in any order). `issued_at` is Unix time in seconds.
    ///
    /// # Errors
    /// [`RosterError::Order`] when two leaves have one client id.
    pub fn publish(
        mut leaves: Vec<proto::RosterLeaf>,
        epoch: u64,
        issued_at: u64,
        coordinators: &[VerifyingKey],
        publishers: &[VerifyingKey],
        registrar: &SigningKey,
    ) -> Result<Self, RosterError> {
        leaves.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        let leaves: Vec<Vec<u8>> = leaves.iter().map(Message::encode_to_vec).collect();
        let tree = merkle::Tree::new(label::TREE_ROSTER, &leaves);
        let head = sign_head(&tree, epoch, issued_at, coordinators, publishers, registrar);
        Self::verify(proto::RosterFile { head: Some(head), leaves }, &registrar.verifying_key())
    }

    /// Reads a roster file, verifying the head's signature and that the leaves give its root.
    ///
    /// # Errors
    /// Any [`RosterError`] but those about validity: expired leaves are kept, and refused when they are used.
    pub fn from_bytes(bytes: &[u8], registrar: &VerifyingKey) -> Result<Self, RosterError> {
        let file = proto::RosterFile::decode(bytes).map_err(|e| SignedError::malformed("roster", e))?;
        Self::verify(file, registrar)
    }

    fn verify(file: proto::RosterFile, registrar: &VerifyingKey) -> Result<Self, RosterError> {
        let signed_head = file.head.ok_or_else(|| SignedError::malformed("roster", "no head"))?;
        let head = Head::verify(&signed_head, registrar)?;
        let tree = merkle::Tree::new(label::TREE_ROSTER, &file.leaves);
        if tree.root() != head.root || file.leaves.len() as u64 != head.size {
            return Err(RosterError::Root { epoch: head.epoch });
        }
        let mut by_id: BTreeMap<ClientId, (usize, Leaf)> = BTreeMap::new();
        for (index, bytes) in file.leaves.iter().enumerate() {
            let leaf = Leaf::from_bytes(bytes)?;
            if by_id.last_key_value().is_some_and(|(&last, _)| last >= leaf.client_id) {
                return Err(RosterError::Order(leaf.client_id));
            }
            by_id.insert(leaf.client_id, (index, leaf));
        }
        Ok(Self { head, signed_head, leaves: file.leaves, by_id, tree })
    }

    /// The roster as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        proto::RosterFile { head: Some(self.signed_head.clone()), leaves: self.leaves.clone() }.encode_to_vec()
    }

    /// The verified head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The head as signed by the registrar.
    pub fn signed_head(&self) -> &Signed {
        &self.signed_head
    }

    /// The leaf of a device, valid or not.
    pub fn leaf(&self, client: ClientId) -> Option<&Leaf> {
        self.by_id.get(&client).map(|(_, leaf)| leaf)
    }

    /// All leaves in order of client id.
    pub fn leaves(&self) -> impl Iterator<Item = &Leaf> {
        self.by_id.values().map(|(_, leaf)| leaf)
    }

    /// The leaf of a device with its Merkle path; `None` for a stranger.
    pub fn proof(&self, client: ClientId) -> Option<proto::RosterProof> {
        let (index, _) = self.by_id.get(&client)?;
        let path = self.tree.path(*index)?.iter().map(|hash| hash.to_vec()).collect();
        Some(proto::RosterProof { leaf: self.leaves[*index].clone(), index: *index as u64, path })
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_roster_file_written_in_pieces_is_the_file_written_at_once() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let registrar = SigningKey::generate(Level::L65, &mut rng);
        for size in [0u8, 1, 3] {
            let leaf = |i: u8| proto::RosterLeaf {
                client_id: vec![i; 16],
                identity_key: SigningKey::generate(Level::L44, &mut ChaCha8Rng::seed_from_u64(i.into()))
                    .verifying_key()
                    .as_bytes()
                    .to_vec(),
                release_key_hash: vec![i; 32],
                not_before: 1,
                not_after: 2,
                attributes: Vec::new(),
            };
            let leaves: Vec<_> = (0..size).map(leaf).collect();
            let keys = [registrar.verifying_key()];
            let roster = Roster::publish(leaves.clone(), 3, 4, &keys, &keys, &registrar).unwrap();
            let leaves: Vec<Vec<u8>> = leaves.iter().map(Message::encode_to_vec).collect();
            let tree = merkle::Tree::new(label::TREE_ROSTER, &leaves);
            let head = sign_head(&tree, 3, 4, &keys, &keys, &registrar);
            assert_eq!(&head, roster.signed_head());
            let mut file = Vec::new();
            append_head(&head, &mut file);
            leaves.iter().for_each(|leaf| append_leaf(leaf, &mut file));
            assert_eq!(file, roster.to_bytes());
            assert_eq!(head_of_file(&file), Some(head));
            assert_eq!(head_of_file(&file[..100]), None);
        }
    }
}
