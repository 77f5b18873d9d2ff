//! A whole roster, in memory or in files.

use std::io::{BufWriter, Write};

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_crypto::sign::{SigningKey, VerifyingKey};

use super::file::{self, MAX_LEAF, ReadAt, Scanned, unreadable};
use super::{Head, HeadTerms, Leaf, RosterError, sign_head};
use crate::ids::ClientId;
use crate::proto::{self, Signed};

/// What the index has of each leaf: its place in the file, 8 bytes, and its length, 4 bytes.
const PLACE_LEN: u64 = 12;

/// A whole roster, as the registrar publishes it and the coordinator uses it. 16 bytes a device are in memory; the rest is read
/// where it is needed, from the roster's file and from an index with the leaves' places and the nodes of their tree. Neither may
/// be written to as long as the roster is used; what is read is verified against the signed root.
pub struct Roster {
    head: Head,
    signed_head: Signed,
    /// In order.
    clients: Vec<ClientId>,
    file: Box<dyn ReadAt>,
    index: Box<dyn ReadAt>,
}

impl Roster {
    /// Signs a roster of the next epoch over `leaves` (in any order).
    ///
    /// # Errors
    /// [`RosterError::Order`] when two leaves have one client id.
    pub fn publish(
        mut leaves: Vec<proto::RosterLeaf>,
        terms: HeadTerms,
        coordinators: &[VerifyingKey],
        publishers: &[VerifyingKey],
        registrar: &SigningKey,
    ) -> Result<Self, RosterError> {
        leaves.sort_by(|a, b| a.client_id.cmp(&b.client_id));
        let leaves: Vec<Vec<u8>> = leaves.iter().map(Message::encode_to_vec).collect();
        let tree = merkle::Tree::new(label::TREE_ROSTER, &leaves);
        let mut bytes = Vec::new();
        file::append_head(&sign_head(&tree, terms, coordinators, publishers, registrar), &mut bytes);
        leaves.iter().for_each(|leaf| file::append_leaf(leaf, &mut bytes));
        Self::open(bytes, Vec::new(), &registrar.verifying_key())
    }

    /// Reads a roster file, verifying the head's signature and that the leaves give its root. A copy is kept in memory, with 76 bytes
    /// a device more.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub fn from_bytes(bytes: &[u8], registrar: &VerifyingKey) -> Result<Self, RosterError> {
        Self::open(bytes.to_vec(), Vec::new(), registrar)
    }

    /// Reads a roster file once from the start to the end, verifying the head's signature and that the leaves give its root, and
    /// writes the index to `index`, which is empty. Of identity keys only the length is checked: whether one is a key shows when its
    /// leaf is used.
    ///
    /// # Errors
    /// Any [`RosterError`] but those about validity: expired leaves are kept, and refused when they are used.
    pub fn open<F, I>(file: F, index: I, registrar: &VerifyingKey) -> Result<Self, RosterError>
    where
        F: ReadAt + 'static,
        I: ReadAt + Write + 'static,
    {
        let mut clients = Vec::new();
        let index = std::cell::RefCell::new(BufWriter::with_capacity(1 << 16, index));
        let (signed_head, head) = file::scan(
            &file,
            registrar,
            |Scanned { client_id, place, bytes, .. }| {
                clients.push(client_id);
                let mut index = index.borrow_mut();
                index.write_all(&place.to_le_bytes()).map_err(unreadable)?;
                index.write_all(&(bytes.len() as u32).to_le_bytes()).map_err(unreadable)
            },
            |level| index.borrow_mut().write_all(level.as_flattened()).map_err(unreadable),
        )?;
        clients.shrink_to_fit();
        let index = index.into_inner().into_inner().map_err(|error| unreadable(error.error()))?;
        Ok(Self { head, signed_head, clients, file: Box::new(file), index: Box::new(index) })
    }

    /// The roster as a file.
    ///
    /// # Errors
    /// [`RosterError::Unreadable`], not for a roster in memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RosterError> {
        let mut bytes = vec![0; usize::try_from(self.size()?).map_err(unreadable)?];
        self.file.read_exact_at(&mut bytes, 0).map_err(unreadable)?;
        Ok(bytes)
    }

    /// Length of the roster's file in bytes.
    ///
    /// # Errors
    /// [`RosterError::Unreadable`].
    pub fn size(&self) -> Result<u64, RosterError> {
        self.file.size().map_err(unreadable)
    }

    /// The verified head.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The head as signed by the registrar.
    pub fn signed_head(&self) -> &Signed {
        &self.signed_head
    }

    /// All devices, ascending.
    pub fn clients(&self) -> &[ClientId] {
        &self.clients
    }

    /// Whether the roster has a device, its leaf valid or not. Nothing is read.
    pub fn contains(&self, client: ClientId) -> bool {
        self.clients.binary_search(&client).is_ok()
    }

    /// The leaf of a device, valid or not; `None` for a stranger.
    ///
    /// # Errors
    /// As of [`Self::entry`].
    pub fn leaf(&self, client: ClientId) -> Result<Option<Leaf>, RosterError> {
        Ok(self.entry(client)?.map(|(leaf, _)| leaf))
    }

    /// The leaf of a device with its Merkle path; `None` for a stranger.
    ///
    /// # Errors
    /// As of [`Self::entry`].
    pub fn proof(&self, client: ClientId) -> Result<Option<proto::RosterProof>, RosterError> {
        Ok(self.entry(client)?.map(|(_, proof)| proof))
    }

    /// The leaf of a device, valid or not, and its proof; `None` for a stranger.
    ///
    /// # Errors
    /// [`RosterError::Unreadable`] when the files can't be read or were changed since they were verified; [`RosterError::Signed`] for
    /// a leaf whose identity key is no key.
    pub fn entry(&self, client: ClientId) -> Result<Option<(Leaf, proto::RosterProof)>, RosterError> {
        let Ok(index) = self.clients.binary_search(&client) else { return Ok(None) };
        let (size, index) = (self.clients.len() as u64, index as u64);
        let bytes = self.leaf_bytes(index)?;
        let nodes = size * PLACE_LEN;
        let node = |node: u64| {
            let mut hash = [0; 32];
            self.index.read_exact_at(&mut hash, nodes + node * 32).map(|()| hash)
        };
        let path: Result<Vec<[u8; 32]>, _> = merkle::path_nodes(size, index).into_iter().map(node).collect();
        let path = path.map_err(unreadable)?;
        let changed = || unreadable(format!("the leaf of client {client} is not the one that was verified"));
        merkle::verify(label::TREE_ROSTER, &self.head.root, size, index, &bytes, &path).map_err(|_| changed())?;
        let leaf = Leaf::from_bytes(&bytes)?;
        let path = path.iter().map(|hash| hash.to_vec()).collect();
        Ok(Some((leaf, proto::RosterProof { leaf: bytes, index, path })))
    }

    /// The leaf with this number, not verified.
    fn leaf_bytes(&self, index: u64) -> Result<Vec<u8>, RosterError> {
        let mut place = [0; PLACE_LEN as usize];
        self.index.read_exact_at(&mut place, index * PLACE_LEN).map_err(unreadable)?;
        let (place, len) = place.split_at(8);
        let (place, len) = (place.try_into().map(u64::from_le_bytes), len.try_into().map(u32::from_le_bytes));
        let (place, len) = place.ok().zip(len.ok()).ok_or_else(|| unreadable("the index"))?;
        if len as usize > MAX_LEAF {
            return Err(unreadable("its index was changed since it was made"));
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, place).map_err(unreadable)?;
        Ok(bytes)
    }
}
