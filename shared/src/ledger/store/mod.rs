//! The builds' objects in a bucket that several hosts share: one for each build.
//!
//! An object is created with `If-None-Match: *`, so that one worker claims a build, and changed with
//! `If-Match`, so that no step is taken from where the build does not stand any more. Each write carries
//! a number of its own: a worker whose answer was lost reads the object, and knows its own write.
//!
//! The claim is a lease as well. Its age is the time since the object was last written, by the store's
//! own clock.

mod bucket;
mod probe;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use aws_config::SdkConfig;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use self::bucket::{Bucket, If, Put};
use super::entry::{Entry, Step};
use crate::build::{BuildId, IllegalStep};
use crate::config::{ConfigError, StoreConfig};
use crate::net::aws;

/// All requests of one step together: less than by how much a build is stopped before its claim ends.
const STEP_DEADLINE: Duration = Duration::from_secs(15);
/// So often a step is decided anew because the object has changed meanwhile.
const ROUNDS: u32 = 8;
/// The form of the objects that this program writes.
const VERSION: u32 = 1;

/// The store cannot be reached or refuses, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It does not keep its word, or a setting or a right is wrong.
    #[error("{0}")]
    Refused(String),
    /// It cannot be reached now.
    #[error("{0}")]
    Unreachable(String),
}

/// The builds in a bucket. Clones share the connections.
#[derive(Debug, Clone)]
pub struct Store {
    bucket: Bucket,
    /// The objects as this worker wrote them: it need not read what nobody else has changed.
    written: Arc<Mutex<HashMap<BuildId, Stored>>>,
}

/// The content of an object.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Object {
    version: u32,
    /// New for each write.
    write: Uuid,
    #[serde(flatten)]
    entry: Entry,
}

/// An object as it is stored.
#[derive(Debug, Clone)]
struct Stored {
    object: Object,
    tag: String,
    age: Duration,
}

impl Store {
    /// Prepares the client; nothing is asked of the store yet.
    ///
    /// # Errors
    /// The region is not known, or the bundle of root certificates cannot be used.
    pub async fn open(config: &StoreConfig) -> Result<Self, ConfigError> {
        let sdk = aws::sdk_config(config.region.as_deref(), config.ca_bundle.as_deref()).await?;
        Self::with_sdk_config(config, &sdk)
    }

    /// As [`open`](Self::open), with what the environment would say about AWS given.
    ///
    /// # Errors
    /// The region is not known.
    pub fn with_sdk_config(config: &StoreConfig, sdk: &SdkConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            bucket: Bucket::new(config, sdk)?,
            written: Arc::default(),
        })
    }

    /// Tries with an object of its own whether the store keeps its word on conditional writes.
    ///
    /// # Errors
    /// It does not; or it cannot be reached, or refuses.
    pub async fn probe(&self) -> anyhow::Result<()> {
        match probe::probe(&self.bucket).await {
            Ok(()) => Ok(()),
            Err(StoreError::Refused(problem)) => Err(ConfigError {
                variable: "STORE_URL",
                problem,
            }
            .into()),
            // No setting is wrong: a supervisor may start the program again.
            Err(error @ StoreError::Unreachable(_)) => Err(anyhow!(error).context("STORE_URL")),
        }
    }

    /// Returns true if a worker has ever claimed a build.
    ///
    /// # Errors
    /// The store cannot be reached, or refuses.
    pub async fn is_known(&self, build: BuildId) -> Result<bool, StoreError> {
        let name = object_name(build);
        let found = self.in_time(Box::pin(self.bucket.get(&name))).await?;
        Ok(found.is_some())
    }

    /// Takes a step with a build from where it stands, which the step gets with the time since it was
    /// written. What is not in the store stands as `known`; a build that `is_new` most likely is not.
    ///
    /// # Errors
    /// The store cannot be reached, or refuses: the step may have been taken, or not.
    pub(super) async fn step(
        &self,
        known: &Entry,
        is_new: bool,
        step: impl Fn(Entry, Duration) -> Result<Entry, IllegalStep>,
    ) -> Result<Step, StoreError> {
        let stepping = Box::pin(self.try_step(known, is_new, step));
        self.in_time(stepping).await
    }

    async fn try_step(
        &self,
        known: &Entry,
        is_new: bool,
        step: impl Fn(Entry, Duration) -> Result<Entry, IllegalStep>,
    ) -> Result<Step, StoreError> {
        let build = known.id();
        let mut guess = match self.written().get(&build).cloned() {
            None if is_new => Some(None),
            None => None,
            own => Some(own),
        };
        let (mut own_write, mut trouble) = (None, "others keep changing it".to_owned());
        for _ in 0..ROUNDS {
            let found = match guess.take() {
                Some(guess) => guess,
                None => self.read(build).await?,
            };
            let (stands, age) = match &found {
                Some(stored) if Some(stored.object.write) == own_write => {
                    return Ok(self.taken(stored.clone()));
                }
                Some(stored) => (stored.object.entry.clone(), stored.age),
                None => (known.clone(), Duration::MAX),
            };
            let next = match step(stands.clone(), age) {
                Ok(next) => Object::new(next),
                Err(why) => {
                    self.written().remove(&build);
                    return Ok(Step::Refused { why, stands, age });
                }
            };
            own_write = Some(next.write);
            match self.write(&next, found.as_ref()).await? {
                Put::Stored(tag) => return Ok(self.taken(Stored::just_now(next, tag))),
                Put::Refused => {}
                Put::Unclear(reason) => trouble = reason,
            }
        }
        let says = format!("did not take a step of {build}: {trouble}");
        Err(self.bucket.error(says))
    }

    async fn write(&self, object: &Object, over: Option<&Stored>) -> Result<Put, StoreError> {
        let name = object_name(object.entry.id());
        let on = over.map_or(If::Absent, |stored| If::Tag(&stored.tag));
        self.bucket.put(&name, object.encode(), on).await
    }

    /// Remembers what this worker has written, as long as the build is its own.
    fn taken(&self, stored: Stored) -> Step {
        let entry = stored.object.entry.clone();
        let is_owned = entry.state.owner().is_some();
        match is_owned {
            true => self.written().insert(entry.id(), stored),
            false => self.written().remove(&entry.id()),
        };
        Step::Taken(entry)
    }

    async fn read(&self, build: BuildId) -> Result<Option<Stored>, StoreError> {
        let name = object_name(build);
        let Some(found) = self.bucket.get(&name).await? else {
            return Ok(None);
        };
        let object = Object::decode(&found.body);
        Ok(Some(Stored {
            object: object.map_err(|why| self.bucket.error(format!("holds {name}: {why}")))?,
            tag: found.tag,
            age: found.age,
        }))
    }

    /// Who gives `work` boxes it: the SDK makes futures of 20 KiB.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = timeout(STEP_DEADLINE, work).await;
        done.unwrap_or_else(|_| Err(self.bucket.unreachable("no answer in time")))
    }

    fn written(&self) -> MutexGuard<'_, HashMap<BuildId, Stored>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored {
    fn just_now(object: Object, tag: String) -> Self {
        Self {
            object,
            tag,
            age: Duration::ZERO,
        }
    }
}

impl Object {
    fn new(entry: Entry) -> Self {
        Self {
            version: VERSION,
            write: Uuid::new_v4(),
            entry,
        }
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    fn decode(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let read = serde_json::from_slice::<Versioned>(body);
        match read.map_err(|error| error.to_string())?.version {
            VERSION => serde_json::from_slice(body).map_err(|error| error.to_string()),
            newer => Err(format!(
                "it is of a newer version of this program ({newer})"
            )),
        }
    }
}

fn object_name(build: BuildId) -> String {
    format!("builds/{build}.json")
}
