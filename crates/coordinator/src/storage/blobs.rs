//! Uploads and models: blobs, each in a folder of its own.

use object_store::path::Path as BlobPath;
use tokio_stream::StreamExt;
use unisono_protocol::{ClientId, RoundId};

use super::{Store, StoreError};

fn model_path(task: &str, version: u64, what: &str) -> BlobPath {
    BlobPath::from_iter(["models", task, &version.to_string(), what])
}

fn upload_folder(round: RoundId, client: ClientId) -> BlobPath {
    BlobPath::from_iter(["uploads", &round.to_string(), &client.to_string()])
}

fn chunk_path(round: RoundId, client: ClientId, index: u64) -> BlobPath {
    upload_folder(round, client).join(index.to_string())
}

impl Store {
    /// Stores a chunk of an upload.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn put_chunk(
        &self,
        round: RoundId,
        client: ClientId,
        index: u64,
        data: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.put(&chunk_path(round, client, index), data).await
    }

    /// Number of chunks that are stored, from the first without a gap.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn count_chunks(&self, round: RoundId, client: ClientId) -> Result<u64, StoreError> {
        let mut found = self.blobs.list(Some(&upload_folder(round, client)));
        let mut indices = std::collections::BTreeSet::new();
        while let Some(item) = found.next().await {
            indices.extend(item?.location.filename().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok((0..).take_while(|index| indices.contains(index)).count() as u64)
    }

    /// The first `chunks` chunks of an upload, put together.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when one is missing.
    pub async fn read_upload(&self, round: RoundId, client: ClientId, chunks: u64) -> Result<Vec<u8>, StoreError> {
        let mut upload = Vec::new();
        for index in 0..chunks {
            let chunk = self.get(&chunk_path(round, client, index)).await?;
            let missing = || StoreError::Damaged(format!("chunk {index} of the upload of client {client} is missing"));
            upload.extend(chunk.ok_or_else(missing)?);
        }
        Ok(upload)
    }

    /// Forgets the chunks of an upload that turned out wrong.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn delete_upload(&self, round: RoundId, client: ClientId) -> Result<(), StoreError> {
        self.delete_folder(&upload_folder(round, client)).await
    }

    /// Stores a version of the task's model, with the optimiser's moments (both safetensors).
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn put_model(
        &self,
        task: &str,
        version: u64,
        model: Vec<u8>,
        moments: Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        if let Some(moments) = moments {
            self.put(&model_path(task, version, "moments.safetensors"), moments).await?;
        }
        self.put(&model_path(task, version, "model.safetensors"), model).await
    }

    /// A version of the task's model.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn get_model(&self, task: &str, version: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(&model_path(task, version, "model.safetensors")).await
    }

    /// The optimiser's moments after that version.
    ///
    /// # Errors
    /// [`StoreError::Blob`].
    pub async fn get_moments(&self, task: &str, version: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(&model_path(task, version, "moments.safetensors")).await
    }
}
