//! What compose-ci's tests and its quickstart speak to instead of the world: a stand-in for
//! GitHub, a sink for mail, an emulator of AWS, the Docker engine, and the service itself as a process.
//!
//! All of them are spoken to over the wire. They wait for events, never for time, and they
//! fail a test that leaves something undone. Being for tests, they panic where a test could
//! do nothing but fail.

mod git;
mod payload;
mod tarball;
mod github;
mod process;
mod certificates;
mod smtp;
mod aws;
mod registry;
mod lambda;
mod engine;
mod docker;
mod engine_proxy;
mod machine;
mod remote_engine;
mod private_engine;
mod fault_proxy;
mod small_disk;
mod one_box;

pub use self::aws::{Aws, Queues, REGION, Stack};
pub use self::certificates::{Certificates, MachineCertificates};
pub use self::docker::{AtEnd, docker};
pub use self::engine::{Engine, Snapshot, test_image};
pub use self::engine_proxy::{EngineProxy, Flaw};
pub use self::fault_proxy::{FaultProxy, NetworkFault, Upstream};
pub use self::git::TestRepo;
pub use self::github::{
    CommitState, Delivery, Endpoint, Fault, GitHub, Hook, Host, Request, Settings, Status, TOKEN,
};
pub use self::lambda::LambdaHandler;
pub use self::one_box::{Answer, OneBox, Setup, WEBHOOK_SECRET};
pub use self::payload::{Push, sign};
pub use self::private_engine::PrivateEngine;
pub use self::process::{Process, listening_address, run_to_end};
pub use self::registry::Registry;
pub use self::remote_engine::RemoteEngine;
pub use self::small_disk::SmallDisk;
pub use self::smtp::{Attachment, Mail, SinkOptions, SmtpSink, Tls};
pub use self::tarball::Tarball;
