//! The device's side of TLS: whom it trusts, what it shows, and what a failure means to a person.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use unisono_tls::rustls::pki_types::ServerName;
use unisono_tls::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, InvalidMessage, PeerIncompatible, RootCertStore,
};
use unisono_tls::{ALPN_HTTP2, TlsError, VERSIONS};
use zeroize::Zeroizing;

use crate::Error;

/// Why there is no TLS connection to the coordinator. Whoever is on the way can cause each of them, so none is final.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// The certificate was valid until some time ago.
    #[error("its certificate has expired; its operator has to renew it, unless the clock of this device is wrong")]
    Expired,
    /// The certificate will be valid some time.
    #[error("its certificate is not valid yet; check the clock of this device")]
    NotYetValid,
    /// The certificate is for other names.
    #[error("its certificate is not for this name{}; dial a name that the certificate has", presented(.names))]
    WrongName {
        /// Names in the certificate, as far as they are known.
        names: Vec<String>,
    },
    /// The certificate was issued by somebody whom this device does not trust.
    #[error(
        "its certificate is of no authority that this device trusts; give the coordinator's own authority, if it has one \
             (`ClientBuilder::certificate_authority`, `--ca`), and check that nobody is on the way"
    )]
    UnknownIssuer,
    /// The certificate is wrong in another way.
    #[error("its certificate can't be used: {0}")]
    Certificate(String),
    /// The other side has no TLS 1.3.
    #[error("it does not speak TLS 1.3, and nothing older is spoken here")]
    Version,
    /// The coordinator wants a certificate of this device, or another one.
    #[error(
        "it does not accept this device's certificate, or wants one ({0}); give one of its authority \
             (`ClientBuilder::client_certificate`, `--certificate`)"
    )]
    ClientCertificate(String),
    /// The other side closed the connection during the handshake.
    #[error(
        "it closed the connection during the TLS handshake; it may have no place now, or speak no TLS at this port"
    )]
    Closed,
    /// The other side speaks something else.
    #[error("it does not speak TLS at this port; if it is meant to speak plain HTTP, dial http://")]
    NotTls,
    /// Plain HTTP was dialled, and the other side speaks TLS.
    #[error("it speaks TLS at this port: dial https://")]
    Plain,
    /// Another failure of the handshake.
    #[error("the TLS handshake failed: {0}")]
    Other(String),
}

fn presented(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(", but for {}", names.join(", ")) }
}

impl TlsFault {
    fn of_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Self::of(error),
            None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Self::Closed
            }
            None => Self::Other(error.to_string()),
        }
    }

    fn of(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        match error {
            E::InvalidCertificate(why) => Self::of_certificate(why),
            E::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            )
            | E::AlertReceived(AlertDescription::ProtocolVersion) => Self::Version,
            E::AlertReceived(
                alert @ (AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError),
            ) => Self::ClientCertificate(format!("{alert:?}")),
            E::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
            ) => Self::NotTls,
            other => Self::Other(other.to_string()),
        }
    }

    fn of_certificate(why: &CertificateError) -> Self {
        match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::NotValidForName => Self::WrongName { names: Vec::new() },
            CertificateError::NotValidForNameContext { presented, .. } => {
                Self::WrongName { names: presented.iter().take(8).cloned().collect() }
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            other => Self::Certificate(other.to_string()),
        }
    }
}

/// Whom the device trusts, and what it shows: PEM texts.
#[derive(Default)]
pub(crate) struct Credentials {
    /// Authorities in place of the public ones.
    pub authority: Option<Vec<u8>>,
    /// The device's chain and key.
    pub certificate: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl Credentials {
    pub fn is_empty(&self) -> bool {
        self.authority.is_none() && self.certificate.is_none()
    }

    /// How TLS is spoken to `host`.
    ///
    /// # Errors
    /// [`Error::Certificate`] for a text that can't be used, [`Error::Endpoint`] for a host that no certificate can have, or a processor
    /// without TLS.
    pub fn dialler(&self, endpoint: &str, host: &str) -> Result<Dialler, Error> {
        let bad = |why: String| Error::Endpoint { endpoint: endpoint.into(), why };
        let of = |what| move |source: TlsError| Error::Certificate { what, source };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| bad(error.to_string()))?;
        let provider = unisono_tls::provider().map_err(|error| bad(error.to_string()))?;
        let roots = match &self.authority {
            Some(pem) => unisono_tls::authorities(pem).map_err(of("certificate authority"))?,
            None => Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }),
        };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| bad(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.certificate {
            Some((chain, key)) => {
                let chain = unisono_tls::certificates(chain).map_err(of("client certificate"))?;
                let key = unisono_tls::private_key(key).map_err(of("client certificate's key"))?;
                let certified =
                    unisono_tls::certified_key(chain, key, &provider).map_err(of("client certificate's key"))?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        // One connection that lasts: nothing to resume, and nothing by which two of them are seen to be the same device's.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Dialler { connector: Arc::new(config).into(), name })
    }
}

/// Speaks TLS over a stream.
#[derive(Clone)]
pub(crate) struct Dialler {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Dialler {
    /// Shakes hands.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<tokio_rustls::client::TlsStream<S>, TlsFault> {
        let stream = self.connector.connect(self.name.clone(), stream).await;
        let stream = stream.map_err(|error| TlsFault::of_io(&error))?;
        let connection = stream.get_ref().1;
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        tracing::debug!(?group, version = ?connection.protocol_version(), "TLS connection");
        Ok(stream)
    }
}

/// What was wrong with the last connection: a fault of TLS may come only when the stream is read, in place of the first answer.
#[derive(Clone, Default)]
pub(crate) struct LastFault(Arc<Mutex<Option<TlsFault>>>);

impl LastFault {
    pub fn set(&self, fault: Option<TlsFault>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    pub fn get(&self) -> Option<TlsFault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The first byte of an alert's record (RFC 8446, 5.1). As the first byte of an HTTP/2 frame it would make it longer than any may be.
const ALERT: u8 = 21;

/// A stream whose faults of TLS are noted.
pub(crate) struct Noted<S> {
    inner: S,
    last: LastFault,
    /// Nothing was read yet of a stream that is not encrypted.
    at_start: bool,
}

impl<S> Noted<S> {
    pub fn encrypted(inner: S, last: LastFault) -> Self {
        Self { inner, last, at_start: false }
    }

    pub fn plain(inner: S, last: LastFault) -> Self {
        Self { inner, last, at_start: true }
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            self.last.set(Some(TlsFault::of(error)));
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.at_start
            && let Some(first) = buf.filled().get(before)
        {
            self.at_start = false;
            if *first == ALERT {
                self.last.set(Some(TlsFault::Plain));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TlsFault::Plain)));
            }
        }
        self.note(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
