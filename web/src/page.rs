//! The page of a build: its outcome and its log, for any browser, without a script.
//!
//! The page is sent as it is made: [`head`], the log in pieces through a [`LogEscaper`], [`foot`].

use std::sync::LazyLock;

use ansi_to_html::Esc;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest, Sha256};
use shared::build::{Build, CommitState, Site};
use shared::words::terminal::{PlainText, visible};
use shared::words::{self, Fact};

const STYLE: &str = include_str!("style.css");

/// The headers of the page. The policy allows the one style sheet, by its hash, and nothing else.
pub(crate) static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    let fixed = |(name, value): (HeaderName, _)| (name, HeaderValue::from_static(value));
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // The address of the page is all that one needs to read it.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let policy = (header::CONTENT_SECURITY_POLICY, content_policy());
    headers.map(fixed).into_iter().chain([policy]).collect()
});

/// Makes pieces of a log fit to stand in the page, whatever bytes they are.
#[derive(Debug, Default)]
pub struct LogEscaper(PlainText);

impl LogEscaper {
    /// Returns the next piece without escape sequences, and with HTML's special characters escaped.
    pub fn push(&mut self, piece: &[u8]) -> String {
        Esc(self.0.push(piece)).to_string()
    }

    /// Returns the rest of the last piece.
    pub fn finish(self) -> String {
        self.0.finish().to_owned()
    }
}

/// Returns the page up to the log. While the build runs here, the page loads itself again.
///
/// `site` is where people see the repository.
pub fn head(build: &Build, site: Option<&Site>) -> String {
    let state = build.commit_state();
    let refresh = match state {
        CommitState::Pending if !build.is_elsewhere => {
            "<meta http-equiv=\"refresh\" content=\"5\">\n"
        }
        _ => "",
    };
    let title = format!(
        "{} · {} {}",
        word(build),
        build.request.repo,
        words::revision(build)
    );
    let facts: String = words::facts(build, site).iter().map(row).collect();
    let head = format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n\
         {refresh}\
         <title>{title}</title>\n\
         <style>{STYLE}</style>\n\
         </head>\n\
         <body>\n\
         <h1 class=\"{class}\">{headline}</h1>\n\
         <p><a href=\"{id}/log\">Raw log</a> · <a href=\"{id}/log?download=1\">Download</a></p>\n\
         <dl>\n{facts}<dt>Build</dt><dd>{id}</dd>\n</dl>\n\
         <pre>\n{notice}",
        title = Esc(title.trim_end()),
        class = class(state),
        headline = Esc(words::headline(build)),
        id = build.request.id,
        notice = log_notice(build),
    );
    visible(&head)
}

/// Returns the page after the log.
pub fn foot() -> &'static str {
    "</pre>\n</body>\n</html>\n"
}

fn content_policy() -> HeaderValue {
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("Base64 is ASCII")
}

/// Returns one or two words for a narrow tab: the outcome, or where the build stands.
fn word(build: &Build) -> String {
    match build.outcome() {
        Some(outcome) => words::outcome_word(outcome).to_owned(),
        None if build.is_elsewhere => "taken over".to_owned(),
        None => words::headline(build),
    }
}

/// Returns the line that stands in place of a log that was removed.
fn log_notice(build: &Build) -> &'static str {
    match build.log_removed && build.started_at.is_some() {
        true => "[compose-ci: the log was removed, for its age or to make room]\n",
        false => "",
    }
}

fn class(state: CommitState) -> &'static str {
    match state {
        CommitState::Pending => "pending",
        CommitState::Success => "success",
        CommitState::Failure => "failure",
        CommitState::Error => "error",
    }
}

fn row(fact: &Fact) -> String {
    let value = Esc(&fact.value);
    let value = match &fact.link {
        Some(link) => format!("<a href=\"{}\">{value}</a>", Esc(link)),
        None => value.to_string(),
    };
    format!("<dt>{}</dt><dd>{value}</dd>\n", fact.label)
}

#[cfg(test)]
mod tests {
    use shared::build::samples::{ended, github_site, running};
    use shared::build::{BuildError, Outcome};

    use super::*;

    /// The page without its style sheet.
    fn page(build: &Build, site: Option<&Site>, log: &[u8]) -> String {
        let mut escaper = LogEscaper::default();
        let log = escaper.push(log) + &escaper.finish();
        (head(build, site) + &log + foot()).replace(STYLE, "")
    }

    #[test]
    fn the_policy_allows_the_pages_style_sheet_alone() {
        let page = head(&running(), None);
        let (_, from_style) = page.split_once("<style>").expect("a style sheet");
        let (style, _) = from_style.split_once("</style>").expect("its end");
        let hash = BASE64_STANDARD.encode(Sha256::digest(style));
        assert_eq!(
            HEADERS[header::CONTENT_SECURITY_POLICY],
            format!(
                "default-src 'none'; style-src 'sha256-{hash}'; \
                 base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
        );
    }

    #[test]
    fn the_page_of_a_finished_build() {
        let build = ended(Outcome::Failed { exit_code: 3 }, 72);
        let log = b"\x1b[31m1 < 2\x1b[0m\n<script>alert('x')</script>\n";
        insta::assert_snapshot!(page(&build, Some(&github_site()), log), @r#"
        <!doctype html>
        <html lang="en">
        <head>
        <meta charset="utf-8">
        <meta name="viewport" content="width=device-width, initial-scale=1">
        <meta name="robots" content="noindex">
        <title>failed · octo/hello feature/ümlaut 0d1a26e</title>
        <style></style>
        </head>
        <body>
        <h1 class="failure">failed with exit code 3 after 1m 12s</h1>
        <p><a href="5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d/log">Raw log</a> · <a href="5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d/log?download=1">Download</a></p>
        <dl>
        <dt>Repository</dt><dd><a href="https://github.com/octo/hello">octo/hello</a></dd>
        <dt>Branch</dt><dd><a href="https://github.com/octo/hello/tree/feature/%C3%BCmlaut">feature/ümlaut</a></dd>
        <dt>Commit</dt><dd><a href="https://github.com/octo/hello/commit/0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c">0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c</a></dd>
        <dt>Started</dt><dd>Sat, 22 Nov 2025 18:00:00 GMT</dd>
        <dt>Build</dt><dd>5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d</dd>
        </dl>
        <pre>
        1 &lt; 2
        &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;
        </pre>
        </body>
        </html>
        "#);
    }

    #[test]
    fn the_page_of_a_running_build_loads_itself_again() {
        let refresh = "<meta http-equiv=\"refresh\" content=\"5\">";
        let running = page(&running(), None, b"");
        assert!(running.contains(refresh), "{running}");
        assert!(running.contains("<title>running · octo/hello feature/ümlaut 0d1a26e</title>"));
        assert!(running.contains("<h1 class=\"pending\">running</h1>"));
        assert!(!page(&ended(Outcome::Passed, 1), None, b"").contains(refresh));
    }

    #[test]
    fn the_page_of_a_build_taken_over_rests() {
        let mut build = running();
        build.is_elsewhere = true;
        let page = page(&build, None, b"");
        assert!(page.contains("<title>taken over · octo/hello"), "{page}");
        assert!(page.contains("<h1 class=\"pending\">taken over by another worker</h1>"));
        assert!(!page.contains("http-equiv=\"refresh\""));
    }

    #[test]
    fn the_page_tells_of_a_log_that_was_removed() {
        let mut build = ended(Outcome::Passed, 1);
        let notice =
            "<pre>\n[compose-ci: the log was removed, for its age or to make room]\n</pre>";
        assert!(!page(&build, None, b"").contains(notice));
        build.log_removed = true;
        assert!(page(&build, None, b"").contains(notice));
        build.started_at = None;
        assert!(!page(&build, None, b"").contains(notice));
    }

    #[test]
    fn nothing_on_the_page_is_somebody_elses_markup() {
        let mut build = ended(BuildError::Reason("<img src=x>".into()), 1);
        build.request.git_ref = Some("refs/heads/\"><script>".parse().expect("git allows it"));
        let url = "https://github.com/\"onclick=\"".to_owned();
        let site = Site {
            url,
            ..github_site()
        };
        let page = page(&build, Some(&site), b"</pre><script>");
        for markup in ["<script", "<img", "\"onclick", "\"><s", "</pre><"] {
            let found = page.find(markup).map(|at| &page[at..]);
            assert!(found.is_none(), "{markup} in {page}");
        }
    }

    #[test]
    fn a_log_in_pieces_is_escaped_as_a_whole() {
        let mut escaper = LogEscaper::default();
        let pieces: [&[u8]; 5] = [
            b"a\xe2\x9c",
            b"\x93<\x1b[3",
            b"1mred\x1b",
            b"[0m\xff&",
            b"\xe2",
        ];
        let escaped: String = pieces.iter().map(|piece| escaper.push(piece)).collect();
        assert_eq!(
            escaped + &escaper.finish(),
            "a✓&lt;red\u{FFFD}&amp;\u{FFFD}"
        );
    }
}
