//! What the TLS of the coordinator and of devices has in common: the cryptographic provider, the protocol version, and the reading
//! of PEM files (RFC 7468). It opens no file and no connection. `docs/adr/0011-tls.md` has the reasons.
//!
//! TLS 1.3 (RFC 8446) alone is spoken. The key exchange is X25519MLKEM768, a hybrid with ML-KEM-768, where the other side has it, and
//! X25519 or a NIST curve otherwise.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

pub use rustls;

/// The protocol versions that are spoken.
pub static VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Protocol name of HTTP/2 over TLS (RFC 9113, 3.2), which gRPC needs.
pub const ALPN_HTTP2: &[u8] = b"h2";
/// Protocol name of HTTP/1.1.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Why TLS can't be set up. It carries no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// This processor lacks instructions that the cryptography needs.
    #[error(
        "this processor has no TLS here: it needs x86-64 with AES, AVX2, BMI2 and ADX, or 64-bit ARM with AES and SHA-2; use a TLS \
             tunnel or proxy"
    )]
    Processor,
    /// The text is no PEM, or is cut off.
    #[error("it is not valid PEM ({0}); was it copied whole?")]
    Pem(String),
    /// No certificate is in the text.
    #[error("no certificate is in it: a PEM file has `-----BEGIN CERTIFICATE-----`")]
    NoCertificate,
    /// No private key is in the text.
    #[error("no private key is in it: a PEM file without password has `-----BEGIN PRIVATE KEY-----`")]
    NoKey,
    /// A certificate can't be read.
    #[error("its certificate can't be used: {0}")]
    Certificate(String),
    /// The key is of a kind that is not supported.
    #[error(
        "its private key can't be used ({0}); ECDSA with P-256 or P-384, Ed25519 and RSA with 2048 to 4096 bits can"
    )]
    Key(String),
    /// The key is another certificate's.
    #[error("the private key is not that of the certificate: set the two that were made together")]
    Mismatch,
    /// Something else that rustls refuses.
    #[error("TLS can't be set up: {0}")]
    Setup(String),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InconsistentKeys(_) => Self::Mismatch,
            rustls::Error::InvalidCertificate(why) => Self::Certificate(format!("{why:?}")),
            other => Self::Setup(other.to_string()),
        }
    }
}

/// Whether TLS can be spoken on this processor.
pub fn is_available() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        graviola::util::is_cpu_supported()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// The cryptography of TLS: graviola's, with X25519MLKEM768 as the first key exchange.
///
/// # Errors
/// [`TlsError::Processor`].
pub fn provider() -> Result<Arc<CryptoProvider>, TlsError> {
    if !is_available() {
        return Err(TlsError::Processor);
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        Ok(Arc::new(rustls_graviola::default_provider()))
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Err(TlsError::Processor)
    }
}

/// All certificates in a PEM text, in their order.
///
/// # Errors
/// [`TlsError::Pem`], [`TlsError::NoCertificate`].
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(malformed)?;
    if certificates.is_empty() { Err(TlsError::NoCertificate) } else { Ok(certificates) }
}

/// The first private key in a PEM text: PKCS #8, PKCS #1 or SEC 1, without a password.
///
/// # Errors
/// [`TlsError::Pem`], [`TlsError::NoKey`].
pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey,
        other => malformed(other),
    })
}

/// The certificates in a PEM text as those that are trusted to sign others.
///
/// # Errors
/// [`TlsError::Pem`], [`TlsError::NoCertificate`], or [`TlsError::Certificate`] for one that can't be read.
pub fn authorities(pem: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

/// A certificate chain, the holder's own certificate first, with its private key.
///
/// # Errors
/// As of [`certificates`] and [`private_key`], of the text at fault; [`TlsError::Key`], [`TlsError::Mismatch`],
/// [`TlsError::Certificate`].
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let key = provider.key_provider.load_private_key(key).map_err(|error| TlsError::Key(error.to_string()))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match()?;
    Ok(certified)
}

/// The place of a fault without the text around it, which may be of a key.
fn malformed(error: pem::Error) -> TlsError {
    TlsError::Pem(
        match error {
            pem::Error::MissingSectionEnd { .. } => "a section has no end",
            pem::Error::IllegalSectionStart { .. } => "a section's first line is malformed",
            pem::Error::Base64Decode(_) => "a section is no base64",
            pem::Error::NoItemsFound => "nothing is in it",
            _ => "it can't be read",
        }
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hybrid_key_exchange_comes_first_and_no_older_version_is_spoken() {
        let provider = provider().unwrap();
        let groups: Vec<_> = provider.kx_groups.iter().map(|group| group.name()).collect();
        assert_eq!(groups[..2], [rustls::NamedGroup::X25519MLKEM768, rustls::NamedGroup::X25519]);
        assert!(VERSIONS.iter().all(|version| version.version == rustls::ProtocolVersion::TLSv1_3));
    }

    #[test]
    fn a_text_that_is_no_pem_is_told_apart_and_never_repeated() {
        assert_eq!(certificates(b"").unwrap_err(), TlsError::NoCertificate);
        assert_eq!(private_key(b"hello").unwrap_err(), TlsError::NoKey);
        let cut = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n";
        let error = private_key(cut).unwrap_err();
        assert!(matches!(error, TlsError::Pem(_)) && !format!("{error} {error:?}").contains("c2Vj"), "{error}");
        let junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(authorities(junk), Err(TlsError::Certificate(_))));
    }
}
