//! A proxy between one device and the coordinator, over real connections. It passes on every call of the service, changes what its
//! [`Lie`] says, and keeps what the device sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};
use unisono::protocol::proto::{
    Certificate, ClientMessage, SurvivorsView, UploadHeader, client_message::Step, server_message::View,
};
use unisono::wire::proto::coordinator_client::CoordinatorClient;
use unisono::wire::proto::coordinator_server::{Coordinator as Service, CoordinatorServer};
use unisono::wire::proto::poll_response::Answer;
use unisono::wire::proto::*;

/// Changes a view, given what the device has sent so far.
pub type ViewLie = Box<dyn Fn(&mut View, &[ClientMessage]) + Send + Sync>;

/// Changes an offer.
pub type OfferLie = Box<dyn Fn(&mut GetRoundResponse) + Send + Sync>;

/// Changes the certificate that the device is shown, given the set of survivors that it has endorsed and its endorsement's signature.
pub type CertificateLie = fn(&mut Certificate, &[u8], &[u8]);

/// Changes a step.
pub type StepLie = Box<dyn Fn(&mut Step) + Send + Sync>;

/// Changes a sealed model.
pub type FileLie = Box<dyn Fn(&mut Vec<u8>) + Send + Sync>;

/// Answers a request for a grant in the coordinator's place, or passes it on.
pub type GrantLie = Box<dyn Fn(&GrantRequest) -> Option<GrantResponse> + Send + Sync>;

/// What the proxy changes: a view, with what the device has sent so far; an offer; sealed models and their grants; when something
/// arrives.
pub enum Lie {
    None,
    View(ViewLie),
    Offer(OfferLie),
    /// The device alone is told that another client dropped out. Its endorsement goes no further, and what the others certify is
    /// changed for it.
    Isolate(CertificateLie),
    /// What the device sends, signed again: the device lies.
    Step(StepLie),
    Models {
        file: FileLie,
        grant: GrantLie,
    },
    /// An offer takes so long.
    LateOffer(Duration),
    /// The device's chunks go no further before this is true.
    HoldChunks(watch::Receiver<bool>),
}

/// What the device sent towards the coordinator.
#[derive(Default)]
pub struct Sent {
    pub messages: Vec<ClientMessage>,
    /// Chunks of masked inputs, by upload hash.
    pub chunks: Vec<UploadChunk>,
    /// What it said about missed rounds.
    pub missed: Vec<String>,
    /// The set of survivors that an isolated device was shown.
    survivors: Vec<u8>,
}

pub struct Proxy {
    stub: CoordinatorClient<Channel>,
    lie: Arc<Lie>,
    sent: Arc<Mutex<Sent>>,
}

impl Proxy {
    /// Stands before the coordinator at `endpoint`; its own endpoint, and what it sees.
    pub async fn start(endpoint: &str, lie: Lie) -> (String, Arc<Mutex<Sent>>, JoinHandle<()>) {
        let stub = CoordinatorClient::connect(endpoint.to_owned()).await.unwrap();
        let sent = Arc::new(Mutex::new(Sent::default()));
        let proxy = Self { stub, lie: Arc::new(lie), sent: sent.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(CoordinatorServer::new(proxy));
        let serving = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        (endpoint, sent, serving)
    }
}

type Chunks = tokio_stream::Iter<std::vec::IntoIter<Result<FileChunk, Status>>>;

impl Proxy {
    /// A file that goes through the proxy, which may change it.
    async fn file(&self, chunks: Streaming<FileChunk>) -> Result<Response<Chunks>, Status> {
        let chunks: Vec<FileChunk> = chunks.collect::<Result<_, _>>().await?;
        let mut data: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.data).collect();
        if let Lie::Models { file, .. } = &*self.lie {
            file(&mut data);
        }
        Ok(Response::new(tokio_stream::iter(vec![Ok(FileChunk { data })])))
    }
}

#[tonic::async_trait]
impl Service for Proxy {
    type GetModelStream = Chunks;
    type GetReleaseStream = Self::GetModelStream;

    async fn get_round(&self, request: Request<GetRoundRequest>) -> Result<Response<GetRoundResponse>, Status> {
        let request = request.into_inner();
        self.sent.lock().unwrap().missed.push(request.missed.clone());
        let mut response = self.stub.clone().get_round(request).await?;
        if let Lie::LateOffer(pause) = &*self.lie {
            tokio::time::sleep(*pause).await;
        }
        if let Lie::Offer(lie) = &*self.lie {
            lie(response.get_mut());
        }
        Ok(Response::new(response.into_inner()))
    }

    async fn submit(&self, request: Request<ClientMessage>) -> Result<Response<SubmitResponse>, Status> {
        let mut message = request.into_inner();
        if let (Lie::Step(lie), Some(step)) = (&*self.lie, &mut message.step) {
            lie(step);
        }
        self.sent.lock().unwrap().messages.push(message.clone());
        if let (Lie::Isolate(_), Some(Step::Endorsement(_))) = (&*self.lie, &message.step) {
            return Ok(Response::new(SubmitResponse { repeat: false }));
        }
        Ok(Response::new(self.stub.clone().submit(message).await?.into_inner()))
    }

    async fn poll(&self, request: Request<PollRequest>) -> Result<Response<PollResponse>, Status> {
        let request = request.into_inner();
        let confirms = request.phase() == RoundPhase::Confirm;
        let mut response = self.stub.clone().poll(request).await?.into_inner();
        if let Some(Answer::View(message)) = &mut response.answer {
            let (view, mut sent) = (message.view.as_mut().unwrap(), self.sent.lock().unwrap());
            match (&*self.lie, &mut *view) {
                (Lie::View(lie), view) => lie(view, &sent.messages),
                (Lie::Isolate(_), view @ View::Certificate(_)) if confirms => ask_all_the_same(view),
                (Lie::Isolate(lie), View::Certificate(certificate)) => {
                    lie(certificate, &sent.survivors, endorsed_in(&sent.messages));
                }
                _ => {}
            }
            if let (Lie::Isolate(_), View::Survivors(shown)) = (&*self.lie, &mut *view) {
                drop_another(shown, &sent.messages);
                sent.survivors = shown.survivors.clone();
            }
        }
        Ok(Response::new(response))
    }

    async fn get_upload_status(
        &self,
        request: Request<UploadStatusRequest>,
    ) -> Result<Response<UploadStatusResponse>, Status> {
        Ok(Response::new(self.stub.clone().get_upload_status(request.into_inner()).await?.into_inner()))
    }

    async fn upload(&self, request: Request<Streaming<UploadChunk>>) -> Result<Response<UploadStatusResponse>, Status> {
        let chunks: Vec<UploadChunk> = request.into_inner().collect::<Result<_, _>>().await?;
        self.sent.lock().unwrap().chunks.extend(chunks.iter().cloned());
        if let Lie::HoldChunks(until) = &*self.lie {
            until.clone().wait_for(|until| *until).await.unwrap();
        }
        Ok(Response::new(self.stub.clone().upload(tokio_stream::iter(chunks)).await?.into_inner()))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<Self::GetModelStream>, Status> {
        let chunks = self.stub.clone().get_model(request.into_inner()).await?.into_inner();
        self.file(chunks).await
    }

    async fn get_release(
        &self,
        request: Request<GetReleaseRequest>,
    ) -> Result<Response<Self::GetReleaseStream>, Status> {
        let chunks = self.stub.clone().get_release(request.into_inner()).await?.into_inner();
        self.file(chunks).await
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        Ok(Response::new(self.stub.clone().leave(request).await?.into_inner()))
    }

    async fn request_grant(&self, request: Request<GrantRequest>) -> Result<Response<GrantResponse>, Status> {
        let request = request.into_inner();
        if let Lie::Models { grant, .. } = &*self.lie
            && let Some(response) = grant(&request)
        {
            return Ok(Response::new(response));
        }
        Ok(Response::new(self.stub.clone().request_grant(request).await?.into_inner()))
    }
}

/// Where the others were so fast that there is a certificate already: the device is asked for its endorsement all the same.
pub fn ask_all_the_same(view: &mut View) {
    if let View::Certificate(Certificate { cohort_id, survivors, .. }) = view {
        let (cohort_id, survivors) = (cohort_id.clone(), survivors.clone());
        *view = View::Survivors(SurvivorsView { cohort_id, survivors });
    }
}

/// The signature of the device's endorsement.
fn endorsed_in(messages: &[ClientMessage]) -> &[u8] {
    let signature = messages.iter().find_map(|message| match &message.step {
        Some(Step::Endorsement(signed)) => Some(signed.signature.as_slice()),
        _ => None,
    });
    signature.unwrap()
}

/// Takes a client out of the survivors, another one than the device, whichever index they have.
pub fn drop_another(view: &mut SurvivorsView, messages: &[ClientMessage]) {
    let upload = messages.iter().find_map(|message| match &message.step {
        Some(Step::Upload(signed)) => Some(signed.payload.as_slice()),
        _ => None,
    });
    let own = UploadHeader::decode(upload.unwrap()).unwrap().from;
    view.survivors[0] &= !(1 << ((own + 1) % 5));
}
