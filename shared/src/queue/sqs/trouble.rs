//! What an answer of SQS that is no success means, told so that a person knows what to check.

use std::error::Error;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

use crate::config::QueueUrl;
use crate::net::aws;
use crate::queue::QueueError;

/// What was asked of which queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) queue: &'a QueueUrl,
    /// The permission that it needs.
    pub(super) action: &'static str,
}

impl Asked<'_> {
    /// The error of a request that was made without a lease.
    pub(super) fn failed<E>(self, error: SdkError<E, HttpResponse>) -> QueueError
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        let queue = self.queue.to_string();
        let reason = aws::reason(&error);
        let status = error.raw_response().map(|response| response.status());
        let code = error.code().unwrap_or_default();
        if is_missing(code) {
            QueueError::Missing(queue)
        } else if is_throttled(code) {
            QueueError::Throttled(queue)
        } else if is_denied(code, status.map(|status| status.as_u16()))
            || aws::lacks_credentials(&error)
        {
            QueueError::Denied {
                queue,
                action: self.action,
                reason,
            }
        } else if status.is_some_and(|status| status.is_client_error()) {
            QueueError::Refused { queue, reason }
        } else {
            QueueError::Unreachable(format!("{queue}: {reason}"))
        }
    }

    /// The error of a request that was made with a lease.
    pub(super) fn failed_with_lease<E>(self, error: SdkError<E, HttpResponse>) -> QueueError
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        if error.code().is_some_and(is_stale) {
            QueueError::LeaseExpired
        } else {
            self.failed(error)
        }
    }
}

/// Whether the queue was there to refuse: one that is sound, for somebody who may do less.
pub(super) fn is_answered<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    error.code().is_some_and(is_forbidden)
}

// Each code has two forms: of the protocol in use now, and of the one before, by which SQS still
// calls most of its errors in a header.

fn is_stale(code: &str) -> bool {
    matches!(
        code,
        "ReceiptHandleIsInvalid"
            | "MessageNotInflight"
            | "AWS.SimpleQueueService.MessageNotInflight"
            // The lease is the only parameter that can be wrong: its time is within the limits.
            | "InvalidParameterValue"
            | "InvalidParameterValueException"
    )
}

fn is_missing(code: &str) -> bool {
    matches!(
        code,
        "QueueDoesNotExist" | "AWS.SimpleQueueService.NonExistentQueue" | "InvalidAddress"
    )
}

fn is_throttled(code: &str) -> bool {
    // OverLimit is 120,000 messages in flight.
    aws::is_throttled(code) || code == "OverLimit"
}

fn is_denied(code: &str, status: Option<u16>) -> bool {
    // 403 is also what a wrong key or an old signature gets.
    status == Some(403)
        || is_forbidden(code)
        || code == "KmsAccessDenied"
        || code == "KMS.AccessDeniedException"
}

fn is_forbidden(code: &str) -> bool {
    matches!(code, "AccessDenied" | "AccessDeniedException")
}
