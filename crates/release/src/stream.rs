//! A sealed file is opened from one file into another: two passes, and never more than a chunk in memory.

use std::io::{Read, Seek, SeekFrom, Write};

use unisono_crypto::kdf::{Hasher, label};

use crate::file::{
    PROLOGUE_LEN, check, decrypt_to, read_up_to, sealed_len, see, signature_block_len, verify_hashes, verify_signature,
};
use crate::header::header_len;
use crate::{
    CHUNK_LEN, ContentKey, Header, MAGIC, MAX_HEADER_LEN, OpenPolicy, Part, ReleaseError, Signers, VersionRecord,
};

/// Verifies the sealed model in `file`, checks the policy, and only then decrypts it to `out`, as [`crate::open`] does in memory. A
/// file that changes meanwhile is noticed, too.
///
/// # Errors
/// [`ReleaseError`] says which check failed; what was written to `out` must not be used then.
pub fn open_to<F: Read + Seek>(
    file: &mut F,
    key: &ContentKey,
    policy: &OpenPolicy,
    record: &mut dyn VersionRecord,
    now: u64,
    out: &mut impl Write,
) -> Result<Header, ReleaseError> {
    let (header, signature_block, body_hash) = read_parts(file)?;
    if let Signers::Keys(keys) = &policy.signers {
        verify_signature(&header, &signature_block, keys)?;
    }
    verify_hashes(&header, &signature_block, &body_hash)?;
    let now = check(&header, policy, record, now)?;
    seek(file, body_start(&header))?;
    if decrypt_to(&header, key, file, out)? != body_hash {
        return Err(ReleaseError::BodyChanged);
    }
    see(&header, record, now)?;
    Ok(header)
}

fn seek(file: &mut impl Seek, to: u64) -> Result<(), ReleaseError> {
    file.seek(SeekFrom::Start(to)).map(drop).map_err(|error| ReleaseError::io("reading the sealed file", &error))
}

fn body_start(header: &Header) -> u64 {
    (PROLOGUE_LEN + header.bytes.len()) as u64
}

/// Header, signature block and the hash of the chunks.
fn read_parts<F: Read + Seek>(file: &mut F) -> Result<(Header, Vec<u8>, [u8; 32]), ReleaseError> {
    seek(file, 0)?;
    let mut start = vec![0; PROLOGUE_LEN + MAX_HEADER_LEN as usize];
    let read = read_up_to(file, &mut start)?;
    let start = &start[..read];
    if !start.starts_with(MAGIC) {
        return Err(ReleaseError::NotARelease);
    }
    let truncated = |part, missing| ReleaseError::Truncated { part, missing };
    let Some((prologue, rest)) = start.split_at_checked(PROLOGUE_LEN) else {
        return Err(truncated(Part::Prologue, (PROLOGUE_LEN - read) as u64));
    };
    let length = header_len(prologue)?;
    let header = rest.get(..length as usize).ok_or_else(|| truncated(Part::Header, length - rest.len() as u64))?;
    let header = Header::from_bytes(header)?;
    seek(file, body_start(&header))?;
    let mut hasher = Hasher::new(label::RELEASE_BODY);
    let mut buffer = vec![0; CHUNK_LEN];
    let mut left = sealed_len(header.fields.payload_length);
    while left > 0 {
        let length = left.min(buffer.len() as u64) as usize;
        let read = read_up_to(file, &mut buffer[..length])?;
        hasher.update(&buffer[..read]);
        left -= read as u64;
        if read < length {
            return Err(truncated(Part::Body, left));
        }
    }
    // One byte more than there should be.
    let length = signature_block_len(&header.fields);
    let mut signature_block = vec![0; length + 1];
    let read = read_up_to(file, &mut signature_block)?;
    match read.checked_sub(length) {
        None => Err(truncated(Part::SignatureBlock, (length - read) as u64)),
        Some(0) => {
            signature_block.truncate(length);
            Ok((header, signature_block, hasher.finalize()))
        }
        Some(_) => Err(ReleaseError::TrailingBytes),
    }
}
