//! The released model of unisono: seal, sign, grant, open.
