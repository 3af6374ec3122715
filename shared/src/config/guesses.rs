//! The variables that are secret besides the service's own settings: guessed by name and value, and corrected by
//! a person.

/// The last words of names whose values are secret. Before `KEY` another one must stand: a key may be one of
/// a cache.
const SECRET_ENDINGS: [&str; 16] = [
    "TOKEN",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "API_KEY",
    "APIKEY",
    "PRIVATE_KEY",
    "SECRET_KEY",
    "ACCESS_KEY",
    "SIGNING_KEY",
    "ENCRYPTION_KEY",
    "MASTER_KEY",
];

/// These are settings, whatever the name says.
const SWITCHES: [&str; 10] = [
    "true", "false", "yes", "no", "on", "off", "enabled", "disabled", "none", "null",
];

/// A number of fewer digits is a time, a port or a size.
const NUMBER_MIN_DIGITS: usize = 8;
/// A word of no more letters is a name of something.
const WORD_MAX_LETTERS: usize = 8;

/// The guesses, and the corrections of them.
pub(super) struct Guesses<'a> {
    added: Vec<&'a str>,
    removed: Vec<&'a str>,
}

impl<'a> Guesses<'a> {
    /// Reads the corrections: `NAME,-NAME`.
    pub(super) fn new(mask: &'a str) -> Self {
        let (removed, added): (Vec<_>, Vec<_>) =
            super::list(mask).partition(|name| name.starts_with('-'));
        let removed = removed.into_iter().map(|name| name.trim_start_matches('-'));
        Self {
            added,
            removed: removed.collect(),
        }
    }

    /// Decides whether the value of a variable is to be masked.
    pub(super) fn is_secret(&self, name: &str, value: &str) -> bool {
        let is_guessed = sounds_secret(name) && !is_plain(value);
        self.added.contains(&name) || (is_guessed && !self.removed.contains(&name))
    }
}

fn sounds_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    // The second of several.
    let name = name
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .trim_end_matches('_');
    let is_pass = name == "PASS" || name.ends_with("_PASS");
    is_pass || SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn is_plain(value: &str) -> bool {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let is_word = value.bytes().all(|byte| byte.is_ascii_alphabetic());
    (is_number && value.len() < NUMBER_MIN_DIGITS)
        || (is_word && value.len() <= WORD_MAX_LETTERS)
        || SWITCHES
            .iter()
            .any(|switch| value.eq_ignore_ascii_case(switch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_a_name_decides() {
        let guesses = Guesses::new("");
        for (name, secret) in [
            ("NPM_TOKEN", true),
            ("DB_PASS", true),
            ("PASS", true),
            ("DBPASSWORD", true),
            ("npm_token", true),
            ("DEPLOY_TOKEN_2", true),
            ("TOKEN1", true),
            ("AWS_SECRET_ACCESS_KEY", true),
            ("STRIPE_API_KEY", true),
            ("AWS_ACCESS_KEY_ID", false),
            ("TOKENIZERS_PARALLELISM", false),
            ("TOKEN_TTL", false),
            ("CREDENTIALS_PROVIDER", false),
            ("SECRET_BACKEND", false),
            ("PASSWORD_HASHER", false),
            ("API_KEY_HEADER", false),
            ("AWS_SECRETSMANAGER_REGION", false),
            ("GITHUB_TOKEN_FILE", false),
            ("CACHE_KEY", false),
            ("COMPASS", false),
        ] {
            assert_eq!(
                guesses.is_secret(name, "x9-correct-horse"),
                secret,
                "{name}"
            );
        }
    }

    #[test]
    fn plain_values_are_no_secrets() {
        let guesses = Guesses::new("");
        for (value, secret) in [
            ("false", false),
            ("Disabled", false),
            ("3600", false),
            ("file", false),
            ("postgres", false),
            ("correct-horse", true),
            ("correcthorse", true),
            ("hunter2", true),
            ("12345678", true),
        ] {
            assert_eq!(guesses.is_secret("A_TOKEN", value), secret, "{value}");
        }
    }

    #[test]
    fn a_person_corrects_the_guesses() {
        let guesses = Guesses::new("TOKEN_FOR_NPM, -BUILD_TOKEN ,DB_PASSWORD");
        for (name, value, secret) in [
            ("TOKEN_FOR_NPM", "npm_x9f", true),
            ("BUILD_TOKEN", "npm_x9f", false),
            ("DB_PASSWORD", "postgres", true),
            ("OTHER_TOKEN", "npm_x9f", true),
        ] {
            assert_eq!(guesses.is_secret(name, value), secret, "{name}");
        }
    }
}
