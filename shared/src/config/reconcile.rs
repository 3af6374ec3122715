//! Whether, and where, pushes are looked for that the webhook missed.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::{Env, GithubConfig, Result, WebhookConfig, data_dir, http_url, missing};

/// What is needed to find pushes that the forge could not deliver, and to queue them.
#[derive(Debug, Clone)]
pub struct ReconcileConfig {
    /// GitHub remembers what it could not deliver.
    pub github: GithubConfig,
    /// Which of the repositories' webhooks is ours.
    pub address: WebhookAddress,
    /// The repositories, and what of the pushes to them builds.
    pub webhook: WebhookConfig,
    /// Where the records of builds are.
    pub data_dir: PathBuf,
}

/// The marks that tell our webhook from those of others.
#[derive(Debug, Clone)]
pub struct WebhookAddress {
    url: Option<Url>,
    /// What stands in the URL while no HMAC secret is set. Nobody else's has it.
    token: Option<SecretString>,
}

impl ReconcileConfig {
    /// Reads what is needed.
    ///
    /// # Errors
    /// The first variable that is missing or cannot be used.
    pub fn load(env: &Env) -> Result<Self> {
        let address = WebhookAddress::load(env)?;
        if !address.is_known() {
            return Err(missing("WEBHOOK_URL"));
        }
        Ok(Self {
            github: GithubConfig::load(env)?,
            address,
            webhook: WebhookConfig::load(env)?,
            data_dir: data_dir(env),
        })
    }

    /// Reads what a service needs, if it is to look at all: as `RECONCILE` says, and without it
    /// where it can and `by_default` is true.
    ///
    /// # Errors
    /// The first variable that is missing or cannot be used.
    pub fn load_if_wanted(env: &Env, by_default: bool) -> Result<Option<Self>> {
        let wanted = match env.text("RECONCILE") {
            Some(_) => env.one_of("RECONCILE", &[("1", true), ("0", false)])?,
            None => by_default && WebhookAddress::load(env)?.is_known(),
        };
        wanted.then(|| Self::load(env)).transpose()
    }
}

impl WebhookAddress {
    fn load(env: &Env) -> Result<Self> {
        let url = match env.optional_with("WEBHOOK_URL", http_url)? {
            Some(url) => Some(url),
            None => env.optional_with("PUBLIC_URL", http_url)?,
        };
        let token_in_url = env.secret("WEBHOOK_SECRET")?.is_none();
        let token = if token_in_url {
            env.secret("GITHUB_TOKEN")?
        } else {
            None
        };
        Ok(Self { url, token })
    }

    fn is_known(&self) -> bool {
        self.url.is_some() || self.token.is_some()
    }

    /// Whether a webhook with this URL is ours.
    pub fn leads_here(&self, url: &str) -> bool {
        let Ok(url) = Url::parse(url) else {
            return false;
        };
        let same_place = self.url.as_ref().map(place) == Some(place(&url));
        same_place || self.holds_token(&url)
    }

    fn holds_token(&self, url: &Url) -> bool {
        self.token.as_ref().is_some_and(|token| {
            url.query_pairs()
                .any(|(name, value)| name == "token" && value == token.expose_secret())
        })
    }
}

/// All of a URL that decides where it leads to; the token is in none of it.
fn place(url: &Url) -> (&str, Option<&str>, Option<u16>, &str) {
    let path = url.path().trim_end_matches('/');
    (
        url.scheme(),
        url.host_str(),
        url.port_or_known_default(),
        path,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: (&str, &str) = ("GITHUB_TOKEN", "t0ken");
    const REPO: (&str, &str) = ("GITHUB_REPO", "octo/hello");
    const SECRET: (&str, &str) = ("WEBHOOK_SECRET", "s3cret");

    fn address<const N: usize>(pairs: [(&str, &str); N]) -> WebhookAddress {
        WebhookAddress::load(&Env::from(pairs)).expect("valid")
    }

    #[test]
    fn a_webhook_is_ours_by_its_url_or_by_the_token_in_it() {
        let here = "https://ci.example.org/hook/";
        let by_url = address([TOKEN, SECRET, ("WEBHOOK_URL", here)]);
        for (url, ours) in [
            ("https://ci.example.org/hook/", true),
            ("https://CI.example.org:443/hook", true),
            ("https://ci.example.org/hook?token=another", true),
            ("https://ci.example.org/other", false),
            ("http://ci.example.org/hook/", false),
            ("https://ci.example.org:8443/hook", false),
            ("https://ci.example.org.evil.example/hook", false),
            ("https://x.example/?token=t0ken", false),
            ("no url", false),
        ] {
            assert_eq!(by_url.leads_here(url), ours, "{url}");
        }
        let by_token = address([TOKEN]);
        assert!(by_token.leads_here("http://192.0.2.1:8080/?token=t0ken"));
        assert!(!by_token.leads_here("http://192.0.2.1:8080/?token=t0ke"));
        let by_pages = address([SECRET, ("PUBLIC_URL", "https://ci.example.org")]);
        assert!(by_pages.leads_here("https://ci.example.org/"));
    }

    #[test]
    fn a_service_looks_for_missed_pushes_where_it_can_unless_it_is_told_otherwise() {
        let url = ("WEBHOOK_URL", "https://ci.example.org/");
        let wanted = |more: &[(&str, &str)], by_default| {
            let mut env = Env::from([TOKEN, REPO]);
            let pairs = more.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            env.0.extend(pairs);
            let config = ReconcileConfig::load_if_wanted(&env, by_default);
            config.map(|config| config.is_some())
        };
        let (on, off) = (("RECONCILE", "1"), ("RECONCILE", "0"));
        assert_eq!(wanted(&[], true), Ok(true));
        assert_eq!(wanted(&[SECRET], true), Ok(false));
        assert_eq!(wanted(&[SECRET, url], true), Ok(true));
        assert_eq!(wanted(&[SECRET, url, off], true), Ok(false));
        assert_eq!(wanted(&[SECRET, url], false), Ok(false));
        assert_eq!(wanted(&[SECRET, url, on], false), Ok(true));
        let nowhere = wanted(&[SECRET, on], true).expect_err("no address");
        assert_eq!(nowhere.variable, "WEBHOOK_URL");
    }
}
