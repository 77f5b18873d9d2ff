//! The file: sealed by the publisher, verified by anybody, opened by a device with a grant.

use std::io::{self, Read, Write};

use aead_stream::{DecryptorBE32, EncryptorBE32};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::Payload;
use prost::Message;
use rand_core::CryptoRng;
use unisono_crypto::kdf::{Hasher, derive_secret, label};
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::header::{Header, SUITE_V1, header_len, publisher_id};
use crate::proto::{ReleaseHeader, SealedKind};
use crate::{ContentKey, Part, ReleaseError};

/// First bytes of every release.
pub const MAGIC: &[u8; 8] = b"UNISONO1";
/// Bytes of plaintext in every chunk but the last.
pub const CHUNK_LEN: usize = 65536;
const TAG_LEN: usize = 16;
const HASH_LEN: usize = 32;
pub(crate) const PROLOGUE_LEN: usize = MAGIC.len() + 4;

pub(crate) fn sealed_len(payload_len: u64) -> u64 {
    payload_len + payload_len.div_ceil(CHUNK_LEN as u64).max(1) * TAG_LEN as u64
}

fn chunk_key(key: &ContentKey, header_hash: &[u8; 32]) -> Secret32 {
    derive_secret(label::CHUNK_KEY, key.0.expose(), &[header_hash])
}

/// Bytes of the signature block of a file with this header.
pub(crate) fn signature_block_len(fields: &ReleaseHeader) -> usize {
    let signature = if fields.publisher_id.is_empty() { 0 } else { Level::L65.signature_len() };
    2 * HASH_LEN + signature
}

/// Seals `payload`, and signs it unless `publisher` is `None`, as for a base model in semi-honest mode. In `fields`, the caller sets
/// what the file is about; suite, payload length, chunk length, publisher, salt and key commitment are set here. Returns the file
/// and its header.
///
/// # Errors
/// [`ReleaseError::PublisherKey`] for a key that is not ML-DSA-65, [`ReleaseError::HeaderMalformed`] for a field out of range.
pub fn seal<R: CryptoRng + ?Sized>(
    mut fields: ReleaseHeader,
    payload: &[u8],
    key: &ContentKey,
    publisher: Option<&SigningKey>,
    rng: &mut R,
) -> Result<(Vec<u8>, Header), ReleaseError> {
    if publisher.is_some_and(|publisher| publisher.level() != Level::L65) {
        return Err(ReleaseError::PublisherKey);
    }
    let mut salt = vec![0; 32];
    rng.fill_bytes(&mut salt);
    fields.suite = SUITE_V1;
    fields.payload_length = payload.len() as u64;
    fields.chunk_length = CHUNK_LEN as u32;
    let signed_by = publisher.map(|publisher| publisher_id(&publisher.verifying_key()).to_vec());
    fields.publisher_id = signed_by.unwrap_or_default();
    fields.key_commitment = key.commitment(&salt).to_vec();
    fields.salt = salt;
    let header = Header::from_bytes(&fields.encode_to_vec())?;

    let mut file = Vec::with_capacity(payload.len() + payload.len() / CHUNK_LEN * TAG_LEN + 8192);
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&(header.bytes.len() as u32).to_le_bytes());
    file.extend_from_slice(&header.bytes);
    let body_start = file.len();
    let mut stream =
        EncryptorBE32::<ChaCha20Poly1305>::new(chunk_key(key, &header.hash).expose().into(), &[0; 7].into());
    let last = payload.len().saturating_sub(1) / CHUNK_LEN * CHUNK_LEN;
    let too_long = |_| ReleaseError::HeaderMalformed { field: "payload_length", why: "too many chunks".into() };
    for chunk in payload[..last].chunks(CHUNK_LEN) {
        file.extend(stream.encrypt_next(Payload { msg: chunk, aad: &header.hash }).map_err(too_long)?);
    }
    file.extend(stream.encrypt_last(Payload { msg: &payload[last..], aad: &header.hash }).map_err(too_long)?);

    let body_hash = Hasher::new(label::RELEASE_BODY).update(&file[body_start..]).finalize();
    let hashes = [header.hash, body_hash].concat();
    file.extend_from_slice(&hashes);
    if let Some(publisher) = publisher {
        file.extend_from_slice(&publisher.sign(label::SIG_RELEASE, &hashes));
    }
    Ok((file, header))
}

/// A release whose parts were found; nothing about it is verified yet.
#[derive(Debug, Clone)]
pub struct Release<'a> {
    /// The header.
    pub header: Header,
    body: &'a [u8],
    signature_block: &'a [u8],
}

/// A reader over the parts of a file.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn take(&mut self, len: u64, part: Part) -> Result<&'a [u8], ReleaseError> {
        let missing = len.saturating_sub(self.0.len() as u64);
        if missing > 0 {
            return Err(ReleaseError::Truncated { part, missing });
        }
        let (now, later) = self.0.split_at(len as usize);
        self.0 = later;
        Ok(now)
    }
}

impl<'a> Release<'a> {
    /// Finds the parts of a file and reads the header.
    ///
    /// # Errors
    /// [`ReleaseError`]: no release, truncated, bytes after the end, a malformed header.
    pub fn parse(file: &'a [u8]) -> Result<Self, ReleaseError> {
        if !file.starts_with(MAGIC) {
            return Err(ReleaseError::NotARelease);
        }
        let mut parts = Parts(file);
        let prologue = parts.take(PROLOGUE_LEN as u64, Part::Prologue)?;
        let header = Header::from_bytes(parts.take(header_len(prologue)?, Part::Header)?)?;
        let body = parts.take(sealed_len(header.fields.payload_length), Part::Body)?;
        let signature_block = parts.take(signature_block_len(&header.fields) as u64, Part::SignatureBlock)?;
        if !parts.0.is_empty() {
            return Err(ReleaseError::TrailingBytes);
        }
        Ok(Self { header, body, signature_block })
    }

    /// Checks that one of `publishers` signed this header and these chunks. Needs no decryption key.
    ///
    /// # Errors
    /// [`ReleaseError::OtherPublisher`], [`ReleaseError::Signature`], [`ReleaseError::HeaderOfAnotherRelease`] or
    /// [`ReleaseError::BodyChanged`].
    pub fn verify(&self, publishers: &[VerifyingKey]) -> Result<(), ReleaseError> {
        self.verify_signature(publishers)?;
        self.verify_hashes()
    }

    fn verify_signature(&self, publishers: &[VerifyingKey]) -> Result<(), ReleaseError> {
        verify_signature(&self.header, self.signature_block, publishers)
    }

    /// Checks that the hashes in the signature block are those of this header and these chunks.
    fn verify_hashes(&self) -> Result<(), ReleaseError> {
        let body_hash = Hasher::new(label::RELEASE_BODY).update(self.body).finalize();
        verify_hashes(&self.header, self.signature_block, &body_hash)
    }

    fn decrypt(&self, key: &ContentKey) -> Result<Zeroizing<Vec<u8>>, ReleaseError> {
        let mut plaintext = Zeroizing::new(Vec::with_capacity(self.header.fields.payload_length as usize));
        let mut body = self.body;
        decrypt_to(&self.header, key, &mut body, &mut *plaintext)?;
        Ok(plaintext)
    }
}

pub(crate) fn verify_signature(
    header: &Header,
    signature_block: &[u8],
    publishers: &[VerifyingKey],
) -> Result<(), ReleaseError> {
    let claimed = &header.fields.publisher_id;
    let publisher = publishers.iter().find(|key| publisher_id(key) == claimed.as_slice());
    let publisher = publisher.ok_or(ReleaseError::OtherPublisher)?;
    if publisher.level() != Level::L65 {
        return Err(ReleaseError::PublisherKey);
    }
    let (hashes, signature) = signature_block.split_at(2 * HASH_LEN);
    publisher.verify(label::SIG_RELEASE, hashes, signature).map_err(|_| ReleaseError::Signature)
}

pub(crate) fn verify_hashes(header: &Header, signature_block: &[u8], body: &[u8; 32]) -> Result<(), ReleaseError> {
    let (header_hash, body_hash) = signature_block[..2 * HASH_LEN].split_at(HASH_LEN);
    if header_hash != header.hash {
        return Err(ReleaseError::HeaderOfAnotherRelease);
    }
    if body_hash != body {
        return Err(ReleaseError::BodyChanged);
    }
    Ok(())
}

/// Reads up to the length of `buffer`, less only at the end.
pub(crate) fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ReleaseError> {
    let mut have = 0;
    while have < buffer.len() {
        match from.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ReleaseError::io("reading the sealed file", &error)),
        }
    }
    Ok(have)
}

/// Decrypts the chunks in `body`, one after the other; the hash of what was read.
pub(crate) fn decrypt_to(
    header: &Header,
    key: &ContentKey,
    body: &mut impl Read,
    out: &mut impl Write,
) -> Result<[u8; 32], ReleaseError> {
    let fields = &header.fields;
    if key.commitment(&fields.salt) != fields.key_commitment.as_slice() {
        return Err(ReleaseError::WrongContentKey);
    }
    let aad = &header.hash;
    let mut stream = DecryptorBE32::<ChaCha20Poly1305>::new(chunk_key(key, aad).expose().into(), &[0; 7].into());
    let mut hasher = Hasher::new(label::RELEASE_BODY);
    let mut left = sealed_len(fields.payload_length);
    let mut sealed = vec![0; CHUNK_LEN + TAG_LEN];
    let mut index = 0;
    let bad = |index| move |_| ReleaseError::Chunk { index };
    let mut write = |chunk: Zeroizing<Vec<u8>>| {
        out.write_all(&chunk).map_err(|error| ReleaseError::io("writing the opened model", &error))
    };
    let mut next = |left: &mut u64, sealed: &mut Vec<u8>| {
        let length = (*left).min(sealed.len() as u64) as usize;
        let read = read_up_to(body, &mut sealed[..length])?;
        if read < length {
            return Err(ReleaseError::Truncated { part: Part::Body, missing: *left - read as u64 });
        }
        hasher.update(&sealed[..length]);
        *left -= length as u64;
        Ok(length)
    };
    while left > sealed.len() as u64 {
        let length = next(&mut left, &mut sealed)?;
        let chunk = stream.decrypt_next(Payload { msg: &sealed[..length], aad }).map_err(bad(index))?;
        write(Zeroizing::new(chunk))?;
        index += 1;
    }
    let length = next(&mut left, &mut sealed)?;
    let chunk = stream.decrypt_last(Payload { msg: &sealed[..length], aad }).map_err(bad(index))?;
    write(Zeroizing::new(chunk))?;
    Ok(hasher.finalize())
}

/// A release that a device has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its version.
    pub version: u64,
    /// Hash of its header; `None` where only the version is known.
    pub header_hash: Option<[u8; 32]>,
}

/// The durable record that keeps a device from going back to an older model, from taking two releases for one version, and from
/// going back in time.
///
/// An implementation must have the change on stable storage when a method returns.
pub trait VersionRecord {
    /// The newest release of `model_id` that was opened.
    ///
    /// # Errors
    /// [`ReleaseError::Record`] when the record can't be read; it is never taken for empty.
    fn newest(&self, model_id: &str) -> Result<Option<Seen>, ReleaseError>;

    /// The latest time at which a release was opened, Unix time in seconds; 0 before the first.
    ///
    /// # Errors
    /// [`ReleaseError::Record`] when the record can't be read.
    fn latest_time(&self) -> Result<u64, ReleaseError>;

    /// Notes that this release of `model_id` was opened at `now`.
    ///
    /// # Errors
    /// [`ReleaseError::Record`] when the record can't be written; the release is not opened then.
    fn see(&mut self, model_id: &str, release: Seen, now: u64) -> Result<(), ReleaseError>;
}

/// Who must have signed a file.
#[derive(Debug, Clone)]
pub enum Signers {
    /// One of these keys (Ed25519 + ML-DSA-65): publishers for a release, coordinators for a base model.
    Keys(Vec<VerifyingKey>),
    /// Anybody or nobody: who issued the content key's grant vouches for the file, as in semi-honest mode.
    Granted,
}

/// What a device asks of a sealed model. Every limit is inclusive.
#[derive(Debug, Clone)]
pub struct OpenPolicy {
    /// Whom it trusts.
    pub signers: Signers,
    /// What the file is for.
    pub kind: SealedKind,
    /// The model (of a base model: the task) that it wants; `None` for any.
    pub model_id: Option<String>,
    /// The version that it wants; `None` for any that its record allows.
    pub version: Option<u64>,
    /// Oldest roster epoch, of release and grant.
    pub min_roster_epoch: u64,
    /// Longest payload in bytes.
    pub max_payload: u64,
}

/// Seconds by which a release may be from the future: clocks differ.
pub const FUTURE_ALLOWANCE: u64 = 300;

impl OpenPolicy {
    /// A release of any model by one of `publishers`, of up to `max_payload` bytes.
    pub fn release(publishers: Vec<VerifyingKey>, max_payload: u64) -> Self {
        let (signers, kind) = (Signers::Keys(publishers), SealedKind::Release);
        Self { signers, kind, model_id: None, version: None, min_roster_epoch: 0, max_payload }
    }

    fn check(&self, header: &ReleaseHeader, now: u64) -> Result<(), ReleaseError> {
        if header.kind() != self.kind {
            return Err(ReleaseError::WrongKind { got: header.kind, expected: self.kind as i32 });
        }
        if let Some(expected) = self.model_id.as_ref().filter(|expected| **expected != header.model_id) {
            return Err(ReleaseError::WrongModel { got: header.model_id.clone(), expected: expected.clone() });
        }
        if let Some(expected) = self.version.filter(|&expected| expected != header.version) {
            return Err(ReleaseError::WrongVersion { got: header.version, expected });
        }
        if header.payload_length > self.max_payload {
            return Err(ReleaseError::PayloadTooLarge { length: header.payload_length, limit: self.max_payload });
        }
        if now > header.not_after {
            return Err(ReleaseError::Expired { not_after: header.not_after, now });
        }
        if header.created_at > now.saturating_add(FUTURE_ALLOWANCE) {
            return Err(ReleaseError::FromTheFuture { created_at: header.created_at, now });
        }
        if header.roster_epoch < self.min_roster_epoch {
            let (got, minimum) = (header.roster_epoch, self.min_roster_epoch);
            return Err(ReleaseError::OlderRoster { what: "release", got, minimum });
        }
        Ok(())
    }
}

/// Checks that a release comes after the newest one that was opened, or is it.
fn check_succession(header: &Header, newest: Option<Seen>) -> Result<(), ReleaseError> {
    let Some(Seen { version, header_hash }) = newest else { return Ok(()) };
    let fields = &header.fields;
    let model_id = fields.model_id.clone();
    if fields.version < version {
        return Err(ReleaseError::OlderVersion { model_id, got: fields.version, minimum: version });
    }
    let Some(known) = header_hash else { return Ok(()) };
    if fields.version == version && known != header.hash {
        return Err(ReleaseError::AnotherOfThisVersion { model_id, version });
    }
    // Of versions in between, this device knows nothing.
    if fields.version == version + 1 && known.as_slice() != fields.previous {
        return Err(ReleaseError::BrokenChain { model_id, version: fields.version });
    }
    Ok(())
}

/// Verifies `release`, checks the policy and decrypts, in this order; then the version counts as seen (a base model's does not: the
/// round's parameters bind it). `now` is Unix time in seconds; where the record knows of a later time, that counts.
///
/// # Errors
/// [`ReleaseError`] says which check failed; no plaintext leaves then.
pub fn open(
    release: &Release<'_>,
    key: &ContentKey,
    policy: &OpenPolicy,
    record: &mut dyn VersionRecord,
    now: u64,
) -> Result<Zeroizing<Vec<u8>>, ReleaseError> {
    match &policy.signers {
        Signers::Keys(keys) => release.verify(keys)?,
        Signers::Granted => release.verify_hashes()?,
    }
    let now = check(&release.header, policy, record, now)?;
    let plaintext = release.decrypt(key)?;
    see(&release.header, record, now)?;
    Ok(plaintext)
}

/// What policy and record say about a file whose signature was verified; the time that counts.
pub(crate) fn check(
    header: &Header,
    policy: &OpenPolicy,
    record: &dyn VersionRecord,
    now: u64,
) -> Result<u64, ReleaseError> {
    let now = now.max(record.latest_time()?);
    policy.check(&header.fields, now)?;
    if policy.kind == SealedKind::Release {
        check_succession(header, record.newest(&header.fields.model_id)?)?;
    }
    Ok(now)
}

/// A release that was opened counts as seen.
pub(crate) fn see(header: &Header, record: &mut dyn VersionRecord, now: u64) -> Result<(), ReleaseError> {
    if header.fields.kind() == SealedKind::BaseModel {
        return Ok(());
    }
    let seen = Seen { version: header.fields.version, header_hash: Some(header.hash) };
    record.see(&header.fields.model_id, seen, now)
}
