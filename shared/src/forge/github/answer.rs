//! What GitHub's answers mean: done, refused, or to be asked again, and when.

use std::error::Error;
use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, LOCATION, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use reqwest::{RequestBuilder, Response, Url};

use super::ForgeError;

/// What GitHub asks to wait after a secondary limit that names no time.
/// <https://docs.github.com/en/rest/using-the-rest-api/best-practices-for-using-the-rest-api>
const SECONDARY_LIMIT_WAIT: Duration = Duration::from_secs(60);
/// No limit of GitHub's lasts longer: it counts requests by the hour. An answer that asks for more is
/// a mistake, of a proxy most likely.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);
/// So much of a refusal is read; GitHub's are a few hundred bytes.
const REFUSAL_MAX_BYTES: usize = 16 << 10;
/// What GitHub, and an older Enterprise server, say to a client that is too fast.
const LIMIT_WORDS: [&str; 2] = ["rate limit", "abuse detection"];

const LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Sends a request, once; the answer is a success.
///
/// # Errors
/// See [`ForgeError`].
pub(super) async fn send(request: RequestBuilder, what: &str) -> Result<Response, ForgeError> {
    let sent = request.send().await;
    let response = sent.map_err(|error| no_answer(what, error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, headers) = (response.status(), response.headers().clone());
    Err(refusal(status, &headers, &text_of(response).await, what))
}

/// The answer to a request to make something.
pub(super) enum Posted {
    /// It is made.
    Done,
    /// The request belongs there, on the same server.
    SentOn(Url),
}

/// Sends a request to make something, once.
///
/// # Errors
/// See [`ForgeError`]. The request was sent on to another server, which is not to have the token.
pub(super) async fn post(request: RequestBuilder, what: &str) -> Result<Posted, ForgeError> {
    let sent = request.send().await;
    let response = sent.map_err(|error| no_answer(what, error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    if status.is_success() {
        return Ok(Posted::Done);
    }
    let elsewhere = headers.get(LOCATION).filter(|_| status.is_redirection());
    let elsewhere = elsewhere.and_then(|url| response.url().join(url.to_str().ok()?).ok());
    match elsewhere {
        Some(url) if url.origin() == response.url().origin() => Ok(Posted::SentOn(url)),
        _ => Err(refusal(status, &headers, &text_of(response).await, what)),
    }
}

/// What it means that no answer came.
pub(super) fn no_answer(what: &str, error: reqwest::Error) -> ForgeError {
    if error.is_redirect() || error.is_builder() {
        return ForgeError::BadLink {
            what: what.to_owned(),
            reason: root_cause(&error.without_url()),
        };
    }
    // A connection that was not made in time is both.
    let may_have_arrived = !error.is_connect();
    let reason = if !may_have_arrived {
        "no connection"
    } else if error.is_timeout() {
        "no answer in time"
    } else {
        "the connection broke"
    };
    tracing::debug!(
        error = format!("{:#}", anyhow::Error::new(error.without_url())),
        "GitHub: {what}"
    );
    ForgeError::Unavailable {
        what: what.to_owned(),
        reason: reason.to_owned(),
        retry_after: None,
        ambiguous: may_have_arrived,
    }
}

/// The last of the causes: the others only say what was being done.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Whether an answer that is no success is a refusal, or a request to come again.
fn refusal(status: StatusCode, headers: &HeaderMap, text: &str, what: &str) -> ForgeError {
    let asked_to_wait = wait_in(headers);
    let limited = match status {
        StatusCode::TOO_MANY_REQUESTS => true,
        // The same status says that the token may not do it.
        StatusCode::FORBIDDEN => asked_to_wait.is_some() || speaks_of_limit(text),
        _ => false,
    };
    if limited || status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        return ForgeError::Unavailable {
            what: what.to_owned(),
            reason: format!("it answered {}", status.as_u16()),
            retry_after: asked_to_wait.or(limited.then_some(SECONDARY_LIMIT_WAIT)),
            ambiguous: status.is_server_error(),
        };
    }
    ForgeError::Refused {
        what: what.to_owned(),
        status: status.as_u16(),
        hint: match status {
            StatusCode::UNAUTHORIZED => " (is GITHUB_TOKEN still valid?)",
            StatusCode::FORBIDDEN => " (may GITHUB_TOKEN do this?)",
            StatusCode::NOT_FOUND => " (does it exist, and may GITHUB_TOKEN see it?)",
            _ => "",
        },
    }
}

fn speaks_of_limit(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    LIMIT_WORDS.iter().any(|words| text.contains(words))
}

/// How long GitHub's headers ask to wait: `Retry-After`, or the reset of an exhausted limit.
fn wait_in(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok();
    let asked = match text(&RETRY_AFTER) {
        Some(retry_after) => match retry_after.parse() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => from_now(httpdate::parse_http_date(retry_after).ok()?),
        },
        None if text(&LIMIT_REMAINING)? == "0" => {
            let reset = Duration::from_secs(text(&LIMIT_RESET)?.parse().ok()?);
            from_now(SystemTime::UNIX_EPOCH.checked_add(reset)?)
        }
        None => return None,
    };
    Some(asked.min(WAIT_MAX))
}

/// How long it is until then; nothing if that is past.
fn from_now(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::now()).unwrap_or_default()
}

/// The beginning of what an answer says, as far as it arrives.
async fn text_of(mut response: Response) -> String {
    let mut text = Vec::new();
    while text.len() < REFUSAL_MAX_BYTES
        && let Ok(Some(piece)) = response.chunk().await
    {
        text.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, headers: &[(&'static str, &str)], text: &str) -> ForgeError {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("value")))
            .collect();
        let status = StatusCode::from_u16(status).expect("code");
        refusal(status, &headers, text, "the test")
    }

    #[test]
    fn only_what_may_change_is_asked_again() {
        for (status, transient) in [
            (401, false),
            (403, false),
            (404, false),
            (422, false),
            (451, false),
            (408, true),
            (429, true),
            (500, true),
            (502, true),
            (503, true),
        ] {
            let error = refused(status, &[], "Oh");
            assert_eq!(error.is_transient(), transient, "{status}");
        }
    }

    #[test]
    fn a_403_that_asks_to_wait_is_a_limit() {
        let secondary = refused(403, &[("retry-after", "7")], "");
        assert_eq!(secondary.retry_after(), Some(Duration::from_secs(7)));

        let in_a_minute = from_epoch(SystemTime::now()) + 60;
        let exhausted = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &in_a_minute.to_string()),
        ];
        let wait = refused(403, &exhausted, "").retry_after();
        let minute = Duration::from_secs(58)..=Duration::from_secs(60);
        assert!(
            wait.is_some_and(|wait| minute.contains(&wait)),
            "{exhausted:?}"
        );

        let plain = refused(403, &[("x-ratelimit-remaining", "12")], "Forbidden");
        assert!(!plain.is_transient());
    }

    #[test]
    fn a_403_that_only_its_words_tell_to_be_a_limit_waits_a_minute() {
        let remaining = [("x-ratelimit-remaining", "4987")];
        for words in [
            "You have exceeded a secondary rate limit.",
            "API Rate Limit exceeded for user ID 1.",
            "You have triggered an abuse detection mechanism.",
        ] {
            let limited = refused(403, &remaining, words);
            assert_eq!(limited.retry_after(), Some(SECONDARY_LIMIT_WAIT), "{words}");
        }
        // Elsewhere they are somebody's text.
        assert!(!refused(404, &[], "no branch rate limit").is_transient());
    }

    #[test]
    fn a_limit_that_names_no_time_waits_a_minute() {
        let limited = refused(429, &[], "");
        assert_eq!(limited.retry_after(), Some(SECONDARY_LIMIT_WAIT));
    }

    #[test]
    fn a_date_to_retry_after_is_understood() {
        let past = refused(503, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], "");
        assert_eq!(past.retry_after(), Some(Duration::ZERO));
    }

    #[test]
    fn nobody_waits_longer_than_a_limit_lasts_whatever_an_answer_asks_for() {
        let absurd = u64::MAX.to_string();
        for headers in [
            &[("retry-after", absurd.as_str())][..],
            &[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")],
            &[
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "4102444800"),
            ],
        ] {
            let asked = refused(429, headers, "").retry_after();
            assert_eq!(asked, Some(WAIT_MAX), "{headers:?}");
        }
        // No time at all.
        let overflow = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &*absurd),
        ];
        let asked = refused(429, &overflow, "").retry_after();
        assert_eq!(asked, Some(SECONDARY_LIMIT_WAIT));
    }

    #[test]
    fn a_refusal_says_what_to_check() {
        let error = refused(404, &[], "Not Found");
        insta::assert_snapshot!(error, @"GitHub answered 404 to the test (does it exist, and may GITHUB_TOKEN see it?)");
    }

    fn from_epoch(time: SystemTime) -> u64 {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.expect("it is later").as_secs()
    }
}
