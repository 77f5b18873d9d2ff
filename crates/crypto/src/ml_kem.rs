//! ML-KEM-768 (FIPS 203) by the fastest implementation that the processor has: on x86-64 graviola's, whose transforms and reductions
//! come from the formally verified s2n-bignum, else libcrux's, which is verified. Both give the same bytes.

use zeroize::Zeroizing;

use crate::x25519::has_fast;

/// Bytes of an encapsulation key.
pub(crate) const EK_LEN: usize = 1184;
/// Bytes of a ciphertext.
pub(crate) const CT_LEN: usize = 1088;

/// A ciphertext and the secret in it.
type Encapsulated = ([u8; CT_LEN], Zeroizing<[u8; 32]>);

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod fast {
    use std::sync::Arc;

    // What takes a seed or coins (`KeyGen_internal`, `Encaps_internal`, `Decaps_internal` of FIPS 203) is public in this crate but
    // outside its documentation, so its version is pinned. These functions leave out the guard of the documented ones, which clears
    // vector registers (as the X25519 that follows in an X-Wing operation does) and, on aarch64, asks for data-independent timing: so not there.
    use graviola::key_agreement::mlkem768::{Ciphertext, DecapKey, EncapKey, Message};
    use zeroize::Zeroizing;

    use super::{CT_LEN, EK_LEN, Encapsulated};

    #[derive(Clone)]
    pub(crate) struct Key(Arc<DecapKey>);

    impl Key {
        pub(super) fn from_seed(seed: &[u8; 64]) -> Self {
            Self(Arc::new(DecapKey::keygen_internal(seed)))
        }

        pub(super) fn encapsulation_key(&self) -> [u8; EK_LEN] {
            self.0.encapsulation_key().as_bytes()
        }

        pub(super) fn decapsulate(&self, ct: &[u8; CT_LEN]) -> Zeroizing<[u8; 32]> {
            Zeroizing::new(*self.0.decaps_internal(&Ciphertext::from(*ct)).as_ref())
        }
    }

    pub(super) fn is_valid(key: &[u8; EK_LEN]) -> bool {
        EncapKey::from_bytes(key).is_ok()
    }

    pub(super) fn encapsulate(key: &[u8; EK_LEN], coins: &[u8; 32]) -> Encapsulated {
        let key = EncapKey::from_bytes(key).unwrap_or_else(|_| unreachable!("keys are checked when they are read"));
        let (secret, ct) = key.encaps_internal(Message(*coins));
        (*ct.as_ref(), Zeroizing::new(*secret.as_ref()))
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
use portable as fast;

mod portable {
    use libcrux_ml_kem::mlkem768::{self, MlKem768Ciphertext, MlKem768PrivateKey, MlKem768PublicKey};
    use zeroize::{Zeroize, Zeroizing};

    use super::{CT_LEN, EK_LEN, Encapsulated};

    const DK_LEN: usize = 2400;

    #[derive(Clone)]
    pub(crate) struct Key {
        secret: Box<MlKem768PrivateKey>,
        public: Box<MlKem768PublicKey>,
    }

    impl Drop for Key {
        fn drop(&mut self) {
            self.secret[0..DK_LEN].zeroize();
        }
    }

    impl Key {
        pub(super) fn from_seed(seed: &[u8; 64]) -> Self {
            let (secret, public) = mlkem768::generate_key_pair(*seed).into_parts();
            Self { secret: Box::new(secret), public: Box::new(public) }
        }

        pub(super) fn encapsulation_key(&self) -> [u8; EK_LEN] {
            *self.public.as_slice()
        }

        pub(super) fn decapsulate(&self, ct: &[u8; CT_LEN]) -> Zeroizing<[u8; 32]> {
            Zeroizing::new(mlkem768::decapsulate(&self.secret, &MlKem768Ciphertext::from(ct)))
        }
    }

    pub(super) fn is_valid(key: &[u8; EK_LEN]) -> bool {
        mlkem768::validate_public_key(&MlKem768PublicKey::from(key))
    }

    pub(super) fn encapsulate(key: &[u8; EK_LEN], coins: &[u8; 32]) -> Encapsulated {
        let (ct, secret) = mlkem768::encapsulate(&MlKem768PublicKey::from(key), *coins);
        (*ct.as_slice(), Zeroizing::new(secret))
    }
}

/// A decapsulation key, expanded once and erased when dropped.
#[derive(Clone)]
pub(crate) enum DecapsulationKey {
    Fast(fast::Key),
    Portable(portable::Key),
}

impl DecapsulationKey {
    /// The key of FIPS 203's seed `d || z`.
    pub(crate) fn from_seed(seed: &[u8; 64]) -> Self {
        if has_fast() { Self::Fast(fast::Key::from_seed(seed)) } else { Self::Portable(portable::Key::from_seed(seed)) }
    }

    pub(crate) fn encapsulation_key(&self) -> [u8; EK_LEN] {
        match self {
            Self::Fast(key) => key.encapsulation_key(),
            Self::Portable(key) => key.encapsulation_key(),
        }
    }

    /// The secret in a ciphertext, or an unrelated one (implicit rejection).
    pub(crate) fn decapsulate(&self, ct: &[u8; CT_LEN]) -> Zeroizing<[u8; 32]> {
        match self {
            Self::Fast(key) => key.decapsulate(ct),
            Self::Portable(key) => key.decapsulate(ct),
        }
    }
}

/// Whether every coefficient is in its range (FIPS 203, section 7.2).
pub(crate) fn is_valid(key: &[u8; EK_LEN]) -> bool {
    if has_fast() { fast::is_valid(key) } else { portable::is_valid(key) }
}

/// Encapsulates with the given coins to a key that [`is_valid`].
pub(crate) fn encapsulate(key: &[u8; EK_LEN], coins: &[u8; 32]) -> Encapsulated {
    if has_fast() { fast::encapsulate(key, coins) } else { portable::encapsulate(key, coins) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_implementations_give_the_same_bytes(
            seed in proptest::array::uniform32(any::<u8>()),
            coins: [u8; 32],
            (at, bit) in (0..CT_LEN, 0..8u8),
        ) {
            prop_assume!(has_fast());
            let seed: [u8; 64] = std::array::from_fn(|i| seed[i % 32].wrapping_add((i / 32) as u8));
            let (one, other) = (fast::Key::from_seed(&seed), portable::Key::from_seed(&seed));
            let key = one.encapsulation_key();
            prop_assert_eq!(key, other.encapsulation_key());
            let (ct, secret) = fast::encapsulate(&key, &coins);
            prop_assert_eq!((ct, secret.clone()), portable::encapsulate(&key, &coins));
            prop_assert_eq!(&one.decapsulate(&ct), &secret);
            prop_assert_eq!(&other.decapsulate(&ct), &secret);
            let mut mangled = ct;
            mangled[at] ^= 1u8 << bit;
            prop_assert_ne!(&one.decapsulate(&mangled), &secret);
            prop_assert_eq!(one.decapsulate(&mangled), other.decapsulate(&mangled));
        }

        #[test]
        fn both_implementations_take_the_same_keys(seed: [u8; 32], at in 0..EK_LEN - 1, high: [u8; 2]) {
            prop_assume!(has_fast());
            let seed: [u8; 64] = std::array::from_fn(|i| seed[i % 32]);
            let mut key = portable::Key::from_seed(&seed).encapsulation_key();
            key[at..at + 2].copy_from_slice(&high);
            prop_assert_eq!(fast::is_valid(&key), portable::is_valid(&key));
        }
    }
}
