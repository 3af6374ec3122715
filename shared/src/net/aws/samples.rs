//! What the environment could say about AWS, for the tests of whatever calls it.

use aws_config::Region;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};

use super::SdkConfig;

/// A server elsewhere, and somebody with a key for it.
///
/// # Panics
/// The embedded roots cannot be used.
pub async fn sdk_config(region: &str, endpoint_url: &str) -> SdkConfig {
    let sdk = super::sdk_config(Some(region), None).await;
    let credentials = Credentials::new("an-id", "a-secret", None, None, "the tests");
    sdk.expect("the roots")
        .into_builder()
        .region(Region::new(region.to_owned()))
        .endpoint_url(endpoint_url)
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

/// The same, for somebody whose credentials are nowhere.
pub fn without_credentials(sdk: SdkConfig) -> SdkConfig {
    let nobody = SharedCredentialsProvider::new(NoCredentials);
    sdk.into_builder().credentials_provider(nobody).build()
}

#[derive(Debug)]
struct NoCredentials;

impl ProvideCredentials for NoCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("none here")))
    }
}
