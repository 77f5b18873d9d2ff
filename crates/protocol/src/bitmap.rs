//! Sets of cohort indices as they travel: one bit each, least significant first, padding zero.

/// A bitmap's bytes are not a set of indices below `n`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a bitmap of {n} clients is {} bytes with zero padding; this has {got} bytes or a bit beyond the last client", .n.div_ceil(8))]
pub struct BitmapError {
    /// Clients in the cohort.
    pub n: usize,
    /// Bytes found.
    pub got: usize,
}

/// Packs membership flags.
pub fn to_bytes(members: &[bool]) -> Vec<u8> {
    members.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (i, &bit)| byte | u8::from(bit) << i)).collect()
}

/// Reads the membership flags of `n` clients.
///
/// # Errors
/// [`BitmapError`] for a wrong length or a set padding bit.
pub fn from_bytes(bytes: &[u8], n: usize) -> Result<Vec<bool>, BitmapError> {
    let members: Vec<bool> = (0..n).map(|i| bytes.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1)).collect();
    if to_bytes(&members) == bytes { Ok(members) } else { Err(BitmapError { n, got: bytes.len() }) }
}

/// Number of members.
pub fn count(members: &[bool]) -> usize {
    members.iter().filter(|&&member| member).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_survives_its_bytes_and_other_bytes_are_refused() {
        for n in 0..40 {
            let members: Vec<bool> = (0..n).map(|i| i % 3 == 0).collect();
            assert_eq!(from_bytes(&to_bytes(&members), n), Ok(members));
        }
        assert_eq!(to_bytes(&[true, false, false, false, false, false, false, false, true]), [1, 1]);
        assert!(from_bytes(&[2], 1).is_err() && from_bytes(&[1, 0], 8).is_err() && from_bytes(&[], 1).is_err());
    }
}
