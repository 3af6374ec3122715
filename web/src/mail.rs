//! The HTML of the mail about a build: styles are inline and nothing is loaded from elsewhere.

use ansi_to_html::Esc;
use shared::build::{Build, CommitState};
use shared::words::{Fact, LogExcerpt, MailContext, MailParts};

use crate::terminal;

/// Returns the HTML of the mail. Its words are those of the mail's text.
pub fn html(build: &Build, context: &MailContext<'_>, excerpt: &LogExcerpt) -> String {
    let parts = MailParts::of(build, context, excerpt);
    let title = Esc(parts.headline);
    let colour = colour(build.commit_state());
    let facts: String = parts.facts.iter().map(row).collect();
    let problem = parts.problem.map_or_else(String::new, |problem| {
        let problem = Esc(problem);
        format!("<p style=\"margin:0 0 16px;color:#9a6700\">{problem}</p>\n")
    });
    let heading = Esc(parts.log_heading);
    let tail = log(&excerpt.tail);
    let closing = Esc(parts.closing.join("\n"))
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

fn colour(state: CommitState) -> &'static str {
    match state {
        CommitState::Pending => "#57606a",
        CommitState::Success => "#1a7f37",
        CommitState::Failure => "#cf222e",
        CommitState::Error => "#9a6700",
    }
}

fn row(fact: &Fact) -> String {
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

fn log(tail: &str) -> String {
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

#[cfg(test)]
mod tests {
    use shared::build::samples::{ended, github_site};
    use shared::build::{BuildError, Outcome};
    use shared::words::LogRest;

    use super::*;

    fn log(tail: &str, rest: LogRest) -> LogExcerpt {
        LogExcerpt {
            tail: tail.to_owned(),
            rest,
        }
    }

    #[test]
    fn the_html_of_a_failed_builds_mail() {
        let mut build = ended(Outcome::Failed { exit_code: 3 }, 12);
        build.status_problem = Some("GitHub answered 403\nto the commit status".to_owned());
        let context = MailContext {
            site: Some(&github_site()),
            page_url: Some("https://ci.example.org/builds/5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d"),
            container_kept: true,
        };
        let log = log("\x1b[32mok\x1b[0m 1\nnot ok 2\n\n", LogRest::Attached);
        insta::assert_snapshot!(html(&build, &context, &log), @r#"
        <!doctype html>
        <html lang="en">
        <head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>failed with exit code 3 after 12s</title></head>
        <body style="margin:0;padding:20px;background:#ffffff;color:#1f2328;font:15px/1.5 -apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif">
        <h1 style="margin:0 0 16px;padding:10px 14px;border-left:5px solid #cf222e;background:#f6f8fa;color:#cf222e;font-size:18px;line-height:1.4">failed with exit code 3 after 12s</h1>
        <table role="presentation" style="margin:0 0 16px;border-collapse:collapse">
        <tr><td style="padding:2px 16px 2px 0;color:#57606a;vertical-align:top">Repository</td><td style="padding:2px 0;word-break:break-word"><a href="https://github.com/octo/hello" style="color:#0969da;text-decoration:none">octo/hello</a></td></tr>
        <tr><td style="padding:2px 16px 2px 0;color:#57606a;vertical-align:top">Branch</td><td style="padding:2px 0;word-break:break-word"><a href="https://github.com/octo/hello/tree/feature/%C3%BCmlaut" style="color:#0969da;text-decoration:none">feature/ümlaut</a></td></tr>
        <tr><td style="padding:2px 16px 2px 0;color:#57606a;vertical-align:top">Commit</td><td style="padding:2px 0;word-break:break-word"><a href="https://github.com/octo/hello/commit/0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c" style="color:#0969da;text-decoration:none">0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c</a></td></tr>
        <tr><td style="padding:2px 16px 2px 0;color:#57606a;vertical-align:top">Started</td><td style="padding:2px 0;word-break:break-word">Sat, 22 Nov 2025 18:00:00 GMT</td></tr>
        <tr><td style="padding:2px 16px 2px 0;color:#57606a;vertical-align:top">Page</td><td style="padding:2px 0;word-break:break-word"><a href="https://ci.example.org/builds/5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d" style="color:#0969da;text-decoration:none">https://ci.example.org/builds/5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d</a></td></tr>
        </table>
        <p style="margin:0 0 16px;color:#9a6700">The status of the commit could not be posted: GitHub answered 403 to the commit status</p>
        <p style="margin:0 0 8px">The end of the log; the whole log is attached:</p>
        <pre style="margin:0;padding:12px 14px;border-radius:6px;background:#161b22;color:#e6edf3;font:12px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;word-break:break-word"><span style='color:#3fb950'>ok</span> 1
        not ok 2</pre>
        <p style="margin:16px 0 0;color:#57606a;font-size:13px">The container was kept: docker logs 5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d<br>
        Build 5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d</p>
        </body>
        </html>
        "#);
    }

    #[test]
    fn nothing_in_the_html_is_somebody_elses_markup() {
        let mut build = ended(BuildError::Reason("<img src=x>".into()), 1);
        build.request.git_ref = Some("refs/heads/\"><script>".parse().expect("git allows it"));
        build.status_problem = Some("<b>".to_owned());
        let context = MailContext {
            site: Some(&github_site()),
            page_url: Some("https://ci.example.org/?\"onclick=\""),
            container_kept: false,
        };
        let log = log("<script>alert('x')</script>", LogRest::Shown);
        let html = html(&build, &context, &log);
        for markup in ["<script", "<img", "<b>", "\"onclick"] {
            assert!(!html.contains(markup), "{markup} in {html}");
        }
    }

    #[test]
    fn the_html_loads_nothing_from_elsewhere() {
        let context = MailContext {
            site: Some(&github_site()),
            ..MailContext::default()
        };
        let build = ended(Outcome::Passed, 1);
        let html = html(&build, &context, &log("\x1b[32mok", LogRest::Shown));
        for loads in [
            "src=", "<link", "url(", "@import", "<script", "class=", "var(",
        ] {
            assert!(!html.contains(loads), "{loads} in {html}");
        }
        assert!(
            html.contains("<span style='color:#3fb950'>ok</span>"),
            "{html}"
        );
    }
}
