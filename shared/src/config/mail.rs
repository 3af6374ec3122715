//! Who gets mail, when, and how.

use std::path::PathBuf;

use secrecy::SecretString;

use super::{Env, Result, ca_bundle, invalid, list};

/// Recipients of one message, by the reference of `SendRawEmail`.
const SES_RECIPIENTS_MAX: usize = 50;

/// Who gets mail, when, and how.
#[derive(Debug, Clone)]
pub enum MailConfig {
    /// Nobody.
    Off,
    /// By SMTP.
    Smtp(SmtpConfig),
    /// By Amazon SES.
    Ses(SesConfig),
}

/// A mail server and an envelope.
#[derive(Debug, Clone)]
pub struct SmtpConfig {
    /// Host name, also checked against the server's certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: SmtpTls,
    /// User and password, where the server asks for them.
    pub credentials: Option<(String, SecretString)>,
    /// The sender's address.
    pub from: String,
    /// The recipients' addresses, at least one.
    pub to: Vec<String>,
    /// Which outcomes are mailed.
    pub on: MailOn,
    /// A bundle of root certificates instead of the embedded ones.
    pub ca_bundle: Option<PathBuf>,
}

/// An envelope for Amazon SES. Region and credentials are the AWS SDK's to find.
#[derive(Debug, Clone)]
pub struct SesConfig {
    /// The sender's address, which SES must have verified.
    pub from: String,
    /// The recipients' addresses, 1 to 50.
    pub to: Vec<String>,
    /// Which outcomes are mailed.
    pub on: MailOn,
    /// A bundle of root certificates instead of the embedded ones.
    pub ca_bundle: Option<PathBuf>,
}

/// How a mail connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SmtpTls {
    /// TLS from the first byte (port 465).
    Implicit,
    /// STARTTLS, and no mail without it.
    StartTls,
    /// In the clear: only when asked for.
    Off,
}

/// Which outcomes are mailed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MailOn {
    /// Every outcome.
    Always,
    /// Everything but success.
    Failure,
    /// When a branch's outcome differs from the one before.
    Change,
}

impl MailConfig {
    pub(super) fn load(env: &Env) -> Result<Self> {
        let by_ses = env.text("SES_FROM").or(env.text("SES_TO")).is_some();
        match env.text("SMTP_HOST") {
            None if !by_ses => Ok(Self::Off),
            None => SesConfig::load(env).map(Self::Ses),
            Some(host) if !by_ses => SmtpConfig::load(env, host).map(Self::Smtp),
            Some(_) => Err(invalid(
                "SMTP_HOST",
                "set either SMTP_HOST or SES_FROM and SES_TO",
            )),
        }
    }
}

impl SmtpConfig {
    fn load(env: &Env, host: &str) -> Result<Self> {
        let port = env.expected("SMTP_PORT", 587, "a port number")?;
        let tls = env.optional_with("SMTP_TLS", |text| match text {
            "none" => Ok(SmtpTls::Off),
            _ => Err("can only be none; without it the port decides".to_owned()),
        })?;
        let by_port = if port == 465 {
            SmtpTls::Implicit
        } else {
            SmtpTls::StartTls
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            tls: tls.unwrap_or(by_port),
            credentials: env.login("SMTP_USER", "SMTP_PASS")?,
            from: env.required("SMTP_FROM")?.to_owned(),
            to: addresses(env, "SMTP_TO")?,
            on: mail_on(env)?,
            ca_bundle: ca_bundle(env),
        })
    }
}

impl SesConfig {
    fn load(env: &Env) -> Result<Self> {
        let from = env.required("SES_FROM")?.to_owned();
        let to = addresses(env, "SES_TO")?;
        if to.len() > SES_RECIPIENTS_MAX {
            let problem = format!("at most {SES_RECIPIENTS_MAX} addresses");
            return Err(invalid("SES_TO", problem));
        }
        Ok(Self {
            from,
            to,
            on: mail_on(env)?,
            ca_bundle: ca_bundle(env),
        })
    }
}

fn addresses(env: &Env, variable: &'static str) -> Result<Vec<String>> {
    Ok(list(env.required(variable)?).map(str::to_owned).collect())
}

fn mail_on(env: &Env) -> Result<MailOn> {
    env.one_of(
        "MAIL_ON",
        &[
            ("always", MailOn::Always),
            ("failure", MailOn::Failure),
            ("change", MailOn::Change),
        ],
    )
}
