//! The order of reading, held by a test: `mod` lines stand in it, a module imports only modules
//! that are listed above it, and the orchestrators alone call the steps.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// One crate and what its parts may know of each other.
struct Crate {
    name: &'static str,
    /// The modules that put the steps together.
    orchestrators: &'static [&'static str],
    /// What nobody else calls. Their types and constants go from step to step.
    steps: &'static [&'static str],
}

const CRATES: [Crate; 5] = [
    Crate {
        name: "shared",
        orchestrators: &[],
        steps: &[],
    },
    Crate {
        name: "handler",
        orchestrators: &["webhook", "reconcile"],
        steps: &["body", "verify", "event", "forge", "decide"],
    },
    Crate {
        name: "runner",
        orchestrators: &["run"],
        steps: &["create", "source", "follow"],
    },
    Crate {
        name: "worker",
        orchestrators: &["job"],
        steps: &["surroundings", "housekeeping", "supersede", "notify"],
    },
    Crate {
        name: "web",
        orchestrators: &["pages"],
        steps: &[],
    },
];

/// The crates whose source folders have at most [`FOLDER_MAX_NAMES`] names each.
const TIDY: [&str; 5] = ["shared", "handler", "runner", "worker", "web"];
const FOLDER_MAX_NAMES: usize = 12;

#[test]
fn a_module_imports_only_modules_listed_above_it() {
    for Crate { name, .. } in CRATES {
        let modules = Module::all_of(name);
        let upward: Vec<_> = modules
            .iter()
            .flat_map(|module| module.imports().map(move |import| (module, import)))
            .filter(|(module, import)| points_down(&modules, &module.path, import))
            .map(|(module, import)| format!("{module} imports {}", import.join("::")))
            .collect();
        assert!(upward.is_empty(), "in {name}: {upward:#?}");
    }
}

#[test]
fn only_the_orchestrators_call_the_steps() {
    for Crate {
        name,
        orchestrators,
        steps,
    } in CRATES
    {
        let modules = Module::all_of(name);
        for known in orchestrators.iter().chain(steps) {
            assert!(
                modules.iter().any(|module| module.path == [*known]),
                "{name} has no {known}"
            );
        }
        let calls: Vec<_> = modules
            .iter()
            .filter(|module| {
                !module
                    .path
                    .first()
                    .is_some_and(|top| orchestrators.contains(&&**top))
            })
            .flat_map(|module| module.imports().map(move |import| (module, import)))
            .filter(|(module, import)| {
                steps.contains(&&*import[0])
                    && module.path.first() != import.first()
                    && !import.iter().any(|segment| is_type_or_constant(segment))
            })
            .map(|(module, import)| format!("{module} calls {}", import.join("::")))
            .collect();
        assert!(calls.is_empty(), "in {name}: {calls:#?}");
    }
}

#[test]
fn a_source_folder_has_at_most_a_dozen_names() {
    for name in TIDY {
        let mut folders = vec![root().join(name).join("src")];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).expect("a source folder");
            let paths: Vec<_> = entries
                .map(|entry| entry.expect("an entry").path())
                .collect();
            let names: BTreeSet<_> = paths.iter().filter_map(|path| name_of(path)).collect();
            assert!(names.len() <= FOLDER_MAX_NAMES, "{folder:?}: {names:?}");
            folders.extend(paths.into_iter().filter(|path| path.is_dir()));
        }
    }
}

#[test]
fn handler_worker_and_web_never_meet() {
    let crates = ["handler", "worker", "web"];
    for name in crates {
        let manifest = root().join(name).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("a manifest");
        let meets: Vec<_> = manifest
            .lines()
            .filter_map(|line| line.split(['.', '=', ' ']).next())
            .filter(|dependency| *dependency != name && crates.contains(dependency))
            .collect();
        assert!(meets.is_empty(), "{name} depends on {meets:?}");
    }
}

#[test]
fn imports_are_found_in_groups_and_in_paths() {
    let module = Module {
        path: vec!["queue".into(), "local".into()],
        children: vec![],
        code: "use crate::{build::Id, config::{self, Env as E}};\n\
               use super::{Lease, mod_b::go};\n\
               pub use self::clock::Clock;\n\
               fn f() -> $crate::x { crate::tls::provider() }"
            .into(),
    };
    let found: Vec<_> = module.imports().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "build::Id",
            "config",
            "config::Env",
            "tls::provider",
            "queue::Lease",
            "queue::mod_b::go",
            "queue::local::clock::Clock",
        ]
    );
}

/// One module of a crate, without its tests and comments.
struct Module {
    /// The names from below the crate's root down to its own; empty for the root.
    path: Vec<String>,
    /// Its own modules, in the order of their `mod` lines.
    children: Vec<String>,
    code: String,
}

impl Module {
    /// The modules of a crate, each before its children.
    fn all_of(name: &str) -> Vec<Self> {
        let source = root().join(name).join("src");
        let mut modules = Vec::new();
        Self::read(&source.join("lib.rs"), &source, vec![], &mut modules);
        assert!(modules.len() > 1, "{name} has no modules");
        modules
    }

    fn read(file: &Path, folder: &Path, path: Vec<String>, modules: &mut Vec<Self>) {
        let source = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        let code = without_tests_and_comments(&source);
        let children: Vec<_> = code
            .lines()
            .filter_map(child_named_by)
            .map(str::to_owned)
            .collect();
        modules.push(Self {
            path: path.clone(),
            children: children.clone(),
            code,
        });
        for child in children {
            let below = folder.join(&child);
            let flat = below.with_extension("rs");
            let file = if flat.exists() {
                flat
            } else {
                below.join("mod.rs")
            };
            Self::read(&file, &below, [&path[..], &[child]].concat(), modules);
        }
    }

    /// All paths into the same crate, from its root.
    fn imports(&self) -> impl Iterator<Item = Vec<String>> {
        let parent = &self.path[..self.path.len().saturating_sub(1)];
        [
            ("crate::", &[][..]),
            ("super::", parent),
            ("self::", &self.path),
        ]
        .into_iter()
        .flat_map(move |(start, base)| {
            self.code.match_indices(start).filter_map(move |(at, _)| {
                let (before, after) = (&self.code[..at], &self.code[at + start.len()..]);
                let inside_a_word =
                    before.ends_with(|c: char| c.is_alphanumeric() || "_$".contains(c));
                (!inside_a_word).then(|| expand(base, after).0)
            })
        })
        .flatten()
        .filter(|import| !import.is_empty())
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.path {
            [] => f.write_str("the root"),
            path => f.write_str(&path.join("::")),
        }
    }
}

/// Whether an import leads to a module that is listed below the importing one. Where the two
/// paths part, both names are children of one module, and its `mod` lines tell.
fn points_down(modules: &[Module], from: &[String], to: &[String]) -> bool {
    let common = from
        .iter()
        .zip(to)
        .take_while(|(one, other)| one == other)
        .count();
    let (Some(from_child), Some(to_child)) = (from.get(common), to.get(common)) else {
        return false;
    };
    let siblings = modules.iter().find(|module| module.path == from[..common]);
    let place =
        |name| siblings.and_then(|parent| parent.children.iter().position(|child| child == name));
    match (place(from_child), place(to_child)) {
        (Some(from_place), Some(to_place)) => from_place < to_place,
        _ => false,
    }
}

/// Reads one tree of a `use`, or a path: every leaf's path, and the rest of the text.
fn expand<'t>(base: &[String], text: &'t str) -> (Vec<Vec<String>>, &'t str) {
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut paths = Vec::new();
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if rest.is_empty() || rest.starts_with('}') {
                return (paths, rest.strip_prefix('}').unwrap_or(rest));
            }
            let (leaves, after) = expand(base, rest);
            paths.extend(leaves);
            rest = after.trim_start_matches(|c| c != ',' && c != '}');
        }
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match name {
        // `self` in a group is the group's own module, `*` everything in it.
        "self" | "" => base.to_vec(),
        _ => [base, &[name.to_owned()]].concat(),
    };
    match rest.strip_prefix("::") {
        Some(deeper) => expand(&path, deeper),
        None => (vec![path], rest),
    }
}

/// `pub(crate) mod name;` names a child.
fn child_named_by(line: &str) -> Option<&str> {
    let (visibility, name) = line.split_once("mod ")?;
    let known = matches!(
        visibility.trim_end(),
        "" | "pub" | "pub(crate)" | "pub(super)"
    );
    name.strip_suffix(';').filter(|_| known)
}

/// Tests stand at a file's end, and may import what they like.
fn without_tests_and_comments(source: &str) -> String {
    let end = source
        .find("#[cfg(test)]\nmod ")
        .or_else(|| source.find("#[cfg(test)]\npub(crate) mod "));
    let code = source[..end.unwrap_or(source.len())].lines();
    code.filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// The name that a file or folder gives to a part. The files of the folder itself, its tests and the
/// folder of further programs give none.
fn name_of(path: &Path) -> Option<&str> {
    let stem = path.file_stem()?.to_str()?;
    let names_a_part = !matches!(stem, "lib" | "main" | "mod" | "tests" | "bin");
    names_a_part.then_some(stem)
}

fn is_type_or_constant(segment: &str) -> bool {
    segment.starts_with(|c: char| c.is_ascii_uppercase())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
