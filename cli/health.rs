//! The image's health check: asks the service on this machine, as a person with curl would.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use shared::config::{Env, ListenConfig};

/// Docker's own deadline for a health check is 30 s by default.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks `/healthz`.
///
/// # Errors
/// The service does not answer, or answers that it is not healthy.
pub(crate) async fn check(env: &Env) -> anyhow::Result<()> {
    let listen = ListenConfig::load(env)?;
    let scheme = if listen.cert_path.is_some() {
        "https"
    } else {
        "http"
    };
    let url = format!("{scheme}://{}/healthz", reachable(listen.address));
    let answer = client()?
        .get(&url)
        .send()
        .await
        .with_context(|| format!("asking {url}"))?;
    ensure!(
        answer.status().is_success(),
        "{url} answered {}",
        answer.status().as_u16()
    );
    Ok(())
}

fn client() -> anyhow::Result<reqwest::Client> {
    let provider = shared::net::tls::provider().as_ref().clone();
    // It fails if there is one already, which serves as well.
    let _ = provider.install_default();
    Ok(reqwest::Client::builder()
        // The certificate is for the name that GitHub uses, not for the loopback address.
        .danger_accept_invalid_certs(true)
        .no_proxy()
        .timeout(DEADLINE)
        .build()?)
}

/// The address to ask a listener at that listens on all of them.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        ip if ip.is_unspecified() => (IpAddr::V4(Ipv4Addr::LOCALHOST), address.port()).into(),
        _ => address,
    }
}
