//! X25519 (RFC 7748) by the fastest implementation that the processor has: graviola's, whose assembly comes from the
//! formally verified s2n-bignum, else that of `x25519-dalek`. Both give the same bytes.
//!
//! The protocol has it inside [`crate::kem`] only; bare, it serves to compare costs with protocols that are not post-quantum.

use std::sync::OnceLock;

use zeroize::Zeroizing;

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod fast {
    use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
    use zeroize::Zeroizing;

    pub(super) fn available() -> bool {
        graviola::util::is_cpu_supported()
    }

    pub(super) fn public_key(secret: &[u8; 32]) -> [u8; 32] {
        StaticPrivateKey::from_array(secret).public_key().as_bytes()
    }

    pub(super) fn diffie_hellman(secret: &[u8; 32], public: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        let shared = StaticPrivateKey::from_array(secret).diffie_hellman(&PublicKey::from_array(public));
        // Its one error stands for the all-zero result (a key of small order), which X-Wing hashes like any other.
        Zeroizing::new(shared.map_or([0; 32], |shared| shared.0))
    }
}

#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
use portable as fast;

mod portable {
    use x25519_dalek::{PublicKey, StaticSecret};
    use zeroize::Zeroizing;

    #[allow(dead_code)] // used where there is no other implementation
    pub(super) fn available() -> bool {
        true
    }

    pub(super) fn public_key(secret: &[u8; 32]) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
    }

    pub(super) fn diffie_hellman(secret: &[u8; 32], public: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*public)).to_bytes())
    }
}

/// Whether graviola runs on this processor.
pub(crate) fn has_fast() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(fast::available)
}

/// The public key of a secret, which is clamped as RFC 7748 says.
pub fn public_key(secret: &[u8; 32]) -> [u8; 32] {
    if has_fast() { fast::public_key(secret) } else { portable::public_key(secret) }
}

/// The shared secret, to be hashed before it is a key; all zeros for a public key of small order.
pub fn diffie_hellman(secret: &[u8; 32], public: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    if has_fast() { fast::diffie_hellman(secret, public) } else { portable::diffie_hellman(secret, public) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agree(secret: &[u8; 32], public: &[u8; 32]) {
        if fast::available() {
            assert_eq!(fast::public_key(secret), portable::public_key(secret));
            assert_eq!(*fast::diffie_hellman(secret, public), *portable::diffie_hellman(secret, public));
        }
    }

    proptest! {
        #[test]
        fn both_implementations_give_the_same_bytes(secret: [u8; 32], public: [u8; 32]) {
            agree(&secret, &public);
        }
    }

    #[test]
    fn keys_of_small_order_and_not_reduced_ones_are_treated_alike() {
        // 0, 1, p - 1, p, p + 1, 2^255 - 1, and 2^255 - 1 with the bit that RFC 7748 ignores.
        let around_p = |last: u8| {
            let mut key = [0xff; 32];
            (key[0], key[31]) = (last, 0x7f);
            key
        };
        let mut one = [0; 32];
        one[0] = 1;
        let keys = [[0; 32], one, around_p(0xec), around_p(0xed), around_p(0xee), around_p(0xff), [0xff; 32]];
        keys.iter().for_each(|public| agree(&[0x55; 32], public));
        assert_eq!(*diffie_hellman(&[0x55; 32], &[0; 32]), [0; 32]);
    }

    #[test]
    fn the_first_vector_of_rfc_7748_section_5_2_holds() {
        let bytes = |text| <[u8; 32]>::try_from(hex::decode(text).unwrap()).unwrap();
        let scalar = bytes("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
        let point = bytes("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
        let shared = bytes("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
        assert_eq!(*diffie_hellman(&scalar, &point), shared);
    }
}
