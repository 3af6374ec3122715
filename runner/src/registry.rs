//! The login to a registry, on its way into the build container's docker configuration.
//!
//! The docker CLI, compose and buildx read `config.json`, and so do all others that speak to
//! registries. The container's first process writes it, since it alone knows which user it is, where
//! that user's home is, and what the image has there already.

use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use shared::config::{Registry, RegistryLogin};

/// The variable of the login: [`LOG_IN`] finds it in its environment, the hook does not.
pub(crate) const VARIABLE: &str = "COMPOSE_CI_LOGIN";

/// Adds the login to the docker configuration of the image, or makes one.
///
/// If the image names a `credsStore`, docker would look for all logins there; an empty
/// `credHelpers` entry leads it back to the file for this registry. Without a `credsStore` there is
/// no need for one, and programs other than docker would take it for the name of a helper.
///
/// All is done by the shell itself: the login is in no command's arguments, and needs no program
/// that an image may lack. Docker merges two `auths` in one file.
pub(crate) const LOG_IN: &str = r#"
login=$COMPOSE_CI_LOGIN
unset COMPOSE_CI_LOGIN
docker=${DOCKER_CONFIG:-$HOME/.docker}
config=$(cat "$docker/config.json" 2>/dev/null)
case $config in
  *'"credsStore"'*) ;;
  *) login=${login%%,\"credHelpers\"*} ;;
esac
case $config in
  *"$login"*) ;;
  *\"*) config="${config%\}*},$login}" ;;
  *) config="{$login}" ;;
esac
write_to() (
  umask 077
  mkdir -p "$1" && printf '%s\n' "$config" >"$1/config.json"
)
if ! write_to "$docker" 2>/dev/null; then
  export DOCKER_CONFIG=/.compose-ci/docker
  write_to "$DOCKER_CONFIG"
fi
"#;

/// The value of [`VARIABLE`]: two members of docker's configuration, `auths` first.
pub(crate) fn members(login: &RegistryLogin) -> SecretString {
    let key = login.registry.login_key();
    let auths = json!({ key: { "auth": login.basic().expose_secret() } });
    let helpers = json!({ key: "" });
    format!(r#""auths":{auths},"credHelpers":{helpers}"#).into()
}

/// The login, if this image is of its registry.
pub fn login_for<'a>(image: &str, login: Option<&'a RegistryLogin>) -> Option<&'a RegistryLogin> {
    login.filter(|login| login.registry == Registry::of_image(image))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    fn login() -> RegistryLogin {
        RegistryLogin {
            registry: "registry.example.org/team".parse().expect("a registry"),
            user: "ci".into(),
            password: "pass".into(),
        }
    }

    /// The contents of `config.json` afterwards.
    fn logged_in(home: &Path) -> String {
        run(home, LOG_IN);
        fs::read_to_string(home.join(".docker/config.json")).expect("it is written")
    }

    #[expect(
        clippy::disallowed_types,
        reason = "it is the shell that does the work, and no engine is needed for it"
    )]
    fn run(home: &Path, script: &str) -> String {
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", home)
            .env(VARIABLE, members(&login()).expose_secret())
            .output()
            .expect("a shell");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        String::from_utf8(output.stdout).expect("utf-8")
    }

    fn home_with(config: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join(".docker")).expect("made");
        fs::write(home.path().join(".docker/config.json"), config).expect("written");
        home
    }

    #[test]
    fn an_image_without_a_configuration_gets_one_that_its_user_alone_can_read() {
        let home = tempfile::tempdir().expect("a directory");
        let config = logged_in(home.path());
        insta::assert_snapshot!(config.trim_end(), @r#"{"auths":{"registry.example.org":{"auth":"Y2k6cGFzcw=="}}}"#);
        let file = fs::metadata(home.path().join(".docker/config.json")).expect("a file");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_the_image_configures_stays() {
        for (before, after) in [
            ("{}\n", r#"{"auths":A}"#),
            ("{\n}\n", r#"{"auths":A}"#),
            (
                "{\n\t\"detachKeys\": \"ctrl-x\"\n}\n",
                "{\n\t\"detachKeys\": \"ctrl-x\"\n,\"auths\":A}",
            ),
            (
                r#"{"credsStore":"pass"}"#,
                r#"{"credsStore":"pass","auths":A,"credHelpers":{"registry.example.org":""}}"#,
            ),
        ] {
            let home = home_with(before);
            let auths = r#"{"registry.example.org":{"auth":"Y2k6cGFzcw=="}}"#;
            let config = logged_in(home.path());
            assert_eq!(config.trim_end(), after.replace('A', auths));
            serde_json::from_str::<Value>(&config).expect("JSON");
            // The container of a build that is kept can be started again.
            assert_eq!(logged_in(home.path()), config);
        }
    }

    #[test]
    fn the_hooks_environment_does_not_hold_the_login() {
        let home = tempfile::tempdir().expect("a directory");
        let environment = run(home.path(), &format!("{LOG_IN}env"));
        assert!(environment.contains("HOME="), "{environment}");
        assert!(!environment.contains("Y2k6"), "{environment}");
    }

    #[test]
    fn a_user_without_a_home_gets_a_configuration_elsewhere() {
        // Root may write everywhere, but not below a file.
        let home = tempfile::NamedTempFile::new().expect("a file");
        let directory = run(home.path(), &format!("{LOG_IN}echo $DOCKER_CONFIG"));
        let directory = Path::new(directory.trim_end());
        let config = fs::read_to_string(directory.join("config.json")).expect("written");
        fs::remove_dir_all(directory).expect("removed");
        assert!(config.contains("registry.example.org"), "{config}");
    }

    #[test]
    fn the_engine_gets_the_login_for_images_of_its_registry_only() {
        let login = login();
        for (image, given) in [
            ("registry.example.org/other/app", true),
            ("registry.example.org:5000/app", false),
            ("registry.example.org.evil.example/app", false),
            ("debian", false),
        ] {
            assert_eq!(login_for(image, Some(&login)).is_some(), given, "{image}");
        }
    }
}
