//! The three identifiers that every message is bound to.

use std::fmt;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Reads an identifier; `None` unless `bytes` has exactly [`Self::LEN`] bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The identifier as bytes.
            pub fn to_vec(self) -> Vec<u8> {
                self.0.to_vec()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { expected: 2 * $len, got: text.len() };
                if text.len() != 2 * $len || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
                    return Err(error());
                }
                let mut bytes = [0; $len];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| error())?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

identifier!(
    /// A device in the roster (section 1): 16 bytes, drawn at random when its keys are made.
    ClientId,
    16
);
identifier!(
    /// Hash of the encoded `RoundParams` (section 2): 32 bytes.
    RoundId,
    32
);
identifier!(
    /// Hash of the encoded `Cohort` (section 3): 32 bytes.
    CohortId,
    32
);

/// An identifier's text is not what its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an identifier is {expected} hexadecimal digits; this has {got} characters or others among them")]
pub struct IdError {
    /// Digits required.
    pub expected: usize,
    /// Characters found.
    pub got: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_survives_its_text() {
        let id = ClientId(std::array::from_fn(|i| i as u8 * 17));
        assert_eq!(id.to_string().parse::<ClientId>(), Ok(id));
        assert!("00".parse::<ClientId>().is_err());
        assert!("+0".repeat(16).parse::<ClientId>().is_err());
        assert!("zz".repeat(16).parse::<ClientId>().is_err());
    }
}
