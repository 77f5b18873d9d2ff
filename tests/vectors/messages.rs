//! Vectors of the messages: each one of `proto/unisono/v1/protocol.proto` and `release.proto` with every field set, and where
//! something may be absent, once more without it. Each of the two has a module here, in the order of `messages.json`.
//!
//! As in `service.rs`, the bytes are put together from numbers and types of fields and compared with what the library writes
//! and reads. What `proto/` declares must all be in `messages.json` or `service.json`.

mod protocol;
mod release;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost::Message;
use serde_json::{Value, json};

use super::wire::Field::{self, Bytes};
use super::wire::{case, encode};
use super::{check, service};

const ROUND: [u8; 32] = [0x11; 32];
const CLIENT: [u8; 16] = [0x22; 16];
const COHORT: [u8; 32] = [0x33; 32];
const HASH: [u8; 32] = [0x44; 32];

/// A message of which a case was made, for those that carry it.
struct Made<M> {
    message: M,
    bytes: Vec<u8>,
    json: Value,
}

impl<M> Made<M> {
    /// This message as a field of another.
    fn at(&self, number: u32) -> Field {
        Bytes(number, self.bytes.clone())
    }
}

#[derive(Default)]
struct Cases(Vec<Value>);

impl Cases {
    fn add<M: Message + Default + PartialEq>(
        &mut self,
        name: &str,
        message: M,
        fields: &[Field],
        json: Value,
    ) -> Made<M> {
        self.0.push(case(name, &message, fields, json.clone()));
        Made { message, bytes: encode(fields), json }
    }
}

#[test]
fn the_messages_of_rounds_and_releases_are_those_in_the_vectors() {
    check("messages.json", &json!(cases()));
}

/// Every message, compared with what the library makes of it.
fn cases() -> Vec<Value> {
    let mut cases = Cases::default();
    protocol::add_to(&mut cases);
    release::add_to(&mut cases);
    cases.0
}

/// What a file of `proto/` declares, one declaration a line: messages with their fields, and values of enums.
fn declared(text: &str) -> (BTreeMap<&str, Vec<&str>>, Vec<&str>) {
    let (mut messages, mut values) = (BTreeMap::<&str, Vec<&str>>::new(), Vec::new());
    // Kind of each open block, and the message that its fields are of.
    let mut open: Vec<(&str, &str)> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split("//").next().unwrap_or_default().split_whitespace().collect();
        match words[..] {
            ["message", name, block @ ("{" | "{}")] => {
                messages.entry(name).or_default();
                if block == "{" {
                    open.push(("message", name));
                }
            }
            [kind @ ("enum" | "oneof" | "service"), name, "{"] => {
                open.push((kind, open.last().map_or(name, |&(_, message)| message)));
            }
            ["}"] => assert!(open.pop().is_some()),
            [.., name, "=", _] => match open.last() {
                Some(&("enum", _)) => values.push(name),
                Some(&(_, message)) => messages.entry(message).or_default().push(name),
                None => {}
            },
            _ => {
                let declares = ["=", "{", "{}"].iter().any(|sign| words.contains(sign));
                assert!(!declares, "{line:?} is not read here");
            }
        }
    }
    assert!(open.is_empty(), "a block is open at the end");
    (messages, values)
}

#[test]
fn every_message_field_and_value_that_is_declared_is_in_a_vector() {
    let cases = [cases(), service::cases()].concat();
    let text = json!(cases).to_string();
    let unset = [json!(null), json!(""), json!([]), json!(0), json!(0.0), json!(false)];
    for file in ["protocol.proto", "release.proto", "service.proto"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/unisono/v1").join(file);
        let definitions = fs::read_to_string(path).unwrap();
        let (messages, values) = declared(&definitions);
        assert!(messages.len() > 3, "{file}");
        for (message, fields) in messages {
            let of_it: Vec<&Value> =
                cases.iter().filter(|case| case["message"] == message).map(|case| &case["fields"]).collect();
            assert!(!of_it.is_empty(), "{message} is in no vector");
            for field in fields {
                let is_set = of_it.iter().any(|case| case.get(field).is_some_and(|value| !unset.contains(value)));
                assert!(is_set, "{message}.{field} is set in no vector");
            }
        }
        // The first value of each is what is not written.
        for value in values.iter().filter(|value| !value.ends_with("_UNSPECIFIED")) {
            assert!(text.contains(&format!("{value:?}")), "{value} is in no vector");
        }
    }
}
