//! One error for each way in which a release or a grant can be bad.

use thiserror::Error;

/// Why a release or a grant was refused. No variant carries a secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The file does not begin with the magic bytes.
    #[error("this is not a release: it does not begin with \"UNISONO1\"")]
    NotARelease,
    /// The header's declared length is above the format's limit.
    #[error("the release's header says it is {length} bytes long; the limit is {limit}: the file is damaged")]
    HeaderTooLong {
        /// Declared length in bytes.
        length: u64,
        /// Largest accepted length in bytes.
        limit: u64,
    },
    /// A field of the header is not what the format asks for.
    #[error("the release's header is malformed, field {field}: {why}")]
    HeaderMalformed {
        /// Name of the field in `ReleaseHeader`, or "encoding".
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The release or the grant is of a cipher suite that this version does not know.
    #[error("the {what} is of suite {got}; this version knows suite {supported} only: update unisono")]
    UnsupportedSuite {
        /// Release or grant.
        what: &'static str,
        /// Suite found.
        got: u32,
        /// Suite known.
        supported: u32,
    },
    /// The payload is of a type that this version does not know.
    #[error("the release's payload is of type {got}, which this version does not know: update unisono")]
    UnsupportedPayloadType {
        /// Number in the header.
        got: i32,
    },
    /// The payload would not fit the caller's memory cap.
    #[error(
        "the release's payload is {length} bytes; this device's policy allows {limit}: raise max_payload or refuse the model"
    )]
    PayloadTooLarge {
        /// Declared length in bytes.
        length: u64,
        /// The policy's `max_payload`.
        limit: u64,
    },
    /// The file ends before the part does.
    #[error("the release is truncated: it ends {missing} bytes before the end of its {part}; fetch it again")]
    Truncated {
        /// In which part it ends.
        part: Part,
        /// Bytes missing from that part.
        missing: u64,
    },
    /// The file goes on after the signature block.
    #[error("the release goes on after its signature block; fetch it again")]
    TrailingBytes,
    /// The header names another publisher than the one whose key is trusted.
    #[error("the release names a publisher that is not among the trusted ones")]
    OtherPublisher,
    /// The publisher's key is not Ed25519 + ML-DSA-65.
    #[error("a publisher's key must be Ed25519 + ML-DSA-65; this one is not")]
    PublisherKey,
    /// The signature does not verify under the publisher's key.
    #[error("the publisher's signature on the release does not verify: it is damaged or forged, don't use it")]
    Signature,
    /// The signature is the publisher's, yet for another header.
    #[error("the release's header is changed or of another release than its signature; fetch it again")]
    HeaderOfAnotherRelease,
    /// Header and signature belong together, the chunks do not belong to them.
    #[error(
        "the release's chunks are not those that the publisher signed: changed, reordered or of another release; fetch it again"
    )]
    BodyChanged,
    /// The publisher signed this body, and the key is the right one, yet a chunk does not open.
    #[error(
        "chunk {index} of the release does not open although the publisher signed it: the publisher sealed it wrongly, ask for a new release"
    )]
    Chunk {
        /// Its place, from 0.
        index: u64,
    },
    /// The content key is not the one to which the header commits.
    #[error("the content key is of another release; ask for a grant for this one")]
    WrongContentKey,
    /// The release is of another model.
    #[error("the release is of model {got:?}; model {expected:?} was asked for")]
    WrongModel {
        /// Model id in the header.
        got: String,
        /// Model id in the policy.
        expected: String,
    },
    /// A base model where a release was asked for, or the other way.
    #[error("the file is of kind {got}, kind {expected} was asked for (0: a release, 1: a base model)")]
    WrongKind {
        /// Number in the header.
        got: i32,
        /// Number asked for.
        expected: i32,
    },
    /// Another version than the one asked for.
    #[error("the file is of version {got}; version {expected} was asked for")]
    WrongVersion {
        /// Version in the header.
        got: u64,
        /// Version asked for.
        expected: u64,
    },
    /// This device has opened another release under the same version.
    #[error(
        "this device has opened another release as version {version} of model {model_id:?}: the publisher released two, or \
         somebody with its key did; ask the publisher, and for a later version"
    )]
    AnotherOfThisVersion {
        /// Which model.
        model_id: String,
        /// Version of both.
        version: u64,
    },
    /// The release follows another one than the one that this device has opened.
    #[error(
        "version {version} of model {model_id:?} does not follow the version before that this device has opened: the publisher \
         went on from another one; ask the publisher, and for a later version"
    )]
    BrokenChain {
        /// Which model.
        model_id: String,
        /// Version offered.
        version: u64,
    },
    /// The release was made after now.
    #[error("the release was made at {created_at} (Unix time); it is {now}: set this device's clock")]
    FromTheFuture {
        /// When it says that it was made.
        created_at: u64,
        /// Time of the check.
        now: u64,
    },
    /// The release is older than one that was seen, or than the policy allows.
    #[error(
        "version {got} of model {model_id:?} is older than version {minimum}, which this device has seen or requires: refusing to roll back"
    )]
    OlderVersion {
        /// Which model.
        model_id: String,
        /// Version offered.
        got: u64,
        /// Smallest accepted version.
        minimum: u64,
    },
    /// The release or the grant was made under an older roster than the policy allows.
    #[error(
        "the {what} is of roster epoch {got}; this device requires epoch {minimum} or later: ask for a newer {what}"
    )]
    OlderRoster {
        /// Release or grant.
        what: &'static str,
        /// Epoch found.
        got: u64,
        /// Smallest accepted epoch.
        minimum: u64,
    },
    /// The release may no longer be opened.
    #[error("the release was to be used until {not_after} (Unix time); it is {now}: ask for a newer release")]
    Expired {
        /// Last second of validity.
        not_after: u64,
        /// Time of the check.
        now: u64,
    },
    /// The grant can't be decoded, or a field has a wrong length.
    #[error("the grant is malformed: {why}")]
    GrantMalformed {
        /// What is wrong with it.
        why: String,
    },
    /// The grant's signature does not verify under the issuer's key.
    #[error(
        "the issuer's signature on the grant, or its proof of the token, does not verify: it is damaged or forged, ask for a new one"
    )]
    GrantSignature,
    /// The grant is for another release.
    #[error("the grant is for another release: ask for one for this release")]
    GrantOfAnotherRelease,
    /// The grant is for another device.
    #[error("the grant is for another device: each device asks for its own")]
    GrantOfAnotherDevice,
    /// The grant is for this device, yet for another release key than the one it holds.
    #[error("the grant is for another release key of this device; enrol the present key and ask for a new grant")]
    GrantOfAnotherKey,
    /// Everything about the grant fits, yet the sealed content key does not open.
    #[error(
        "the grant's content key does not open although its issuer signed it: the issuer made it wrongly, ask for a new one"
    )]
    GrantNotOpened,
    /// A wrapped content key does not open under the key-encryption key.
    #[error("the wrapped content key does not open: it is damaged, or wrapped by another key or key version")]
    WrappedKey,
    /// A file can't be read or written.
    #[error("{what} failed: {why}")]
    Io {
        /// Doing what.
        what: &'static str,
        /// The system's words.
        why: String,
    },
    /// The record of opened versions failed.
    #[error("the record of opened versions failed: {0}")]
    Record(String),
}

impl ReleaseError {
    pub(crate) fn io(what: &'static str, error: &std::io::Error) -> Self {
        Self::Io { what, why: error.to_string() }
    }
}

/// A part of a release file, for [`ReleaseError::Truncated`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Magic bytes and header length.
    Prologue,
    /// The header.
    Header,
    /// The chunks.
    Body,
    /// The signature block.
    SignatureBlock,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prologue => f.write_str("first 12 bytes"),
            Self::Header => f.write_str("header"),
            Self::Body => f.write_str("chunks"),
            Self::SignatureBlock => f.write_str("signature block"),
        }
    }
}
