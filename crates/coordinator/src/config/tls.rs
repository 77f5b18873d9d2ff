//! `[tls]`: the certificate with its key, and who has to show one; and which listeners may do without.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use unisono_tls::rustls::RootCertStore;
use unisono_tls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use unisono_tls::rustls::sign::CertifiedKey;
use unisono_tls::{TlsError, rustls};
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::keys::secret_text;
use super::{Config, ConfigError, read};

/// Certificate and key of the listeners, PEM files. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate, followed by those of the authorities between it and one that clients trust.
    pub certificate: PathBuf,
    /// Its private key, without a password, which nobody but its owner may read.
    pub key: PathBuf,
    /// Authorities of clients' certificates: devices must show one of theirs. Absent: devices show none.
    pub client_ca: Option<PathBuf>,
}

/// The time in which a certificate is valid, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub from: u64,
    /// Last second.
    pub until: u64,
}

/// A certificate is over soon when less than this is left, in seconds.
const OVER_SOON: u64 = 14 * 86_400;

impl Validity {
    /// The time in which all certificates of a chain are valid; `None` where one does not say it as it should.
    fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let mut all = Self { from: 0, until: u64::MAX };
        for certificate in chain {
            let certificate = Certificate::from_der(certificate).ok()?;
            let validity = certificate.tbs_certificate().validity();
            all.from = all.from.max(validity.not_before.to_unix_duration().as_secs());
            all.until = all.until.min(validity.not_after.to_unix_duration().as_secs());
        }
        Some(all)
    }

    /// Whether it ends within 14 days, or within the last third of its time if that is less.
    pub fn is_over_soon(&self, now: u64) -> bool {
        let soon = OVER_SOON.min(self.until.saturating_sub(self.from) / 3);
        self.until.saturating_sub(now) < soon
    }

    /// What is wrong with it at `now`, for a person.
    pub(crate) fn fault(&self, now: u64) -> Option<String> {
        if now > self.until {
            Some(format!("the certificate has expired {} ago: clients refuse it", days(now - self.until)))
        } else if now < self.from {
            Some(format!("the certificate is valid only in {}: clients refuse it until then", days(self.from - now)))
        } else {
            None
        }
    }

    /// What will soon be wrong with it, for a person.
    pub(crate) fn warning(&self, now: u64) -> Option<String> {
        let soon = self.fault(now).is_none() && self.is_over_soon(now);
        soon.then(|| format!("the certificate expires in {}: renew it", days(self.until.saturating_sub(now))))
    }
}

/// A duration in days, or hours where that says more.
fn days(seconds: u64) -> String {
    match seconds / 3600 {
        hours @ ..48 => format!("{hours} h"),
        hours => format!("{} days", hours / 24),
    }
}

/// What the files of `[tls]` hold.
pub(crate) struct Loaded {
    pub key: CertifiedKey,
    pub client_ca: Option<Arc<RootCertStore>>,
    /// `None` when a certificate does not tell.
    pub validity: Option<Validity>,
}

impl Tls {
    pub(super) fn resolve(&mut self, resolve: impl Fn(&mut PathBuf)) {
        [&mut self.certificate, &mut self.key].into_iter().chain(&mut self.client_ca).for_each(resolve);
    }

    /// The files, in the order of the settings.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        unisono_tls::certificates(&read(&self.certificate)?).map_err(of(&self.certificate))
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, ConfigError> {
        unisono_tls::private_key(secret_text(&self.key)?.as_bytes()).map_err(of(&self.key))
    }

    fn client_authorities(&self) -> Result<Option<Arc<RootCertStore>>, ConfigError> {
        let Some(path) = &self.client_ca else { return Ok(None) };
        unisono_tls::authorities(&read(path)?).map(Some).map_err(of(path))
    }

    fn certified(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: &rustls::crypto::CryptoProvider,
    ) -> Result<CertifiedKey, ConfigError> {
        unisono_tls::certified_key(chain, key, provider).map_err(|error| match error {
            error @ TlsError::Certificate(_) => of(&self.certificate)(error),
            error => of(&self.key)(error),
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Exposed`] or [`ConfigError::Tls`], of the file at fault.
    pub(crate) fn load(&self, provider: &rustls::crypto::CryptoProvider) -> Result<Loaded, ConfigError> {
        let chain = self.chain()?;
        let validity = Validity::of(&chain);
        let key = self.certified(chain, self.private_key()?, provider)?;
        Ok(Loaded { key, client_ca: self.client_authorities()?, validity })
    }

    /// Adds everything that is wrong with the files, with the setting of each.
    pub(super) fn check_files(&self, now: u64, add: &mut impl FnMut(&str, String, &str)) {
        let provider = match unisono_tls::provider() {
            Ok(provider) => provider,
            Err(error) => return add("tls", error.to_string(), ""),
        };
        let mut good = |setting, error: ConfigError| add(setting, error.to_string(), "");
        let chain = self.chain().map_err(|error| good("tls.certificate", error)).ok();
        let key = self.private_key().map_err(|error| good("tls.key", error)).ok();
        let _ = self.client_authorities().map_err(|error| good("tls.client_ca", error));
        let Some(chain) = chain else { return };
        let validity = Validity::of(&chain);
        if let Some(Err(error)) = key.map(|key| self.certified(chain, key, &provider)) {
            good("tls.key", error);
        }
        if let Some(fault) = validity.and_then(|validity| validity.fault(now)) {
            let path = self.certificate.display();
            add("tls.certificate", format!("{path}: {fault}"), "renew it; a running coordinator takes the new files");
        }
    }

    /// What will soon be wrong.
    pub(super) fn warning(&self, now: u64) -> Option<String> {
        let warning = Validity::of(&self.chain().ok()?)?.warning(now)?;
        Some(format!("tls.certificate: {}: {warning}", self.certificate.display()))
    }
}

fn of(path: &Path) -> impl Fn(TlsError) -> ConfigError {
    move |source| ConfigError::Tls { path: path.into(), source }
}

/// Whether others than this machine can reach it.
fn is_reachable(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

impl Config {
    /// Which listeners can't be as they are set: without TLS, and not told to be.
    pub(super) fn listener_faults(&self) -> Vec<ConfigError> {
        let mut faults = Vec::new();
        if self.tls.is_some() && self.insecure {
            faults.push(ConfigError::Setting {
                setting: "insecure",
                got: "true".into(),
                allowed: "false where there is [tls]: remove one of the two".into(),
            });
        }
        if self.tls.is_none() && !self.insecure {
            let listeners = [("listen", Some(self.listen)), ("metrics_listen", self.metrics_listen)];
            let open = listeners.into_iter().filter_map(|(setting, address)| Some((setting, address?)));
            let open = open.filter(|(_, address)| is_reachable(*address));
            faults.extend(open.map(|(setting, address)| ConfigError::NoTls { setting, address }));
        }
        faults
    }

    /// Checks that no listener which others than this machine can reach is without TLS, unless `insecure` says so.
    ///
    /// # Errors
    /// [`ConfigError::NoTls`], or [`ConfigError::Setting`] for `insecure` beside `[tls]`.
    pub(crate) fn check_listeners(&self) -> Result<(), ConfigError> {
        self.listener_faults().into_iter().next().map_or(Ok(()), Err)
    }

    /// The certificate for the metrics' listener: none on loopback, where it speaks plain HTTP.
    pub fn metrics_tls(&self) -> Option<&Tls> {
        self.tls.as_ref().filter(|_| self.metrics_listen.is_some_and(is_reachable))
    }

    /// What is not wrong yet, and will be: a certificate that expires soon. `now` is Unix time in seconds.
    pub fn warnings(&self, now: u64) -> Vec<String> {
        self.tls.iter().filter_map(|tls| tls.warning(now)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;

    fn faults(listen: &str, metrics: Option<&str>, insecure: bool, tls: bool) -> Vec<&'static str> {
        let mut config = example("");
        config.listen = listen.parse().unwrap();
        config.metrics_listen = metrics.map(|address| address.parse().unwrap());
        config.insecure = insecure;
        config.tls = tls.then(|| Tls { certificate: "c".into(), key: "k".into(), client_ca: None });
        config.setting_faults().iter().filter_map(ConfigError::setting).collect()
    }

    #[test]
    fn others_than_this_machine_are_served_by_tls_unless_the_file_says_insecure() {
        for loopback in ["127.0.0.1:7700", "127.8.0.1:7700", "[::1]:7700", "[::ffff:127.0.0.1]:7700"] {
            assert!(faults(loopback, Some(loopback), false, false).is_empty(), "{loopback}");
        }
        for open in ["0.0.0.0:7700", "[::]:7700", "192.0.2.1:7700", "[::ffff:192.0.2.1]:7700"] {
            assert_eq!(faults(open, None, false, false), ["listen"], "{open}");
            assert_eq!(faults("127.0.0.1:1", Some(open), false, false), ["metrics_listen"], "{open}");
            assert!(
                faults(open, Some(open), true, false).is_empty() && faults(open, Some(open), false, true).is_empty()
            );
        }
        assert_eq!(faults("127.0.0.1:1", None, true, true), ["insecure"]);
        let mut config = example("");
        config.listen = "0.0.0.0:7700".parse().unwrap();
        let text = config.check().unwrap_err().to_string();
        assert!(text.contains("0.0.0.0:7700") && text.contains("[tls]") && text.contains("insecure = true"), "{text}");
    }

    #[test]
    fn a_certificate_is_over_soon_in_its_last_third_and_not_before_14_days() {
        const DAY: u64 = 86_400;
        let year = Validity { from: 0, until: 365 * DAY };
        assert_eq!(year.warning(350 * DAY), None);
        assert!(year.warning(352 * DAY).unwrap().contains("13 days"));
        assert!(year.fault(365 * DAY + 3 * 3600).unwrap().contains("3 h ago") && year.warning(366 * DAY).is_none());
        let day = Validity { from: 10 * DAY, until: 11 * DAY };
        assert!(!day.is_over_soon(10 * DAY + 15 * 3600) && day.is_over_soon(10 * DAY + 17 * 3600));
        assert!(day.fault(9 * DAY).unwrap().contains("valid only in 24 h"));
    }
}
