//! Operations and bytes of SecAgg+, counted from its protocol; no time and no randomness here.

use serde::Serialize;
use unisono_protocol::server::Phase;

/// Bytes of a public key of X25519, of a secret and of a share of one.
const KEY_LEN: u64 = 32;
/// Bytes of a client's number.
const NUMBER_LEN: u64 = 4;
/// Bytes by which a ciphertext is longer than its plaintext: nonce and tag.
const SEALING_LEN: u64 = 12 + 16;
/// What is sealed for a neighbour: sender, recipient, one share of each secret.
pub(super) const SHARES_LEN: u64 = 2 * NUMBER_LEN + 2 * KEY_LEN;

/// What decides the costs of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Clients that shared their keys, n.
    pub clients: u32,
    /// Clients whose masked vector arrived.
    pub survivors: u32,
    /// Neighbours of each client, k.
    pub degree: u32,
    /// Shares that rebuild a secret, t.
    pub threshold: u32,
    /// Elements of an update, d.
    pub dimension: u64,
    /// Bits of an element of a masked vector.
    pub element_bits: u32,
}

/// Numbers of operations. Those of the server on the graph's edges are expectations, hence no whole numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Operations {
    /// Key pairs made.
    pub key_pairs: f64,
    /// Key agreements.
    pub agreements: f64,
    /// Secrets split into k shares, t of which rebuild them.
    pub splits: f64,
    /// Pairs of shares encrypted for a neighbour.
    pub seals: f64,
    /// Pairs of shares decrypted.
    pub opens: f64,
    /// Secrets rebuilt from t shares, each from holders of its own.
    pub rebuilds: f64,
    /// Masks of d elements expanded and added.
    pub expansions: f64,
    /// Vectors of d elements added.
    pub additions: f64,
}

/// Bytes of one client in one phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// Sent.
    pub sent: u64,
    /// Received.
    pub received: u64,
}

impl Shape {
    /// What one client does in a phase while none of its neighbours is missing.
    pub fn client(&self, phase: Phase) -> Operations {
        let k = f64::from(self.degree);
        match phase {
            // One pair for the masks, one for the channels.
            Phase::Advertise => Operations { key_pairs: 2.0, ..Operations::default() },
            // The key of the masks and the seed of the self mask are shared.
            Phase::Share => Operations { agreements: k, splits: 2.0, seals: k, ..Operations::default() },
            // One mask for each neighbour, and the self mask.
            Phase::Mask => Operations { agreements: k, expansions: k + 1.0, ..Operations::default() },
            Phase::Confirm => Operations::default(),
            Phase::Unmask => Operations { opens: k, ..Operations::default() },
        }
    }

    /// What the server computes in a phase; sorting and forwarding of messages is not counted.
    pub fn server(&self, phase: Phase) -> Operations {
        let (n, survivors, k) = (f64::from(self.clients), f64::from(self.survivors), f64::from(self.degree));
        match phase {
            Phase::Mask => Operations { additions: survivors, ..Operations::default() },
            // The self mask of each survivor; for each of the others its masks with those neighbours that survived, of which a
            // random graph gives it `k survivors / (n - 1)`.
            Phase::Unmask => {
                let edges = (n - survivors) * k * survivors / (n - 1.0);
                Operations { rebuilds: n, agreements: edges, expansions: survivors + edges, ..Operations::default() }
            }
            Phase::Advertise | Phase::Share | Phase::Confirm => Operations::default(),
        }
    }

    /// What one survivor sends and receives in a phase while none of its neighbours is missing.
    pub fn bytes(&self, phase: Phase) -> Bytes {
        let k = u64::from(self.degree);
        let sealed = k * (NUMBER_LEN + SHARES_LEN + SEALING_LEN);
        match phase {
            Phase::Advertise => Bytes { sent: 2 * KEY_LEN, received: 0 },
            Phase::Share => Bytes { sent: sealed, received: k * (NUMBER_LEN + 2 * KEY_LEN) },
            Phase::Mask => {
                Bytes { sent: (self.dimension * u64::from(self.element_bits)).div_ceil(8), received: sealed }
            }
            Phase::Confirm => Bytes::default(),
            // It hears which neighbours survived, and sends one share of each neighbour.
            Phase::Unmask => Bytes { sent: k * (NUMBER_LEN + KEY_LEN), received: k * NUMBER_LEN },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred clients at the degree that the conditions give them, ten of which vanish before they upload.
    const SHAPE: Shape =
        Shape { clients: 100, survivors: 90, degree: 12, threshold: 6, dimension: 1001, element_bits: 23 };

    #[test]
    fn a_client_agrees_twice_with_each_neighbour_and_expands_one_mask_more_than_it_has_neighbours() {
        let none = Operations::default();
        assert_eq!(SHAPE.client(Phase::Advertise), Operations { key_pairs: 2.0, ..none });
        assert_eq!(SHAPE.client(Phase::Share), Operations { agreements: 12.0, splits: 2.0, seals: 12.0, ..none });
        assert_eq!(SHAPE.client(Phase::Mask), Operations { agreements: 12.0, expansions: 13.0, ..none });
        assert_eq!(SHAPE.client(Phase::Confirm), none);
        assert_eq!(SHAPE.client(Phase::Unmask), Operations { opens: 12.0, ..none });
    }

    #[test]
    fn the_server_rebuilds_one_secret_a_client_and_the_masks_between_survivors_and_drop_outs() {
        let none = Operations::default();
        assert_eq!(SHAPE.server(Phase::Mask), Operations { additions: 90.0, ..none });
        // 10 drop-outs with 12 neighbours, of which 90 in 99 survived.
        let edges = 10.0 * 12.0 * 90.0 / 99.0;
        let unmask = Operations { rebuilds: 100.0, agreements: edges, expansions: 90.0 + edges, ..none };
        assert_eq!(SHAPE.server(Phase::Unmask), unmask);
        let nobody = Shape { survivors: 100, ..SHAPE };
        assert_eq!(nobody.server(Phase::Unmask), Operations { rebuilds: 100.0, expansions: 100.0, ..none });
    }

    #[test]
    fn messages_have_the_sizes_of_their_parts() {
        assert_eq!(SHAPE.bytes(Phase::Advertise), Bytes { sent: 64, received: 0 });
        // A ciphertext of 4 + 4 + 32 + 32 bytes with nonce and tag, and whose it is: 104 bytes.
        assert_eq!(SHAPE.bytes(Phase::Share), Bytes { sent: 12 * 104, received: 12 * 68 });
        // 1001 elements of 23 bits are 23023 bits.
        assert_eq!(SHAPE.bytes(Phase::Mask), Bytes { sent: 2878, received: 12 * 104 });
        assert_eq!(SHAPE.bytes(Phase::Confirm), Bytes::default());
        assert_eq!(SHAPE.bytes(Phase::Unmask), Bytes { sent: 12 * 36, received: 12 * 4 });
    }
}
