//! The AWS SDK over this program's own HTTPS client.
//!
//! The SDK's stock client brings a TLS provider of its own, and reads the machine's whole
//! directory of certificates. This one is hyper over [`tls`]: one TLS, one set of roots.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

pub use aws_config::SdkConfig;
use aws_config::{AppName, BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect};
use hyper_util::rt::TokioExecutor;

use crate::config::ConfigError;
use crate::tls;

/// Less than any deadline of an operation, so that there is time for a second address or attempt.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// The configuration of every client: credentials as the aws CLI finds them, asked for when they
/// are needed first. Nothing is looked up over the network as long as `region`, or the
/// environment, names the region.
///
/// # Errors
/// The bundle of root certificates cannot be used.
pub async fn sdk_config(
    region: Option<&str>,
    ca_bundle: Option<&Path>,
) -> Result<SdkConfig, ConfigError> {
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .app_name(AppName::new("compose-ci").expect("letters and a hyphen"))
        .http_client(http_client(ca_bundle)?);
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    Ok(loader.load().await)
}

/// Whether an error comes from there being no credentials, or none that can be used.
pub fn lacks_credentials(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<CredentialsError>())
}

/// Whether an error of this code says no more than that too much was asked at once.
pub fn is_throttled(code: &str) -> bool {
    // Throttling, ThrottlingException, RequestThrottled, KmsThrottled
    code.contains("Throttl") || code == "TooManyRequestsException"
}

/// The service's own words in one line, or what was in the way of hearing any.
pub fn reason<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: Error + ProvideErrorMetadata + 'static,
{
    match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {}", message.replace(['\n', '\r'], " ")),
        (Some(code), None) => code.to_owned(),
        _ => one_line(error),
    }
}

/// An error with all its causes, in one line.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in causes(error) {
        let text = cause.to_string().replace(['\n', '\r'], " ");
        // Some errors tell their cause themselves.
        if line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line
}

fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| cause.source())
}

fn http_client(ca_bundle: Option<&Path>) -> Result<SharedHttpClient, ConfigError> {
    let mut tcp = connect::HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_DEADLINE));
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls::client_config(ca_bundle)?)
        // Plain HTTP is for the credentials of an EC2 or ECS host, and for other servers than AWS.
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    let connector = Connector(Client::builder(TokioExecutor::new()).build(https));
    // The settings are time limits, within those that the SDK itself holds an operation to.
    Ok(http_client_fn(move |_settings, _components| {
        SharedHttpConnector::new(connector.clone())
    }))
}

#[derive(Debug, Clone)]
struct Connector(Client<HttpsConnector<connect::HttpConnector>, SdkBody>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|error| ConnectorError::user(error.into()))?;
            let response = client
                .request(request)
                .await
                .map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Caused {
        text: &'static str,
        source: Option<Box<Caused>>,
    }

    #[test]
    fn an_error_is_told_in_one_line() {
        let caused = |text, cause| Caused {
            text,
            source: Some(Box::new(cause)),
        };
        let end = Caused {
            text: "by a peer:\nreset",
            source: None,
        };
        let error = caused("dispatch failure", caused("dispatch failure", end));
        assert_eq!(one_line(&error), "dispatch failure: by a peer: reset");
        assert!(!lacks_credentials(&error));
    }
}
