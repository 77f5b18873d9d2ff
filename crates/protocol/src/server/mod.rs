//! The coordinator's side of a round, one type a phase: each absorbs messages, says what a client gets to see, and closes
//! into the next.
//!
//! ```text
//! Advertising -> Sharing -> Masking -> Confirming -> Unmasking -> Outcome
//!                                  \----(semi-honest)---/
//! ```
//!
//! [`Server`] holds the phase at hand. Steps are idempotent: the same message again is [`Accepted::Repeat`], in any later
//! phase too. Everything is deterministic (the coordinator's signatures as well), so that absorbing the same messages again after a restart
//! gives the same cohort and the same bytes.

mod advertise;
mod confirm;
mod error;
mod mask;
mod rebuild;
mod share;
mod unmask;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use prost::Message;
use unisono_crypto::kdf::{hash, label};
use unisono_crypto::ring::RingVector;
use unisono_crypto::shamir::SecretScalar;
use unisono_crypto::sign::{SigningKey, VerifyingKey};

use crate::ids::ClientId;
use crate::pairwise;
use crate::params::RoundParams;
pub use crate::phase::Phase;
use crate::proto::{self, ClientMessage, ServerMessage, Signed, client_message::Step};
use crate::roster::Roster;
use crate::signed;

use advertise::Advertising;
use confirm::Confirming;
use mask::Masking;
use share::Sharing;
use unmask::Unmasking;

pub use advertise::place_in_draw;
pub use error::{Abort, Lost, OpenError, Reason, Refusal};

/// What makes a coordinator's word count in malicious mode.
#[derive(Clone)]
pub struct Authority {
    /// Signs parameters and cohort (Ed25519 + ML-DSA-65); named in the roster's head.
    pub signing_key: SigningKey,
    /// The roster in force.
    pub roster: Arc<Roster>,
}

/// What stays the same during a round.
#[derive(Clone)]
struct Context {
    params: Arc<RoundParams>,
    authority: Option<Arc<Authority>>,
}

impl Context {
    fn signing_key(&self) -> Option<&SigningKey> {
        self.authority.as_ref().map(|authority| &authority.signing_key)
    }
}

/// Whether a message was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It counts from now on.
    New,
    /// It had been accepted before; nothing changed.
    Repeat,
}

/// How far a phase is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Clients that took the phase's step.
    pub answered: usize,
    /// Clients that may take it, and don't leave; `n_max` at most in the first phase.
    pub expected: usize,
    /// Those of the clients that may take it that leave.
    pub leaving: usize,
}

/// Something that was noticed between two clients, for the operator. Of what only the two know, neither side is proved right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// About whom.
    pub about: ClientId,
    /// By whom, or with whose share.
    pub by: ClientId,
    /// What it was.
    pub what: Fault,
}

/// What a [`Report`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `about` sent `by` shares that do not open.
    UnreadableShares,
    /// `by` released another share of `about`'s secret than that one dealt it and committed to: `by` lies.
    WrongShare,
    /// The share of its secret that `about` dealt `by` does not lie on the polynomial of the others: `about` lies.
    MisdealtShare,
}

impl Fault {
    /// A short name for metrics and logs.
    pub fn code(self) -> &'static str {
        match self {
            Self::UnreadableShares => "unreadable_shares",
            Self::WrongShare => "wrong_share",
            Self::MisdealtShare => "misdealt_share",
        }
    }
}

/// The end of a successful round.
#[derive(Clone)]
pub struct Outcome {
    /// The exact sum over `survivors`, mod 2^b, as [`crate::encoding::Quantiser::decode`] takes it.
    pub sum: RingVector,
    /// Members of the cohort in order of index.
    pub cohort: Vec<ClientId>,
    /// Members whose update is in the sum (U2), ascending.
    pub survivors: Vec<ClientId>,
    /// What clients noticed about each other.
    pub reports: Vec<Report>,
    /// What clients dealt wrong, in this round without harm: enough of their shares are right, or they gave the secret themselves.
    /// It might have ended the round with [`Abort::Lost`].
    pub misdealt: Vec<Lost>,
}

impl Outcome {
    /// The clients to be kept out of the next rounds, as in [`Abort::suspects`].
    pub fn suspects(&self) -> Vec<ClientId> {
        error::suspects(&self.misdealt)
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (survivors, cohort) = (self.survivors.len(), self.cohort.len());
        write!(f, "Outcome({survivors} of {cohort} clients, {:?}, {:?})", self.reports, self.misdealt)
    }
}

/// What comes after a closed phase.
pub enum Closed {
    /// The next phase.
    Next(Box<Server>),
    /// The sum.
    Finished(Outcome),
}

#[allow(clippy::large_enum_variant)] // one of them lives at a time
enum State {
    Advertising(Advertising),
    Sharing(Sharing),
    Masking(Masking),
    Confirming(Confirming),
    Unmasking(Unmasking),
}

/// Runs `$body` on the state of the phase at hand.
macro_rules! each_phase {
    ($state:expr, $s:ident => $body:expr) => {
        match $state {
            State::Advertising($s) => $body,
            State::Sharing($s) => $body,
            State::Masking($s) => $body,
            State::Confirming($s) => $body,
            State::Unmasking($s) => $body,
        }
    };
}

/// A round in progress, on the coordinator's side.
pub struct Server {
    context: Context,
    offer: proto::RoundOffer,
    /// Hash of each accepted step.
    ledger: BTreeMap<(ClientId, Phase), [u8; 32]>,
    /// Clients whose adverts are refused, each with the round in which it was suspected and the last one without it.
    suspended: BTreeMap<ClientId, (u64, u64)>,
    /// Clients whose adverts were accepted and that are not in the cohort, once it is closed.
    left_out: BTreeSet<ClientId>,
    /// Clients that have said that they take no further step. Nobody waits for them; a step that comes after all counts.
    leaving: BTreeSet<ClientId>,
    /// How many of them have sent no advert, and are not suspended.
    without_advert: usize,
    state: State,
}

impl Server {
    /// Opens a round with the given parameters. In malicious mode `authority` signs them; roster epoch and root must be its
    /// roster's.
    ///
    /// # Errors
    /// [`OpenError`]: parameters that no round can run with, or a key or roster that does not fit them.
    pub fn open(params: &proto::RoundParams, authority: Option<Authority>) -> Result<Self, OpenError> {
        let payload = params.encode_to_vec();
        let params = RoundParams::proposed(&payload)?;
        if params.malicious() != authority.is_some() {
            return Err(OpenError::Authority);
        }
        if let Some(Authority { signing_key, roster }) = &authority {
            let head = roster.head();
            if params.wire.roster_epoch != head.epoch || params.wire.roster_root != head.root {
                return Err(OpenError::OtherRoster { proposed: params.wire.roster_epoch, epoch: head.epoch });
            }
            if !head.coordinator_keys.contains(&signing_key.verifying_key()) {
                return Err(OpenError::NotNamed { epoch: head.epoch });
            }
        }
        let context = Context { params: Arc::new(params), authority: authority.map(Arc::new) };
        let signed = signed::sign_bytes(payload, label::SIG_ROUND_PARAMS, context.signing_key());
        let roster_head = context.authority.as_ref().map(|authority| authority.roster.signed_head().clone());
        let offer = proto::RoundOffer { params: Some(signed), roster_head, base_model: None };
        let state = State::Advertising(Advertising::new(context.clone()));
        let (ledger, suspended) = (BTreeMap::new(), BTreeMap::new());
        let (left_out, leaving) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { context, offer, ledger, suspended, left_out, leaving, without_advert: 0, state })
    }

    /// Adds the publisher's word on the round's base model to the offer, for devices whose policy demands it (section 3).
    pub fn sign_base_model(&mut self, publisher: &SigningKey) {
        let proto::RoundParams { task, model_version, model_hash, .. } = &self.context.params.wire;
        let model = proto::BaseModel { task: task.clone(), version: *model_version, hash: model_hash.clone() };
        self.offer.base_model = Some(signed::sign(&model, label::SIG_BASE_MODEL, Some(publisher)));
    }

    /// Refuses the adverts of `client` from now on: it was among the [`Abort::suspects`] or the [`Outcome::suspects`] of round
    /// `since`, and could make every round end. `until` is the last round without it.
    pub fn suspend(&mut self, client: ClientId, since: u64, until: u64) {
        self.without_advert -= usize::from(self.stays_away(client));
        self.suspended.insert(client, (since, until));
    }

    /// Whether clients are refused in this round that are not in later ones.
    pub fn suspends(&self) -> bool {
        !self.suspended.is_empty()
    }

    /// Clients that may come: the roster's, less the suspended ones and those that leave without an advert; `None` in semi-honest mode,
    /// where anybody may.
    pub fn fleet(&self) -> Option<usize> {
        let authority = self.context.authority.as_ref()?;
        Some((authority.roster.head().size as usize).saturating_sub(self.suspended.len() + self.without_advert))
    }

    /// Whether `client`'s advert was accepted and it is not in the cohort, for want of room: others had lower places in the draw.
    pub fn is_left_out(&self, client: ClientId) -> bool {
        match &self.state {
            State::Advertising(state) => state.left_out().contains(&client),
            _ => self.left_out.contains(&client),
        }
    }

    /// What clients need to decide whether they take part.
    pub fn offer(&self) -> &proto::RoundOffer {
        &self.offer
    }

    /// The round's parameters.
    pub fn params(&self) -> &Arc<RoundParams> {
        &self.context.params
    }

    /// The phase at hand.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Advertising(_) => Phase::Advertise,
            State::Sharing(_) => Phase::Share,
            State::Masking(_) => Phase::Mask,
            State::Confirming(_) => Phase::Confirm,
            State::Unmasking(_) => Phase::Unmask,
        }
    }

    fn refusal(&self, client: Option<ClientId>) -> impl Fn(Reason) -> Refusal + use<> {
        let phase = self.phase();
        move |reason| Refusal { client, phase, reason }
    }

    /// Takes a client's step. `now` is Unix time in seconds. An upload's header is accepted here; the client counts only when
    /// [`Self::absorb_upload`] has accepted the vector.
    ///
    /// # Errors
    /// [`Refusal`] names client, phase and reason; nothing has changed then.
    pub fn absorb(&mut self, message: &ClientMessage, now: u64) -> Result<Accepted, Refusal> {
        let client = ClientId::from_slice(&message.client_id);
        let refuse = self.refusal(client);
        let client = client.ok_or_else(|| refuse(Reason::Incomplete("client id of 16 bytes")))?;
        if message.round_id != self.context.params.round_id.0 {
            return Err(refuse(Reason::OtherRound));
        }
        let step = message.step.as_ref().ok_or_else(|| refuse(Reason::Incomplete("step")))?;
        let phase = Phase::of(step);
        if let Some(known) = self.ledger.get(&(client, phase)) {
            return if *known == digest(message) { Ok(Accepted::Repeat) } else { Err(refuse(Reason::Conflict)) };
        }
        self.may_come(client)?;
        // In any phase: who comes late shall know, too.
        if let (Step::Advert(_), Some(&(since, until))) = (step, self.suspended.get(&client)) {
            return Err(refuse(Reason::Suspended { since, until }));
        }
        match (&mut self.state, step) {
            (State::Advertising(state), Step::Advert(signed)) => state.absorb(client, signed, now),
            (State::Sharing(state), Step::ShareKeys(shares)) => state.absorb(client, shares),
            (State::Masking(state), Step::Upload(signed)) => state.absorb(client, signed),
            (State::Confirming(state), Step::Endorsement(signed)) => state.absorb(client, signed),
            (State::Unmasking(state), Step::Unmask(signed)) => state.absorb(client, signed),
            _ => Err(Reason::WrongPhase { step: phase }),
        }
        .map_err(refuse)?;
        if phase == Phase::Advertise {
            self.without_advert -= usize::from(self.stays_away(client));
        }
        // Only now that the signature holds: nobody else's bytes are hashed.
        self.ledger.insert((client, phase), digest(message));
        Ok(Accepted::New)
    }

    /// Takes a client's word that it takes no further step in this round (section 3): [`Self::progress`] waits for it no longer.
    /// `signature` is over `round_id || client_id`; `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`Refusal`]: the client can have no part in the round, or has not signed this.
    pub fn leave(&mut self, client: ClientId, signature: &[u8], now: u64) -> Result<Accepted, Refusal> {
        if self.leaving.contains(&client) {
            return Ok(Accepted::Repeat);
        }
        self.may_come(client)?;
        let refuse = self.refusal(Some(client));
        self.check_leave(client, signature, now).map_err(refuse)?;
        self.leaving.insert(client);
        self.without_advert += usize::from(self.stays_away(client));
        Ok(Accepted::New)
    }

    /// Whether a client that leaves is one that might have come.
    fn stays_away(&self, client: ClientId) -> bool {
        let came = self.ledger.contains_key(&(client, Phase::Advertise));
        self.leaving.contains(&client) && !came && !self.suspended.contains_key(&client)
    }

    fn check_leave(&self, client: ClientId, signature: &[u8], now: u64) -> Result<(), Reason> {
        let signed = Signed {
            payload: crate::client::leave_payload(self.context.params.round_id, client),
            signature: signature.to_vec(),
        };
        let verify = |key: Option<&VerifyingKey>| Ok(signed::verify_bytes(&signed, label::SIG_LEAVE, key, "leave")?);
        match (self.members(), &self.context.authority) {
            (Some(members), _) => verify(members.identity(members.index_of(client)?)),
            (None, Some(authority)) => {
                let unknown = || Reason::Unknown { epoch: authority.roster.head().epoch };
                let (leaf, _) = authority.roster.entry(client)?.ok_or_else(unknown)?;
                leaf.check_validity(now)?;
                verify(Some(&leaf.identity_key))
            }
            // Who is not in the cohort is not waited for, and anybody can make up an id.
            (None, None) => Err(Reason::NotExpected),
        }
    }

    /// Whether a client with this id can have any part in the round: a look-up, before anything of it is read or verified.
    ///
    /// # Errors
    /// [`Reason::Unknown`]: the round's roster does not have it.
    pub fn may_come(&self, client: ClientId) -> Result<(), Refusal> {
        let Some(authority) = &self.context.authority else { return Ok(()) };
        let unknown = || self.refusal(Some(client))(Reason::Unknown { epoch: authority.roster.head().epoch });
        if authority.roster.contains(client) { Ok(()) } else { Err(unknown()) }
    }

    /// Whether `client` is in the cohort; nobody is before it is closed.
    pub fn is_member(&self, client: ClientId) -> bool {
        self.members().is_some_and(|members| members.index_of(client).is_ok())
    }

    /// The cohort, once it is closed.
    fn members(&self) -> Option<&Members> {
        Some(match &self.state {
            State::Advertising(_) => return None,
            State::Sharing(state) => state.members(),
            State::Masking(state) => state.members(),
            State::Confirming(state) => &state.masked().members,
            State::Unmasking(state) => &state.masked().members,
        })
    }

    /// Takes the whole packed vector whose header `client` has sent, and adds it to the sum.
    ///
    /// # Errors
    /// [`Refusal`]: no header, another length or hash than the header's, or no packed vector. The client may upload again.
    pub fn absorb_upload(&mut self, client: ClientId, packed: &[u8]) -> Result<Accepted, Refusal> {
        let refuse = self.refusal(Some(client));
        match &mut self.state {
            State::Masking(state) => state.absorb_upload(client, packed),
            _ => Err(Reason::WrongPhase { step: Phase::Mask }),
        }
        .map_err(refuse)
    }

    /// Whether `client` has announced an upload that is still to come, and its length in bytes and hash if so.
    pub fn awaited_upload(&self, client: ClientId) -> Option<(u64, [u8; 32])> {
        match &self.state {
            State::Masking(state) => state.awaited(client),
            _ => None,
        }
    }

    /// Whether `client`'s upload is complete: it is in the sum.
    pub fn has_upload(&self, client: ClientId) -> bool {
        match &self.state {
            State::Advertising(_) | State::Sharing(_) => false,
            State::Masking(state) => state.has(client),
            State::Confirming(state) => state.masked().survivor(client).is_ok(),
            State::Unmasking(state) => state.masked().survivor(client).is_ok(),
        }
    }

    /// What `client` gets to see in this phase; `None` for a client that has no part in it, and in the first phase.
    pub fn view(&self, client: ClientId) -> Option<ServerMessage> {
        each_phase!(&self.state, state => state.view(client)).map(|view| ServerMessage { view: Some(view) })
    }

    /// How many of the clients that may take this phase's step have taken it. Nobody waits for those who can't come, or leave.
    pub fn progress(&self) -> Progress {
        let mut progress = each_phase!(&self.state, state => state.progress());
        if let State::Advertising(_) = &self.state {
            if let Some(may_come) = self.fleet() {
                let n_min = self.context.params.wire.n_min as usize;
                progress.expected = progress.expected.min(may_come).max(n_min);
            }
        } else if !self.leaving.is_empty() {
            let missing = self.missing();
            let to_come = missing.iter().filter(|client| !self.leaving.contains(client)).count();
            // Of the committee, no more than the quorum is expected anyway.
            let expected = progress.expected.min(progress.answered + to_come);
            progress.leaving = progress.expected - expected;
            progress.expected = expected;
        }
        progress
    }

    /// Whether waiting longer gains nothing: all have answered, or the sum can be had already.
    pub fn ready(&self) -> bool {
        let Progress { answered, expected, .. } = self.progress();
        answered >= expected || matches!(&self.state, State::Unmasking(state) if state.sufficient())
    }

    /// Clients that may take this phase's step and have not; empty in the first phase, when anybody may come.
    pub fn missing(&self) -> Vec<ClientId> {
        each_phase!(&self.state, state => state.missing())
    }

    /// Closes the phase with the clients that have answered.
    ///
    /// # Errors
    /// [`Abort`]: the round ends here, and nothing was learned.
    pub fn close(mut self) -> Result<Closed, Abort> {
        let state = match self.state {
            State::Advertising(state) => {
                let (sharing, left_out) = state.close()?;
                self.left_out = left_out;
                State::Sharing(sharing)
            }
            State::Sharing(state) => State::Masking(state.close()?),
            State::Masking(state) if self.context.params.malicious() => State::Confirming(state.close()?),
            State::Masking(state) => State::Unmasking(state.close()?.skip()),
            State::Confirming(state) => State::Unmasking(state.close()?),
            State::Unmasking(state) => return state.close().map(Closed::Finished),
        };
        Ok(Closed::Next(Box::new(Self { state, ..self })))
    }
}

/// Hash of a step without its signature: devices sign hedged, so one that lost its stored bytes signs the same content anew.
fn digest(message: &ClientMessage) -> [u8; 32] {
    let mut message = message.clone();
    match &mut message.step {
        Some(Step::Advert(signed) | Step::Upload(signed) | Step::Endorsement(signed) | Step::Unmask(signed)) => {
            signed.signature.clear();
        }
        Some(Step::ShareKeys(shares)) => shares.root.iter_mut().for_each(|root| root.signature.clear()),
        None => {}
    }
    hash(label::LEDGER, &[&message.encode_to_vec()])
}

/// The closed cohort with its members' adverts, shared by all later phases.
struct Members {
    context: Context,
    cohort: crate::cohort::Cohort,
    signed_cohort: Signed,
    /// In order of client id, which is the order of indices.
    members: Vec<advertise::Member>,
    /// Their places in the roster, in malicious mode.
    listed: Option<crate::cohort::Members>,
}

impl Members {
    fn index_of(&self, client: ClientId) -> Result<u32, Reason> {
        let found = self.members.binary_search_by_key(&client, |member| member.advert.client_id);
        found.map(|index| index as u32).map_err(|_| Reason::NotExpected)
    }

    fn id(&self, index: u32) -> ClientId {
        self.members[index as usize].advert.client_id
    }

    fn identity(&self, index: u32) -> Option<&VerifyingKey> {
        self.members[index as usize].identity.as_ref()
    }

    fn ids(&self, set: &[bool]) -> Vec<ClientId> {
        self.members.iter().zip(set).filter(|(_, is_in)| **is_in).map(|(member, _)| member.advert.client_id).collect()
    }

    /// `u`'s neighbours that are in `set`, ascending.
    fn neighbours_in<'a>(&self, u: u32, set: &'a [bool]) -> impl Iterator<Item = u32> + use<'a> {
        self.cohort.graph.neighbours(u).into_iter().filter(|&v| set[v as usize])
    }

    /// Refuses a set that is too small for a sum, or that no client would go on with.
    fn check_set(&self, set: &[bool], phase: Phase) -> Result<(), Abort> {
        let graph = &self.cohort.graph;
        // In a complete graph each needs so many others.
        let shares = if graph.complete() { self.cohort.threshold() + 1 } else { 0 };
        let (have, need) = (crate::bitmap::count(set), shares.max(self.context.params.wire.n_min as usize));
        if have < need {
            return Err(Abort::TooFew { phase, have, need });
        }
        // Members that did not share their keys can't endorse: nobody masks for a set that can't be certified.
        let (have, need) = (graph.committee().iter().filter(|&&u| set[u as usize]).count(), graph.quorum());
        if phase == Phase::Share && have < need {
            return Err(Abort::TooFew { phase, have, need });
        }
        match graph.thin_window(set) {
            Some(place) if self.context.params.malicious() => Err(Abort::ThinWindow { phase, place }),
            _ => Ok(()),
        }
    }

    /// Whether `secret` is the one that `of` committed to in its advert.
    fn fits(&self, of: u32, kind: proto::SecretKind, secret: &SecretScalar) -> bool {
        let advert = &self.members[of as usize].advert;
        let round = self.context.params.round_id;
        match kind {
            proto::SecretKind::SelfMask => pairwise::commitment(secret, round, advert.client_id) == advert.commitment,
            _ => pairwise::mask_key(secret, round).encapsulation_key() == advert.mask_ek,
        }
    }

    fn check_sender(&self, cohort_id: &[u8], from: u32, index: u32) -> Result<(), Reason> {
        if cohort_id == self.cohort.id.0 && from == index { Ok(()) } else { Err(Reason::OtherCohort) }
    }
}
