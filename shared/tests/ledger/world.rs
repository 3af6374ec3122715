//! Workers on hosts of their own, and the store that they share.

use std::time::Duration;

use aws_config::SdkConfig;
use compose_ci_shared::build::{self, Build, BuildId, BuildRequest};
use compose_ci_shared::config::StoreConfig;
use compose_ci_shared::ledger::{Claim, Ledger, LedgerError, Store};
use compose_ci_shared::net::aws::samples;
use harness::{Aws, REGION};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// One for all tests; it ends with this process.
static AWS: OnceCell<Aws> = OnceCell::const_new();

/// A bucket of its own, and what workers find it by.
pub(crate) struct World {
    pub(crate) aws: &'static Aws,
    pub(crate) bucket: String,
}

/// A worker with a directory of its own.
pub(crate) struct Worker {
    pub(crate) ledger: Ledger,
    pub(crate) directory: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        let aws = AWS.get_or_init(Aws::start).await;
        let bucket = BuildId::random().to_string();
        aws.create_bucket(&bucket).await;
        Self { aws, bucket }
    }

    pub(crate) fn config(&self) -> StoreConfig {
        StoreConfig {
            bucket: self.bucket.clone(),
            prefix: "team/ci".to_owned(),
            region: None,
            is_elsewhere: true,
            ca_bundle: None,
        }
    }

    pub(crate) async fn store(&self) -> Store {
        store_at(&self.config(), &self.aws.endpoint_url()).await
    }

    pub(crate) async fn worker(&self) -> Worker {
        self.worker_in(tempfile::tempdir().expect("directory"))
            .await
    }

    /// The worker whose files these are.
    pub(crate) async fn worker_in(&self, directory: TempDir) -> Worker {
        Worker::new(directory, self.store().await)
    }

    /// The worker after its process was killed and started anew.
    pub(crate) async fn restart(&self, worker: Worker) -> Worker {
        let directory = worker.directory;
        drop(worker.ledger);
        self.worker_in(directory).await
    }

    /// Does what time would do to all claims.
    pub(crate) async fn let_pass(&self, time: Duration) {
        self.aws.age_objects(&self.bucket, time).await;
    }

    pub(crate) async fn object(&self, build: BuildId) -> Option<String> {
        self.aws.object(&self.bucket, &key(build)).await
    }

    pub(crate) async fn delete(&self, build: BuildId) {
        self.aws.delete_object(&self.bucket, &key(build)).await;
    }
}

impl Worker {
    pub(crate) fn new(directory: TempDir, store: Store) -> Self {
        let ledger = Ledger::with_store(directory.path(), Some(store)).expect("opened");
        Self { ledger, directory }
    }

    pub(crate) async fn claim(&self, request: &BuildRequest) -> Claim {
        self.ledger.claim(request).await.expect("an answer")
    }

    /// Claims a build that is there to be claimed.
    pub(crate) async fn take(&self, request: &BuildRequest) -> Build {
        match self.claim(request).await {
            Claim::Ours(build) => build,
            claim => panic!("not ours: {claim:?}"),
        }
    }

    /// Returns how long another worker's claim lasts.
    pub(crate) async fn wait_for(&self, request: &BuildRequest) -> Duration {
        match self.claim(request).await {
            Claim::Elsewhere { again_in } => again_in,
            claim => panic!("not elsewhere: {claim:?}"),
        }
    }

    /// Returns a build as this worker knows it by itself.
    pub(crate) async fn known(&self, request: &BuildRequest) -> Build {
        let found = self.ledger.find(request.id).await.expect("read");
        found.expect("it is known")
    }
}

pub(crate) async fn store_at(config: &StoreConfig, endpoint_url: &str) -> Store {
    Store::with_sdk_config(config, &sdk_config(endpoint_url).await).expect("a store")
}

/// A ledger of one host alone.
pub(crate) fn alone() -> (TempDir, Ledger) {
    let directory = tempfile::tempdir().expect("directory");
    let ledger = Ledger::with_store(directory.path(), None).expect("opened");
    (directory, ledger)
}

pub(crate) async fn sdk_config(endpoint_url: &str) -> SdkConfig {
    samples::sdk_config(REGION, endpoint_url).await
}

pub(crate) fn request() -> BuildRequest {
    build::samples::request("main")
}

pub(crate) fn assert_lost(done: Result<(), LedgerError>) {
    assert!(matches!(done, Err(LedgerError::ClaimLost)), "{done:?}");
}

fn key(build: BuildId) -> String {
    format!("team/ci/builds/{build}.json")
}
