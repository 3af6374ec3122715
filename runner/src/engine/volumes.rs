//! The nameless volumes of containers. Only a container tells which ones it has, and only as long as
//! it exists: each is looked at when it is made.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::{Engine, EngineError, Result, in_time};

/// The length of the name that the engine gives to a nameless volume, in hexadecimal digits.
const NAMELESS_LEN: usize = 64;

/// The nameless volumes of the containers with a label, found one after the other.
pub struct NamelessVolumes {
    engine: Engine,
    label: String,
    /// The time of the last event: where to go on after the connection broke.
    since: Duration,
    found: HashSet<String>,
    unreported: Vec<String>,
    containers_made: Option<BoxStream<'static, Result<EventMessage, Error>>>,
}

impl Engine {
    /// Looks for the nameless volumes of the containers with a label (`name=value`) that were made since
    /// then.
    pub fn nameless_volumes(&self, label: String, since: SystemTime) -> NamelessVolumes {
        NamelessVolumes {
            engine: self.clone(),
            label,
            since: since.duration_since(UNIX_EPOCH).unwrap_or_default(),
            found: HashSet::new(),
            unreported: Vec::new(),
            containers_made: None,
        }
    }
}

impl NamelessVolumes {
    /// Returns the next volume, each one once.
    ///
    /// # Errors
    /// The engine does not answer; the next call asks it again, from the same time on.
    pub async fn next(&mut self) -> Result<String> {
        loop {
            if let Some(volume) = self.unreported.pop() {
                return Ok(volume);
            }
            let mut events = match self.containers_made.take() {
                Some(events) => events,
                None => self.containers_made(),
            };
            let event = match events.next().await {
                Some(event) => event?,
                None => return Err(EngineError::Gone("the connection was closed".into())),
            };
            self.look_at(event).await?;
            self.containers_made = Some(events);
        }
    }

    fn containers_made(&self) -> BoxStream<'static, Result<EventMessage, Error>> {
        let filters = HashMap::from([
            ("type", vec!["container"]),
            ("event", vec!["create"]),
            ("label", vec![self.label.as_str()]),
        ]);
        let (seconds, nanos) = (self.since.as_secs(), self.since.subsec_nanos());
        let options = EventsOptionsBuilder::default()
            .since(&format!("{seconds}.{nanos:09}"))
            .filters(&filters)
            .build();
        self.engine.docker.events(Some(options)).boxed()
    }

    async fn look_at(&mut self, made: EventMessage) -> Result<()> {
        let container = made.actor.and_then(|actor| actor.id).unwrap_or_default();
        let inspected = in_time(self.engine.docker.inspect_container(&container, None)).await;
        match inspected {
            Ok(container) => {
                let found = &mut self.found;
                let volumes = nameless_volumes(container).into_iter();
                let new = volumes.filter(|volume| found.insert(volume.clone()));
                self.unreported.extend(new);
            }
            Err(EngineError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let time = made.time_nano.and_then(|nanos| nanos.try_into().ok());
        self.since = time.map_or(self.since, Duration::from_nanos);
        Ok(())
    }
}

/// The volumes that the engine made up for a container. Those that it was made with have a name for somebody.
fn nameless_volumes(container: ContainerInspectResponse) -> Vec<String> {
    let host = container.host_config.unwrap_or_default();
    let binds = host.binds.unwrap_or_default();
    let mounts = host.mounts.unwrap_or_default();
    let named: HashSet<&str> = binds
        .iter()
        .filter_map(|bind| bind.split(':').next())
        .chain(mounts.iter().filter_map(|mount| mount.source.as_deref()))
        .collect();
    let volumes = container.mounts.unwrap_or_default().into_iter();
    volumes
        .filter_map(|volume| volume.name)
        .filter(|name| is_nameless(name) && !named.contains(name.as_str()))
        .collect()
}

fn is_nameless(volume: &str) -> bool {
    volume.len() == NAMELESS_LEN && volume.bytes().all(|byte| byte.is_ascii_hexdigit())
}
