//! What the documents say about the program is so, as far as a test can tell.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use compose_ci_shared::config::variables::{GROUPS, Variable};

const DOCUMENTS: [&str; 8] = [
    "README.md",
    "CHANGELOG.md",
    "docs/ARCHITECTURE.md",
    "docs/OPERATIONS.md",
    "docs/SECURITY.md",
    "infra/docker-machine.md",
    "infra/systemd/README.md",
    "tests/bench/README.md",
];

#[test]
fn the_readme_has_the_table_of_all_variables() {
    let table = table();
    assert!(
        read(&root().join("README.md")).contains(&table),
        "README.md must contain this table:\n\n{table}"
    );
}

#[test]
fn links_between_documents_and_to_sources_lead_somewhere() {
    for document in DOCUMENTS {
        for Link {
            text,
            target,
            section,
        } in links(&root().join(document))
        {
            assert!(target.exists(), "{document}: {text}: no {target:?}");
            if let Some(section) = section {
                let found = sections(&target).contains(&section);
                assert!(found, "{document}: {text}: no {section} in {target:?}");
            }
        }
    }
}

#[test]
fn what_is_named_in_a_link_to_a_source_stands_in_it() {
    let mut names = 0;
    for document in DOCUMENTS {
        for Link { text, target, .. } in links(&root().join(document)) {
            let Some(path) = text
                .strip_prefix('`')
                .and_then(|rest| rest.strip_suffix('`'))
            else {
                continue;
            };
            if target.extension().is_none_or(|kind| kind != "rs") || path.contains(['.', '/']) {
                continue;
            }
            let source = read(&target);
            for name in path.split("::") {
                assert!(
                    defines(&source, name),
                    "{document}: no {name} in {target:?}"
                );
                names += 1;
            }
        }
    }
    assert!(names > 20, "the documents name only {names} things");
}

struct Link {
    text: String,
    target: PathBuf,
    section: Option<String>,
}

/// The links of a Markdown document that stay in the repository.
fn links(document: &Path) -> Vec<Link> {
    let text = read(document);
    let folder = document.parent().expect("a document lies in a folder");
    let link = |(at, _): (usize, &str)| {
        let (_, text_of_link) = text[..at].rsplit_once('[')?;
        let (target, _) = text[at + 2..].split_once(')')?;
        let (path, section) = match target.split_once('#') {
            Some((path, section)) => (path, Some(section.to_owned())),
            None => (target, None),
        };
        let elsewhere = target.contains("://");
        (!elsewhere).then(|| Link {
            text: text_of_link.to_owned(),
            target: match path {
                "" => document.to_owned(),
                path => folder.join(path),
            },
            section,
        })
    };
    text.match_indices("](").filter_map(link).collect()
}

/// The sections of a Markdown document, by the names that GitHub gives to links.
fn sections(document: &Path) -> Vec<String> {
    let text = read(document);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

/// Whether a source has a function, type or constant of this name, or implements it.
fn defines(source: &str, name: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "const", "impl"];
    kinds.iter().any(|kind| {
        let start = format!("{kind} {name}");
        source.match_indices(&start).any(|(at, _)| {
            let next = source[at + start.len()..].chars().next();
            next.is_none_or(|c| !c.is_alphanumeric() && c != '_')
        })
    })
}

/// As `compose-ci --help` lists them.
fn table() -> String {
    let mut table = String::from("| variable | default | meaning |\n| --- | --- | --- |\n");
    for group in GROUPS {
        let _ = writeln!(table, "| **{}** | | |", group.title);
        table.extend(group.variables.iter().map(row));
    }
    table
}

fn row(variable: &Variable) -> String {
    let Variable {
        name,
        default,
        meaning,
        secret,
    } = variable;
    let mark = if *secret { " \\*" } else { "" };
    // A lone asterisk would begin an emphasis.
    let [default, meaning] = [default, meaning].map(|text| text.replace('*', "\\*"));
    format!("| `{name}`{mark} | {default} | {meaning} |\n")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
