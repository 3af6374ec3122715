//! compose-ci as its users run it: the real binary, a real Docker engine, real mail.

mod architecture;
mod fixture;
mod outcomes;
mod checkout;
mod compose;
mod leftovers;
mod retries;
mod slots;
mod mail;
mod ses;
mod logs;
mod life;
mod reconcile;
mod scheduled;
mod disk;
mod engine;
mod settings;
mod remote_engine;
mod http;
mod sqs;
mod workers;
mod supersede;
mod aws;
mod registry;
mod image;
mod own_repository;
