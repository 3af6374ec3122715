//! The AWS SDK over this program's own HTTPS client.
//!
//! The SDK's stock client brings a TLS provider of its own, and reads the machine's whole
//! directory of certificates. This one is hyper over [`tls`]: one TLS, one set of roots.

#[cfg(feature = "samples")]
pub mod samples;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

pub use aws_config::SdkConfig;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials};
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
use tokio::sync::OnceCell;

use crate::config::ConfigError;
use crate::net::tls;

/// Less than any deadline of an operation, so that there is time for a second address or attempt.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// All attempts of a request together: less than the 5 s for which the webhook waits.
const OPERATION_DEADLINE: Duration = Duration::from_secs(4);
/// One attempt, so that a connection that died unseen leaves time for another one.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 3;
/// Short enough for all attempts to be made in time: the last answer tells what is wrong, the
/// deadline does not.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

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
    let region = region.map(|region| Region::new(region.to_owned()));
    let http_client = http_client(ca_bundle)?;
    let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .app_name(AppName::new("compose-ci").expect("letters and a hyphen"))
        .credentials_provider(Credentials::new(region.clone(), http_client.clone()))
        .http_client(http_client);
    if let Some(region) = region {
        loader = loader.region(region);
    }
    Ok(loader.load().await)
}

/// The region that the environment names, or else `variable`.
///
/// # Errors
/// Neither does.
pub fn region<'a>(sdk: &'a SdkConfig, variable: &str) -> Result<&'a Region, ConfigError> {
    sdk.region().ok_or_else(|| ConfigError {
        variable: "AWS_REGION",
        problem: format!("missing ({variable} does not name the region)"),
    })
}

/// The configuration of a client whose answers somebody waits for: 4 s for each.
pub fn with_deadlines(sdk: &SdkConfig) -> SdkConfig {
    let deadlines = TimeoutConfig::builder()
        .operation_timeout(OPERATION_DEADLINE)
        .operation_attempt_timeout(ATTEMPT_DEADLINE)
        .build();
    let retries = RetryConfig::standard()
        .with_max_attempts(ATTEMPTS)
        .with_max_backoff(BACKOFF_MAX);
    let sdk = sdk.clone().into_builder();
    sdk.timeout_config(deadlines).retry_config(retries).build()
}

/// Those of the environment, or else what the SDK finds. It would look into the environment first
/// as well, but not before it has made the clients for all other places: for a Lambda, whose
/// credentials are always there, that is a seventh of its start.
#[derive(Debug)]
struct Credentials {
    region: Option<Region>,
    http_client: SharedHttpClient,
    elsewhere: OnceCell<DefaultCredentialsChain>,
}

impl Credentials {
    fn new(region: Option<Region>, http_client: SharedHttpClient) -> Self {
        Self {
            region,
            http_client,
            elsewhere: OnceCell::new(),
        }
    }

    async fn find(&self) -> provider::Result {
        let environment = EnvironmentVariableCredentialsProvider::new();
        match environment.provide_credentials().await {
            Err(CredentialsError::CredentialsNotLoaded(_)) => {
                let chain = self.elsewhere.get_or_init(|| self.chain()).await;
                chain.provide_credentials().await
            }
            found => found,
        }
    }

    async fn chain(&self) -> DefaultCredentialsChain {
        let config = ProviderConfig::default().with_http_client(self.http_client.clone());
        let mut chain = DefaultCredentialsChain::builder().configure(config);
        chain.set_region(self.region.clone());
        chain.build().await
    }
}

impl ProvideCredentials for Credentials {
    fn provide_credentials<'a>(&'a self) -> provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        provider::future::ProvideCredentials::new(self.find())
    }
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
