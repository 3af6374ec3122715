//! The place of the ledger that several hosts share, as its URL says.

use std::path::PathBuf;

use super::{Env, QueueUrl, Result, ca_bundle, invalid};

/// The lengths of a bucket's name, by the reference of `CreateBucket`.
const BUCKET_MIN_BYTES: usize = 3;
const BUCKET_MAX_BYTES: usize = 63;
/// Longest prefix in bytes: with a build's name an object's key stays well under S3's 1,024.
const PREFIX_MAX_BYTES: usize = 512;

/// A bucket at Amazon S3, or at a server that speaks its protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The bucket's name.
    pub bucket: String,
    /// The beginning of all keys, without a slash at its end; may be empty.
    pub prefix: String,
    /// The bucket's region, where the AWS SDK has no variable that names it.
    pub region: Option<String>,
    /// True if another server than AWS has the bucket: its name is then part of the path.
    pub is_elsewhere: bool,
    /// A bundle of root certificates instead of the embedded ones.
    pub ca_bundle: Option<PathBuf>,
}

impl StoreConfig {
    /// Reads the place of the store, if there is one.
    ///
    /// # Errors
    /// A URL that is none of a bucket.
    pub fn load(env: &Env) -> Result<Option<Self>> {
        let Some(url) = env.text("STORE_URL") else {
            return Ok(None);
        };
        let problem = "must be s3://bucket or s3://bucket/prefix";
        let (bucket, prefix) = parse(url).ok_or_else(|| invalid("STORE_URL", problem))?;
        let is_set = |name: &&str| env.text(name).is_some();
        let region_is_set = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(is_set);
        let queue = env.optional_with("QUEUE_URL", str::parse::<QueueUrl>)?;
        let of_queue = queue.and_then(|url| url.region().map(str::to_owned));
        Ok(Some(Self {
            bucket,
            prefix,
            region: of_queue.filter(|_| !region_is_set),
            is_elsewhere: ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
                .iter()
                .any(is_set),
            ca_bundle: ca_bundle(env),
        }))
    }

    /// The URL, as `STORE_URL` has it.
    pub fn url(&self) -> String {
        match self.prefix.as_str() {
            "" => format!("s3://{}", self.bucket),
            prefix => format!("s3://{}/{prefix}", self.bucket),
        }
    }
}

fn parse(url: &str) -> Option<(String, String)> {
    let path = url.strip_prefix("s3://")?;
    let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let is_plain = is_bucket_name(bucket) && (prefix.is_empty() || is_prefix(prefix));
    is_plain.then(|| (bucket.to_owned(), prefix.to_owned()))
}

fn is_bucket_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    (BUCKET_MIN_BYTES..=BUCKET_MAX_BYTES).contains(&name.len())
        && name.chars().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_prefix(prefix: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_segment = |segment: &str| {
        !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(plain)
    };
    prefix.len() <= PREFIX_MAX_BYTES && prefix.split('/').all(is_segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Option<StoreConfig>> {
        let mut env = Env::default();
        for (name, value) in variables {
            env.0.insert((*name).to_owned(), (*value).to_owned());
        }
        StoreConfig::load(&env)
    }

    fn at(url: &str) -> StoreConfig {
        let config = load(&[("STORE_URL", url)]).expect("valid");
        config.expect("a store")
    }

    #[test]
    fn without_a_url_there_is_no_store() {
        assert_eq!(load(&[]), Ok(None));
        assert_eq!(load(&[("STORE_URL", "")]), Ok(None));
    }

    #[test]
    fn a_url_names_a_bucket_and_a_prefix() {
        for (url, bucket, prefix) in [
            ("s3://builds", "builds", ""),
            ("s3://builds/", "builds", ""),
            (
                "s3://ci.example.org/team-a/ci",
                "ci.example.org",
                "team-a/ci",
            ),
            ("s3://builds/ci/", "builds", "ci"),
        ] {
            let config = at(url);
            assert_eq!((&*config.bucket, &*config.prefix), (bucket, prefix));
            assert_eq!(config.url(), url.trim_end_matches('/'));
        }
    }

    #[test]
    fn another_url_is_refused_by_name() {
        for url in [
            "builds",
            "https://builds.s3.amazonaws.com",
            "s3://",
            "s3://B/ci",
            "s3://builds//ci",
            "s3://builds/../ci",
            "s3://builds/ci?x",
            "s3://builds/a b",
        ] {
            let error = load(&[("STORE_URL", url)]).expect_err(url);
            assert_eq!(
                error.to_string(),
                "STORE_URL: must be s3://bucket or s3://bucket/prefix"
            );
        }
    }

    #[test]
    fn the_queue_names_the_region_where_nothing_else_does() {
        let store = ("STORE_URL", "s3://builds");
        let queue = ("QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/1/builds");
        let region = |variables: &[(&str, &str)]| {
            let config = load(variables).expect("valid");
            config.expect("a store").region
        };
        assert_eq!(region(&[store]), None);
        assert_eq!(region(&[store, queue]).as_deref(), Some("eu-west-1"));
        assert_eq!(region(&[store, queue, ("AWS_REGION", "eu-west-3")]), None);
    }

    #[test]
    fn another_server_is_named_by_the_sdks_own_variable() {
        let store = ("STORE_URL", "s3://builds");
        for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
            let config = load(&[store, (name, "http://store.test:9000")]);
            assert!(config.expect("valid").expect("a store").is_elsewhere);
        }
        assert!(!at("s3://builds").is_elsewhere);
    }
}
