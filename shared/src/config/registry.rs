//! The registry that hooks pull from and push to, and the login there.

use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};

use super::{Env, Result, invalid};

/// The name of Docker Hub's registry in an image's name, where it may be left out.
const DOCKER_HUB: &str = "docker.io";
/// The name under which Docker keeps the login to it, since its first registry.
const DOCKER_HUB_LOGIN: &str = "https://index.docker.io/v1/";

/// A user and password, and the registry that they are for.
#[derive(Debug, Clone)]
pub struct RegistryLogin {
    /// The registry.
    pub registry: Registry,
    /// The user's name.
    pub user: String,
    /// The password, or a token in its place.
    pub password: SecretString,
}

/// A registry's `host` or `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry(String);

impl RegistryLogin {
    /// Reads the login, if there is one. `DOCKER_REGISTRY` alone is a variable of the hook.
    pub(super) fn load(env: &Env) -> Result<Option<Self>> {
        let Some((user, password)) = env.login("REGISTRY_USER", "REGISTRY_PASS")? else {
            return Ok(None);
        };
        // What stands before the first colon of a login is the user.
        if user.contains(':') {
            return Err(invalid("REGISTRY_USER", "must not hold a colon"));
        }
        let registry = env.optional_with("DOCKER_REGISTRY", Registry::from_str)?;
        Ok(Some(Self {
            registry: registry
                .ok_or_else(|| invalid("DOCKER_REGISTRY", "needed with REGISTRY_USER"))?,
            user,
            password,
        }))
    }

    /// User and password as HTTP's basic authentication and Docker's configuration write them.
    pub fn basic(&self) -> SecretString {
        let pair = format!("{}:{}", self.user, self.password.expose_secret());
        BASE64_STANDARD.encode(pair).into()
    }
}

impl Registry {
    /// The registry that an image comes from, by the rule of all Docker clients: what stands before
    /// the first slash is a registry if it looks like a host, and else a name at Docker Hub.
    pub fn of_image(image: &str) -> Self {
        let first = image.split_once('/').map_or("", |(first, _)| first);
        Self::named(first)
    }

    /// The name under which Docker's configuration holds the login to this registry.
    pub fn login_key(&self) -> &str {
        match self.0.as_str() {
            DOCKER_HUB => DOCKER_HUB_LOGIN,
            host => host,
        }
    }

    fn named(first: &str) -> Self {
        let is_host = first.contains(['.', ':']) || first == "localhost";
        match first {
            "index.docker.io" => Self(DOCKER_HUB.to_owned()),
            host if is_host => Self(host.to_owned()),
            _ => Self(DOCKER_HUB.to_owned()),
        }
    }
}

impl FromStr for Registry {
    type Err = &'static str;

    /// Reads the beginning of images' names: a registry, and maybe a path there.
    fn from_str(prefix: &str) -> Result<Self, Self::Err> {
        let (first, _path) = prefix.split_once('/').unwrap_or((prefix, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if first.is_empty() || !first.chars().all(fits) || prefix.contains("://") {
            return Err("must be how images' names begin, such as registry.example.org/team");
        }
        Ok(Self::named(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: [(&str, &str); 3] = [
        ("DOCKER_REGISTRY", "registry.example.org:5000/team"),
        ("REGISTRY_USER", "ci"),
        ("REGISTRY_PASS", "pa:ss"),
    ];

    fn load(variables: &[(&str, &str)]) -> Result<Option<RegistryLogin>> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        RegistryLogin::load(&Env(variables.iter().map(owned).collect()))
    }

    #[test]
    fn a_login_belongs_to_the_registrys_host() {
        let login = load(&LOGIN).expect("valid").expect("a login");
        assert_eq!(login.registry.login_key(), "registry.example.org:5000");
        assert_eq!(login.user, "ci");
        // printf ci:pa:ss | base64
        assert_eq!(login.basic().expose_secret(), "Y2k6cGE6c3M=");
    }

    #[test]
    fn a_registry_alone_is_a_variable_of_the_hook() {
        for alone in [&[][..], &LOGIN[..1], &[("DOCKER_REGISTRY", "https://x")]] {
            assert!(load(alone).expect("valid").is_none(), "{alone:?}");
        }
    }

    #[test]
    fn half_a_login_is_refused() {
        let [registry, user, password] = LOGIN;
        let form = "must be how images' names begin, such as registry.example.org/team";
        for (variables, line) in [
            (
                &[registry, user][..],
                "REGISTRY_PASS: needed with REGISTRY_USER",
            ),
            (
                &[registry, password],
                "REGISTRY_USER: needed with REGISTRY_PASS",
            ),
            (
                &[user, password],
                "DOCKER_REGISTRY: needed with REGISTRY_USER",
            ),
            (
                &[registry, ("REGISTRY_USER", "ci:x"), password],
                "REGISTRY_USER: must not hold a colon",
            ),
            (
                &[("DOCKER_REGISTRY", "https://a.example"), user, password],
                &format!("DOCKER_REGISTRY: {form}"),
            ),
            (
                &[("DOCKER_REGISTRY", "/team"), user, password],
                &format!("DOCKER_REGISTRY: {form}"),
            ),
        ] {
            let error = load(variables).expect_err(line);
            assert_eq!(error.to_string(), *line);
        }
    }

    #[test]
    fn an_image_comes_from_the_registry_that_its_name_begins_with() {
        for (image, key) in [
            ("registry.example.org/team/app:1", "registry.example.org"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000"),
            ("[::1]:5000/app", "[::1]:5000"),
            ("localhost/app", "localhost"),
            ("debian", DOCKER_HUB_LOGIN),
            ("debian:12.5", DOCKER_HUB_LOGIN),
            ("team/app", DOCKER_HUB_LOGIN),
            ("docker.io/team/app", DOCKER_HUB_LOGIN),
            ("index.docker.io/team/app", DOCKER_HUB_LOGIN),
        ] {
            assert_eq!(Registry::of_image(image).login_key(), key, "{image}");
        }
    }

    #[test]
    fn a_name_without_dots_is_one_at_docker_hub() {
        for prefix in ["team", "team/tools", "docker.io", "index.docker.io/team"] {
            let registry: Registry = prefix.parse().expect(prefix);
            assert_eq!(registry, Registry::of_image("debian"), "{prefix}");
        }
    }
}
