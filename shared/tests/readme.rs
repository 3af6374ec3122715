//! The README's table of variables is the one that the program knows.

use std::fmt::Write;

use compose_ci_shared::variables::{GROUPS, Variable};

const README: &str = include_str!("../../README.md");

#[test]
fn the_readme_has_the_table_of_all_variables() {
    let table = table();
    assert!(
        README.contains(&table),
        "README.md must contain this table:\n\n{table}"
    );
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
