//! Sealed models, fetched and opened: the base model of the round at hand by a member of its cohort, the released one by any
//! enrolled device. One code path for both (`docs/protocol.md` section 13).

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use getrandom::SysRng;
use prost::Message;
use rand_core::UnwrapErr;
use unisono_crypto::kdf::label;
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::proto::Signed;
use unisono_protocol::roster::Head;
use unisono_protocol::signed;
use unisono_release::proto::{ReleaseHeader, SealedKind};
use unisono_release::{ContentKey, Header, Issuers, OpenPolicy, Release, Signers, Token, open, open_grant, open_to};
use unisono_wire::model::Model;
use unisono_wire::proto::{GetModelRequest, GetReleaseRequest, GrantRequest, GrantRequestBody, GrantResponse};
use zeroize::Zeroizing;

use crate::connection::Stub;
use crate::download::{Part, Sink};
use crate::{Client, Error, head, now};

/// Bytes of header, tags and signatures that a file may have beyond its payload.
const SEALED_OVERHEAD: u64 = 1 << 20;
/// A file that nobody grants is fetched again so often: it was sealed anew.
const MOST_FILES: u32 = 3;
/// A request for a grant is signed anew after so many seconds of tries: the coordinator takes none that is older than 300.
const REQUEST_AGE: u64 = 120;

/// A sealed model that was verified and decrypted.
pub struct OpenedModel {
    /// What its signer says about it.
    pub header: ReleaseHeader,
    /// The payload: a safetensors file. Erased when dropped.
    pub plaintext: Zeroizing<Vec<u8>>,
}

impl OpenedModel {
    /// The payload as a model of `F32` tensors.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn model(&self) -> Result<Model, Error> {
        Ok(Model::from_safetensors(&self.plaintext)?)
    }
}

/// Who vouches for models and grants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Authority {
    /// Keys that the registrar's roster names.
    Roster,
    /// The token, in semi-honest mode.
    Token,
}

/// What is asked for, within limits.
struct Wanted {
    kind: SealedKind,
    name: String,
    version: Option<u64>,
    max_payload: u64,
    authority: Authority,
}

impl Client {
    /// Fetches the latest release of `model_id`, asks for this device's grant, verifies and decrypts. A version older than one
    /// that was opened is refused. `max_payload` in bytes bounds what is fetched.
    ///
    /// # Errors
    /// [`Error::Refused`] for a device that is not enrolled, or no longer; [`Error::Release`] says which check failed;
    /// [`Error::NoAuthority`] without a registrar's key and without a token.
    pub async fn open_release(&mut self, model_id: &str, max_payload: u64) -> Result<OpenedModel, Error> {
        let authority = self.authority()?;
        let (kind, name) = (SealedKind::Release, model_id.to_owned());
        self.open_sealed(Wanted { kind, name, version: None, max_payload, authority }).await
    }

    /// Fetches, verifies and decrypts version `version` of the task's model, which has to be the base model of the round at hand, and
    /// this device a member of its cohort. Rounds do this by themselves. `max_payload` in bytes bounds what is fetched.
    ///
    /// # Errors
    /// As of [`Self::open_release`]; [`Error::Refused`] for an older or a later version.
    pub async fn model(&self, version: u64, max_payload: u64) -> Result<OpenedModel, Error> {
        self.base_model(version, max_payload, self.authority()?).await
    }

    /// As [`Self::model`], for a round whose mode says who vouches for its base model.
    pub(crate) async fn base_model(
        &self,
        version: u64,
        max_payload: u64,
        authority: Authority,
    ) -> Result<OpenedModel, Error> {
        let (kind, name) = (SealedKind::BaseModel, self.task.clone());
        self.open_sealed(Wanted { kind, name, version: Some(version), max_payload, authority }).await
    }

    fn authority(&self) -> Result<Authority, Error> {
        match (&self.trust.registrar, &self.token) {
            (Some(_), _) => Ok(Authority::Roster),
            (None, Some(_)) => Ok(Authority::Token),
            (None, None) => Err(Error::NoAuthority),
        }
    }

    async fn open_sealed(&self, wanted: Wanted) -> Result<OpenedModel, Error> {
        let mut tries = 0;
        let (file, (content, policy)) = loop {
            let mut file = Vec::new();
            let header = self.fetch_sealed(&wanted, &mut file).await?;
            tries += 1;
            match self.granted(&header, &wanted).await {
                // The coordinator has sealed the model anew meanwhile, as after a restart without a key-encryption key.
                Err(error) if error.is_unknown_file() && tries < MOST_FILES => {}
                result => break (file, result?),
            }
        };
        let release = Release::parse(&file)?;
        let plaintext = open(&release, &content, &policy, &mut self.record.clone(), now())?;
        Ok(OpenedModel { header: release.header.fields.clone(), plaintext })
    }

    /// As [`Self::open_release`], into `out`: the model is never in memory as a whole, the sealed file is on disk meanwhile, in the
    /// state folder. What was written to `out` must not be used after an error.
    ///
    /// # Errors
    /// As of [`Self::open_release`]; [`Error::Download`] when there is no room for the file.
    pub async fn open_release_to(
        &mut self,
        model_id: &str,
        max_payload: u64,
        out: &mut impl Write,
    ) -> Result<ReleaseHeader, Error> {
        let (kind, name) = (SealedKind::Release, model_id.to_owned());
        let wanted = Wanted { kind, name, version: None, max_payload, authority: self.authority()? };
        let folder = self.record.folder().unwrap_or_else(std::env::temp_dir);
        let mut file = tempfile::tempfile_in(folder).map_err(Error::Download)?;
        let header = self.fetch_sealed(&wanted, &mut file).await?;
        let (content, policy) = self.granted(&header, &wanted).await?;
        let header = open_to(&mut file, &content, &policy, &mut self.record.clone(), now(), out)?;
        Ok(header.fields)
    }

    /// The content key of a file, out of this device's grant, and what is asked of the file.
    async fn granted(&self, header: &Header, wanted: &Wanted) -> Result<(ContentKey, OpenPolicy), Error> {
        let GrantResponse { grant, roster_head } = self.request_grant(&header.hash, wanted.authority).await?;
        let grant = grant.ok_or_else(|| Error::Answer("there is no grant in it".into()))?;

        let (id, key) = (self.identity.client_id.0, &self.keys.release_key);
        let mut min_roster_epoch = 0;
        let (content, signers) = match wanted.authority {
            Authority::Token => {
                let issuers = Issuers::Token(self.needed_token()?);
                (open_grant(&grant, header, id, key, issuers, 0)?, Signers::Granted)
            }
            Authority::Roster => {
                let head = self.newest_head(roster_head.as_ref())?;
                let keys = match wanted.kind {
                    SealedKind::BaseModel => head.coordinator_keys,
                    SealedKind::Release => {
                        // It may be of an older epoch than the grant: devices come and go while a model stays.
                        min_roster_epoch = self.trust.policy.min_roster_epoch;
                        head.publisher_keys
                    }
                };
                let content = open_grant(&grant, header, id, key, Issuers::Keys(&keys), head.epoch)?;
                (content, Signers::Keys(keys))
            }
        };
        let &Wanted { kind, version, max_payload, .. } = wanted;
        let model_id = Some(wanted.name.clone());
        let policy = OpenPolicy { signers, kind, model_id, version, min_roster_epoch, max_payload };
        Ok((content, policy))
    }

    fn needed_token(&self) -> Result<&Token, Error> {
        self.token.as_ref().ok_or(Error::NoAuthority)
    }

    /// The head that came with a grant.
    fn newest_head(&self, head: Option<&Signed>) -> Result<Head, Error> {
        let head = head.ok_or_else(|| Error::Answer("there is no roster head in it".into()))?;
        let mut record = self.record.clone();
        let head = head::verify(head, &self.trust, &record, now())?;
        record.see_roster_epoch(head.epoch)?;
        Ok(head)
    }

    async fn fetch_sealed(&self, wanted: &Wanted, sink: &mut impl Sink) -> Result<Header, Error> {
        // Before anything is fetched.
        if wanted.authority == Authority::Token {
            self.needed_token()?;
        }
        let Wanted { kind, name, version, max_payload, .. } = wanted;
        let limit = max_payload.saturating_add(max_payload / 1024).saturating_add(SEALED_OVERHEAD);
        match kind {
            SealedKind::BaseModel => {
                let version = version.unwrap_or_default();
                let call = |mut stub: Stub, Part { offset, header_hash }| {
                    let request = GetModelRequest { task: name.clone(), version, offset, header_hash };
                    async move { stub.get_model(request).await }
                };
                self.connection.fetch(sink, "base model", limit, call).await
            }
            SealedKind::Release => {
                let call = |mut stub: Stub, Part { offset, header_hash }| {
                    let request = GetReleaseRequest { model_id: name.clone(), offset, header_hash };
                    async move { stub.get_release(request).await }
                };
                self.connection.fetch(sink, "release", limit, call).await
            }
        }
    }

    /// Asks for this device's grant. A try that follows another one soon sends the same bytes, which cost the coordinator nothing.
    async fn request_grant(&self, header_hash: &[u8; 32], authority: Authority) -> Result<GrantResponse, Error> {
        let request = Mutex::new((now(), self.grant_request(header_hash, authority)?));
        let call = |mut stub: Stub| {
            let mut request = request.lock().unwrap_or_else(PoisonError::into_inner);
            if now().abs_diff(request.0) > REQUEST_AGE
                && let Ok(anew) = self.grant_request(header_hash, authority)
            {
                *request = (now(), anew);
            }
            let request = request.1.clone();
            async move { stub.request_grant(request).await }
        };
        self.connection.call(call).await
    }

    fn grant_request(&self, header_hash: &[u8; 32], authority: Authority) -> Result<GrantRequest, Error> {
        let body = GrantRequestBody {
            client_id: self.identity.client_id.to_vec(),
            header_hash: header_hash.to_vec(),
            release_key: self.keys.release_key.encapsulation_key().as_bytes().to_vec(),
            requested_at: now(),
        };
        let request = match authority {
            Authority::Roster => {
                let (payload, key) = (body.encode_to_vec(), &self.keys.signing_key);
                signed::sign_hedged(payload, label::SIG_CLIENT_REQUEST, Some(key), &mut UnwrapErr(SysRng))
            }
            Authority::Token => {
                let payload = body.encode_to_vec();
                let signature = self.needed_token()?.prove(label::MAC_CLIENT_REQUEST, &payload);
                Signed { payload, signature }
            }
        };
        Ok(GrantRequest { request: Some(request) })
    }
}
