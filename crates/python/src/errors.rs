//! The crates' errors as the exceptions of `unisono.errors`, with the same words.

use pyo3::prelude::*;
use unisono_protocol::client;
use unisono_protocol::encoding::EncodingError;
use unisono_protocol::keyfile::KeyFileError;
use unisono_protocol::params::ParamsError;
use unisono_protocol::roster::RosterError;
use unisono_protocol::server::{Abort, OpenError, Refusal};
use unisono_release::ReleaseError;

/// The classes, which Python code defines so that they have several bases and attributes.
pub mod class {
    #![allow(missing_docs)]
    use pyo3::import_exception;

    import_exception!(unisono.errors, ArrayError);
    import_exception!(unisono.errors, CryptoError);
    import_exception!(unisono.errors, EncodingError);
    import_exception!(unisono.errors, ParamsError);
    import_exception!(unisono.errors, KeyFileError);
    import_exception!(unisono.errors, RosterError);
    import_exception!(unisono.errors, ClientError);
    import_exception!(unisono.errors, ConnectionError);
    import_exception!(unisono.errors, PolicyError);
    import_exception!(unisono.errors, RecordError);
    import_exception!(unisono.errors, RefusalError);
    import_exception!(unisono.errors, AbortError);
    import_exception!(unisono.errors, ReleaseError);
    import_exception!(unisono.errors, StateError);
}

pub fn array(text: impl Into<String>) -> PyErr {
    class::ArrayError::new_err(text.into())
}

/// A callable that returned something else than it should.
pub fn returned(who: &str, what: &Bound<'_, PyAny>, wanted: &str) -> PyErr {
    let kind = what.get_type().name().map(|name| name.to_string()).unwrap_or_default();
    array(format!(
        "{who} returned a {kind} that does not fit; {wanted} is needed: a numpy.ndarray of float32, then numbers"
    ))
}

pub fn state(text: impl Into<String>) -> PyErr {
    class::StateError::new_err(text.into())
}

pub fn crypto(error: unisono_crypto::CryptoError) -> PyErr {
    class::CryptoError::new_err(error.to_string())
}

pub fn encoding(error: EncodingError) -> PyErr {
    class::EncodingError::new_err(error.to_string())
}

pub fn params(error: ParamsError) -> PyErr {
    match error {
        ParamsError::Encoding(error) => encoding(error),
        other => class::ParamsError::new_err(other.to_string()),
    }
}

pub fn key_file(error: KeyFileError) -> PyErr {
    class::KeyFileError::new_err(error.to_string())
}

pub fn token(error: unisono_release::TokenError) -> PyErr {
    class::KeyFileError::new_err(error.to_string())
}

pub fn roster_text(text: &str) -> PyErr {
    class::RosterError::new_err(text.to_owned())
}

pub fn roster(error: RosterError) -> PyErr {
    class::RosterError::new_err(error.to_string())
}

pub fn open(error: OpenError) -> PyErr {
    match error {
        OpenError::Params(error) => params(error),
        OpenError::Authority | OpenError::OtherRoster { .. } | OpenError::NotNamed { .. } => {
            class::RosterError::new_err(error.to_string())
        }
    }
}

pub fn client(error: client::ClientError) -> PyErr {
    use client::ClientError as E;
    let text = error.to_string();
    match error {
        E::Policy(_) | E::UnsignedBaseModel(_) => class::PolicyError::new_err(text),
        E::Record(_)
        | E::OldRound { .. }
        | E::AlreadyMasked { .. }
        | E::NotRecorded { .. }
        | E::OtherSurvivors { .. } => class::RecordError::new_err(text),
        E::UnexpectedView { .. } | E::Erased | E::NoInput => state(text),
        E::Encoding(error) => encoding(error),
        E::Crypto(error) => crypto(error),
        E::Params(error) => params(error),
        E::Roster(error) => roster(error),
        _ => class::ClientError::new_err(text),
    }
}

pub fn refusal(error: Refusal) -> PyErr {
    let client = error.client.map(|client| client.to_vec());
    class::RefusalError::new_err((error.to_string(), client, error.phase.name(), error.reason.code()))
}

pub fn abort(error: Abort) -> PyErr {
    let suspects: Vec<Vec<u8>> = error.suspects().iter().map(|client| client.to_vec()).collect();
    class::AbortError::new_err((error.to_string(), error.code(), suspects))
}

pub fn release(error: ReleaseError) -> PyErr {
    class::ReleaseError::new_err(error.to_string())
}

/// Bytes that are no message of the wire.
pub fn malformed(what: &str, error: prost::DecodeError) -> PyErr {
    class::ClientError::new_err(format!("the {what} can't be decoded: {error}"))
}

pub fn simulation(error: unisono_sim::SimError) -> PyErr {
    use unisono_sim::SimError as E;
    match error {
        E::Params(error) => params(error),
        E::Encoding(error) => encoding(error),
        E::Open(error) => open(error),
        E::Roster(error) => roster(error),
        other => class::ParamsError::new_err(other.to_string()),
    }
}

pub fn sdk(error: unisono_client::Error) -> PyErr {
    use unisono_client::Error as E;
    match error {
        E::Protocol(error) => client(*error),
        E::Release(error) => release(error),
        E::Unreachable(_)
        | E::Refused { .. }
        | E::Ended { .. }
        | E::Endpoint { .. }
        | E::Tls { .. }
        | E::Certificate { .. } => class::ConnectionError::new_err(error.to_string()),
        E::Record(error) => class::RecordError::new_err(error.to_string()),
        other => class::ClientError::new_err(other.to_string()),
    }
}
