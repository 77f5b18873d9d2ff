//! A device's round as one object: what the SDK, the simulator, Python and the tests drive.

use std::sync::Arc;

use rand_core::CryptoRng;
use unisono_crypto::ring::RingVector;
use zeroize::Zeroizing;

use super::checks::SharedChecks;
use super::saved;
use super::{Advertised, ClientError, Confirmed, Done, Identity, Joining, KeyPool, Masked, Rejected, Shared, Trust};
use crate::params::RoundParams;
use crate::phase::Phase;
use crate::policy::ParticipationRecord;
use crate::proto::{ClientMessage, RoundOffer, server_message::View};

/// The state of a session. [`State::Erased`] stands for a round that is over without this device's shares.
pub(super) enum State {
    Advertised(Advertised),
    Shared(Shared),
    Masked(Masked),
    Confirmed(Confirmed),
    Done(Done),
    Erased,
}

/// One round of one device, from the offer to the revealed shares.
///
/// [`Session::message`] is what the device owes the coordinator, to be sent until it is acknowledged; [`Session::awaits`] says
/// which phase's view comes next, and [`Session::receive`] takes it. A refused view changes nothing, unless the round is over for
/// this device ([`ClientError::closes_round`]): then its secrets are erased.
pub struct Session {
    params: Arc<RoundParams>,
    state: State,
}

impl Session {
    /// Checks an offer and makes the advert. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// As [`Joining::new`].
    pub fn join<R: CryptoRng + ?Sized>(
        offer: &RoundOffer,
        identity: Arc<Identity>,
        trust: &Trust,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<Self, ClientError> {
        Ok(Self::advertise(Joining::new(offer, identity, trust, record, now)?, rng))
    }

    /// Makes the advert for an offer that was accepted.
    pub fn advertise<R: CryptoRng + ?Sized>(joining: Joining, rng: &mut R) -> Self {
        let params = joining.round.params.clone();
        Self { params, state: State::Advertised(joining.advertise(rng)) }
    }

    /// The round's parameters.
    pub fn params(&self) -> &Arc<RoundParams> {
        &self.params
    }

    /// The phase whose view this device waits for; `None` when nothing is left to do. A member of the committee that waits for
    /// [`Phase::Confirm`] takes a certificate too.
    pub fn awaits(&self) -> Option<Phase> {
        match &self.state {
            State::Advertised(_) => Some(Phase::Share),
            State::Shared(_) => Some(Phase::Mask),
            State::Masked(state) if state.on_committee() => Some(Phase::Confirm),
            State::Masked(_) | State::Confirmed(_) => Some(Phase::Unmask),
            State::Done(_) | State::Erased => None,
        }
    }

    /// What this device owes the coordinator, to be sent until it is acknowledged. `None` when the round was closed without it.
    pub fn message(&self) -> Option<&ClientMessage> {
        match &self.state {
            State::Advertised(state) => Some(state.message()),
            State::Shared(state) => Some(state.message()),
            State::Masked(state) => Some(state.message()),
            State::Confirmed(state) => Some(state.message()),
            State::Done(state) => Some(state.message()),
            State::Erased => None,
        }
    }

    /// Whether the shares were revealed: nothing is left but to send [`Self::message`].
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// Whether the next view is answered with a masked input.
    pub fn wants_input(&self) -> bool {
        matches!(self.state, State::Shared(_))
    }

    /// Takes what the coordinator shows. `input` is what [`crate::encoding::Quantiser::encode`] gave, for a masking view; it is
    /// ignored with others. `now` is Unix time in seconds.
    ///
    /// # Errors
    /// [`ClientError`] names the failed check. The session is as before, unless the error closes the round.
    pub fn receive<R: CryptoRng + ?Sized>(
        &mut self,
        view: &View,
        input: Option<RingVector>,
        record: &mut dyn ParticipationRecord,
        now: u64,
        rng: &mut R,
    ) -> Result<(), ClientError> {
        // A panic below leaves an erased session.
        let state = std::mem::replace(&mut self.state, State::Erased);
        let (state, error) = match (state, view) {
            (State::Advertised(state), View::Cohort(view)) => {
                next(state.share(view, record, now, rng), State::Shared, State::Advertised)
            }
            (State::Shared(state), View::Masking(view)) => match input {
                Some(input) => next(state.mask(view, input, record, now, rng), State::Masked, State::Shared),
                None => (State::Shared(state), Some(ClientError::NoInput)),
            },
            (State::Masked(state), View::Survivors(view)) if self.params.malicious() => {
                next(state.confirm(view, record, now, rng), State::Confirmed, State::Masked)
            }
            (State::Masked(state), View::Survivors(view)) => {
                next(state.reveal_uncertified(view, record, now, rng), State::Done, State::Masked)
            }
            (State::Masked(state), View::Certificate(view)) => {
                next(state.reveal(view, record, now, rng), State::Done, State::Masked)
            }
            (State::Confirmed(state), View::Certificate(view)) => {
                next(state.reveal(view, record, now, rng), State::Done, State::Confirmed)
            }
            (State::Erased, _) => (State::Erased, Some(ClientError::Erased)),
            (state, view) => {
                self.state = state;
                let awaited = self.awaits().map_or("nothing", Phase::name);
                return Err(ClientError::UnexpectedView { got: name(view), awaited });
            }
        };
        match error {
            Some(error) if error.closes_round() => Err(error),
            error => {
                self.state = state;
                error.map_or(Ok(()), Err)
            }
        }
    }

    /// Last second (Unix time) of this device's clock at which it masks, signs or reveals in this round; `None` before it has
    /// accepted a cohort, and when nothing is left to do.
    pub fn erase_at(&self) -> Option<u64> {
        match &self.state {
            State::Shared(state) => Some(state.secrets.round.erase_at(state.committee.accepted_at)),
            State::Masked(state) => Some(state.participant.erase_at()),
            State::Confirmed(state) => Some(state.participant.erase_at()),
            State::Advertised(_) | State::Done(_) | State::Erased => None,
        }
    }

    /// Forgets every secret of the round. Hosts call it when [`Self::erase_at`] has passed, when the round has ended, and when the
    /// device goes on to another.
    pub fn erase(&mut self) {
        self.state = State::Erased;
    }

    /// Whether this device was asked to endorse the set of survivors, and has yet to do it: it is on the committee and has masked.
    pub fn owes_endorsement(&self) -> bool {
        matches!(&self.state, State::Masked(state) if state.on_committee())
    }

    /// Number of chunks of the upload; 0 unless this device has masked its input.
    pub fn chunks(&self) -> u64 {
        if let State::Masked(state) = &self.state { state.chunks() } else { 0 }
    }

    /// Chunk `index` of the packed masked vector; `None` beyond the last, and where there is no vector (any more).
    pub fn chunk(&self, index: u64) -> Option<Vec<u8>> {
        if let State::Masked(state) = &self.state { state.chunk(index) } else { None }
    }

    /// Frees the masked vector, once the coordinator has acknowledged the whole upload.
    pub fn uploaded(&mut self) {
        if let State::Masked(state) = &mut self.state {
            state.uploaded();
        }
    }

    /// The session as bytes, for [`Session::resume`]. They are as secret as the identity key. The masked vector is not among them.
    ///
    /// # Errors
    /// [`ClientError::Erased`] when the round was closed without this device: nothing is left to save.
    pub fn save(&self) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        match &self.state {
            State::Advertised(state) => Ok(state.save()),
            State::Shared(state) => Ok(state.save()),
            State::Masked(state) => Ok(state.save()),
            State::Confirmed(state) => Ok(state.save()),
            State::Done(state) => Ok(state.save()),
            State::Erased => Err(ClientError::Erased),
        }
    }

    /// Reads what [`Self::save`] wrote. The offer is the one that the round began with; it is checked again. The policy was
    /// asked when the round was joined, but for its limits over rounds; those, and the record, are asked by the next steps.
    ///
    /// # Errors
    /// [`ClientError::Saved`] for bytes that are not a saved session, or that of another round or device; any error about the offer.
    pub fn resume(
        bytes: &[u8],
        offer: &RoundOffer,
        identity: Arc<Identity>,
        trust: &Trust,
    ) -> Result<Self, ClientError> {
        let (params, state) = saved::read(bytes, offer, identity, trust)?;
        Ok(Self { params, state })
    }

    /// For simulations: takes copies of adverts and keys that other devices of the process have too from `pool`.
    pub fn share_memory(&mut self, pool: &KeyPool) {
        if let State::Shared(state) = &mut self.state {
            state.share_memory(pool);
        }
    }

    /// For simulations: see [`Joining::share_checks`].
    pub fn share_checks(&mut self, checks: &Arc<SharedChecks>) {
        match &mut self.state {
            State::Advertised(state) => state.secrets.round.checks = Some(checks.clone()),
            State::Shared(state) => state.secrets.round.checks = Some(checks.clone()),
            State::Masked(state) => state.participant.round.checks = Some(checks.clone()),
            State::Confirmed(state) => state.participant.round.checks = Some(checks.clone()),
            State::Done(_) | State::Erased => {}
        }
    }
}

/// The next state; or the state before, and the error.
fn next<S, T>(
    result: Result<T, Rejected<S>>,
    after: impl Fn(T) -> State,
    before: impl Fn(S) -> State,
) -> (State, Option<ClientError>) {
    match result {
        Ok(state) => (after(state), None),
        Err(Rejected { state, error }) => (before(*state), Some(error)),
    }
}

fn name(view: &View) -> &'static str {
    match view {
        View::Cohort(_) => "cohort",
        View::Masking(_) => "clients that shared keys",
        View::Survivors(_) => "survivors",
        View::Certificate(_) => "certificate",
    }
}
