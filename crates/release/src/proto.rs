//! The messages of `proto/unisono/v1/release.proto`, as generated. Every field is documented there.
#![allow(missing_docs, clippy::doc_markdown)]

include!(concat!(env!("OUT_DIR"), "/unisono.v1.rs"));
