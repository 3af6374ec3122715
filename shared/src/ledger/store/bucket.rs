//! A bucket at Amazon S3, or at a server that speaks its protocol: conditional writes of small objects.
//!
//! <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html>

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{
    ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use super::StoreError;
use crate::config::{ConfigError, StoreConfig};
use crate::net::aws;

/// Objects in a bucket, below a prefix. Clones share the connections.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    client: Client,
    config: Arc<StoreConfig>,
}

/// An object that was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) body: Vec<u8>,
    /// Its ETag, which is opaque.
    pub(super) tag: String,
    /// The time since it was written, by the clock of the store.
    pub(super) age: Duration,
}

/// The condition of a write.
#[derive(Debug, Clone, Copy)]
pub(super) enum If<'a> {
    /// There is none of its name.
    Absent,
    /// It has this ETag.
    Tag(&'a str),
}

/// The result of a write.
#[derive(Debug)]
pub(super) enum Put {
    /// The object is stored, with this ETag.
    Stored(String),
    /// The condition was not met, or another write ran at the same moment.
    Refused,
    /// It may be stored, or not, since the answer was lost for this reason.
    Unclear(String),
}

impl Bucket {
    /// Prepares the client; nothing is asked of the store yet.
    ///
    /// # Errors
    /// The region is not known.
    pub(super) fn new(config: &StoreConfig, sdk: &SdkConfig) -> Result<Self, ConfigError> {
        aws::region(sdk, "STORE_URL")?;
        let s3 = aws_sdk_s3::config::Builder::from(&aws::with_deadlines(sdk))
            .force_path_style(config.is_elsewhere)
            // Other servers than AWS do not know all of the SDK's own checksums.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .build();
        Ok(Self {
            client: Client::from_conf(s3),
            config: Arc::new(config.clone()),
        })
    }

    /// Reads an object, if there is one of this name.
    ///
    /// # Errors
    /// The store cannot be reached, or does not let this program read.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Found>, StoreError> {
        let date = Date::default();
        let asked = self
            .client
            .get_object()
            .bucket(&self.config.bucket)
            .key(self.key(name))
            .customize()
            .interceptor(date.clone());
        let answer = match asked.send().await {
            Ok(answer) => answer,
            Err(error) if lacks_object(&error) => return Ok(None),
            Err(error) => return Err(self.failed("s3:GetObject or s3:ListBucket", &error)),
        };
        let lacking = |what| self.error(format!("answers without {what}"));
        let written = answer
            .last_modified
            .ok_or_else(|| lacking("Last-Modified"))?;
        let tag = answer.e_tag.ok_or_else(|| lacking("an ETag"))?;
        let now = date.get().ok_or_else(|| lacking("a Date"))?;
        let body = answer.body.collect().await;
        let body = body.map_err(|error| self.unreachable(&aws::one_line(&error)))?;
        Ok(Some(Found {
            body: body.to_vec(),
            tag,
            age: Duration::from_secs((now.secs() - written.secs()).try_into().unwrap_or(0)),
        }))
    }

    /// Writes an object on a condition.
    ///
    /// # Errors
    /// The store does not let this program write.
    pub(super) async fn put(
        &self,
        name: &str,
        body: Vec<u8>,
        on: If<'_>,
    ) -> Result<Put, StoreError> {
        let asked = self
            .client
            .put_object()
            .bucket(&self.config.bucket)
            .key(self.key(name))
            .content_type("application/json")
            .body(body.into());
        let asked = match on {
            If::Absent => asked.if_none_match("*"),
            If::Tag(tag) => asked.if_match(tag),
        };
        match asked.send().await {
            Ok(answer) => match answer.e_tag {
                Some(tag) => Ok(Put::Stored(tag)),
                None => Err(self.error("answers without an ETag".to_owned())),
            },
            Err(error) if is_refused(&error, on) => Ok(Put::Refused),
            Err(error) if is_answered(&error) => Err(self.failed("s3:PutObject", &error)),
            Err(error) => Ok(Put::Unclear(aws::reason(&error))),
        }
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// The store cannot be reached, or does not let this program remove.
    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let asked = self
            .client
            .delete_object()
            .bucket(&self.config.bucket)
            .key(self.key(name));
        let deleted = asked.send().await.map(drop);
        deleted.map_err(|error| self.failed("s3:DeleteObject", &error))
    }

    /// Makes the error of a store that cannot be reached.
    pub(super) fn unreachable(&self, reason: &str) -> StoreError {
        let store = self.config.url();
        StoreError::Unreachable(format!("the store {store} cannot be reached: {reason}"))
    }

    /// Makes an error that says something of this store.
    pub(super) fn error(&self, says: String) -> StoreError {
        StoreError::Refused(format!("the store {} {says}", self.config.url()))
    }

    fn failed<E>(&self, action: &str, error: &SdkError<E, HttpResponse>) -> StoreError
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        let reason = aws::reason(error);
        match (error.code(), status(error)) {
            (Some("NoSuchBucket"), _) => StoreError::Refused(format!(
                "there is no bucket {}: check its name, region and account",
                self.config.bucket
            )),
            (_, Some(403)) => self.denied(action, &reason),
            _ if aws::lacks_credentials(error) => self.denied(action, &reason),
            (_, Some(_)) if is_answered(error) => self.error(format!("refuses {action}: {reason}")),
            _ => self.unreachable(&reason),
        }
    }

    fn denied(&self, action: &str, reason: &str) -> StoreError {
        self.error(format!(
            "denies {action}: check the credentials and their policy ({reason})"
        ))
    }

    fn key(&self, name: &str) -> String {
        match self.config.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    Some(error.raw_response()?.status().as_u16())
}

/// 412 says that the condition is not met, 409 that another write ran at the same moment, and 404 that
/// there is no object any more to have a tag.
fn is_refused<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>, on: If<'_>) -> bool {
    match on {
        If::Tag(_) if lacks_object(error) => true,
        _ => matches!(status(error), Some(409 | 412)),
    }
}

fn lacks_object<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    status(error) == Some(404) && error.code() != Some("NoSuchBucket")
}

/// Returns true if the store, or this program, has decided that the request is not done.
fn is_answered<E>(error: &SdkError<E, HttpResponse>) -> bool
where
    E: Error + 'static,
{
    let refused = status(error).is_some_and(|status| (300..500).contains(&status));
    refused || aws::lacks_credentials(error)
}

/// The `Date` of an answer: with it a client needs no clock of its own.
#[derive(Debug, Clone, Default)]
struct Date(Arc<Mutex<Option<DateTime>>>);

impl Date {
    fn get(&self) -> Option<DateTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for Date {
    fn name(&self) -> &'static str {
        "Date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}
