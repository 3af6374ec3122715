//! What a person sets, read once and checked once.
//!
//! [`Env`] is the raw side: names and texts. The `…Config` structs are the checked side, and the
//! only one that the rest of the program sees. Nothing else reads the environment.

pub mod variables;
mod engine;
mod registry;
mod mail;
mod sqs;
mod store;
mod reconcile;
mod storage;
mod guesses;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tracing::level_filters::LevelFilter;
use url::Url;
use wildmatch::WildMatch;

use crate::build::{DEFAULT_STATUS_CONTEXT, RepoName};
use crate::mask::Secrets;

use self::guesses::Guesses;

pub use self::engine::EngineConfig;
pub use self::mail::{MailConfig, MailOn, SesConfig, SmtpConfig, SmtpTls};
pub use self::reconcile::{ReconcileConfig, WebhookAddress};
pub use self::registry::{Registry, RegistryLogin};
pub use self::sqs::{QueueUrl, SqsConfig};
pub use self::storage::StorageConfig;
pub use self::store::StoreConfig;

/// SQS can hide a message for 12 hours at most, so no lease, and no build, lasts longer.
const BUILD_TIMEOUT_MAX: Duration = Duration::from_secs(12 * 60 * 60 - 60);

/// A secret shorter than this is not masked: hiding every `1` would ruin the log and hide nothing.
const MASKED_MIN_BYTES: usize = 4;

/// A variable that cannot be used, in one line that names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    /// The variable's name.
    pub variable: &'static str,
    /// What is wrong with it; never its value if it is a secret.
    pub problem: String,
}

type Result<T, E = ConfigError> = std::result::Result<T, E>;

/// What the webhook needs to know.
#[derive(Debug, Clone)]
pub struct HandlerConfig {
    /// Where to listen.
    pub listen: ListenConfig,
    /// Who may push, and what of it builds.
    pub webhook: WebhookConfig,
}

/// The listener.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// Address and port; port 0 lets the system choose.
    pub address: SocketAddr,
    /// A PEM file with key and certificate: HTTPS.
    pub cert_path: Option<PathBuf>,
}

/// What proves a request, and which pushes build.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// Accepted as `Authorization: Bearer`, and in the URL while there is no HMAC secret. A webhook
    /// of its own that has a secret need not know it.
    pub token: Option<SecretString>,
    /// HMAC secrets, any of which may have signed.
    pub secrets: Vec<SecretString>,
    /// The repositories that may build here.
    pub repos: RepoFilter,
    /// The branches and tags that build.
    pub branches: BranchFilter,
    /// Name of the commit status that tells of these builds.
    pub status_context: String,
}

/// What the worker needs to know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The API to report to and to download from.
    pub github: GithubConfig,
    /// The engine to build on.
    pub engine: EngineConfig,
    /// What to run, and its limits.
    pub hook: HookConfig,
    /// Whom to tell.
    pub mail: MailConfig,
    /// Where records and logs are kept.
    pub data_dir: PathBuf,
    /// Where builds are claimed that several hosts share.
    pub store: Option<StoreConfig>,
    /// How much room they may take up, and for how long.
    pub storage: StorageConfig,
    /// Where people reach the log pages.
    pub public_url: Option<Url>,
    /// Builds at a time.
    pub concurrency: usize,
    /// Whether a newer push to a branch ends the builds of older ones.
    pub cancel_superseded: bool,
    /// How long a stopping worker waits for its builds.
    pub drain_timeout: Duration,
    /// Values that must never be shown.
    pub secrets: Vec<SecretString>,
}

/// GitHub, as the worker speaks to it.
#[derive(Debug, Clone)]
pub struct GithubConfig {
    /// Base of all API paths, without a slash at its end.
    pub api_url: String,
    /// The token for statuses and tarballs.
    pub token: SecretString,
    /// Name of the commit status.
    pub status_context: String,
    /// A bundle of root certificates instead of the embedded ones.
    pub ca_bundle: Option<PathBuf>,
}

/// The hook and the limits of its container.
#[derive(Debug, Clone)]
pub struct HookConfig {
    /// Run as `sh -c "$HOOK"`.
    pub command: String,
    /// The service's variables that reach the hook.
    pub env: BTreeMap<String, String>,
    /// The image to run in; the service's own by default.
    pub image: Option<String>,
    /// Where the hook and the engine, when it pulls that image, are logged in.
    pub registry: Option<RegistryLogin>,
    /// The hook is stopped after this time.
    pub timeout: Duration,
    /// Memory limit.
    pub memory_bytes: Option<u64>,
    /// CPU limit in billionths of a CPU, as the engine counts.
    pub nano_cpus: Option<i64>,
    /// Process limit.
    pub pids: i64,
    /// How much of a build's log is kept.
    pub log_limit_bytes: u64,
    /// Whether everything the build made is removed afterwards.
    pub garbage_collect: bool,
    /// Whether a hook that was started and whose container is gone is started again.
    pub rerun_interrupted: bool,
}

/// The queue between handler and worker.
#[derive(Debug, Clone)]
pub enum QueueConfig {
    /// SQLite in this directory.
    Local {
        /// The directory; made if it is missing.
        data_dir: PathBuf,
    },
    /// At Amazon SQS.
    Sqs(SqsConfig),
}

/// The service's own log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The least important level that is shown.
    pub level: LevelFilter,
    /// Its form.
    pub format: LogFormat,
    /// The values that it must not show, whoever wrote the line.
    pub secrets: Secrets,
}

/// The form of the service's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl HandlerConfig {
    /// Reads what the webhook needs.
    ///
    /// # Errors
    /// The first variable that is missing or cannot be used.
    pub fn load(env: &Env) -> Result<Self> {
        Ok(Self {
            listen: ListenConfig::load(env)?,
            webhook: WebhookConfig::load(env)?,
        })
    }
}

impl WebhookConfig {
    fn load(env: &Env) -> Result<Self> {
        let token = env.secret("GITHUB_TOKEN")?;
        let secrets = env.secret_list("WEBHOOK_SECRET")?;
        if token.is_none() && secrets.is_empty() {
            return Err(missing("GITHUB_TOKEN"));
        }
        Ok(Self {
            token,
            secrets,
            repos: github_repos(env)?,
            branches: env.parsed("BRANCHES", BranchFilter::default())?,
            status_context: status_context(env),
        })
    }
}

impl ListenConfig {
    /// Reads where the webhook listens.
    ///
    /// # Errors
    /// An address or port that is none.
    pub fn load(env: &Env) -> Result<Self> {
        let bind = env.expected("BIND", IpAddr::from([0, 0, 0, 0]), "an IP address")?;
        Ok(Self {
            address: SocketAddr::new(bind, env.expected("PORT", 8080, "a port number")?),
            cert_path: env.text("CERT_PATH").map(PathBuf::from),
        })
    }
}

impl WorkerConfig {
    /// Reads what the worker needs.
    ///
    /// # Errors
    /// The first variable that is missing or cannot be used.
    pub fn load(env: &Env) -> Result<Self> {
        Ok(Self {
            hook: HookConfig::load(env)?,
            github: GithubConfig::load(env)?,
            engine: EngineConfig::load(env)?,
            mail: MailConfig::load(env)?,
            data_dir: data_dir(env),
            store: StoreConfig::load(env)?,
            storage: StorageConfig::load(env)?,
            public_url: env.optional_with("PUBLIC_URL", http_url)?,
            concurrency: env.checked("CONCURRENCY", 2, |n| (1..=256).contains(n), "1 to 256")?,
            cancel_superseded: env.one_of("CANCEL_SUPERSEDED", &[("0", false), ("1", true)])?,
            drain_timeout: env.duration("DRAIN_TIMEOUT", Duration::from_secs(8))?,
            secrets: env.masked_values()?,
        })
    }
}

impl QueueConfig {
    /// Reads where the queue is.
    ///
    /// # Errors
    /// A URL that is none of a queue.
    pub fn load(env: &Env) -> Result<Self> {
        let local = Self::Local {
            data_dir: data_dir(env),
        };
        Ok(SqsConfig::load(env)?.map_or(local, Self::Sqs))
    }

    /// Reads where the queue is that a handler or a worker of its own shares with others.
    ///
    /// # Errors
    /// There is no `QUEUE_URL`, or one of no queue.
    pub fn load_shared(env: &Env) -> Result<Self> {
        let problem = "missing (the queue in DATA_DIR serves compose-ci serve alone)";
        SqsConfig::load(env)?
            .map(Self::Sqs)
            .ok_or_else(|| invalid("QUEUE_URL", problem))
    }
}

impl LogConfig {
    /// Reads how the service logs.
    ///
    /// # Errors
    /// An unknown level or format.
    pub fn load(env: &Env) -> Result<Self> {
        let level = env.optional_with("LOG_LEVEL", |text| {
            text.parse()
                .map_err(|_| "must be error, warn, info, debug or trace".to_owned())
        })?;
        Ok(Self {
            level: level.unwrap_or(LevelFilter::INFO),
            format: env.one_of(
                "LOG_FORMAT",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?,
            secrets: Secrets::new(&env.masked_values()?),
        })
    }
}

impl GithubConfig {
    fn load(env: &Env) -> Result<Self> {
        let api_url = env.optional_with("GITHUB_API_URL", http_url)?;
        Ok(Self {
            api_url: api_url.map_or_else(
                || "https://api.github.com".to_owned(),
                |url| url.as_str().trim_end_matches('/').to_owned(),
            ),
            token: env.required_secret("GITHUB_TOKEN")?,
            status_context: status_context(env),
            ca_bundle: ca_bundle(env),
        })
    }
}

impl HookConfig {
    fn load(env: &Env) -> Result<Self> {
        let timeout = env.duration("BUILD_TIMEOUT", Duration::from_secs(60 * 60))?;
        if timeout.is_zero() || timeout >= BUILD_TIMEOUT_MAX {
            return Err(invalid("BUILD_TIMEOUT", "must be above 0 and under 12h"));
        }
        Ok(Self {
            command: env.required("HOOK")?.to_owned(),
            env: env.hook_environment(),
            image: env.text("BUILD_IMAGE").map(str::to_owned),
            registry: RegistryLogin::load(env)?,
            timeout,
            memory_bytes: env.size("BUILD_MEMORY")?,
            nano_cpus: env.optional_with("BUILD_CPUS", nano_cpus)?,
            pids: env.checked("BUILD_PIDS", 4096, |n| *n > 0, "a number above 0")?,
            log_limit_bytes: env.size("LOG_LIMIT")?.unwrap_or(64 << 20),
            garbage_collect: env.one_of("GARBAGE_COLLECT", &[("1", true), ("0", false)])?,
            rerun_interrupted: env.one_of("RERUN_INTERRUPTED", &[("0", false), ("1", true)])?,
        })
    }
}

/// Names at GitHub have two parts.
fn github_repos(env: &Env) -> Result<RepoFilter> {
    let repos: RepoFilter = env.required_parsed("GITHUB_REPO")?;
    match repos
        .patterns
        .iter()
        .find(|pattern| pattern.owner().contains('/'))
    {
        Some(deeper) => Err(invalid("GITHUB_REPO", not_a_pattern(&deeper.to_string()))),
        None => Ok(repos),
    }
}

fn status_context(env: &Env) -> String {
    let named = env.text("STATUS_CONTEXT");
    named.unwrap_or(DEFAULT_STATUS_CONTEXT).to_owned()
}

fn ca_bundle(env: &Env) -> Option<PathBuf> {
    env.text("SSL_CERT_FILE").map(PathBuf::from)
}

fn data_dir(env: &Env) -> PathBuf {
    env.text("DATA_DIR").unwrap_or("/var/lib/compose-ci").into()
}

fn http_url(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
        _ => Err("must be a URL that begins with http:// or https://".to_owned()),
    }
}

fn nano_cpus(text: &str) -> Result<i64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.01..=1024.0).contains(&cpus) => Ok((cpus * 1e9).round() as i64),
        _ => Err("must be a number of CPUs, such as 1.5".to_owned()),
    }
}

/// The repositories that may build: a comma list of `owner/name` and `owner/*`. Where the forge has
/// groups within groups, an owner is all of them: `group/sub/*` does not name what is in `group`.
///
/// Clones share the new names of repositories that were renamed.
#[derive(Debug, Clone)]
pub struct RepoFilter {
    patterns: Vec<RepoPattern>,
    renamed: Arc<RwLock<Vec<RepoName>>>,
}

/// An item of a [`RepoFilter`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepoPattern {
    /// `owner/name`.
    One(RepoName),
    /// `owner/*`.
    OwnedBy(String),
}

impl RepoFilter {
    /// Whether this repository may build here.
    pub fn allows(&self, repo: &RepoName) -> bool {
        let is_named = self.patterns.iter().any(|pattern| match pattern {
            RepoPattern::One(one) => one == repo,
            RepoPattern::OwnedBy(owner) => owner.eq_ignore_ascii_case(repo.owner()),
        });
        let renamed = self.renamed.read().unwrap_or_else(PoisonError::into_inner);
        is_named || renamed.contains(repo)
    }

    /// Adds the name that a configured repository has by now.
    pub fn add_new_name(&self, name: RepoName) {
        let mut renamed = self.renamed.write().unwrap_or_else(PoisonError::into_inner);
        renamed.push(name);
    }

    /// The items, in the order of the list.
    pub fn patterns(&self) -> &[RepoPattern] {
        &self.patterns
    }

    /// The only repository that may build, if there is but one: what a manual trigger means that
    /// names none.
    pub fn only(&self) -> Option<&RepoName> {
        match self.patterns.as_slice() {
            [RepoPattern::One(repo)] => Some(repo),
            _ => None,
        }
    }
}

impl RepoPattern {
    fn owner(&self) -> &str {
        match self {
            Self::One(repo) => repo.owner(),
            Self::OwnedBy(owner) => owner,
        }
    }
}

impl Display for RepoPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(repo) => repo.fmt(f),
            Self::OwnedBy(owner) => write!(f, "{owner}/*"),
        }
    }
}

impl FromStr for RepoFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let pattern = |item: &str| match item.strip_suffix("/*") {
            // The placeholder has the form of a name, so that the owner is checked as one.
            Some(owner) => format!("{owner}/any")
                .parse::<RepoName>()
                .map(|_| RepoPattern::OwnedBy(owner.to_owned())),
            None => item.parse().map(RepoPattern::One),
        };
        let patterns = list(text)
            .map(|item| pattern(item).map_err(|_| not_a_pattern(item)))
            .collect::<Result<Vec<_>, _>>()?;
        if patterns.is_empty() {
            return Err("names no repository".to_owned());
        }
        Ok(Self {
            patterns,
            renamed: Arc::default(),
        })
    }
}

fn not_a_pattern(item: &str) -> String {
    format!("{item:?} is not owner/name or owner/*")
}

/// The branches and tags that build: globs, in which `*` also crosses slashes.
#[derive(Debug, Clone)]
pub struct BranchFilter(Vec<WildMatch>);

impl BranchFilter {
    /// Whether a branch or tag of this name builds.
    pub fn allows(&self, name: &str) -> bool {
        self.0.iter().any(|glob| glob.matches(name))
    }
}

impl Default for BranchFilter {
    fn default() -> Self {
        Self(vec![WildMatch::new("*")])
    }
}

impl FromStr for BranchFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let globs: Vec<_> = list(text).map(WildMatch::new).collect();
        if globs.is_empty() {
            return Err("names no branch".to_owned());
        }
        Ok(Self(globs))
    }
}

/// The raw side: a snapshot of the environment. An empty value counts as not set, as compose
/// files pass `${UNSET:-}`.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The process's environment. Variables that are no UTF-8 are left out.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// Whether AWS Lambda has started this process.
    pub fn is_of_lambda(&self) -> bool {
        self.text("AWS_LAMBDA_RUNTIME_API").is_some()
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<&str> {
        self.text(name).ok_or_else(|| missing(name))
    }

    fn optional_with<T, E: Display>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>> {
        self.text(name)
            .map(|text| parse(text).map_err(|problem| invalid(name, problem)))
            .transpose()
    }

    fn parsed<T: FromStr<Err: Display>>(&self, name: &'static str, default: T) -> Result<T> {
        Ok(self.optional_with(name, T::from_str)?.unwrap_or(default))
    }

    fn required_parsed<T: FromStr<Err: Display>>(&self, name: &'static str) -> Result<T> {
        self.optional_with(name, T::from_str)?
            .ok_or_else(|| missing(name))
    }

    /// A value of a type that cannot say itself what is expected.
    fn expected<T: FromStr>(&self, name: &'static str, default: T, expected: &str) -> Result<T> {
        self.checked(name, default, |_| true, expected)
    }

    fn checked<T: FromStr>(
        &self,
        name: &'static str,
        default: T,
        fits: impl Fn(&T) -> bool,
        expected: &str,
    ) -> Result<T> {
        let parsed = self.optional_with(name, |text| match text.parse() {
            Ok(value) if fits(&value) => Ok(value),
            _ => Err(format!("must be {expected}")),
        })?;
        Ok(parsed.unwrap_or(default))
    }

    /// The choice whose word is set; the first is the default.
    fn one_of<T: Copy>(&self, name: &'static str, choices: &[(&str, T)]) -> Result<T> {
        let Some(text) = self.text(name) else {
            return Ok(choices[0].1);
        };
        let chosen = choices.iter().find(|(word, _)| *word == text);
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            invalid(name, format!("must be one of {}", words.join(", ")))
        })
    }

    fn duration(&self, name: &'static str, default: Duration) -> Result<Duration> {
        let parsed = self.optional_with(name, |text| {
            humantime::parse_duration(text).map_err(|_| "must be a duration, such as 90s or 1h")
        })?;
        Ok(parsed.unwrap_or(default))
    }

    fn size(&self, name: &'static str) -> Result<Option<u64>> {
        self.optional_with(name, |text| match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
            _ => Err("must be a size, such as 64MiB"),
        })
    }

    /// A size that may be 0.
    fn size_or_zero(&self, name: &'static str, default: u64) -> Result<u64> {
        match self.text(name) {
            Some("0") => Ok(0),
            _ => Ok(self.size(name)?.unwrap_or(default)),
        }
    }

    /// A secret from the variable itself or from the file that `<name>_FILE` names.
    fn secret(&self, name: &'static str) -> Result<Option<SecretString>> {
        match (self.text(name), self.text(&format!("{name}_FILE"))) {
            (Some(_), Some(_)) => Err(invalid(name, format!("set either {name} or {name}_FILE"))),
            (Some(value), None) => Ok(Some(value.into())),
            (None, None) => Ok(None),
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| invalid(name, format!("{name}_FILE: {path}: {error}")))?;
                match text.trim_end_matches(['\r', '\n']) {
                    "" => Err(invalid(name, format!("{name}_FILE: {path}: is empty"))),
                    value => Ok(Some(value.into())),
                }
            }
        }
    }

    fn required_secret(&self, name: &'static str) -> Result<SecretString> {
        self.secret(name)?.ok_or_else(|| missing(name))
    }

    /// A user and password, of which neither stands without the other.
    fn login(
        &self,
        user: &'static str,
        password: &'static str,
    ) -> Result<Option<(String, SecretString)>> {
        match (self.text(user), self.secret(password)?) {
            (Some(name), Some(secret)) => Ok(Some((name.to_owned(), secret))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(invalid(password, format!("needed with {user}"))),
            (None, Some(_)) => Err(invalid(user, format!("needed with {password}"))),
        }
    }

    fn secret_list(&self, name: &'static str) -> Result<Vec<SecretString>> {
        let secrets = self.secret(name)?;
        let items = secrets.iter().flat_map(|all| list(all.expose_secret()));
        Ok(items.map(SecretString::from).collect())
    }

    /// What the hook gets of this environment: everything that `HOOK_ENV` names, less what
    /// describes this process.
    fn hook_environment(&self) -> BTreeMap<String, String> {
        let globs: Vec<_> = list(self.text("HOOK_ENV").unwrap_or("*"))
            .map(WildMatch::new)
            .collect();
        let wanted = |name: &str| globs.iter().any(|glob| glob.matches(name));
        self.0
            .iter()
            .filter(|(name, _)| wanted(name) && !describes_the_process(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// Every value that must not be shown: the service's secrets, the form in which the registry's
    /// is stored, and whatever else the environment holds that looks secret.
    fn masked_values(&self) -> Result<Vec<SecretString>> {
        let mut values = Vec::new();
        for variable in variables::all().filter(|variable| variable.secret) {
            if let Some(all) = self.secret(variable.name)? {
                values.extend(list(all.expose_secret()).map(SecretString::from));
                values.push(all);
            }
        }
        let guesses = Guesses::new(self.text("MASK").unwrap_or_default());
        let guessed = self
            .0
            .iter()
            .filter(|(name, value)| guesses.is_secret(name, value));
        values.extend(guessed.map(|(_, value)| value.as_str().into()));
        values.extend(RegistryLogin::load(self)?.map(|login| login.basic()));
        values.retain(|value| value.expose_secret().len() >= MASKED_MIN_BYTES);
        Ok(values)
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        )
    }
}

/// Variables that make sense only in this process, container or listener. `PORT` among them: a
/// compose file that says `${PORT:-3000}` does not mean ours.
fn describes_the_process(name: &str) -> bool {
    const OURS: &[&str] = &[
        "PATH",
        "HOME",
        "HOSTNAME",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "SHELL",
        "TERM",
        "USER",
        "LOGNAME",
        "_",
        "BIND",
        "PORT",
        "CERT_PATH",
        "DATA_DIR",
        "QUEUE_URL",
        "DLQ_URL",
        "STORE_URL",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "SSL_CERT_FILE",
        "DOCKER_HOST",
        "DOCKER_TLS_VERIFY",
        "DOCKER_CERT_PATH",
        "DOCKER_CONTEXT",
        // Of systemd.
        "CREDENTIALS_DIRECTORY",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "STATE_DIRECTORY",
        "SYSTEMD_EXEC_PID",
    ];
    OURS.contains(&name)
}

/// The items of a comma list, without blanks around them and without empty ones.
fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

fn invalid(variable: &'static str, problem: impl Display) -> ConfigError {
    ConfigError {
        variable,
        problem: problem.to_string(),
    }
}

fn missing(variable: &'static str) -> ConfigError {
    let meaning = variables::all().find(|known| known.name == variable);
    match meaning {
        Some(known) => invalid(variable, format!("missing ({})", known.meaning)),
        None => invalid(variable, "missing"),
    }
}

#[cfg(test)]
mod tests;
