//! The released model, fetched and opened by an enrolled device.

use prost::Message;
use unisono_crypto::kdf::label;
use unisono_protocol::policy::ParticipationRecord;
use unisono_protocol::roster::Head;
use unisono_protocol::signed;
use unisono_release::{OpenPolicy, Release, open, open_grant, proto::ReleaseHeader};
use unisono_wire::model::Model;
use unisono_wire::proto::{GetReleaseRequest, GrantRequest, GrantRequestBody, GrantResponse};
use zeroize::Zeroizing;

use crate::connection::Stub;
use crate::{Client, Error, now};

/// Bytes of header, tags and signatures that a release may have beyond its payload.
const RELEASE_OVERHEAD: u64 = 1 << 20;

/// A release that was verified and decrypted.
pub struct OpenedRelease {
    /// What the publisher says about it.
    pub header: ReleaseHeader,
    /// The payload: a safetensors file. Erased when dropped.
    pub plaintext: Zeroizing<Vec<u8>>,
}

impl OpenedRelease {
    /// The payload as a model of `F32` tensors.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn model(&self) -> Result<Model, Error> {
        Ok(Model::from_safetensors(&self.plaintext)?)
    }
}

impl Client {
    /// Fetches the latest release of `model_id`, asks for this device's grant, verifies and decrypts. A version older than one
    /// that was opened is refused. `max_payload` in bytes bounds what is fetched.
    ///
    /// # Errors
    /// [`Error::Refused`] for a device that is not enrolled, or no longer; [`Error::Release`] says which check failed.
    pub async fn open_release(&mut self, model_id: &str, max_payload: u64) -> Result<OpenedRelease, Error> {
        let registrar = self.trust.registrar.clone().ok_or(Error::NoRegistrar)?;
        let request = GetReleaseRequest { model_id: model_id.into() };
        let limit = max_payload.saturating_add(max_payload / 1024).saturating_add(RELEASE_OVERHEAD);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let call = async |mut stub: Stub| stub.get_release(request.clone()).await;
        let file = self.connection.fetch("release", limit, call).await?;
        let release = Release::parse(&file)?;

        let client_id = self.identity.client_id;
        let body = GrantRequestBody {
            client_id: client_id.to_vec(),
            header_hash: release.header.hash.to_vec(),
            release_key: self.keys.release_key.encapsulation_key().as_bytes().to_vec(),
            requested_at: now(),
        };
        let request = signed::sign_bytes(body.encode_to_vec(), label::SIG_CLIENT_REQUEST, Some(&self.keys.signing_key));
        let request = GrantRequest { request: Some(request) };
        let call = async |mut stub: Stub| stub.request_grant(request.clone()).await;
        let GrantResponse { grant, roster_head } = self.connection.call(call).await?;
        let grant = grant.ok_or_else(|| Error::Answer("there is no grant in it".into()))?;
        let head = roster_head.ok_or_else(|| Error::Answer("there is no roster head in it".into()))?;
        let head = Head::verify(&head, &registrar)?;
        let seen = self.record.roster_epoch()?;
        if head.epoch < seen {
            return Err(unisono_protocol::client::ClientError::StaleRoster { epoch: head.epoch, seen }.into());
        }
        self.record.see_roster_epoch(head.epoch)?;

        let (key, epoch) = (&self.keys.release_key, head.epoch);
        // The release may be of an older epoch than the grant: devices come and go while a model stays.
        let content = open_grant(&grant, &release.header, client_id.0, key, &head.publisher_keys, epoch)?;
        let policy = OpenPolicy {
            publishers: head.publisher_keys,
            model_id: Some(model_id.into()),
            min_roster_epoch: self.trust.policy.min_roster_epoch,
            max_payload,
        };
        let plaintext = open(&release, &content, &policy, &mut self.record, now())?;
        Ok(OpenedRelease { header: release.header.fields.clone(), plaintext })
    }
}
