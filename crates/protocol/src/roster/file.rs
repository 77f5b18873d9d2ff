//! The roster's file: the head, then the leaves in order of client id. It may be larger than memory, and is read in pieces.

use std::io;

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_crypto::merkle;
use unisono_crypto::sign::{Level, VerifyingKey};

use super::{Head, RosterError};
use crate::ids::ClientId;
use crate::proto::{self, Signed};
use crate::signed::{SignedError, fixed};

/// Longest head of a file, in bytes: 400 keys and more.
pub const MAX_HEAD: usize = 1 << 20;
/// Longest leaf, in bytes: the registrar's have 1.4 kB, and up to 5 kB of attributes.
pub const MAX_LEAF: usize = 64 << 10;
/// What is read at once, in bytes.
const PIECE: usize = 1 << 20;
const WHAT: &str = "roster";

/// Bytes that are read at any place: a file, or a vector. What is read twice may be different: the reader checks it.
pub trait ReadAt: Send + Sync {
    /// Number of bytes.
    ///
    /// # Errors
    /// The file's.
    fn size(&self) -> io::Result<u64>;

    /// Fills `into` with the bytes from `at` on.
    ///
    /// # Errors
    /// The file's; [`io::ErrorKind::UnexpectedEof`] beyond the end.
    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        let found = usize::try_from(at).ok().and_then(|at| self.get(at..at.checked_add(into.len())?));
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

pub(super) fn unreadable(error: impl ToString) -> RosterError {
    RosterError::Unreadable(error.to_string())
}

fn malformed(why: impl ToString) -> RosterError {
    SignedError::malformed(WHAT, why).into()
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

/// Reads the fields of a file one after the other.
struct Fields<'a> {
    file: &'a dyn ReadAt,
    size: u64,
    /// Place of the next field in the file.
    at: u64,
    /// The bytes from `from` on.
    piece: Vec<u8>,
    from: u64,
}

impl<'a> Fields<'a> {
    fn of(file: &'a dyn ReadAt) -> Result<Self, RosterError> {
        let size = file.size().map_err(unreadable)?;
        Ok(Self { file, size, at: 0, piece: Vec::new(), from: 0 })
    }

    /// Up to `len` bytes from the next field on, fewer at the file's end.
    fn peek(&mut self, len: usize) -> Result<&[u8], RosterError> {
        let len = (self.size - self.at).min(len as u64) as usize;
        let mut start = (self.at - self.from) as usize;
        if start + len > self.piece.len() {
            let most = (self.size - self.at).min(PIECE.max(len) as u64) as usize;
            self.piece.resize(most, 0);
            self.file.read_exact_at(&mut self.piece, self.at).map_err(unreadable)?;
            (self.from, start) = (self.at, 0);
        }
        Ok(&self.piece[start..start + len])
    }

    /// The next field, which has this number and at most `most` bytes, and the place of its content; `None` at the end.
    fn next(&mut self, number: u8, most: usize) -> Result<Option<(u64, &[u8])>, RosterError> {
        if self.at == self.size {
            return Ok(None);
        }
        let at = self.at;
        let mut start = self.peek(1 + 10)?;
        let whole = start.len();
        if start.first() != Some(&(number << 3 | 2)) {
            return Err(malformed(format!("a file has its head, then leaves, and nothing else; byte {at} is no such")));
        }
        start = &start[1..];
        let ends = || malformed("it ends within a leaf or its head: it was copied in part");
        let len = prost::decode_length_delimiter(&mut start).map_err(|_| ends())?;
        let place = at + (whole - start.len()) as u64;
        if len > most {
            return Err(malformed(format!("{len} bytes at {place}; a leaf has {MAX_LEAF} at most, a head {MAX_HEAD}")));
        }
        self.at = place;
        if self.size - place < len as u64 {
            return Err(ends());
        }
        self.peek(len)?;
        self.at += len as u64;
        let start = (place - self.from) as usize;
        Ok(Some((place, &self.piece[start..start + len])))
    }
}

/// A leaf's fields; of its identity key only the length is checked, the rest when the leaf is used ([`super::Leaf::from_bytes`]).
fn check_leaf(bytes: &[u8]) -> Result<(ClientId, proto::RosterLeaf), RosterError> {
    const WHAT: &str = "roster leaf";
    let leaf = proto::RosterLeaf::decode(bytes).map_err(|e| SignedError::malformed(WHAT, e))?;
    fixed::<32>(&leaf.release_key_hash, WHAT)?;
    if leaf.identity_key.len() != Level::L44.verifying_key_len() {
        return Err(SignedError::malformed(WHAT, "an identity key is Ed25519 + ML-DSA-44").into());
    }
    Ok((ClientId(fixed(&leaf.client_id, WHAT)?), leaf))
}

/// What [`scan`] hands out of a leaf.
pub struct Scanned<'a> {
    /// The device.
    pub client_id: ClientId,
    /// Place of the leaf in the file, in bytes.
    pub place: u64,
    /// The leaf as it is encoded.
    pub bytes: &'a [u8],
    /// Its fields. The identity key is not decoded.
    pub fields: proto::RosterLeaf,
}

/// Reads a file once from the start to the end, in pieces, and hands out its leaves and then the levels of their tree. What was
/// handed out counts only when this succeeds: the head's signature is verified first, that the leaves give its root last. Memory:
/// 48 bytes a leaf.
///
/// # Errors
/// Any [`RosterError`] but those about validity: expired leaves are kept, and refused when they are used. What `leaf` and `level`
/// return.
pub fn scan(
    file: &dyn ReadAt,
    registrar: &VerifyingKey,
    mut leaf: impl FnMut(Scanned<'_>) -> Result<(), RosterError>,
    level: impl FnMut(Vec<[u8; 32]>) -> Result<(), RosterError>,
) -> Result<(Signed, Head), RosterError> {
    let mut fields = Fields::of(file)?;
    let (_, head) = fields.next(1, MAX_HEAD)?.ok_or_else(|| malformed("no head"))?;
    let signed = Signed::decode(head).map_err(malformed)?;
    let head = Head::verify(&signed, registrar)?;
    let mut tree = merkle::Builder::new(label::TREE_ROSTER);
    let mut last = None;
    while let Some((place, bytes)) = fields.next(2, MAX_LEAF)? {
        let (client_id, fields) = check_leaf(bytes)?;
        if last.is_some_and(|last| last >= client_id) {
            return Err(RosterError::Order(client_id));
        }
        last = Some(client_id);
        tree.push(bytes);
        leaf(Scanned { client_id, place, bytes, fields })?;
    }
    let count = tree.len() as u64;
    let root = tree.finish(level)?;
    if root != head.root || count != head.size {
        return Err(RosterError::Root { epoch: head.epoch });
    }
    Ok((signed, head))
}
