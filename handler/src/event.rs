//! The event that a request tells of, in words of no particular forge. Nothing in it is checked yet.

use std::borrow::Cow;

use shared::build::InvalidName;

/// The event that a request tells of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A branch or tag was made, moved or deleted.
    Push(Push<'a>),
    /// A person asks for a build.
    Manual(Manual<'a>),
    /// The forge tries the webhook.
    Ping,
    /// A branch or tag was deleted. Push events tell of the same deletion.
    Delete,
    /// Something else that a webhook can be subscribed to.
    Other(&'a str),
}

/// A push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Push<'a> {
    /// The whole name of the repository.
    pub(crate) repo: Cow<'a, str>,
    /// `refs/heads/…` or `refs/tags/…`.
    pub(crate) git_ref: Cow<'a, str>,
    /// What the ref names now: a commit, or the object that is an annotated tag; zeros when it was
    /// deleted.
    pub(crate) after: Cow<'a, str>,
    pub(crate) deleted: bool,
    pub(crate) head_commit: Option<HeadCommit<'a>>,
}

/// The commit that a push leaves the ref at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HeadCommit<'a> {
    pub(crate) id: Cow<'a, str>,
    pub(crate) message: Cow<'a, str>,
}

/// A manual trigger.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manual<'a> {
    /// A commit, branch, tag or short commit id.
    pub(crate) after: Cow<'a, str>,
    /// The whole name of the repository, if the sender names one.
    pub(crate) repo: Option<Cow<'a, str>>,
    /// `refs/heads/…` or `refs/tags/…`, where the sender knows it.
    pub(crate) git_ref: Option<String>,
}

/// A payload that says nothing usable, in one line for who sent it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the payload cannot be used: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the form has no field \"payload\"")]
    NoPayload,
    #[error(transparent)]
    Name(#[from] InvalidName),
}
