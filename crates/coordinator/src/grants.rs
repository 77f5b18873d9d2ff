//! The content key of a sealed model, for each device that may have it. The order of the checks is that of `docs/protocol.md`
//! section 13: nothing costs a public-key operation before it is known that the device may ask.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use getrandom::SysRng;
use metrics::counter;
use prost::Message;
use rand_core::UnwrapErr;
use tonic::{Code, Status};
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::kem::EncapsulationKey;
use unisono_protocol::ClientId;
use unisono_protocol::proto::Signed;
use unisono_protocol::roster::{Leaf, Roster, RosterError, release_key_hash};
use unisono_protocol::server::Phase;
use unisono_release::proto::{SealedKind, SignedGrant};
use unisono_release::{Issuer, Recipient, Token, grant};
use unisono_wire::proto::{GrantRequest, GrantRequestBody, GrantResponse};

use crate::gate::Caller;
use crate::models::{Sealed, starting};
use crate::sampled::REFUSALS;
use crate::service::{malformed, refuse, storage};
use crate::{Shared, Stage, now};

/// Seconds by which a request's time may differ from the coordinator's.
const MAX_SKEW: u64 = 300;
/// Grants that are kept, of about 5 kB each.
const MOST_GRANTS: usize = 10_000;

/// For whom a grant is, and of what.
type Key = (ClientId, [u8; 32]);

/// A grant that was made.
struct Made {
    /// Hash of the last request that it answered.
    request: [u8; 32],
    release_key: [u8; 32],
    epoch: u64,
    grant: SignedGrant,
}

#[derive(Default)]
struct Table {
    made: HashMap<Key, Made>,
    /// In the order in which they were made.
    order: VecDeque<Key>,
}

/// Grants that were made, so that none is made twice.
#[derive(Default)]
pub(crate) struct Grants(Mutex<Table>);

impl Grants {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grant, if this very request was answered with it.
    fn repeated(&self, key: &Key, request: &[u8; 32], epoch: u64) -> Option<SignedGrant> {
        let table = self.table();
        let made = table.made.get(key).filter(|made| made.request == *request && made.epoch == epoch)?;
        Some(made.grant.clone())
    }

    /// The grant, if it was made for the same release key and epoch. From now on `request` is the one that it answered.
    fn made(&self, key: &Key, request: [u8; 32], release_key: &[u8; 32], epoch: u64) -> Option<SignedGrant> {
        let mut table = self.table();
        let made = table.made.get_mut(key).filter(|made| made.release_key == *release_key && made.epoch == epoch)?;
        made.request = request;
        Some(made.grant.clone())
    }

    fn keep(&self, key: Key, made: Made) {
        let mut table = self.table();
        if table.made.insert(key, made).is_none() {
            table.order.push_back(key);
        }
        while table.order.len() > MOST_GRANTS {
            let Some(oldest) = table.order.pop_front() else { break };
            table.made.remove(&oldest);
        }
    }

    /// Forgets the grants of all files but this one. (Those of releases are made anew when they are asked for again.)
    pub fn forget_bases_but(&self, header_hash: &[u8; 32]) {
        let mut table = self.table();
        table.made.retain(|key, _| key.1 == *header_hash);
        table.order.retain(|key| key.1 == *header_hash);
    }
}

/// A request whose parts were found.
struct Asked<'a> {
    signed: &'a Signed,
    body: GrantRequestBody,
    client: ClientId,
}

impl<'a> Asked<'a> {
    fn read(request: &'a GrantRequest) -> Result<Self, Status> {
        let signed = request.request.as_ref().ok_or_else(|| malformed(&"there is no signed request"))?;
        let body = GrantRequestBody::decode(signed.payload.as_slice()).map_err(|e| malformed(&e))?;
        let client =
            ClientId::from_slice(&body.client_id).ok_or_else(|| malformed(&"the client id has no 16 bytes"))?;
        Ok(Self { signed, body, client })
    }

    fn check_clock(&self) -> Result<(), Status> {
        let (requested_at, now) = (self.body.requested_at, now());
        if now.abs_diff(requested_at) > MAX_SKEW {
            let why = format!("the request is of {requested_at}, it is {now}: set the device's clock");
            return Err(refuse(Code::InvalidArgument, "clock", &why));
        }
        Ok(())
    }

    /// The device's entry in the roster, if it is there with this key, before its signature is looked at.
    fn check_member(&self, shared: &Shared, caller: &Caller, roster: &Roster) -> Result<Leaf, Status> {
        let (client, epoch) = (self.client, roster.head().epoch);
        let unknown = || {
            let why = format!("the roster of epoch {epoch} has no client {client}: never enrolled, or revoked");
            refuse(Code::PermissionDenied, "unknown_client", &why)
        };
        let leaf = roster.leaf(client).map_err(|error| match error {
            RosterError::Unreadable(_) => {
                shared.rosters.doubt();
                no_roster(&error)
            }
            // What the registrar has signed about this one device is of no use.
            _ => refuse(Code::PermissionDenied, "roster", &error),
        })?;
        let leaf = leaf.ok_or_else(unknown)?;
        leaf.check_validity(now()).map_err(|e| refuse(Code::PermissionDenied, "expired_client", &e))?;
        shared.gate.device(caller, client)?;
        self.check_clock()?;
        if release_key_hash(&self.body.release_key) != leaf.release_key_hash {
            let why = "the release key is not the enrolled one: enrol the device again";
            return Err(refuse(Code::PermissionDenied, "release_key", &why));
        }
        Ok(leaf)
    }

    /// Whether the sender has the token.
    fn check_token(&self, shared: &Shared, caller: &Caller, token: &Token) -> Result<(), Status> {
        shared.gate.device(caller, self.client)?;
        if !token.verify(label::MAC_CLIENT_REQUEST, &self.signed.payload, &self.signed.signature) {
            let why = "the proof of the token is missing or wrong: give the device the coordinator's token";
            return Err(refuse(Code::PermissionDenied, "token", &why));
        }
        self.check_clock()?;
        caller.authenticated();
        Ok(())
    }

    /// Whether the device may have the base model now: it is the one of the round at hand, and the device is in its cohort.
    async fn check_round(&self, shared: &Shared, sealed: &Sealed) -> Result<(), Status> {
        if sealed.stored.kind == SealedKind::Release {
            return Ok(());
        }
        let not_granted = |why: &str| {
            let why = format!("base model {} is not granted: {why}", sealed.stored.version);
            Err(refuse(Code::FailedPrecondition, "not_granted", &why))
        };
        match &*shared.stage.lock().await {
            Stage::Running(active) => {
                let server = active.server();
                if server.params().wire.model_version != sealed.stored.version {
                    return not_granted("the round at hand has another one");
                }
                if server.phase() == Phase::Advertise {
                    return not_granted("the round at hand has no cohort yet");
                }
                if server.is_member(self.client) {
                    return Ok(());
                }
                let why = format!("client {} is not in the cohort of the round at hand", self.client);
                Err(refuse(Code::PermissionDenied, "not_a_member", &why))
            }
            Stage::Starting | Stage::Failed(_) => Err(starting()),
            Stage::Idle | Stage::Finished => not_granted("no round is at hand"),
        }
    }

    fn check_signature(&self, caller: &Caller, leaf: &Leaf) -> Result<(), Status> {
        let Signed { payload, signature } = self.signed;
        let verified = leaf.identity_key.verify(label::SIG_CLIENT_REQUEST, payload, signature);
        verified.map_err(|e| refuse(Code::PermissionDenied, "signature", &e))?;
        caller.authenticated();
        Ok(())
    }
}

fn no_roster(error: &dyn Display) -> Status {
    if REFUSALS.admits(None, "no grant") {
        tracing::error!(%error, "no grant can be issued");
    }
    refuse(Code::Unavailable, "roster", &"the coordinator has no roster that it can use; try again")
}

/// The roster in force, the newest one if that can be had soon; `None` in semi-honest mode.
async fn roster(shared: &Shared) -> Result<Option<Arc<Roster>>, Status> {
    let Some(keys) = &shared.round_keys else { return Ok(None) };
    let roster = shared.rosters.newest_soon(keys).await.ok_or_else(|| no_roster(&"no roster is in force"))?;
    roster.head().check_validity(now()).map_err(|over| no_roster(&over))?;
    Ok(Some(roster))
}

/// Checks a device's request, and answers it with its grant.
pub(crate) async fn issue(shared: &Shared, caller: &Caller, request: &GrantRequest) -> Result<GrantResponse, Status> {
    let asked = Asked::read(request)?;
    // The roster as it is now: a revoked device gets no grant.
    let roster = roster(shared).await?;
    let leaf = match (&roster, &shared.token) {
        (Some(roster), _) => Some(asked.check_member(shared, caller, roster)?),
        (None, Some(token)) => {
            asked.check_token(shared, caller, token)?;
            None
        }
        (None, None) => return Err(refuse(Code::PermissionDenied, "token", &"this coordinator has no token")),
    };
    let epoch = roster.as_ref().map_or(0, |roster| roster.head().epoch);
    let response = |grant| {
        let roster_head = roster.as_ref().map(|roster| roster.signed_head().clone());
        Ok(GrantResponse { grant: Some(grant), roster_head })
    };
    let kept = shared.models.kept(&asked.body.header_hash);
    if let Some(sealed) = &kept {
        asked.check_round(shared, sealed).await?;
    }
    let digest = hash(label::GRANT_REQUEST, &[&asked.signed.payload, &asked.signed.signature]);
    let grants = &shared.models.grants;
    if let Some(sealed) = &kept
        && let Some(grant) = grants.repeated(&(asked.client, sealed.stored.header_hash), &digest, epoch)
    {
        counter!("unisono_grants_repeated_total").increment(1);
        return response(grant);
    }
    if let Some(leaf) = &leaf {
        asked.check_signature(caller, leaf)?;
    }
    let sealed = match kept {
        Some(sealed) => sealed,
        None => release(shared, &asked.body.header_hash).await?,
    };
    let key = (asked.client, sealed.stored.header_hash);
    let release_key = release_key_hash(&asked.body.release_key);
    if let Some(grant) = grants.made(&key, digest, &release_key, epoch) {
        counter!("unisono_grants_repeated_total").increment(1);
        return response(grant);
    }
    let grant = crate::in_place(|| make(shared, &asked, &sealed, epoch))?;
    counter!("unisono_grants_total").increment(1);
    grants.keep(key, Made { request: digest, release_key, epoch, grant: grant.clone() });
    response(grant)
}

/// The release that is asked for; of base models, only the one of the round at hand can be had.
async fn release(shared: &Shared, header_hash: &[u8]) -> Result<Arc<Sealed>, Status> {
    let found = shared.models.release(shared, header_hash).await.map_err(|e| storage(&e))?;
    if found.is_none() {
        crate::models::check_started(shared).await?;
    }
    let missing = "there is no such release, and it is not the base model of the round at hand";
    found.ok_or_else(|| refuse(Code::NotFound, "no_such_release", &missing))
}

fn make(shared: &Shared, asked: &Asked<'_>, sealed: &Sealed, roster_epoch: u64) -> Result<SignedGrant, Status> {
    let no_releases = || refuse(Code::FailedPrecondition, "no_releases", &"this coordinator releases no models");
    let issuer = match (&shared.token, &shared.round_keys, sealed.stored.kind) {
        (Some(token), _, _) => Issuer::Token(token),
        (None, Some(keys), SealedKind::BaseModel) => Issuer::Key(&keys.signing_key),
        _ => Issuer::Key(&shared.release_keys.as_ref().ok_or_else(no_releases)?.publisher),
    };
    let internal = |e: unisono_release::ReleaseError| refuse(Code::Internal, "release", &e);
    let content =
        shared.content_keys.unwrap(&sealed.stored.wrapped_key, &sealed.stored.header_hash).map_err(internal)?;
    let key = EncapsulationKey::from_bytes(&asked.body.release_key).map_err(|e| malformed(&e))?;
    let recipient = Recipient { client_id: asked.client.0, key, roster_epoch };
    grant(&sealed.header, &content, &recipient, issuer, &mut UnwrapErr(SysRng)).map_err(internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(request: u8) -> Made {
        let grant = SignedGrant { payload: vec![request], signature: Vec::new() };
        Made { request: [request; 32], release_key: [1; 32], epoch: 5, grant }
    }

    #[test]
    fn a_grant_is_made_once_for_a_device_a_file_a_key_and_an_epoch() {
        let (grants, key) = (Grants::default(), (ClientId([7; 16]), [9; 32]));
        assert!(grants.repeated(&key, &[1; 32], 5).is_none());
        grants.keep(key, made(1));
        assert!(grants.repeated(&key, &[1; 32], 5).is_some());
        assert!(grants.repeated(&key, &[2; 32], 5).is_none(), "another request: its signature is verified first");
        assert!(grants.repeated(&key, &[1; 32], 6).is_none(), "there is a newer roster");
        assert!(grants.made(&key, [2; 32], &[1; 32], 5).is_some());
        assert!(grants.repeated(&key, &[2; 32], 5).is_some());
        assert!(grants.made(&key, [3; 32], &[2; 32], 5).is_none(), "another release key");
        assert!(grants.made(&(ClientId([8; 16]), [9; 32]), [3; 32], &[1; 32], 5).is_none());
        grants.forget_bases_but(&[8; 32]);
        assert!(grants.repeated(&key, &[2; 32], 5).is_none());
    }

    #[test]
    fn the_oldest_grants_make_room() {
        let grants = Grants::default();
        let key = |i: usize| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&i.to_le_bytes());
            (ClientId(id), [9; 32])
        };
        (0..MOST_GRANTS + 5).for_each(|i| grants.keep(key(i), made(1)));
        let kept = |i| grants.repeated(&key(i), &[1; 32], 5).is_some();
        assert!(!kept(0) && !kept(4) && kept(5) && kept(MOST_GRANTS + 4));
        assert_eq!(grants.table().made.len(), MOST_GRANTS);
    }
}
