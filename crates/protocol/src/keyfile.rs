//! Keys as text, one file a key: a first line that says what it is, then `name = hexadecimal digits` lines. Files with secrets
//! are read by [`read_secret`]; writing them, with permissions that keep them private, is the caller's.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rand_core::CryptoRng;
use unisono_crypto::kdf::label;
use unisono_crypto::kem::{DecapsulationKey, EncapsulationKey};
use unisono_crypto::secret::Secret32;
use unisono_crypto::sign::{Level, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::client::Identity;
use crate::ids::ClientId;
use crate::proto::{Attribute, RosterLeaf};
use crate::roster::release_key_hash;

const FORMAT: &str = "unisono/v1";

/// Why a text is not the wanted key. It carries nothing of the text, which may be a secret, but which kind of key file it says to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Another kind of file.
    #[error("this is not a {expected}: {}", .got.as_ref().map_or_else(|| format!("its first line is not \"{FORMAT} {expected}\""), |kind| format!("it is a {kind}")))]
    Kind {
        /// What was asked for.
        expected: String,
        /// Which kind of key file it is, if it is any.
        got: Option<String>,
    },
    /// A field is missing or no key.
    #[error("the {kind} has no valid field `{field}`")]
    Field {
        /// What was asked for.
        kind: String,
        /// Which field.
        field: &'static str,
    },
    /// A line is none of the kind's, or a second one of a field.
    #[error(
        "line {line} of the {kind} is none of its fields, or repeats one: the file was changed or put together by hand"
    )]
    Line {
        /// What was asked for.
        kind: String,
        /// Which line, from 1.
        line: usize,
    },
    /// A secret of zeros, which no generator has made.
    #[error("`{field}` of the {kind} is all zeros, which is no key")]
    Zero {
        /// What was asked for.
        kind: String,
        /// Which field.
        field: &'static str,
    },
    /// An enrolment that its own identity key has not signed.
    #[error("the {kind} is not signed by its own identity key: it was changed or put together by hand")]
    Signature {
        /// What was asked for.
        kind: String,
    },
}

/// Largest file that is read as a key, in bytes: every key is far smaller.
pub const MAX_KEY_FILE: u64 = 64 << 10;

/// Refuses a secret file that others than its owner may read or write.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] with what to do.
#[cfg_attr(not(unix), expect(unused_variables, reason = "other systems have no such permissions"))]
pub fn check_private(metadata: &std::fs::Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let wanted = if metadata.is_dir() { 700 } else { 600 };
            let why = format!(
                "it holds a secret, and others than its owner may use it (mode {mode:03o}): change that with `chmod {wanted}`; \
                 if others have had access to it, make a new key"
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
    }
    Ok(())
}

/// Reads a file of at most [`MAX_KEY_FILE`] bytes that may hold a key.
///
/// # Errors
/// As of the operating system; [`io::ErrorKind::InvalidData`] when the file is larger or no text.
pub fn read_public(path: &Path) -> io::Result<String> {
    read(File::open(path)?)
}

/// As [`read_public`], for secret keys: refuses a file that others than its owner may read or write.
///
/// # Errors
/// As [`read_public`]; [`io::ErrorKind::PermissionDenied`] too.
pub fn read_secret(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = File::open(path)?;
    check_private(&file.metadata()?)?;
    read(file).map(Zeroizing::new)
}

fn read(file: File) -> io::Result<String> {
    // Room for all of it, so that no copy of a secret stays behind when the text grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(file.metadata()?.len().min(MAX_KEY_FILE) as usize + 1));
    file.take(MAX_KEY_FILE + 1).read_to_end(&mut bytes)?;
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if bytes.len() as u64 > MAX_KEY_FILE {
        return Err(invalid(format!("larger than {MAX_KEY_FILE} bytes: no key file of unisono's is")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| invalid("no text, so no key file of unisono's".into()))?;
    Ok(text.to_owned())
}

/// Whose long-term key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Signs rosters.
    Registrar,
    /// Signs round parameters and cohorts.
    Coordinator,
    /// Signs releases and grants.
    Publisher,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registrar => "registrar",
            Self::Coordinator => "coordinator",
            Self::Publisher => "publisher",
        })
    }
}

fn write(kind: &str, fields: &[(&'static str, &[u8])]) -> Zeroizing<String> {
    let lines: usize = fields.iter().map(|(name, value)| name.len() + 2 * value.len() + 4).sum();
    // Room for all of it, so that no copy of a secret stays behind when the text grows.
    let mut text = Zeroizing::new(String::with_capacity(lines + kind.len() + FORMAT.len() + 2));
    text.push_str(FORMAT);
    text.push(' ');
    text.push_str(kind);
    text.push('\n');
    for (name, value) in fields {
        text.push_str(name);
        text.push_str(" = ");
        for nibble in value.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            text.extend(char::from_digit(nibble.into(), 16));
        }
        text.push('\n');
    }
    text
}

/// Every kind of key file, by what stands after the format in its first line.
const KINDS: [&str; 9] = [
    "registrar secret key",
    "registrar public key",
    "coordinator secret key",
    "coordinator public key",
    "publisher secret key",
    "publisher public key",
    "key-encryption key",
    "device secret key",
    "device public key",
];

/// The fields of a text of the given kind: each line is one, and no field comes twice.
struct Fields<'a> {
    kind: String,
    values: Vec<(&'static str, &'a str)>,
}

impl<'a> Fields<'a> {
    fn read(kind: String, known: &[&'static str], text: &'a str) -> Result<Self, KeyFileError> {
        // Some editors put a byte-order mark before a text.
        let mut lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        let first = lines.next().unwrap_or_default().trim_end();
        if first != format!("{FORMAT} {kind}") {
            // Whatever else stands there may be a secret.
            let got =
                KINDS.into_iter().find(|kind| first.strip_prefix(FORMAT).is_some_and(|rest| rest.trim() == *kind));
            return Err(KeyFileError::Kind { expected: kind, got: got.map(str::to_owned) });
        }
        let mut values: Vec<(&'static str, &'a str)> = Vec::with_capacity(known.len());
        for (i, line) in lines.enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let field = line.split_once('=').and_then(|(name, value)| {
                let name = known.iter().copied().find(|known| *known == name.trim())?;
                (!values.iter().any(|(present, _)| *present == name)).then_some((name, value.trim()))
            });
            values.push(field.ok_or_else(|| KeyFileError::Line { kind: kind.clone(), line: i + 2 })?);
        }
        Ok(Self { kind, values })
    }

    fn missing(&self, field: &'static str) -> KeyFileError {
        KeyFileError::Field { kind: self.kind.clone(), field }
    }

    fn bytes(&self, field: &'static str) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
        let value = self.values.iter().find(|(name, _)| *name == field);
        let digits = value.ok_or_else(|| self.missing(field))?.1.as_bytes();
        let nibble = |digit: &u8| char::from(*digit).to_digit(16).map(|nibble| nibble as u8);
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(nibble(high)? << 4 | nibble(low)?),
            _ => None,
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
        for pair in digits.chunks(2) {
            bytes.push(byte(pair).ok_or_else(|| self.missing(field))?);
        }
        Ok(bytes)
    }

    fn secret(&self, field: &'static str) -> Result<Secret32, KeyFileError> {
        let bytes: [u8; 32] = self.bytes(field)?.as_slice().try_into().map_err(|_| self.missing(field))?;
        let secret = Secret32::from_bytes(bytes);
        if secret.ct_eq(&Secret32::from_bytes([0; 32])) {
            return Err(KeyFileError::Zero { kind: self.kind.clone(), field });
        }
        Ok(secret)
    }

    fn client_id(&self) -> Result<ClientId, KeyFileError> {
        ClientId::from_slice(&self.bytes("client_id")?).ok_or_else(|| self.missing("client_id"))
    }
}

/// Writes a long-term signing key.
pub fn signing_key_to_text(role: Role, key: &SigningKey) -> Zeroizing<String> {
    write(&format!("{role} secret key"), &[("seed", key.seed().expose())])
}

/// Reads a long-term signing key (Ed25519 + ML-DSA-65).
///
/// # Errors
/// [`KeyFileError`].
pub fn signing_key_from_text(role: Role, text: &str) -> Result<SigningKey, KeyFileError> {
    let fields = Fields::read(format!("{role} secret key"), &["seed"], text)?;
    Ok(SigningKey::from_seed(Level::L65, &fields.secret("seed")?))
}

/// Writes a long-term verifying key.
pub fn verifying_key_to_text(role: Role, key: &VerifyingKey) -> String {
    write(&format!("{role} public key"), &[("key", key.as_bytes())]).to_string()
}

/// Reads a long-term verifying key (Ed25519 + ML-DSA-65).
///
/// # Errors
/// [`KeyFileError`].
pub fn verifying_key_from_text(role: Role, text: &str) -> Result<VerifyingKey, KeyFileError> {
    let fields = Fields::read(format!("{role} public key"), &["key"], text)?;
    let key = VerifyingKey::from_bytes(&fields.bytes("key")?).ok().filter(|key| key.level() == Level::L65);
    key.ok_or_else(|| fields.missing("key"))
}

/// Writes the key-encryption key that wraps content keys of releases.
pub fn key_encryption_key_to_text(secret: &Secret32) -> Zeroizing<String> {
    write("key-encryption key", &[("secret", secret.expose())])
}

/// Reads a key-encryption key.
///
/// # Errors
/// [`KeyFileError`].
pub fn key_encryption_key_from_text(text: &str) -> Result<Secret32, KeyFileError> {
    Fields::read("key-encryption key".into(), &["secret"], text)?.secret("secret")
}

/// A device's long-term secrets.
pub struct DeviceKeys {
    /// Its name, drawn at random.
    pub client_id: ClientId,
    /// Signs what it sends (Ed25519 + ML-DSA-44).
    pub signing_key: SigningKey,
    /// Opens grants of released models (X-Wing).
    pub release_key: DecapsulationKey,
}

impl DeviceKeys {
    /// Fresh keys under a fresh id.
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut client_id = [0; ClientId::LEN];
        rng.fill_bytes(&mut client_id);
        Self {
            client_id: ClientId(client_id),
            signing_key: SigningKey::generate(Level::L44, rng),
            release_key: DecapsulationKey::generate(rng),
        }
    }

    /// The keys as text. It is secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let (identity, release) = (self.signing_key.seed(), self.release_key.seed());
        let fields: [(&'static str, &[u8]); 3] = [
            ("client_id", &self.client_id.0),
            ("identity_seed", identity.expose()),
            ("release_seed", release.expose()),
        ];
        write("device secret key", &fields)
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn from_text(text: &str) -> Result<Self, KeyFileError> {
        let fields = Fields::read("device secret key".into(), &["client_id", "identity_seed", "release_seed"], text)?;
        Ok(Self {
            client_id: fields.client_id()?,
            signing_key: SigningKey::from_seed(Level::L44, &fields.secret("identity_seed")?),
            release_key: DecapsulationKey::from_seed(&fields.secret("release_seed")?),
        })
    }

    /// What the state machine needs of them.
    pub fn identity(&self) -> Identity {
        Identity { client_id: self.client_id, signing_key: self.signing_key.clone() }
    }

    /// What the registrar needs of them, signed. The same each time.
    pub fn enrolment(&self) -> Enrolment {
        let (identity_key, release_key) = (self.signing_key.verifying_key(), self.release_key.encapsulation_key());
        let payload = enrolment_payload(self.client_id, &identity_key, &release_key);
        let signature = self.signing_key.sign(label::SIG_ENROLMENT, &payload);
        Enrolment { client_id: self.client_id, identity_key, release_key, signature }
    }
}

/// What a device signs (section 1): id, identity key and release key, each of a fixed length.
fn enrolment_payload(client_id: ClientId, identity_key: &VerifyingKey, release_key: &EncapsulationKey) -> Vec<u8> {
    [&client_id.0, identity_key.as_bytes(), release_key.as_bytes()].concat()
}

/// The public half of [`DeviceKeys`], which the registrar enrols: signed by its own identity key (section 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    client_id: ClientId,
    identity_key: VerifyingKey,
    release_key: EncapsulationKey,
    signature: Vec<u8>,
}

impl Enrolment {
    const KIND: &str = "device public key";

    /// Verifies an enrolment.
    ///
    /// # Errors
    /// [`KeyFileError::Field`] when the identity key is no ML-DSA-44 hybrid key, [`KeyFileError::Signature`].
    pub fn verify(
        client_id: ClientId,
        identity_key: VerifyingKey,
        release_key: EncapsulationKey,
        signature: Vec<u8>,
    ) -> Result<Self, KeyFileError> {
        if identity_key.level() != Level::L44 {
            return Err(KeyFileError::Field { kind: Self::KIND.into(), field: "identity_key" });
        }
        let payload = enrolment_payload(client_id, &identity_key, &release_key);
        let verified = identity_key.verify(label::SIG_ENROLMENT, &payload, &signature);
        verified.map_err(|_| KeyFileError::Signature { kind: Self::KIND.into() })?;
        Ok(Self { client_id, identity_key, release_key, signature })
    }

    /// The device's name.
    pub fn client_id(&self) -> ClientId {
        self.client_id
    }

    /// Verifies what it signs (Ed25519 + ML-DSA-44).
    pub fn identity_key(&self) -> &VerifyingKey {
        &self.identity_key
    }

    /// Takes grants of released models (X-Wing).
    pub fn release_key(&self) -> &EncapsulationKey {
        &self.release_key
    }

    /// Of the identity key, over the other fields.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The device's leaf in a roster (section 1). Validity is in seconds since 1970, its end included.
    pub fn leaf(&self, not_before: u64, not_after: u64, attributes: Vec<Attribute>) -> RosterLeaf {
        RosterLeaf {
            client_id: self.client_id.to_vec(),
            identity_key: self.identity_key.as_bytes().to_vec(),
            release_key_hash: release_key_hash(self.release_key.as_bytes()).to_vec(),
            not_before,
            not_after,
            attributes,
        }
    }

    /// The enrolment as text.
    pub fn to_text(&self) -> String {
        let fields: [(&'static str, &[u8]); 4] = [
            ("client_id", &self.client_id.0),
            ("identity_key", self.identity_key.as_bytes()),
            ("release_key", self.release_key.as_bytes()),
            ("signature", &self.signature),
        ];
        write(Self::KIND, &fields).to_string()
    }

    /// Reads what [`Self::to_text`] wrote.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn from_text(text: &str) -> Result<Self, KeyFileError> {
        let fields = Fields::read(Self::KIND.into(), &["client_id", "identity_key", "release_key", "signature"], text)?;
        let (client_id, identity_key, release_key) = Self::keys(&fields)?;
        Self::verify(client_id, identity_key, release_key, fields.bytes("signature")?.to_vec())
    }

    /// The leaf of a device that a registrar has enrolled with the text of an earlier version, which devices did not sign. Validity is
    /// as of [`Self::leaf`].
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn leaf_of_unsigned(
        text: &str,
        not_before: u64,
        not_after: u64,
        attributes: Vec<Attribute>,
    ) -> Result<RosterLeaf, KeyFileError> {
        let fields = Fields::read(Self::KIND.into(), &["client_id", "identity_key", "release_key"], text)?;
        let (client_id, identity_key, release_key) = Self::keys(&fields)?;
        let unsigned = Self { client_id, identity_key, release_key, signature: Vec::new() };
        Ok(unsigned.leaf(not_before, not_after, attributes))
    }

    fn keys(fields: &Fields<'_>) -> Result<(ClientId, VerifyingKey, EncapsulationKey), KeyFileError> {
        let identity_key = VerifyingKey::from_bytes(&fields.bytes("identity_key")?).ok();
        let release_key = EncapsulationKey::from_bytes(&fields.bytes("release_key")?).ok();
        Ok((
            fields.client_id()?,
            identity_key.filter(|key| key.level() == Level::L44).ok_or_else(|| fields.missing("identity_key"))?,
            release_key.ok_or_else(|| fields.missing("release_key"))?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn keys_survive_their_text_and_no_key_passes_for_another() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let key = SigningKey::generate(Level::L65, &mut rng);
        let secret = signing_key_to_text(Role::Registrar, &key);
        let read = signing_key_from_text(Role::Registrar, &secret).unwrap();
        assert_eq!(read.verifying_key(), key.verifying_key());
        assert!(matches!(signing_key_from_text(Role::Publisher, &secret), Err(KeyFileError::Kind { .. })));
        let public = verifying_key_to_text(Role::Registrar, &key.verifying_key());
        assert_eq!(verifying_key_from_text(Role::Registrar, &public), Ok(key.verifying_key()));
        assert!(matches!(verifying_key_from_text(Role::Registrar, &secret), Err(KeyFileError::Kind { .. })));
        let cut = verifying_key_from_text(Role::Registrar, &public[..100]);
        assert!(matches!(cut, Err(KeyFileError::Field { field: "key", .. })));

        let device = DeviceKeys::generate(&mut rng);
        let read = DeviceKeys::from_text(&device.to_text()).unwrap();
        assert_eq!(read.enrolment(), device.enrolment());
        assert_eq!(Enrolment::from_text(&device.enrolment().to_text()), Ok(device.enrolment()));
        // Another's identity key with an id or a release key of one's own is nobody's enrolment.
        let other = DeviceKeys::generate(&mut rng).enrolment();
        let own = device.enrolment();
        for (client_id, release_key) in [(other.client_id, &own.release_key), (own.client_id, &other.release_key)] {
            let forged = Enrolment { client_id, release_key: release_key.clone(), ..own.clone() };
            assert!(matches!(Enrolment::from_text(&forged.to_text()), Err(KeyFileError::Signature { .. })));
        }
        let forged = Enrolment { signature: other.signature, ..own.clone() };
        assert!(matches!(Enrolment::from_text(&forged.to_text()), Err(KeyFileError::Signature { .. })));
        let unsigned = own.to_text().lines().take(4).collect::<Vec<_>>().join("\n");
        assert!(matches!(Enrolment::from_text(&unsigned), Err(KeyFileError::Field { field: "signature", .. })));
        let secret = Secret32::from_bytes([5; 32]);
        let kek = key_encryption_key_from_text(&key_encryption_key_to_text(&secret)).unwrap();
        assert!(kek.ct_eq(&secret));
    }

    #[test]
    #[cfg(unix)]
    #[cfg_attr(miri, ignore = "files")]
    fn a_secret_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("unisono-keyfile-{}", std::process::id()));
        std::fs::write(&path, "secret").unwrap();
        let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        for open in [0o644, 0o640, 0o604, 0o620] {
            mode(open);
            let refused = read_secret(&path).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert!(refused.to_string().contains("chmod 600"), "{refused}");
            assert_eq!(read_public(&path).unwrap(), "secret");
        }
        mode(0o600);
        assert_eq!(*read_secret(&path).unwrap(), "secret");
        std::fs::write(&path, vec![b'a'; MAX_KEY_FILE as usize + 1]).unwrap();
        assert_eq!(read_secret(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_public(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_text_that_is_no_key_is_refused_without_being_repeated() {
        for text in ["", "hello", "unisono/v1 device secret key", "unisono/v1 device secret key\nclient_id = zz"] {
            assert!(DeviceKeys::from_text(text).is_err(), "{text:?}");
        }
        // A raw secret, as other tools write it, is in no error.
        let raw = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        for text in [raw.to_owned(), format!("{FORMAT} {raw}"), format!("{FORMAT} device secret key {raw}")] {
            let error = DeviceKeys::from_text(&text).err().unwrap();
            assert!(!format!("{error} {error:?}").contains(&raw[..8]), "{error}");
        }
        let odd = DeviceKeys::from_text("unisono/v1 device secret key\nclient_id = 123");
        assert_eq!(odd.err().unwrap().to_string(), "the device secret key has no valid field `client_id`");
    }

    #[test]
    fn repeated_fields_further_lines_and_zeros_are_refused_and_a_byte_order_mark_is_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let device = DeviceKeys::generate(&mut rng);
        let text = device.to_text();
        let read = |text: &str| DeviceKeys::from_text(text).map(|keys| keys.enrolment());
        assert_eq!(read(&format!("\u{feff}{}\n", text.replace('\n', "\r\n"))), Ok(device.enrolment()));
        let line = |line| Err(KeyFileError::Line { kind: "device secret key".into(), line });
        let last = text.lines().last().unwrap();
        assert_eq!(read(&format!("{}{last}\n", *text)), line(5));
        assert_eq!(read(&format!("{}colour = 00\n", *text)), line(5));
        assert_eq!(read(&text.replace("client_id", "# note\nclient_id")), line(2));
        let zero = text.replace(last, &format!("release_seed = {}", "0".repeat(64)));
        assert_eq!(read(&zero), Err(KeyFileError::Zero { kind: "device secret key".into(), field: "release_seed" }));
        let zero = format!("{FORMAT} key-encryption key\nsecret = {}\n", "0".repeat(64));
        assert!(matches!(key_encryption_key_from_text(&zero), Err(KeyFileError::Zero { .. })));
        let other = key_encryption_key_from_text(&text).err().unwrap().to_string();
        assert_eq!(other, "this is not a key-encryption key: it is a device secret key");
    }
}
