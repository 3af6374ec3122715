//! What a person reads about a build in a status and in a mail. Nothing here does I/O.

use std::time::Duration;

use ansi_to_html::Esc;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use shared::build::{BuildId, CommitSha, CommitState, GitRef, Revision};

use crate::outcome::Outcome;
use crate::record::Build;
use crate::terminal;

/// GitHub cuts longer descriptions of a status, or refuses them.
const DESCRIPTION_MAX_CHARS: usize = 140;

/// What a mail says of a build that its record does not.
#[derive(Debug, Clone, Copy, Default)]
pub struct MailContext<'a> {
    /// Where people see the repository, such as `https://github.com`.
    pub web_url: Option<&'a str>,
    /// The build's page.
    pub page_url: Option<&'a str>,
    /// Whether the container still exists, for `docker logs`.
    pub container_kept: bool,
}

/// What a mail shows of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogExcerpt {
    /// The last lines, with the colours of a terminal.
    pub tail: String,
    /// Where to read the rest.
    pub rest: LogRest,
}

/// Where the part of a log is that a mail does not show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRest {
    /// There is none: the tail is the whole log.
    Shown,
    /// The whole log is attached.
    Attached,
    /// A part of it that ends where the log ends is attached: even compressed, not all of it fits.
    EndAttached,
}

/// One line of the table that says which build this is.
pub(crate) struct Fact {
    pub(crate) label: &'static str,
    pub(crate) value: String,
    pub(crate) link: Option<String>,
}

/// The state of a commit whose build ended so.
pub fn status_state(outcome: &Outcome) -> CommitState {
    match outcome {
        Outcome::Passed => CommitState::Success,
        Outcome::Failed { .. } | Outcome::TimedOut { .. } | Outcome::OutOfMemory { .. } => {
            CommitState::Failure
        }
        Outcome::Superseded { .. } | Outcome::Error { .. } => CommitState::Error,
    }
}

/// The description of a commit's final status: one line of at most 140 characters.
pub fn status_description(outcome: &Outcome, duration: Duration) -> String {
    cut(&description(outcome, duration), DESCRIPTION_MAX_CHARS)
}

/// The same with the build's id at its end, which is never cut.
pub fn status_description_of(build: BuildId, outcome: &Outcome, duration: Duration) -> String {
    let id = format!(" ({build})");
    let max_chars = DESCRIPTION_MAX_CHARS - id.len();
    cut(&description(outcome, duration), max_chars) + &id
}

/// The subject of the mail about a build.
pub fn mail_subject(build: &Build) -> String {
    let headline = cut(&headline(build), DESCRIPTION_MAX_CHARS);
    let subject = format!("[{}] {} {headline}", build.request.repo, revision(build));
    match (state(build), build.duration()) {
        // The headline of the other outcomes ends in the duration.
        (CommitState::Error, Some(duration)) => format!("{subject} (after {})", time(duration)),
        _ => subject,
    }
}

/// The text of the mail. It ends with the build's id, as every mail of compose-ci always has.
pub fn mail_text(build: &Build, context: &MailContext<'_>, log: &LogExcerpt) -> String {
    let mut text = format!("{}\n\n", headline(build));
    for Fact { label, value, .. } in mail_facts(build, context) {
        text.push_str(&format!("{label:<12}{value}\n"));
    }
    if let Some(problem) = status_problem(build) {
        text.push_str(&format!("\n{problem}\n"));
    }
    text.push_str(&format!("\n{}\n", log_heading(context, log)));
    if !log.tail.is_empty() {
        text.push_str(&format!("\n{}\n", terminal::plain(&log.tail).trim_end()));
    }
    text.push_str(&format!(
        "\n-- \n{}\n",
        closing_lines(build, context).join("\n")
    ));
    text
}

/// The HTML of the mail: styles are inline and nothing is loaded from elsewhere.
pub fn mail_html(build: &Build, context: &MailContext<'_>, log: &LogExcerpt) -> String {
    let title = Esc(headline(build));
    let colour = colour(state(build));
    let facts: String = mail_facts(build, context).iter().map(mail_row).collect();
    let problem = status_problem(build).map_or_else(String::new, |problem| {
        let problem = Esc(problem);
        format!("<p style=\"margin:0 0 16px;color:#9a6700\">{problem}</p>\n")
    });
    let heading = Esc(log_heading(context, log));
    let tail = mail_log(&log.tail);
    let closing = Esc(closing_lines(build, context).join("\n"))
        .to_string()
        .replace('\n', "<br>\n");
    format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title></head>\n\
         <body style=\"margin:0;padding:20px;background:#ffffff;color:#1f2328;\
         font:15px/1.5 -apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif\">\n\
         <h1 style=\"margin:0 0 16px;padding:10px 14px;border-left:5px solid {colour};\
         background:#f6f8fa;color:{colour};font-size:18px;line-height:1.4\">{title}</h1>\n\
         <table role=\"presentation\" style=\"margin:0 0 16px;border-collapse:collapse\">\n\
         {facts}</table>\n\
         {problem}\
         <p style=\"margin:0 0 8px\">{heading}</p>\n\
         {tail}\
         <p style=\"margin:16px 0 0;color:#57606a;font-size:13px\">{closing}</p>\n\
         </body>\n</html>\n"
    )
}

/// The outcome without its details.
pub(crate) fn outcome_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed { .. } => "failed",
        Outcome::TimedOut { .. } => "timed out",
        Outcome::OutOfMemory { .. } => "out of memory",
        Outcome::Superseded { .. } => "superseded",
        Outcome::Error { .. } => "error",
    }
}

/// The state of the build's commit.
pub(crate) fn state(build: &Build) -> CommitState {
    let finished = build.finished.as_ref();
    finished.map_or(CommitState::Pending, |finished| {
        status_state(&finished.outcome)
    })
}

/// How the build ended, or that it has not: one line of any length.
pub(crate) fn headline(build: &Build) -> String {
    match (&build.finished, build.duration()) {
        (Some(finished), Some(duration)) => description(&finished.outcome, duration),
        _ if build.taken_over => "taken over by another worker".to_owned(),
        _ => "running".to_owned(),
    }
}

/// The branch or tag and the short commit, as far as they are known.
pub(crate) fn revision(build: &Build) -> String {
    let short = build.commit.as_ref().map(CommitSha::short);
    let repeats = |name: &str| short.is_some_and(|short| short.starts_with(name));
    let name = build.request.ref_name().filter(|name| !repeats(name));
    let words: Vec<&str> = name.into_iter().chain(short).collect();
    words.join(" ")
}

/// Which build this is.
pub(crate) fn facts(build: &Build, web_url: Option<&str>) -> Vec<Fact> {
    let repo = &build.request.repo;
    let link = |path: String| web_url.map(|web_url| format!("{web_url}/{repo}{path}"));
    let mut facts = vec![Fact {
        label: "Repository",
        value: repo.to_string(),
        link: link(String::new()),
    }];
    if let Some(name) = build.request.ref_name() {
        facts.push(Fact {
            label: ref_label(build),
            value: name.to_owned(),
            link: link(format!("/tree/{}", utf8_percent_encode(name, PATH))),
        });
    }
    if let Some(commit) = &build.commit {
        facts.push(Fact {
            label: "Commit",
            value: commit.to_string(),
            link: link(format!("/commit/{commit}")),
        });
    }
    facts.push(Fact {
        label: "Started",
        value: httpdate::fmt_http_date(build.started_at),
        link: None,
    });
    facts
}

/// Everything in a path but what RFC 3986 calls unreserved, and the slashes of a branch's name.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

fn ref_label(build: &Build) -> &'static str {
    match (&build.request.git_ref, &build.request.revision) {
        (Some(GitRef::Tag(_)), _) => "Tag",
        (Some(GitRef::Branch(_)), _) | (None, Revision::Commit(_)) => "Branch",
        // A manual trigger may name a branch, a tag or a short commit id.
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
        Outcome::Superseded { by } => format!("error: {word} by {}", by.short()),
        Outcome::Error { reason } => format!("{word}: {}", one_line(reason)),
    }
}

fn colour(state: CommitState) -> &'static str {
    match state {
        CommitState::Pending => "#57606a",
        CommitState::Success => "#1a7f37",
        CommitState::Failure => "#cf222e",
        CommitState::Error => "#9a6700",
    }
}

fn mail_facts(build: &Build, context: &MailContext<'_>) -> Vec<Fact> {
    let mut facts = facts(build, context.web_url);
    facts.extend(context.page_url.map(|url| Fact {
        label: "Page",
        value: url.to_owned(),
        link: Some(url.to_owned()),
    }));
    facts
}

fn mail_row(fact: &Fact) -> String {
    let value = Esc(&fact.value);
    let value = match &fact.link {
        Some(link) => {
            format!(
                "<a href=\"{}\" style=\"color:#0969da;text-decoration:none\">{value}</a>",
                Esc(link)
            )
        }
        None => value.to_string(),
    };
    format!(
        "<tr><td style=\"padding:2px 16px 2px 0;color:#57606a;vertical-align:top\">{}</td>\
         <td style=\"padding:2px 0;word-break:break-word\">{value}</td></tr>\n",
        fact.label
    )
}

fn mail_log(tail: &str) -> String {
    if tail.is_empty() {
        return String::new();
    }
    format!(
        "<pre style=\"margin:0;padding:12px 14px;border-radius:6px;background:#161b22;\
         color:#e6edf3;font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;\
         white-space:pre-wrap;word-break:break-word\">{}</pre>\n",
        terminal::html(tail.trim_end())
    )
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

fn closing_lines(build: &Build, context: &MailContext<'_>) -> Vec<String> {
    let id = build.request.id;
    let mut lines = Vec::new();
    if context.container_kept {
        lines.push(format!("The container was kept: docker logs {id}"));
    }
    lines.push(format!("Build {id}"));
    lines
}

/// A duration as a person says it: the two largest units that matter.
fn time(duration: Duration) -> String {
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

/// A size in the largest unit that is not larger than it.
fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(unit) => format!("{}{name}", bytes / unit),
        Some((name, unit)) => format!("{:.1}{name}", bytes as f64 / unit as f64),
        None => format!("{bytes}B"),
    }
}

/// The text without control characters, so that it stays on its line.
pub(crate) fn one_line(text: &str) -> String {
    let printable = text.replace(char::is_control, " ");
    let words: Vec<&str> = printable.split_whitespace().collect();
    words.join(" ")
}

fn cut(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max_chars - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
