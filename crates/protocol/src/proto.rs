//! The messages of `proto/unisono/v1/protocol.proto`, as generated. Every field is documented there.
#![allow(missing_docs, clippy::doc_markdown)]

include!(concat!(env!("OUT_DIR"), "/unisono.v1.rs"));

impl std::fmt::Debug for SharePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharePair {{ from: {}, to: {}, .. }}", self.from, self.to)
    }
}

impl std::fmt::Debug for RevealedShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RevealedShare {{ of: {}, kind: {}, .. }}", self.of, self.kind)
    }
}

impl std::fmt::Debug for UnmaskShares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, shares, unreadable, .. } = self;
        write!(f, "UnmaskShares {{ from: {from}, shares: {shares:?}, unreadable: {unreadable:?}, .. }}")
    }
}
