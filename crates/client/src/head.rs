//! The head of a roster that comes with an answer outside a round.

use unisono_protocol::client::{ClientError, Trust};
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::Signed;
use unisono_protocol::roster::Head;
use unisono_release::VersionRecord;

use crate::{Error, Record};

/// Verifies that the head is the registrar's, that it counts at `now` (and did not end before the latest time that this device has
/// seen), and that it is not older than one that was seen.
///
/// # Errors
/// Why this device does not act on it.
pub(crate) fn verify(signed: &Signed, trust: &Trust, record: &Record, now: u64) -> Result<Head, Error> {
    let registrar = trust.registrar.as_ref().ok_or(Error::NoAuthority)?;
    let head = Head::verify(signed, registrar).map_err(ClientError::from)?;
    let seen = record.roster_epoch().map_err(ClientError::from)?.max(trust.policy.min_roster_epoch);
    if head.epoch < seen {
        return Err(ClientError::StaleRoster { epoch: head.epoch, seen }.into());
    }
    head.check_validity(now.max(record.latest_time()?)).map_err(ClientError::from)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use unisono_crypto::kdf::label;
    use unisono_crypto::merkle::Tree;
    use unisono_crypto::sign::{Level, SigningKey};
    use unisono_protocol::policy::Policy;
    use unisono_protocol::roster::{HeadTerms, RosterError, sign_head};
    use unisono_release::Seen;

    use super::*;

    #[test]
    fn a_clock_that_was_set_back_brings_no_head_back_that_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = Record::open(folder.path()).unwrap();
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let [registrar, stranger] = [(); 2].map(|()| SigningKey::generate(Level::L65, &mut rng));
        let tree = Tree::new(label::TREE_ROSTER, Vec::<Vec<u8>>::new());
        let signed = |epoch, valid_until, key: &SigningKey| {
            sign_head(&tree, HeadTerms { epoch, issued_at: 10, valid_until }, &[], &[], key)
        };
        let trust = Trust { registrar: Some(registrar.verifying_key()), policy: Policy::default() };
        let refused = |result: Result<Head, Error>| match result {
            Err(Error::Protocol(error)) => Some(*error),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        };
        let over = |result| {
            refused(result).map(|error| match error {
                ClientError::Roster(RosterError::HeadExpired { now, .. }) => now,
                other => panic!("{other}"),
            })
        };
        let head = signed(3, 100, &registrar);
        assert_eq!(over(verify(&head, &trust, &record, 100)), None);
        assert_eq!(over(verify(&head, &trust, &record, 101)), Some(101));
        assert!(verify(&signed(3, 100, &stranger), &trust, &record, 50).is_err());
        // It was later when a model was opened.
        record.see("m", Seen { version: 1, header_hash: Some([1; 32]) }, 200).unwrap();
        assert_eq!(over(verify(&head, &trust, &record, 50)), Some(200));
        assert_eq!(over(verify(&signed(4, 0, &registrar), &trust, &record, 50)), None, "one without end");
        record.see_roster_epoch(4).unwrap();
        let stale = ClientError::StaleRoster { epoch: 3, seen: 4 };
        assert_eq!(refused(verify(&signed(3, 0, &registrar), &trust, &record, 50)), Some(stale));
    }
}
