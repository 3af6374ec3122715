//! Mail by Amazon SES.

use aws_sdk_ses::Client;
use aws_sdk_ses::config::http::HttpResponse;
use aws_sdk_ses::config::retry::RetryConfig;
use aws_sdk_ses::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ses::operation::send_raw_email::SendRawEmailError;
use aws_sdk_ses::primitives::Blob;
use aws_sdk_ses::types::RawMessage;
use lettre::address::Envelope;
use shared::config::ConfigError;
use shared::net::aws::{self, SdkConfig};
use tokio::time::timeout;

use super::{MailError, send_deadline, too_slow};

/// SES in one region.
#[derive(Debug, Clone)]
pub(super) struct Ses {
    client: Client,
    region: String,
}

impl Ses {
    /// Prepares the client; nothing is asked of SES yet.
    ///
    /// # Errors
    /// The region is not known.
    pub(super) fn new(sdk: &SdkConfig) -> Result<Self, ConfigError> {
        let region = aws::region(sdk, "SES_FROM")?;
        let config = aws_sdk_ses::config::Builder::from(sdk)
            // Mails are tried again for a day by whoever owes them.
            .retry_config(RetryConfig::disabled())
            .build();
        Ok(Self {
            client: Client::from_conf(config),
            region: region.to_string(),
        })
    }

    /// Hands the message to SES, which takes it for all recipients or for none.
    pub(super) async fn send(
        &self,
        envelope: &Envelope,
        message: Vec<u8>,
    ) -> Result<(), MailError> {
        let deadline = send_deadline(message.len());
        let message = RawMessage::builder().data(Blob::new(message)).build();
        let request = self
            .client
            .send_raw_email()
            .set_source(envelope.from().map(ToString::to_string))
            .set_destinations(Some(
                envelope.to().iter().map(ToString::to_string).collect(),
            ))
            .raw_message(message.expect("it has data"));
        match timeout(deadline, request.send()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.explain(&error)),
            Err(_) => Err(MailError::Transient(self.problem(&too_slow(deadline)))),
        }
    }

    fn explain(&self, error: &SdkError<SendRawEmailError, HttpResponse>) -> MailError {
        let reason = aws::reason(error);
        if aws::lacks_credentials(error) {
            let problem = format!("no AWS credentials that can be used: {reason}");
            return MailError::Transient(self.problem(&problem));
        }
        let (code, message) = (
            error.code().unwrap_or_default(),
            error.message().unwrap_or_default(),
        );
        let problem = match advice(code, message) {
            Some(advice) => format!("{reason} ({advice})"),
            None => reason,
        };
        match is_of_message(code, message) {
            true => MailError::Permanent(self.problem(&problem)),
            false => MailError::Transient(self.problem(&problem)),
        }
    }

    fn problem(&self, what: &str) -> String {
        format!("SES in {}: {what}", self.region)
    }
}

/// Whether SES minds this very message or one of its recipients, whatever anybody does. Everything else
/// passes by itself, as a quota does, or may be mended while the mail is owed.
fn is_of_message(code: &str, message: &str) -> bool {
    match code {
        "MessageRejected" => !lacks_verification(message),
        "InvalidParameterValue" => true,
        _ => false,
    }
}

/// An address is to be verified: SES calls that a rejected message as well.
fn lacks_verification(message: &str) -> bool {
    message.contains("not verified")
}

/// What somebody has to do before any mail is taken.
fn advice(code: &str, message: &str) -> Option<&'static str> {
    Some(match code {
        "MessageRejected" if lacks_verification(message) => {
            "verify the sender in the SES console of this region, and while the account is in the \
             sandbox every recipient"
        }
        "MailFromDomainNotVerified" | "MailFromDomainNotVerifiedException" => {
            "verify the custom MAIL FROM domain of SES_FROM in the SES console of this region"
        }
        "AccountSendingPaused" | "AccountSendingPausedException" => {
            "resume the account's sending in the SES console of this region"
        }
        "AccessDenied" | "AccessDeniedException" => {
            "allow these credentials ses:SendRawEmail from SES_FROM"
        }
        "InvalidClientTokenId" | "UnrecognizedClientException" | "SignatureDoesNotMatch" => {
            "check the AWS credentials"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
