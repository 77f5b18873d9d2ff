//! Content keys at rest: the one place where they are wrapped and unwrapped. Each wrap names the key-encryption key that opens it.

use getrandom::SysRng;
use rand_core::UnwrapErr;
use unisono_crypto::secret::Secret32;
use unisono_release::{ContentKey, KeyEncryptionKey, ReleaseError};

/// The configured key's name, which has one version so far.
const CONFIGURED: &str = "default";
/// Name of a key that is drawn at each start, where none is configured.
const OF_THIS_PROCESS: &str = "process";

/// A content key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrappedKey {
    /// Which key-encryption key opens it.
    pub key_id: String,
    /// Which version of that key.
    pub key_version: u64,
    /// The wrapped key.
    pub bytes: Vec<u8>,
}

/// Wraps and unwraps content keys.
pub(crate) struct ContentKeys {
    key: KeyEncryptionKey,
    id: &'static str,
}

impl ContentKeys {
    /// With the configured key-encryption key. Without one, a key is drawn: what it wraps is sealed anew after a restart.
    pub fn new(configured: Option<KeyEncryptionKey>) -> Self {
        let drawn = || KeyEncryptionKey::from_secret(Secret32::random(&mut UnwrapErr(SysRng)));
        let id = if configured.is_some() { CONFIGURED } else { OF_THIS_PROCESS };
        Self { key: configured.unwrap_or_else(drawn), id }
    }

    /// Id and version of the key that wraps from now on, as headers name it.
    pub fn active(&self) -> (String, u64) {
        (self.id.into(), 1)
    }

    /// Wraps the content key of the file with the given header.
    ///
    /// # Errors
    /// [`ReleaseError::WrappedKey`], which no key causes.
    pub fn wrap(&self, key: &ContentKey, header_hash: &[u8; 32]) -> Result<WrappedKey, ReleaseError> {
        let (key_id, key_version) = self.active();
        Ok(WrappedKey { key_id, key_version, bytes: self.key.wrap(key, header_hash)? })
    }

    /// Opens what [`Self::wrap`] made.
    ///
    /// # Errors
    /// [`ReleaseError::WrappedKey`] for another key, another header or changed bytes.
    pub fn unwrap(&self, wrapped: &WrappedKey, header_hash: &[u8; 32]) -> Result<ContentKey, ReleaseError> {
        if (wrapped.key_id.as_str(), wrapped.key_version) != (self.id, 1) {
            return Err(ReleaseError::WrappedKey);
        }
        self.key.unwrap(&wrapped.bytes, header_hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrap_opens_under_the_key_that_it_names_alone() {
        let kek = || Some(KeyEncryptionKey::from_secret(Secret32::from_bytes([9; 32])));
        let (keys, key) = (ContentKeys::new(kek()), ContentKey::random(&mut UnwrapErr(SysRng)));
        let wrapped = keys.wrap(&key, &[1; 32]).unwrap();
        assert_eq!((wrapped.key_id.as_str(), wrapped.key_version), ("default", 1));
        assert!(ContentKeys::new(kek()).unwrap(&wrapped, &[1; 32]).is_ok(), "after a restart");
        let drawn = ContentKeys::new(None);
        let of_process = drawn.wrap(&key, &[1; 32]).unwrap();
        assert!(drawn.unwrap(&of_process, &[1; 32]).is_ok());
        let later = WrappedKey { key_version: 2, ..wrapped.clone() };
        for (keys, wrapped) in
            [(&keys, &of_process), (&drawn, &wrapped), (&ContentKeys::new(None), &of_process), (&keys, &later)]
        {
            assert_eq!(keys.unwrap(wrapped, &[1; 32]).err(), Some(ReleaseError::WrappedKey));
        }
        assert_eq!(keys.unwrap(&wrapped, &[2; 32]).err(), Some(ReleaseError::WrappedKey));
    }
}
