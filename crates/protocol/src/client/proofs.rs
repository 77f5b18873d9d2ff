//! Phase 2: what proves that the neighbours' keys are their own (section 3, "One signature a neighbour").

use unisono_crypto::kdf::{Label, label};

use super::share::{Neighbour, Shared};
use super::{ClientError, NeighbourFault};
use crate::cohort::Advert;
use crate::proto::{DeliveredShares, Signed};
use crate::signed::{self, SignedError};

/// What a signature is on, in errors.
pub(super) const SHARES: &str = "neighbour's shares";
const ADVERT: &str = "neighbour's advert";

impl Shared {
    /// In malicious mode, verifies a signature of each neighbour: that on its shares, which covers its advert by the cohort's id, or for one
    /// outside U1 that on its advert, which must be the one under which this device gave it shares.
    pub(super) fn check_signatures(
        &self,
        present: &[&Neighbour],
        deliveries: &[DeliveredShares],
        absent: &[&Neighbour],
        adverts: &[Signed],
    ) -> Result<(), ClientError> {
        if self.secrets.round.authority.is_none() {
            return Ok(());
        }
        if adverts.len() != absent.len() {
            let (have, need) = (adverts.len(), absent.len());
            return Err(ClientError::TooFew { what: "that shared no keys have their advert's signature", have, need });
        }
        let unsigned = Signed::default();
        let roots = deliveries.iter().map(|delivery| delivery.root.as_ref().unwrap_or(&unsigned));
        let shares = present.iter().zip(roots).map(|(v, root)| (*v, root, label::SIG_SHARES, SHARES));
        let proofs = absent.iter().zip(adverts).map(|(v, advert)| (*v, advert, label::SIG_ADVERT, ADVERT));
        let proofs: Vec<(&Neighbour, &Signed, Label, &str)> = shares.chain(proofs).collect();
        let mut claims = Vec::with_capacity(proofs.len());
        for (neighbour, signed, label, _) in &proofs {
            let key = neighbour.identity.as_deref().ok_or(ClientError::Missing("verifying key of a neighbour"))?;
            claims.push(signed::claim(signed, *label, key));
        }
        for ((neighbour, _, _, what), verified) in proofs.iter().zip(self.secrets.round.verify_all(&claims)) {
            let fault = |_| NeighbourFault::from(SignedError::Signature { what }).of(neighbour.index);
            verified.map_err(fault)?;
        }
        for (neighbour, advert) in absent.iter().zip(adverts) {
            self.check_advert(neighbour, advert).map_err(|fault| fault.of(neighbour.index))?;
        }
        Ok(())
    }

    fn check_advert(&self, neighbour: &Neighbour, signed: &Signed) -> Result<(), NeighbourFault> {
        let own = Advert::from_payload(&signed.payload, self.secrets.round.params.round_id)?;
        if own == *neighbour.advert { Ok(()) } else { Err(NeighbourFault::OtherAdvert) }
    }
}
