//! The page and the mail about a build whose names and words are somebody else's.

use fuzz::fuzz;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use shared::build::GitRef;
use shared::build::samples::{ended, github_site, running};
use shared::build::{Build, BuildError, BuildRequest, Outcome, RefName, Revision};
use shared::mask::Secrets;
use shared::words::{
    LogExcerpt, LogRest, MailContext, mail_subject, mail_text, status_description,
};

use crate::tools::{self, Piece, found, pieces};

const SECRETS: [&str; 3] = ["s3cret/with+signs", "<p&ss'\"w>rd", "CANARY-value"];

/// The words of a build that come from outside.
#[derive(Debug, Clone)]
struct Words {
    git_ref: Option<String>,
    is_tag: bool,
    revision: Option<String>,
    problem: Option<String>,
    outcome: Option<Outcome>,
}

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => "[<>&\"'/ -~]{0,8}",
        2 => "\\PC{0,4}",
        2 => any::<String>(),
        1 => Just("\u{202e}\u{9b}31m\u{2066}".to_owned()),
        1 => Just("\r\nBcc: x@example.org\r\n\r\n<script>".to_owned()),
        2 => Just(SECRETS[0].to_owned()),
        2 => Just(SECRETS[1].to_owned()),
        1 => Just(SECRETS[2].to_owned()),
    ];
    proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

fn name() -> impl Strategy<Value = String> {
    // Most texts are no names of branches.
    text().prop_map(|text| {
        let is_bad = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
        text.replace(is_bad, "")
            .replace("..", ".")
            .replace("//", "/")
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Passed),
        any::<i64>().prop_map(|exit_code| Outcome::Failed { exit_code }),
        any::<u64>().prop_map(|timeout_s| Outcome::TimedOut { timeout_s }),
        any::<Option<u64>>().prop_map(|limit_bytes| Outcome::OutOfMemory { limit_bytes }),
        text().prop_map(|by| Outcome::Cancelled { by }),
        text().prop_map(|words| Outcome::Error(BuildError::Reason(words))),
        text().prop_map(|name| Outcome::Error(BuildError::NameTaken { name })),
    ]
}

fn words() -> impl Strategy<Value = Words> {
    let parts = (
        option::of(name()),
        any::<bool>(),
        option::of(name()),
        option::of(text()),
        option::of(outcome()),
    );
    parts.prop_map(|(git_ref, is_tag, revision, problem, outcome)| Words {
        git_ref,
        is_tag,
        revision,
        problem,
        outcome,
    })
}

impl Words {
    fn build(&self) -> Build {
        let build = match &self.outcome {
            Some(outcome) => ended(outcome.clone(), 72),
            None => running(),
        };
        let git_ref = self
            .git_ref
            .as_deref()
            .and_then(|name| name.parse::<RefName>().ok());
        let git_ref = git_ref.map(if self.is_tag {
            GitRef::Tag
        } else {
            GitRef::Branch
        });
        let named = self
            .revision
            .as_deref()
            .and_then(|name| name.parse::<Revision>().ok());
        Build {
            commit: build.commit.clone().filter(|_| named.is_none()),
            request: BuildRequest {
                git_ref,
                revision: named.unwrap_or(build.request.revision),
                ..build.request
            },
            status_problem: self.problem.clone(),
            ..build
        }
    }
}

#[test]
fn builds_are_shown_without_markup_and_secrets_of_others() {
    let values = SECRETS.map(str::to_owned);
    let secrets = Secrets::new(&SECRETS.map(Into::into));
    let site = github_site();
    fuzz("builds", words(), |words| {
        let build = words.build();
        // As a worker masks it before it is recorded.
        let recorded = build
            .outcome()
            .cloned()
            .map(|outcome| outcome.map_words(|words| secrets.mask(words)));
        let build = match recorded {
            Some(outcome) => Build {
                state: shared::build::BuildState::Ended(outcome),
                ..build
            },
            None => build,
        };

        let page = secrets.mask(&(web::page::head(&build, Some(&site)) + web::page::foot()));
        assert_shows_no_secret(&values, &page);

        let context = MailContext {
            site: Some(&site),
            page_url: Some("https://ci.example.org/x"),
            container_kept: true,
        };
        let log = LogExcerpt {
            tail: String::new(),
            rest: LogRest::Shown,
        };
        let mail = secrets.mask(&web::mail::html(&build, &context, &log));
        assert_shows_no_secret(&values, &mail);

        let text = secrets.mask(&mail_text(&build, &context, &log));
        assert_eq!(found(&values, text.as_bytes()), None, "{text:?}");
        let subject = secrets.mask(&mail_subject(&build));
        assert!(!subject.contains(char::is_control), "{subject:?}");
        assert_eq!(found(&values, subject.as_bytes()), None, "{subject:?}");
        if let Some(outcome) = build.outcome() {
            let status = status_description(outcome, build.duration().unwrap_or_default());
            assert!(
                status.chars().count() <= 140 && !status.contains(char::is_control),
                "{status:?}"
            );
        }
    });
}

/// Its tags are the ones of its template, and no text or address of it holds a secret.
fn assert_shows_no_secret(values: &[String], html: &str) {
    let (head, body) = html
        .split_once("<style>")
        .map_or(("", html), |(head, rest)| {
            (
                head,
                rest.split_once("</style>").expect("the style's end").1,
            )
        });
    for part in [head, body] {
        let pieces = pieces(part);
        let text = tools::text(&pieces);
        assert_eq!(found(values, text.as_bytes()), None, "{text:?}");
        for piece in &pieces {
            if let Piece::Tag(tag) = piece {
                assert_is_of_template(values, tag);
            }
        }
    }
}

fn assert_is_of_template(values: &[String], tag: &str) {
    let name = tag.split([' ', '>']).next().unwrap_or_default();
    let known = [
        "!doctype", "html", "head", "meta", "title", "/title", "/head", "body", "h1", "/h1", "dl",
        "dt", "/dt", "dd", "/dd", "/dl", "pre", "/pre", "/body", "/html", "a", "/a", "table",
        "/table", "tr", "/tr", "td", "/td", "p", "/p", "br",
    ];
    assert!(known.contains(&name), "<{tag}>");
    let Some(attributes) = tag.strip_prefix("a ") else {
        assert!(!tag.contains("<") && !tag.contains("onclick"), "<{tag}>");
        return;
    };
    let address = attributes
        .strip_prefix("href=\"")
        .and_then(|rest| rest.split_once('"'));
    let (address, rest) = address.unwrap_or_else(|| panic!("<{tag}>"));
    assert!(
        rest.is_empty() || rest == " style=\"color:#0969da;text-decoration:none\"",
        "<{tag}>"
    );
    // The raw log lies beside the page.
    let is_log = address.ends_with("/log") || address.ends_with("/log?download=1");
    let is_beside = is_log && !address.contains(':');
    assert!(is_beside || address.starts_with("https://"), "<{tag}>");
    let decoded = percent_decoded(&tools::unescaped(address));
    assert_eq!(found(values, &decoded), None, "<{tag}>");
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&digits, 16).expect("two digits")
            }
            byte => byte,
        });
    }
    decoded
}
