//! A worker alone.

use shared::config::{Env, ReconcileConfig};
use worker::service::Service;

use crate::reconcile::{self, Lookout};

/// Works until a signal ends it.
///
/// # Errors
/// A setting cannot be used, or the records cannot be opened.
pub(crate) async fn run(env: &Env) -> anyhow::Result<()> {
    // Of several workers one is enough.
    let reconcile = ReconcileConfig::load_if_wanted(env, false)?;
    let service = Service::open(env, web::mail::html).await?;
    let lookout = Lookout::for_worker(reconcile, &service.worker, &service.queue)?;
    reconcile::beside(service.run(), lookout).await
}
