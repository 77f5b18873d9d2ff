//! The coordinator's side of TLS: what a listener answers a handshake with, and how it follows its files.
//!
//! A new connection gets what the files hold now; no older one is dropped. Files that can't be used, such as one that is half copied or
//! a key of another certificate, change nothing: the last good ones stay in use, the log says why, and `unisono_tls_refused` is 1.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio_rustls::TlsAcceptor;
use unisono_tls::rustls::ServerConfig;
use unisono_tls::rustls::crypto::CryptoProvider;
use unisono_tls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use unisono_tls::rustls::sign::SingleCertAndKey;
use unisono_tls::{ALPN_HTTP1, ALPN_HTTP2, TlsError, VERSIONS};

use crate::config::{ConfigError, Tls, Validity};

/// The files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// That a certificate is over, or soon is, is said so often.
const REMIND_EVERY: Duration = Duration::from_secs(86_400);

/// Which listener it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Devices, by gRPC over HTTP/2. They must show a certificate where the configuration names `client_ca`.
    Devices,
    /// Metrics and health, over HTTP/1.1. No certificate is asked for.
    Metrics,
}

impl Listener {
    fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Metrics => "metrics",
        }
    }
}

/// Tells a file from the one that was there: inode, length, time of change.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let data = std::fs::metadata(path).ok()?;
    Some((data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

/// What is in use now.
struct Current {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
    stamps: Vec<Stamp>,
}

/// A listener's certificate, key and rules for clients, as of its files.
pub struct ServerTls {
    files: Tls,
    listener: Listener,
    provider: Arc<CryptoProvider>,
    current: RwLock<Current>,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`ConfigError`]: which file, and what is wrong with it. A certificate that has expired is no error: it is replaced while the
    /// coordinator runs.
    pub fn load(files: &Tls, listener: Listener) -> Result<Self, ConfigError> {
        let provider =
            unisono_tls::provider().map_err(|source| ConfigError::Tls { path: files.certificate.clone(), source })?;
        let current = RwLock::new(Current::read(files, listener, &provider)?);
        Ok(Self { files: files.clone(), listener, provider, current })
    }

    /// What the next connection is accepted with.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone().into()
    }

    /// Follows the files, for ever: reads them again when they have changed, and says when the certificate is over.
    pub async fn watch(&self) {
        let listener = self.listener.name();
        let (mut told, mut reminded) = (None, None::<Instant>);
        loop {
            let (stamps, validity) = {
                let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
                (current.stamps.clone(), current.validity)
            };
            let now = crate::now();
            let until = validity.map_or(f64::NAN, |validity| validity.until as f64);
            gauge!("unisono_tls_valid_until", "listener" => listener).set(until);
            let problem = validity.and_then(|validity| validity.fault(now).or_else(|| validity.warning(now)));
            if let Some(problem) = problem
                && reminded.is_none_or(|at| at.elapsed() > REMIND_EVERY)
            {
                tracing::warn!(listener, certificate = %self.files.certificate.display(), "{problem}");
                reminded = Some(Instant::now());
            }
            tokio::time::sleep(LOOK_EVERY).await;
            let seen: Vec<Stamp> = self.files.files().map(stamp).collect();
            if seen == stamps {
                gauge!("unisono_tls_refused", "listener" => listener).set(0.0);
                continue;
            }
            match Current::read(&self.files, self.listener, &self.provider) {
                Ok(read) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = read;
                    (told, reminded) = (None, None);
                    tracing::info!(listener, "new connections get the certificate that is there now");
                }
                // Each state of the files once: one that is half copied is whole a moment later.
                Err(error) => {
                    gauge!("unisono_tls_refused", "listener" => listener).set(1.0);
                    if told.as_ref() != Some(&seen) {
                        tracing::warn!(%error, listener, "the certificate's files are refused; the last good ones stay in use");
                        told = Some(seen);
                    }
                }
            }
        }
    }
}

impl Current {
    fn read(files: &Tls, listener: Listener, provider: &Arc<CryptoProvider>) -> Result<Self, ConfigError> {
        // Before they are read: what changes meanwhile is read again.
        let stamps = files.files().map(stamp).collect();
        let loaded = files.load(provider)?;
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |source: TlsError| ConfigError::Tls { path, source }
        };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| refused(&files.certificate)(error.into()))?;
        let builder = match (listener, loaded.client_ca, &files.client_ca) {
            (Listener::Devices, Some(roots), Some(path)) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build();
                let unusable = |error: unisono_tls::rustls::server::VerifierBuilderError| {
                    refused(path)(TlsError::Setup(error.to_string()))
                };
                builder.with_client_cert_verifier(verifier.map_err(unusable)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(loaded.key)));
        config.alpn_protocols = vec![match listener {
            Listener::Devices => ALPN_HTTP2.to_vec(),
            Listener::Metrics => ALPN_HTTP1.to_vec(),
        }];
        // Connections last for long, and each one proves anew who it is.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), validity: loaded.validity, stamps })
    }
}
