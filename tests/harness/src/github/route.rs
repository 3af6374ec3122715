//! From a request's path to what it asks for.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use super::fault::Endpoint;
use super::record::Host;

/// What is asked for; names are percent-decoded, and a reference may hold slashes.
#[derive(Debug)]
pub(super) enum Route {
    PostStatus {
        repo: String,
        sha: String,
    },
    ListStatuses {
        repo: String,
        reference: String,
    },
    Commit {
        repo: String,
        reference: String,
    },
    Tarball {
        repo: String,
        reference: String,
    },
    Compare {
        repo: String,
        base: String,
        head: String,
    },
    GitCommit {
        repo: String,
        sha: String,
    },
    Repository {
        repo: String,
    },
    /// Of a repository or an organization.
    Hooks {
        owner: String,
    },
    HookDeliveries {
        owner: String,
        hook: String,
    },
    HookDelivery {
        owner: String,
        hook: String,
        delivery: String,
    },
    Codeload,
    /// Not GitHub's: every status that was posted.
    AllStatuses,
    /// Not GitHub's: a push payload for a reference.
    PushPayload,
    Unknown,
}

impl Route {
    pub(super) fn of(host: Host, method: &Method, path: &str) -> Self {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        match (host, method.as_str(), segments.as_slice()) {
            (Host::Codeload, "GET", [_owner, _name, "legacy.tar.gz", ..]) => Self::Codeload,
            (Host::Api, "POST", ["repos", owner, name, "statuses", sha]) => Self::PostStatus {
                repo: repo(owner, name),
                sha: decoded(sha),
            },
            (Host::Api, "GET", ["repos", owner, name, "commits", reference @ .., "statuses"]) => {
                Self::ListStatuses {
                    repo: repo(owner, name),
                    reference: joined(reference),
                }
            }
            (Host::Api, "GET", ["repos", owner, name, "commits", reference @ ..]) => Self::Commit {
                repo: repo(owner, name),
                reference: joined(reference),
            },
            (Host::Api, "GET", ["repos", owner, name, "tarball", reference @ ..]) => {
                Self::Tarball {
                    repo: repo(owner, name),
                    reference: joined(reference),
                }
            }
            (Host::Api, "GET", ["repos", owner, name]) => Self::Repository {
                repo: repo(owner, name),
            },
            (Host::Api, "GET", ["repos", owner, name, "compare", range]) => {
                match decoded(range).split_once("...") {
                    Some((base, head)) => Self::Compare {
                        repo: repo(owner, name),
                        base: base.to_owned(),
                        head: head.to_owned(),
                    },
                    None => Self::Unknown,
                }
            }
            (Host::Api, "GET", ["repos", owner, name, "git", "commits", sha]) => Self::GitCommit {
                repo: repo(owner, name),
                sha: decoded(sha),
            },
            (Host::Api, "GET", ["repos", owner, name, "hooks", rest @ ..]) => {
                Self::of_hooks(repo(owner, name), rest)
            }
            (Host::Api, "GET", ["orgs", owner, "hooks", rest @ ..]) => {
                Self::of_hooks(decoded(owner), rest)
            }
            (Host::Api, "GET", ["_", "statuses"]) => Self::AllStatuses,
            (Host::Api, "GET", ["_", "push"]) => Self::PushPayload,
            _ => Self::Unknown,
        }
    }

    fn of_hooks(owner: String, rest: &[&str]) -> Self {
        match rest {
            [] => Self::Hooks { owner },
            [hook, "deliveries"] => Self::HookDeliveries {
                owner,
                hook: decoded(hook),
            },
            [hook, "deliveries", delivery] => Self::HookDelivery {
                owner,
                hook: decoded(hook),
                delivery: decoded(delivery),
            },
            _ => Self::Unknown,
        }
    }

    /// What a fault for this request is planned under.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::PostStatus { .. } => Some(Endpoint::PostStatus),
            Self::ListStatuses { .. } => Some(Endpoint::ListStatuses),
            Self::Commit { .. } => Some(Endpoint::Commit),
            Self::Tarball { .. } => Some(Endpoint::Tarball),
            Self::Compare { .. } => Some(Endpoint::Compare),
            Self::GitCommit { .. } => Some(Endpoint::GitCommit),
            Self::Hooks { .. } => Some(Endpoint::Hooks),
            Self::HookDeliveries { .. } => Some(Endpoint::HookDeliveries),
            Self::HookDelivery { .. } => Some(Endpoint::HookDelivery),
            Self::Codeload => Some(Endpoint::Codeload),
            Self::Repository { .. } | Self::AllStatuses | Self::PushPayload | Self::Unknown => None,
        }
    }

    /// Whether GitHub would want to know who asks.
    pub(super) fn is_private(&self) -> bool {
        !matches!(self, Self::Codeload | Self::AllStatuses | Self::PushPayload)
    }
}

fn repo(owner: &str, name: &str) -> String {
    format!("{}/{}", decoded(owner), decoded(name))
}

fn joined(segments: &[&str]) -> String {
    decoded(&segments.join("/"))
}

fn decoded(text: &str) -> String {
    let decoded: Cow<'_, str> = percent_decode_str(text).decode_utf8_lossy();
    decoded.into_owned()
}
