//! The readable part of a release.

use prost::Message;
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::sign::VerifyingKey;

use crate::file::{PROLOGUE_LEN, sealed_len, signature_block_len};
use crate::proto::{PayloadType, ProvenanceMode, ReleaseHeader, SealedKind};
use crate::{CHUNK_LEN, MAGIC, ReleaseError};

/// The only suite of version 1: ChaCha20-Poly1305 in STREAM, BLAKE3, Ed25519 + ML-DSA-65, X-Wing for grants.
pub const SUITE_V1: u32 = 1;
/// Longest encoded header in bytes.
pub const MAX_HEADER_LEN: u64 = 4096;
/// Longest payload in bytes.
pub(crate) const MAX_PAYLOAD_LEN: u64 = 1 << 40;
/// Longest model or key id in bytes, and task in characters.
const MAX_NAME_LEN: usize = 64;

/// Hash by which a header names a publisher's verifying key.
pub fn publisher_id(key: &VerifyingKey) -> [u8; 32] {
    hash(label::PUBLISHER_ID, &[key.as_bytes()])
}

/// A header whose fields were checked, with the bytes that it came as.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// The fields.
    pub fields: ReleaseHeader,
    /// Hash of the encoded header: the release's identity.
    pub hash: [u8; 32],
    pub(crate) bytes: Vec<u8>,
}

fn malformed(field: &'static str, why: impl ToString) -> ReleaseError {
    ReleaseError::HeaderMalformed { field, why: why.to_string() }
}

fn check_name(field: &'static str, name: &str) -> Result<(), ReleaseError> {
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    if !(1..=MAX_NAME_LEN).contains(&name.len()) || !printable {
        return Err(malformed(field, "it is not 1 to 64 printable ASCII characters without space"));
    }
    Ok(())
}

/// A task's name, as a round's parameters have it.
fn check_task(field: &'static str, task: &str) -> Result<(), ReleaseError> {
    if (1..=MAX_NAME_LEN).contains(&task.chars().count()) && !task.chars().any(char::is_control) {
        return Ok(());
    }
    Err(malformed(field, "it is not 1 to 64 characters without control characters"))
}

fn check_len(field: &'static str, bytes: &[u8], allowed: &[usize]) -> Result<(), ReleaseError> {
    if allowed.contains(&bytes.len()) {
        return Ok(());
    }
    Err(malformed(field, format!("it has {} bytes, allowed is {allowed:?}", bytes.len())))
}

/// What a file's first [`PROLOGUE_LEN`] bytes say about the length of its header.
pub(crate) fn header_len(prologue: &[u8]) -> Result<u64, ReleaseError> {
    let length = prologue[MAGIC.len()..].iter().rev().fold(0u64, |length, &byte| length << 8 | u64::from(byte));
    if length > MAX_HEADER_LEN {
        return Err(ReleaseError::HeaderTooLong { length, limit: MAX_HEADER_LEN });
    }
    Ok(length)
}

impl Header {
    /// Reads the header of a file from its first bytes; `None`: more than these are needed. Nothing is verified.
    ///
    /// # Errors
    /// [`ReleaseError`]: no sealed model, a header that is too long or malformed.
    pub fn of_file(start: &[u8]) -> Result<Option<Self>, ReleaseError> {
        let known = start.len().min(MAGIC.len());
        if start[..known] != MAGIC[..known] {
            return Err(ReleaseError::NotARelease);
        }
        let Some((prologue, rest)) = start.split_at_checked(PROLOGUE_LEN) else { return Ok(None) };
        rest.get(..header_len(prologue)? as usize).map(Self::from_bytes).transpose()
    }

    /// Length of the whole file in bytes.
    pub fn file_len(&self) -> u64 {
        let sealed = sealed_len(self.fields.payload_length) + signature_block_len(&self.fields) as u64;
        (PROLOGUE_LEN + self.bytes.len()) as u64 + sealed
    }

    /// Reads an encoded header and checks every field's range.
    ///
    /// # Errors
    /// [`ReleaseError::HeaderMalformed`] names the field; an unknown suite or payload type has its own error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReleaseError> {
        let fields = ReleaseHeader::decode(bytes).map_err(|e| malformed("encoding", e))?;
        if fields.suite != SUITE_V1 {
            return Err(ReleaseError::UnsupportedSuite { what: "release", got: fields.suite, supported: SUITE_V1 });
        }
        // A restriction that this version does not know must not be overlooked.
        if fields.encode_to_vec() != bytes {
            return Err(malformed("encoding", "it is not in canonical form: unknown or repeated fields, or padding"));
        }
        match SealedKind::try_from(fields.kind) {
            Ok(SealedKind::Release) => {
                check_name("model_id", &fields.model_id)?;
                if fields.version == 0 {
                    return Err(malformed("version", "it is 0; versions begin at 1"));
                }
                check_len("publisher_id", &fields.publisher_id, &[32])?;
            }
            Ok(SealedKind::BaseModel) => {
                check_task("model_id", &fields.model_id)?;
                check_len("publisher_id", &fields.publisher_id, &[0, 32])?;
            }
            Err(_) => return Err(malformed("kind", format!("{} is neither a release nor a base model", fields.kind))),
        }
        check_name("key_id", &fields.key_id)?;
        check_len("previous", &fields.previous, &[0, 32])?;
        if fields.not_after < fields.created_at {
            return Err(malformed("not_after", "it is before created_at"));
        }
        if fields.payload_type() == PayloadType::Unspecified {
            return Err(ReleaseError::UnsupportedPayloadType { got: fields.payload_type });
        }
        if fields.payload_length > MAX_PAYLOAD_LEN {
            return Err(malformed("payload_length", format!("it is above {MAX_PAYLOAD_LEN} bytes")));
        }
        if fields.chunk_length != CHUNK_LEN as u32 {
            return Err(malformed("chunk_length", format!("it is not {CHUNK_LEN} bytes")));
        }
        check_len("salt", &fields.salt, &[32])?;
        check_len("key_commitment", &fields.key_commitment, &[32])?;
        if let Some(provenance) = &fields.provenance {
            check_task("provenance.task", &provenance.task)?;
            check_len("provenance.round_id", &provenance.round_id, &[32])?;
            if provenance.mode() == ProvenanceMode::Unspecified {
                return Err(malformed("provenance.mode", "it is neither malicious nor semi-honest"));
            }
        }
        Ok(Self { fields, hash: hash(label::RELEASE_HEADER, &[bytes]), bytes: bytes.to_vec() })
    }
}
