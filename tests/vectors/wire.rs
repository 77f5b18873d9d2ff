//! Protocol Buffers put together from numbers and types of fields, as their encoding says, beside what the library writes and
//! reads.

use hex::encode as hex;
use prost::Message;
use serde_json::{Value, json};

/// A field of a message, by its number.
pub enum Field {
    /// A whole number, a boolean, or a value of an enum.
    Varint(u32, u64),
    Double(u32, f64),
    Float(u32, f32),
    /// Bytes, text, a message of its own, or packed numbers.
    Bytes(u32, Vec<u8>),
}

use Field::{Bytes, Double, Float, Varint};

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Repeated numbers in one field, as proto3 has them.
pub fn packed(number: u32, values: &[u64]) -> Field {
    Bytes(number, values.iter().flat_map(|&value| varint(value)).collect())
}

/// Fields in the order of their numbers.
pub fn encode(fields: &[Field]) -> Vec<u8> {
    let key = |number: u32, wire_type: u64| varint(u64::from(number) << 3 | wire_type);
    let encode = |field: &Field| match field {
        Varint(number, value) => [key(*number, 0), varint(*value)].concat(),
        Double(number, value) => [key(*number, 1), value.to_le_bytes().to_vec()].concat(),
        Bytes(number, bytes) => [key(*number, 2), varint(bytes.len() as u64), bytes.clone()].concat(),
        Float(number, value) => [key(*number, 5), value.to_le_bytes().to_vec()].concat(),
    };
    fields.iter().flat_map(encode).collect()
}

/// One message, in three ways: as the library has it, as fields by number, and as JSON for the file.
pub fn case<M: Message + Default + PartialEq>(name: &str, message: &M, fields: &[Field], json: Value) -> Value {
    let bytes = encode(fields);
    assert_eq!(hex(message.encode_to_vec()), hex(&bytes), "{name} is written otherwise");
    assert!(M::decode(bytes.as_slice()).as_ref() == Ok(message), "{name} is read otherwise");
    json!({ "message": name, "fields": json, "encoded": hex(bytes) })
}
