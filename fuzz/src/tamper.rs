//! Changes to a message's bytes, drawn from the fuzzer's input. A first byte of 0 to 3 is no change, so that most messages
//! of a drawn sequence pass and the states behind them are reached.

use arbitrary::{Arbitrary, Result, Unstructured};
use prost::Message;

/// One change. Places are taken modulo the length of what is changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Tamper {
    /// The bytes stay as they are.
    None,
    /// One byte is combined with a mask by exclusive or.
    Flip(u16, u8),
    /// One byte is replaced.
    Set(u16, u8),
    /// The end is cut off.
    Cut(u16),
    /// A byte is put in.
    Insert(u16, u8),
    /// A byte is left out.
    Remove(u16),
}

impl<'a> Arbitrary<'a> for Tamper {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary::<u8>()? % 9 {
            0..=3 => Self::None,
            4 => Self::Flip(u.arbitrary()?, u.arbitrary()?),
            5 => Self::Set(u.arbitrary()?, u.arbitrary()?),
            6 => Self::Cut(u.arbitrary()?),
            7 => Self::Insert(u.arbitrary()?, u.arbitrary()?),
            _ => Self::Remove(u.arbitrary()?),
        })
    }
}

impl Tamper {
    /// Changes `bytes`.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let place = |at: u16| at as usize % bytes.len();
        match *self {
            Self::None => {}
            Self::Flip(at, mask) => {
                let at = place(at);
                bytes[at] ^= mask;
            }
            Self::Set(at, byte) => {
                let at = place(at);
                bytes[at] = byte;
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Insert(at, byte) => bytes.insert(place(at), byte),
            Self::Remove(at) => drop(bytes.remove(place(at))),
        }
    }

    /// Changes a message's encoding; `None` when the result is no such message.
    pub fn message<M: Message + Default>(&self, message: &M) -> Option<M> {
        let mut bytes = message.encode_to_vec();
        self.apply(&mut bytes);
        M::decode(bytes.as_slice()).ok()
    }
}
