//! Phase 4: shares are collected, secrets rebuilt and checked, masks subtracted (section 6).

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;
use unisono_crypto::CryptoError;
use unisono_crypto::kdf::label;
use unisono_crypto::prg::{Seed, Sign};
use unisono_crypto::shamir::{SecretScalar, Share};

use super::mask::Masked;
use super::rebuild::Rebuilt;
use super::{Abort, Fault, Lost, Outcome, Progress, Reason, Report};
use crate::ids::ClientId;
use crate::pairwise::{self, End, Pair};
use crate::proto::{self, SecretKind, Signed, server_message::View};
use crate::signed;

const WHAT: &str = "revealed shares";

pub(super) struct Unmasking {
    pub(super) masked: Masked,
    /// What shares are revealed under; `None` in semi-honest mode.
    certificate: Option<Arc<proto::Certificate>>,
    answered: Vec<bool>,
    /// By whose secret it is; those that their dealer committed to.
    pub(super) shares: BTreeMap<u32, Vec<Share>>,
    /// Self-mask secrets that their owners revealed themselves. They fit the adverts.
    own: BTreeMap<u32, SecretScalar>,
    pub(super) reports: Vec<Report>,
}

impl Unmasking {
    pub fn new(masked: Masked, certificate: Option<Arc<proto::Certificate>>) -> Self {
        let answered = vec![false; masked.survivors.len()];
        Self { masked, certificate, answered, shares: BTreeMap::new(), own: BTreeMap::new(), reports: Vec::new() }
    }

    pub(super) fn kind(&self, of: u32) -> SecretKind {
        if self.masked.survivors[of as usize] { SecretKind::SelfMask } else { SecretKind::Mask }
    }

    /// The secret of `of` that is needed, if its owner revealed it itself.
    pub(super) fn own(&self, of: u32) -> Option<&SecretScalar> {
        self.own.get(&of)
    }

    pub fn masked(&self) -> &Masked {
        &self.masked
    }

    pub fn absorb(&mut self, client: ClientId, signed: &Signed) -> Result<(), Reason> {
        let members = &self.masked.members;
        let index = self.masked.survivor(client)?;
        let message: proto::UnmaskShares = signed::verify(signed, label::SIG_UNMASK, members.identity(index), WHAT)?;
        members.check_sender(&message.cohort_id, message.from, index)?;

        // Every neighbour in U1 occurs once: with a share, or as unreadable.
        let ascending = |list: &[u32]| list.windows(2).all(|pair| pair[0] < pair[1]);
        let shared: Vec<u32> = message.shares.iter().map(|share| share.of).collect();
        let mut all = [shared.as_slice(), &message.unreadable].concat();
        all.sort_unstable();
        let each_once = all.into_iter().eq(members.neighbours_in(index, &self.masked.shared));
        if !each_once || !ascending(&shared) || !ascending(&message.unreadable) {
            return Err(Reason::shape(WHAT, "they are not exactly one for each neighbour that shared keys, ascending"));
        }
        let mut shares = Vec::with_capacity(shared.len());
        let mut wrong = Vec::new();
        for revealed in &message.shares {
            if revealed.kind() != self.kind(revealed.of) {
                return Err(Reason::shape(WHAT, format!("the share of client {} is of the other secret", revealed.of)));
            }
            let value = signed::fixed(&revealed.value, WHAT)?;
            let share = Share::from_bytes(index + 1, &value).map_err(|e| Reason::shape(WHAT, e))?;
            let dealt = pairwise::share_commitment(&share, revealed.kind(), members.cohort.id, revealed.of);
            if self.masked.commitments.get(&(revealed.of, index)) == Some(&dealt) {
                shares.push((revealed.of, share));
            } else {
                wrong.push(revealed.of);
            }
        }
        let own = self.own_secret(index, &message.self_mask_secret)?;

        let report = |what: Fault| move |&about: &u32| Report { about: members.id(about), by: client, what };
        self.reports.extend(message.unreadable.iter().map(report(Fault::UnreadableShares)));
        self.reports.extend(wrong.iter().map(report(Fault::WrongShare)));
        shares.into_iter().for_each(|(of, share)| self.shares.entry(of).or_default().push(share));
        self.own.insert(index, own);
        self.answered[index as usize] = true;
        Ok(())
    }

    /// The self-mask secret that `index` revealed itself.
    fn own_secret(&self, index: u32, bytes: &[u8]) -> Result<SecretScalar, Reason> {
        let own = SecretScalar::from_canonical(&signed::fixed(bytes, WHAT)?).map_err(|e| Reason::shape(WHAT, e))?;
        if !self.masked.members.fits(index, SecretKind::SelfMask, &own) {
            return Err(Reason::shape(WHAT, "the self-mask secret is not the one that the advert commits to"));
        }
        Ok(own)
    }

    /// The certificate, for every client that shared its keys: one that is not among the survivors erases its secrets.
    pub fn view(&self, client: ClientId) -> Option<View> {
        let Some(certificate) = &self.certificate else {
            return self.masked.survivor(client).ok().map(|_| self.masked.survivors_view());
        };
        let index = self.masked.members.index_of(client).ok()?;
        self.masked.shared[index as usize].then(|| View::Certificate(certificate.as_ref().clone()))
    }

    pub fn progress(&self) -> Progress {
        let expected = crate::bitmap::count(&self.masked.survivors);
        Progress { answered: crate::bitmap::count(&self.answered), expected, leaving: 0 }
    }

    pub fn missing(&self) -> Vec<ClientId> {
        let missing =
            self.masked.survivors.iter().zip(&self.answered).map(|(&survives, &answered)| survives && !answered);
        self.masked.members.ids(&missing.collect::<Vec<_>>())
    }

    /// The clients of which a secret is needed: survivors, and those that dropped out next to one.
    fn needed(&self) -> impl Iterator<Item = u32> {
        let masked = &self.masked;
        (0..masked.shared.len() as u32).filter(|&v| {
            let survives = masked.survivors[v as usize];
            let leaves_masks = || masked.members.neighbours_in(v, &masked.survivors).next().is_some();
            survives || masked.shared[v as usize] && leaves_masks()
        })
    }

    /// Whether the shares at hand rebuild every secret that is needed. Owners' own words don't count: a phase that is closed with
    /// few shares would blame dealers whom more of them clear, and clear others.
    pub fn sufficient(&self) -> bool {
        let need = self.masked.members.cohort.threshold();
        let enough = |v| self.shares.get(&v).is_some_and(|shares| shares.len() >= need);
        self.needed().all(enough) && Rebuilt::possible(self, self.needed())
    }

    pub fn close(self) -> Result<Outcome, Abort> {
        let Rebuilt { secrets, reports: wrong, misdealt, mut lost } = Rebuilt::of(&self, self.needed())?;
        let (cohort, sharers) = (self.masked.members.cohort.id, &self.masked.sharers_hash);
        let masks_of = |(v, secret): &(u32, SecretScalar)| {
            if self.masked.survivors[*v as usize] {
                Ok(Ok(vec![(pairwise::self_mask(secret, cohort, sharers), Sign::Subtract)]))
            } else {
                self.pair_masks(*v, secret)
            }
        };
        let results: Vec<Result<Result<_, Lost>, CryptoError>> = secrets.par_iter().map(masks_of).collect();
        let mut masks = Vec::new();
        for result in results {
            match result? {
                Ok(of_one) => masks.extend(of_one),
                Err(one) => lost.push(one),
            }
        }
        let Self { masked: Masked { members, survivors, mut sum, .. }, mut reports, .. } = self;
        reports.extend(wrong);
        if !lost.is_empty() {
            lost.extend(misdealt);
            return Err(Abort::Lost { lost, reports });
        }
        sum.apply_masks(&masks)?;
        let cohort = members.ids(&vec![true; survivors.len()]);
        Ok(Outcome { sum, cohort, survivors: members.ids(&survivors), reports, misdealt })
    }

    /// The masks that survivors applied for their neighbour `v`, which dropped out, with the opposite signs.
    fn pair_masks(&self, v: u32, secret: &SecretScalar) -> Result<Result<Vec<(Seed, Sign)>, Lost>, CryptoError> {
        let mut masks = Vec::new();
        let members = &self.masked.members;
        let (cohort, graph, sharers) = (members.cohort.id, &members.cohort.graph, &self.masked.sharers_hash);
        let mask_key = pairwise::mask_key(secret, members.context.params.round_id);
        let end = |index: u32| End { index, advert: &members.members[index as usize].advert };
        let pair = |from, to| Pair { cohort, sharers, encapsulator: end(from), other: end(to) };
        let ciphertext = |from, to| self.masked.mask_cts.get(&(from, to)).map(Vec::as_slice).unwrap_or_default();
        for u in members.neighbours_in(v, &self.masked.survivors) {
            if graph.encapsulates(v, u) {
                let key = &end(u).advert.mask_ek;
                let coins = pairwise::mask_coins(secret, cohort, u, key);
                let (ct, shared) = key.encapsulate_with_coins(&coins);
                if ct != ciphertext(v, u) {
                    return Ok(Err(Lost::WrongCiphertext { client: members.id(v) }));
                }
                masks.push((pairwise::pair_mask(&shared, pair(v, u), &ct), Sign::Add));
            } else {
                let ct = ciphertext(u, v);
                let shared = mask_key.decapsulate(ct)?;
                masks.push((pairwise::pair_mask(&shared, pair(u, v), ct), Sign::Subtract));
            }
        }
        Ok(Ok(masks))
    }
}
