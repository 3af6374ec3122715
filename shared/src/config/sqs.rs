//! Where an SQS queue is, as its URL says.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::{Env, Result, ca_bundle, http_url, invalid};

/// Longest name of a queue, by the reference of `CreateQueue`.
const NAME_MAX_BYTES: usize = 80;

/// A queue at SQS, or at a server that speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqsConfig {
    /// The queue.
    pub url: QueueUrl,
    /// Its dead-letter queue; found through the queue's redrive policy if it is not given.
    pub dead_letters_url: Option<QueueUrl>,
    /// A bundle of root certificates instead of the embedded ones.
    pub ca_bundle: Option<PathBuf>,
}

/// `https://sqs.<region>.amazonaws.com/<account>/<name>`, or the URL that another server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueUrl {
    text: String,
    /// The labels of the host, as `sqs`, `eu-west-1`, `amazonaws`, `com`.
    host: Vec<String>,
}

impl SqsConfig {
    /// Reads where the queue is, if it is at SQS.
    pub(super) fn load(env: &Env) -> Result<Option<Self>> {
        let url = queue_url(env, "QUEUE_URL")?;
        let dead_letters_url = queue_url(env, "DLQ_URL")?;
        match url {
            Some(url) => Ok(Some(Self {
                url,
                dead_letters_url,
                ca_bundle: ca_bundle(env),
            })),
            None if dead_letters_url.is_some() => Err(invalid("QUEUE_URL", "needed with DLQ_URL")),
            None => Ok(None),
        }
    }
}

fn queue_url(env: &Env, variable: &'static str) -> Result<Option<QueueUrl>> {
    let url = env.optional_with(variable, QueueUrl::from_str)?;
    // The SDK speaks to the endpoint of its region, whatever host the queue's URL names.
    let elsewhere = ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"]
        .iter()
        .any(|name| env.text(name).is_some());
    match url {
        Some(url) if !url.is_at_aws() && !elsewhere => {
            let problem = "not at amazonaws.com: set AWS_ENDPOINT_URL to that server's URL";
            Err(invalid(variable, problem))
        }
        url => Ok(url),
    }
}

impl QueueUrl {
    /// The whole URL.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it keeps its messages in order, and drops copies.
    pub fn is_fifo(&self) -> bool {
        self.text.ends_with(".fifo")
    }

    /// The region that the URL of a queue at AWS names.
    pub fn region(&self) -> Option<&str> {
        if !self.is_at_aws() {
            return None;
        }
        let labels: Vec<_> = self.host.iter().map(String::as_str).collect();
        match labels[..] {
            // The oldest form; without a region it is the first one that there was.
            ["queue", "amazonaws", ..] => Some("us-east-1"),
            [region, "queue", "amazonaws", ..] => Some(region),
            ["sqs" | "sqs-fips", region, _, ..] => Some(region),
            // A VPC endpoint has a name of its own before that.
            [_, "sqs", region, "vpce", ..] => Some(region),
            _ => None,
        }
    }

    /// The URL of another queue of the same account and region, by its name.
    pub fn sibling(&self, name: &str) -> Self {
        let (base, _) = self.text.rsplit_once('/').unwrap_or_default();
        Self {
            text: format!("{base}/{name}"),
            host: self.host.clone(),
        }
    }

    fn is_at_aws(&self) -> bool {
        let labels: Vec<_> = self.host.iter().map(String::as_str).collect();
        matches!(
            labels[..],
            [.., "amazonaws", "com"] | [.., "amazonaws", "com", "cn"] | [.., "api", "aws"]
        )
    }
}

impl fmt::Display for QueueUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for QueueUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = http_url(text)?;
        let segments: Vec<_> = url.path_segments().into_iter().flatten().collect();
        let is_plain = url.query().is_none() && url.fragment().is_none();
        match segments[..] {
            [.., account, name] if is_plain && !account.is_empty() && is_queue_name(name) => {}
            _ => return Err("must end in /account/name-of-the-queue".to_owned()),
        }
        let host = url.host_str().unwrap_or_default();
        Ok(Self {
            text: url.as_str().to_owned(),
            host: host.split('.').map(str::to_owned).collect(),
        })
    }
}

fn is_queue_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let stem = name.strip_suffix(".fifo").unwrap_or(name);
    !stem.is_empty() && name.len() <= NAME_MAX_BYTES && stem.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWS: &str = "https://sqs.eu-west-1.amazonaws.com/123456789012/builds";
    const ELSEWHERE: &str = "http://queue.test:9324/000000000000/builds.fifo";

    fn load(variables: &[(&str, &str)]) -> Result<Option<SqsConfig>> {
        let mut env = Env::default();
        for (name, value) in variables {
            env.0.insert((*name).to_owned(), (*value).to_owned());
        }
        SqsConfig::load(&env)
    }

    #[test]
    fn without_a_url_the_queue_is_local() {
        assert_eq!(load(&[]), Ok(None));
        assert_eq!(load(&[("QUEUE_URL", "")]), Ok(None));
    }

    #[test]
    fn a_problem_names_the_variable() {
        let form = "must end in /account/name-of-the-queue";
        let other = "not at amazonaws.com: set AWS_ENDPOINT_URL to that server's URL";
        for (variables, line) in [
            (
                &[("QUEUE_URL", "builds")][..],
                "QUEUE_URL: must be a URL that begins with http:// or https://",
            ),
            (
                &[("QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/builds")],
                &format!("QUEUE_URL: {form}"),
            ),
            (
                &[("QUEUE_URL", &format!("{AWS}?Action=Send"))],
                &format!("QUEUE_URL: {form}"),
            ),
            (
                &[("QUEUE_URL", &format!("{AWS}.lifo"))],
                &format!("QUEUE_URL: {form}"),
            ),
            (&[("QUEUE_URL", ELSEWHERE)], &format!("QUEUE_URL: {other}")),
            (
                &[("QUEUE_URL", AWS), ("DLQ_URL", ELSEWHERE)],
                &format!("DLQ_URL: {other}"),
            ),
            (&[("DLQ_URL", AWS)], "QUEUE_URL: needed with DLQ_URL"),
        ] {
            let error = load(variables).expect_err(line);
            assert_eq!(error.to_string(), *line);
        }
    }

    #[test]
    fn another_server_is_named_by_the_sdks_own_variable() {
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"] {
            let variables = [("QUEUE_URL", ELSEWHERE), (name, "http://queue.test:9324")];
            let config = load(&variables).expect("valid").expect("SQS");
            assert!(config.url.is_fifo());
            assert_eq!(config.url.region(), None);
        }
    }

    #[test]
    fn the_region_stands_in_the_host() {
        for (host, region) in [
            ("sqs.eu-west-1.amazonaws.com", Some("eu-west-1")),
            (
                "sqs-fips.us-gov-west-1.amazonaws.com",
                Some("us-gov-west-1"),
            ),
            ("sqs.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("sqs.eu-west-3.api.aws", Some("eu-west-3")),
            ("us-west-2.queue.amazonaws.com", Some("us-west-2")),
            ("queue.amazonaws.com", Some("us-east-1")),
            (
                "vpce-1a-2b.sqs.us-east-2.vpce.amazonaws.com",
                Some("us-east-2"),
            ),
            ("sqs.eu-west-1.amazonaws.com.evil.example", None),
            ("localhost", None),
        ] {
            let url: QueueUrl = format!("https://{host}/1/builds").parse().expect("valid");
            assert_eq!(url.region(), region, "{host}");
        }
    }

    #[test]
    fn a_sibling_has_the_same_account() {
        let url: QueueUrl = AWS.parse().expect("valid");
        let dead = url.sibling("dead");
        assert_eq!(dead.as_str(), AWS.replace("builds", "dead"));
        assert_eq!(dead.region(), Some("eu-west-1"));
    }
}
