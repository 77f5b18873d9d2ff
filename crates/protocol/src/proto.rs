//! The messages of `proto/unisono/v1/protocol.proto`, as generated. Every field is documented there.
#![allow(missing_docs, clippy::doc_markdown)]

include!(concat!(env!("OUT_DIR"), "/unisono.v1.rs"));

impl std::fmt::Debug for SharePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharePair {{ from: {}, to: {}, .. }}", self.from, self.to)
    }
}

impl std::fmt::Debug for ReleasedShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReleasedShare {{ of: {}, kind: {}, .. }}", self.of, self.kind)
    }
}

impl std::fmt::Debug for UnmaskShares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, shares, unreadable, invalid_tags, .. } = self;
        write!(f, "UnmaskShares {{ from: {from}, shares: {shares:?}, unreadable: {unreadable:?}, ")?;
        write!(f, "invalid_tags: {invalid_tags:?}, .. }}")
    }
}
