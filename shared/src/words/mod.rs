//! The words in which people read about a build: in a status, in a mail and on its page. Nothing here
//! does I/O, and nothing is HTML.

pub mod terminal;

use std::time::Duration;

use crate::build::{Build, BuildState, CommitSha, CommitState, GitRef, Outcome, Revision, Site};

/// GitHub cuts longer descriptions of a status, or refuses them.
const DESCRIPTION_MAX_CHARS: usize = 140;

/// One line of the table that identifies a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// Its name.
    pub label: &'static str,
    /// The text, which may be somebody else's.
    pub value: String,
    /// The address of more.
    pub link: Option<String>,
}

/// Facts for a mail that the build itself does not hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct MailContext<'a> {
    /// Where people see the repository.
    pub site: Option<&'a Site>,
    /// The build's page.
    pub page_url: Option<&'a str>,
    /// Whether the container still exists, for `docker logs`.
    pub container_kept: bool,
}

/// The part of the log that a mail shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogExcerpt {
    /// The last lines, with the colours of a terminal.
    pub tail: String,
    /// Where to read the rest.
    pub rest: LogRest,
}

/// The place of the part of a log that a mail does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRest {
    /// There is none: the tail is the whole log.
    Shown,
    /// The whole log is attached.
    Attached,
    /// A part of it that ends where the log ends is attached: even compressed, not all of it fits.
    EndAttached,
}

/// The words of a mail in their order, for its text and its HTML alike. The log's tail stands after
/// its heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailParts {
    /// The build's headline.
    pub headline: String,
    /// The table that identifies the build.
    pub facts: Vec<Fact>,
    /// Why the status could not be posted, if it could not.
    pub problem: Option<String>,
    /// The line above the log.
    pub log_heading: &'static str,
    /// The last lines. The very last names the build, as every mail of compose-ci always has.
    pub closing: Vec<String>,
}

/// Returns the line that says how the build ended, or where it stands. It may be of any length.
pub fn headline(build: &Build) -> String {
    match &build.state {
        BuildState::Ended(outcome) => description(outcome, build.duration().unwrap_or_default()),
        _ if build.is_elsewhere => "taken over by another worker".to_owned(),
        BuildState::Queued => "queued".to_owned(),
        BuildState::Claimed { .. } | BuildState::Started { .. } => "running".to_owned(),
    }
}

/// Returns the outcome without its details.
pub fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed { .. } => "failed",
        Outcome::TimedOut { .. } => "timed out",
        Outcome::OutOfMemory { .. } => "out of memory",
        Outcome::Cancelled { .. } => "cancelled",
        Outcome::Superseded { .. } => "superseded",
        Outcome::Error(_) => "error",
    }
}

/// Returns the description of a commit's final status: one line of at most 140 characters.
pub fn status_description(outcome: &Outcome, duration: Duration) -> String {
    cut(&description(outcome, duration), DESCRIPTION_MAX_CHARS)
}

/// Returns the branch or tag and the short commit, as far as they are known.
pub fn revision(build: &Build) -> String {
    let short = build.commit.as_ref().map(CommitSha::short);
    let repeats = |name: &str| short.is_some_and(|short| short.starts_with(name));
    let name = build.request.ref_name().filter(|name| !repeats(name));
    let words: Vec<&str> = name.into_iter().chain(short).collect();
    words.join(" ")
}

/// Returns the table that identifies a build. `site` is where people see the repository.
pub fn facts(build: &Build, site: Option<&Site>) -> Vec<Fact> {
    let repo = &build.request.repo;
    let mut facts = vec![Fact {
        label: "Repository",
        value: repo.to_string(),
        link: site.map(|site| site.repository(repo)),
    }];
    if let Some(name) = build.request.ref_name() {
        facts.push(Fact {
            label: ref_label(build),
            value: name.to_owned(),
            link: site.map(|site| site.git_ref(repo, name)),
        });
    }
    if let Some(commit) = &build.commit {
        facts.push(Fact {
            label: "Commit",
            value: commit.to_string(),
            link: site.map(|site| site.commit(repo, commit)),
        });
    }
    facts.push(Fact {
        label: "Started",
        value: httpdate::fmt_http_date(build.claimed_at),
        link: None,
    });
    facts
}

/// Returns the subject of the mail about a build.
pub fn mail_subject(build: &Build) -> String {
    let headline = cut(&headline(build), DESCRIPTION_MAX_CHARS);
    let subject = format!("[{}] {} {headline}", build.request.repo, revision(build));
    match (build.commit_state(), build.duration()) {
        // The headline of the other outcomes ends in the duration.
        (CommitState::Error, Some(duration)) => format!("{subject} (after {})", time(duration)),
        _ => subject,
    }
}

/// Returns the text of the mail about a build.
pub fn mail_text(build: &Build, context: &MailContext<'_>, log: &LogExcerpt) -> String {
    let parts = MailParts::of(build, context, log);
    let mut text = format!("{}\n\n", parts.headline);
    for Fact { label, value, .. } in parts.facts {
        text.push_str(&format!("{label:<12}{value}\n"));
    }
    if let Some(problem) = parts.problem {
        text.push_str(&format!("\n{problem}\n"));
    }
    text.push_str(&format!("\n{}\n", parts.log_heading));
    if !log.tail.is_empty() {
        text.push_str(&format!("\n{}\n", terminal::plain(&log.tail).trim_end()));
    }
    text.push_str(&format!("\n-- \n{}\n", parts.closing.join("\n")));
    text
}

impl MailParts {
    /// Puts together the words of the mail about a build.
    pub fn of(build: &Build, context: &MailContext<'_>, log: &LogExcerpt) -> Self {
        let page = context.page_url.map(|url| Fact {
            label: "Page",
            value: url.to_owned(),
            link: Some(url.to_owned()),
        });
        let id = build.request.id;
        let kept = context
            .container_kept
            .then(|| format!("The container was kept: docker logs {id}"));
        Self {
            headline: headline(build),
            facts: facts(build, context.site).into_iter().chain(page).collect(),
            problem: status_problem(build),
            log_heading: log_heading(context, log),
            closing: kept.into_iter().chain([format!("Build {id}")]).collect(),
        }
    }
}

/// Returns a duration as a person says it: the two largest units that matter.
pub fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes, seconds) {
        (0, 0, 0) => "<1s".to_owned(),
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m {s}s"),
        (h, 0, _) => format!("{h}h"),
        (h, m, _) => format!("{h}h {m}m"),
    }
}

/// Returns a size in the largest unit that is not larger than it.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{:.1}{name}", bytes as f64 / unit as f64),
        None => format!("{bytes}B"),
    }
}

/// Returns the text without control characters, so that it stays on its line.
pub fn one_line(text: &str) -> String {
    let printable = text.replace(char::is_control, " ");
    let words: Vec<&str> = printable.split_whitespace().collect();
    words.join(" ")
}

/// Returns the text, or its beginning and an ellipsis where it has more characters than `max_chars`.
pub fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max_chars - 1).chain(['…']).collect(),
    }
}

fn ref_label(build: &Build) -> &'static str {
    match (&build.request.git_ref, &build.request.revision) {
        (Some(GitRef::Tag(_)), _) => "Tag",
        (Some(GitRef::Branch(_)), _) | (None, Revision::Commit(_)) => "Branch",
        // A manual build may name a branch, a tag or a short commit id.
        (None, Revision::Name(_)) => "Revision",
    }
}

fn description(outcome: &Outcome, duration: Duration) -> String {
    let word = outcome_word(outcome);
    let after = time(duration);
    match outcome {
        Outcome::Passed => format!("{word} in {after}"),
        Outcome::Failed { exit_code } => format!("{word} with exit code {exit_code} after {after}"),
        Outcome::TimedOut { timeout_s } => {
            format!("{word} after {}", time(Duration::from_secs(*timeout_s)))
        }
        Outcome::OutOfMemory {
            limit_bytes: Some(limit),
        } => {
            format!("{word} (limit {}) after {after}", size(*limit))
        }
        Outcome::OutOfMemory { limit_bytes: None } => {
            format!("{word} (the host had none left) after {after}")
        }
        Outcome::Cancelled { by } => format!("error: {word} by {}", one_line(by)),
        Outcome::Superseded { by } => format!("error: {word} by {}", by.short()),
        Outcome::Error(error) => format!("{word}: {}", one_line(&error.to_string())),
    }
}

fn status_problem(build: &Build) -> Option<String> {
    let problem = one_line(build.status_problem.as_deref()?);
    Some(format!(
        "The status of the commit could not be posted: {problem}"
    ))
}

fn log_heading(context: &MailContext<'_>, log: &LogExcerpt) -> &'static str {
    match log.rest {
        LogRest::Shown if log.tail.is_empty() => "The log is empty.",
        LogRest::Shown => "The log:",
        LogRest::Attached => "The end of the log; the whole log is attached:",
        LogRest::EndAttached if context.page_url.is_some() => {
            "The end of the log; as much as fits is attached, the page shows all of it:"
        }
        LogRest::EndAttached => "The end of the log; as much as fits is attached:",
    }
}

#[cfg(test)]
mod tests;
