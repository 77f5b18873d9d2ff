//! unisono's primitives: mask PRG, ring vectors, Shamir, hybrid KEM and signatures, Merkle trees, KDF.
