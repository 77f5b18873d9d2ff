//! Certificates of authorities that live as long as a test.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// What differs from a certificate for this machine that is valid for ten years.
#[derive(Default)]
pub struct Terms {
    pub names: Option<&'static str>,
    /// Seconds from now, in which it is valid.
    pub from: Option<i64>,
    pub until: Option<i64>,
    pub client: bool,
}

const DAY: i64 = 86_400;

fn params(names: Vec<String>, name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = params(vec![], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, terms: Terms) -> Pair {
        let names = match terms.names {
            Some(name) => vec![name.to_owned()],
            None => vec!["localhost".into(), "127.0.0.1".into()],
        };
        let mut params = params(names, "end entity");
        params.extended_key_usages =
            vec![if terms.client { ExtendedKeyUsagePurpose::ClientAuth } else { ExtendedKeyUsagePurpose::ServerAuth }];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let at = |seconds: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs((now + seconds) as u64);
        params.not_before = at(terms.from.unwrap_or(-DAY));
        params.not_after = at(terms.until.unwrap_or(3650 * DAY));
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// Replaces a file in place, as `cp` does, readable by its owner alone.
pub fn write(path: &Path, text: &str) {
    use std::io::Write;
    let mut options = std::fs::File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

impl Pair {
    /// As `server.pem` and `server.key`.
    pub fn write(&self, folder: &Path) {
        write(&folder.join("server.key"), &self.key);
        write(&folder.join("server.pem"), &self.certificate);
    }
}
