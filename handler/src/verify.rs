//! Who may ask for a build: a raw request becomes [`Verified`], or nothing of it is parsed.
//!
//! Without HMAC secrets the token proves a request, in the URL or as `Authorization: Bearer`.
//! With them a signature or the bearer token does, and a token in the URL proves nothing: URLs
//! end up in other people's logs.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use subtle::ConstantTimeEq;

use shared::config::WebhookConfig;

/// The HMAC-SHA256 of a body.
pub(crate) type Signature = [u8; SHA256_BYTES];

const SHA256_BYTES: usize = 32;

/// Knows what proves a request. It keeps digests and keyed states, not the secrets.
pub(crate) struct Verifier {
    token: Option<TokenDigest>,
    hmacs: Vec<Hmac<Sha256>>,
}

/// A request whose head proves it, or at least claims a signature of the body.
pub(crate) struct Admitted<'a> {
    verifier: &'a Verifier,
    proof: Proof,
}

enum Proof {
    Token,
    Signature(Signature),
}

/// The body of a request from somebody who knows a secret. Only [`Admitted::verify`] makes one.
#[derive(Debug)]
pub(crate) struct Verified<'a> {
    /// All of it.
    pub(crate) bytes: &'a [u8],
}

/// No proof, or a wrong one. It never says which, or what was expected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no valid proof of who sent this")]
pub(crate) struct Unproven;

impl Verifier {
    pub(crate) fn new(config: &WebhookConfig) -> Self {
        Self {
            token: config
                .token
                .as_ref()
                .map(|token| TokenDigest::of(token.expose_secret())),
            hmacs: config.secrets.iter().map(keyed).collect(),
        }
    }

    /// Checks what can be checked before the body is read; `signature` is what the head claims.
    pub(crate) fn admit(
        &self,
        query: Option<&str>,
        headers: &HeaderMap,
        signature: Option<Signature>,
    ) -> Result<Admitted<'_>, Unproven> {
        let proof = if self.accepts_bearer(headers) || self.accepts_query(query) {
            Proof::Token
        } else {
            let signature = signature.filter(|_| !self.hmacs.is_empty());
            Proof::Signature(signature.ok_or(Unproven)?)
        };
        Ok(Admitted {
            verifier: self,
            proof,
        })
    }

    fn accepts_bearer(&self, headers: &HeaderMap) -> bool {
        let credentials = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = credentials.and_then(|text| text.split_once(' ')) else {
            return false;
        };
        // GitHub's own API takes both schemes, and so do the scripts that people have.
        let known = scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token");
        known && self.accepts_token(token.trim())
    }

    fn accepts_query(&self, query: Option<&str>) -> bool {
        if !self.hmacs.is_empty() {
            return false;
        }
        let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        pairs.any(|(name, value)| name == "token" && self.accepts_token(&value))
    }

    fn accepts_token(&self, candidate: &str) -> bool {
        self.token
            .as_ref()
            .is_some_and(|token| token.is_of(candidate))
    }

    fn accepts_signature(&self, signature: &Signature, body: &[u8]) -> bool {
        self.hmacs.iter().any(|keyed| {
            let mut hmac = keyed.clone();
            hmac.update(body);
            hmac.verify_slice(signature).is_ok()
        })
    }
}

impl Admitted<'_> {
    /// Checks the body's signature, unless the head was proof enough.
    pub(crate) fn verify(self, body: &[u8]) -> Result<Verified<'_>, Unproven> {
        if let Proof::Signature(signature) = self.proof
            && !self.verifier.accepts_signature(&signature, body)
        {
            return Err(Unproven);
        }
        Ok(Verified { bytes: body })
    }
}

/// A token's SHA-256: two digests are compared in a time that also hides the token's length.
struct TokenDigest([u8; SHA256_BYTES]);

impl TokenDigest {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn is_of(&self, candidate: &str) -> bool {
        Self::of(candidate).0.ct_eq(&self.0).into()
    }
}

fn keyed(secret: &SecretString) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes a key of any length")
}

/// The state of one connection's request: proven, or not. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proven(Arc<AtomicBool>);

impl Proven {
    /// Says that the request is proven, or that it has its answer.
    pub(crate) fn set(&self, is_proven: bool) {
        self.0.store(is_proven, Ordering::Relaxed);
    }

    /// True while a proven request has no answer yet.
    pub(crate) fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::forge::Delivery;

    /// The example of GitHub's documentation "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "x-hub-signature-256";
    const SIGNED: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    const TOKEN: &str = "t0ken+/= ü";
    const URL_TOKEN: &str = "token=t0ken%2B%2F%3D%20%C3%BC";

    fn verifier(secrets: &[&str]) -> Verifier {
        Verifier::new(&WebhookConfig {
            token: Some(TOKEN.into()),
            secrets: secrets.iter().map(|&secret| secret.into()).collect(),
            repos: "octo/hello".parse().expect("repository"),
            branches: Default::default(),
            status_context: "ci".to_owned(),
        })
    }

    fn proves(verifier: &Verifier, query: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let value = HeaderValue::from_bytes(value.as_bytes()).expect("header");
                (name.parse().expect("name"), value)
            })
            .collect();
        let signature = Delivery::of(&headers).signature;
        match verifier.admit(Some(query), &headers, signature) {
            Ok(admitted) => admitted.verify(BODY).is_ok(),
            Err(Unproven) => false,
        }
    }

    #[test]
    fn without_secrets_the_token_in_the_url_proves_a_request() {
        let verifier = verifier(&[]);
        for (query, proven) in [
            (URL_TOKEN, true),
            ("a=b&token=t0ken%2B/=+%c3%bc&c", true),
            ("", false),
            ("token=", false),
            ("token", false),
            ("token=t0ken", false),
            ("token=t0ken%2B%2F%3D%20%C3%BCx", false),
            ("Token=t0ken%2B%2F%3D%20%C3%BC", false),
        ] {
            assert_eq!(proves(&verifier, query, &[]), proven, "{query}");
        }
    }

    #[test]
    fn with_a_secret_a_token_in_the_url_proves_nothing() {
        assert!(!proves(&verifier(&[SECRET]), URL_TOKEN, &[]));
    }

    #[test]
    fn the_bearer_token_proves_a_request_with_and_without_secrets() {
        let ascii = |secrets: &[&str]| Verifier {
            token: Some(TokenDigest::of("t0ken")),
            ..verifier(secrets)
        };
        for verifier in [ascii(&[]), ascii(&[SECRET])] {
            for (value, proven) in [
                ("Bearer t0ken", true),
                ("bearer t0ken", true),
                ("token  t0ken", true),
                ("t0ken", false),
                ("Basic t0ken", false),
                ("Bearer", false),
                ("Bearer ", false),
                ("Bearer t0keN", false),
                ("Bearer t0kenn", false),
                ("Bearer t0ken\u{e9}", false),
            ] {
                let headers = [("authorization", value)];
                assert_eq!(proves(&verifier, "", &headers), proven, "{value}");
            }
        }
    }

    #[test]
    fn without_a_token_only_a_signature_proves_a_request() {
        let verifier = Verifier {
            token: None,
            ..verifier(&[SECRET])
        };
        for token in ["", "t0ken"] {
            let headers = [("authorization", &*format!("Bearer {token}"))];
            assert!(!proves(&verifier, &format!("token={token}"), &headers));
        }
        let signature = format!("sha256={SIGNED}");
        assert!(proves(&verifier, "", &[(SIGNATURE, &signature)]));
    }

    #[test]
    fn a_signature_by_any_of_the_secrets_proves_a_request() {
        let signature = format!("sha256={SIGNED}");
        let headers = [(SIGNATURE, signature.as_str())];
        assert!(proves(&verifier(&[SECRET]), "", &headers));
        assert!(proves(&verifier(&["new", SECRET]), "", &headers));
        assert!(
            !proves(&verifier(&["new"]), "", &headers),
            "somebody else's secret"
        );
        assert!(
            !proves(&verifier(&[]), "", &headers),
            "no secret is configured"
        );
    }

    #[test]
    fn a_forged_or_malformed_signature_proves_nothing() {
        let verifier = verifier(&[SECRET]);
        let upper = SIGNED.to_ascii_uppercase();
        for (value, proven) in [
            (format!("sha256={upper}"), true),
            (format!("sha256={}8", &SIGNED[..63]), false),
            (format!("sha256={}", &SIGNED[..62]), false),
            (format!("sha256={SIGNED}00"), false),
            (format!("sha256={SIGNED}0"), false),
            (format!("sha1={SIGNED}"), false),
            (format!("sha256={}", "g".repeat(64)), false),
            (format!("sha256={}", "é".repeat(32)), false),
            ("sha256=".into(), false),
            (SIGNED.into(), false),
        ] {
            assert_eq!(
                proves(&verifier, "", &[(SIGNATURE, &value)]),
                proven,
                "{value}"
            );
        }
    }

    #[test]
    fn a_signature_of_another_body_proves_nothing() {
        let verifier = verifier(&[SECRET]);
        let mut headers = HeaderMap::new();
        let value = format!("sha256={SIGNED}").parse().expect("header");
        headers.insert(SIGNATURE, value);
        let signature = Delivery::of(&headers).signature;
        let admitted = verifier.admit(None, &headers, signature);
        let admitted = admitted.expect("claims a signature");
        assert_eq!(admitted.verify(b"Hello, World?").err(), Some(Unproven));
    }
}
