//! What a hook prints: through the proof's filter and the masker to the page and the mail.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use fuzz::fuzz;
use fuzz::mutation::Text;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use runner::ProofFilter;
use shared::build::Outcome;
use shared::build::samples::ended;
use shared::mask::Secrets;
use shared::words::terminal::{PlainText, plain};
use shared::words::{LogExcerpt, LogRest, MailContext, mail_text};
use web::page::LogEscaper;

use crate::tools::{self, Piece, chunk_sizes, chunks, found, masked, pieces, unescaped};

/// The codes of a terminal, and parts of them.
const CODES: &[&[u8]] = &[
    b"\x1b[31m",
    b"\x1b[m",
    b"\x1b[01;31m\x1b[K",
    b"\x1b[38;5;208m",
    b"\x1b[48;2;1;2;3m",
    b"\x1b[97;44m",
    b"\x1b[1m",
    b"\x1b[3m",
    b"\x1b[4m",
    b"\x1b[9m",
    b"\x1b[2m",
    b"\x1b[7m",
    b"\x1b[22;24;39m",
    b"\x1b[0m",
    b"\x1b[99999999999m",
    b"\x1b[;;m",
    b"\x1b[38m",
    b"\x1b[38;5m",
    b"\x1b[38;2;300;1m",
    b"\x1b[4:3m",
    b"\x1b[?25l",
    b"\x1b[2K",
    b"\x1b[1A",
    b"\x1b(B",
    b"\x1b]0;title\x07",
    b"\x1b]8;;https://x\x1b\\",
    b"\x1b]",
    b"\x1b[",
    b"\x1b",
    b"\x1b\\",
    b"\x1bP",
    b"\x1b_",
    b"\x07",
    b"\0",
    b"\x08",
    b"\x7f",
    b"\r",
    b"\r\n",
    b"\n",
    b"\t",
    b"\x18",
    b"\x1a",
    b"\x9b",
    b"\x9c",
    b"\xc2\x9b",
    b"\xe2\x80\xae",
    b"\xc3\xa4",
    b"\xe2\x9c\x93",
    b"\xf0\x9f\xa6\x80",
    b"\xf0\x9f",
    b"\xc3",
    b"\xff",
    b"\xe2\x9c",
    b"<",
    b">",
    b"&",
    b"\"",
    b"'",
    b"&lt;",
    b"<script>",
    b"</pre>",
    b"var(--\"red,#a00)",
    b"var(--red,#a00)",
    b"m",
    b";",
    b"0",
];

/// The sets of secrets of a run.
const POOL: usize = 500;

/// A part of what a hook prints.
#[derive(Debug, Clone)]
enum Part {
    Code(&'static [u8]),
    Bytes(Text),
    Secret(Index),
    /// A part of a secret.
    Piece(Index, usize, usize),
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        4 => select(CODES).prop_map(Part::Code),
        2 => vec(any::<u8>(), 1..6).prop_map(|bytes| Part::Bytes(Text(bytes))),
        2 => "[ -~]{1,12}".prop_map(|text| Part::Bytes(Text(text.into_bytes()))),
        2 => any::<Index>().prop_map(Part::Secret),
        4 => (any::<Index>(), 0..20usize, 1..20usize).prop_map(|(of, from, length)| Part::Piece(of, from, length)),
    ]
}

/// What a hook prints that knows these secrets.
fn printed(parts: &[Part], secrets: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match part {
            Part::Code(code) => bytes.extend_from_slice(code),
            Part::Bytes(text) => bytes.extend_from_slice(&text.0),
            Part::Secret(of) => bytes.extend_from_slice(of.get(secrets).as_bytes()),
            Part::Piece(of, from, length) => {
                let secret = of.get(secrets).as_bytes();
                let from = from % secret.len();
                bytes.extend_from_slice(&secret[from..secret.len().min(from + length)]);
            }
        }
    }
    bytes
}

/// Values of secrets. None has an asterisk: it would stand again where another one was masked.
fn secrets() -> impl Strategy<Value = Vec<String>> {
    let secret = prop_oneof![
        Just("CANARY-value".to_owned()),
        Just("s3cret/with+signs<&'\">".to_owned()),
        "[ab]{3,6}",
        "[!-)+-~]{4,16}",
        "[a-zé/&<]{8,12}\n[a-z]{8,10}",
    ];
    vec(secret, 1..4)
}

/// Values, and what finds them.
#[derive(Debug, Clone)]
struct Known {
    values: Arc<[String]>,
    secrets: Secrets,
}

/// Some secrets of a run: to prepare the search for them takes longer than to search.
fn known() -> impl Strategy<Value = Known> {
    let mut runner = TestRunner::default();
    let of_run = (0..POOL).map(|_| {
        let values = secrets().new_tree(&mut runner).expect("secrets").current();
        let typed: Vec<_> = values.iter().map(|value| value.as_str().into()).collect();
        Known {
            secrets: Secrets::new(&typed),
            values: values.into(),
        }
    });
    select(of_run.collect::<Vec<_>>())
}

#[test]
fn secrets_are_hidden_wherever_the_chunks_fall() {
    fuzz(
        "masker",
        (known(), vec(part(), 0..12), chunk_sizes()),
        |(known, parts, sizes)| {
            let Known { values, secrets } = known;
            let log = printed(&parts, &values);
            let stored = masked(&secrets, [&log[..]]);
            let in_chunks = masked(&secrets, chunks(&log, &sizes));
            assert_eq!(
                Text(in_chunks),
                Text(stored.clone()),
                "the chunks make a difference"
            );
            assert_eq!(
                found(&values, &stored),
                None,
                "in the log {:?}",
                Text(stored)
            );

            let page = unescaped(&on_page(&[&stored]));
            assert_eq!(
                found(&values, page.as_bytes()),
                None,
                "on the page {page:?}"
            );
            let tail = String::from_utf8_lossy(&stored);
            let mail = plain(&tail);
            assert_eq!(
                found(&values, mail.as_bytes()),
                None,
                "in the mail {mail:?}"
            );
        },
    );
}

fn on_page(pieces: &[&[u8]]) -> String {
    let mut escaper = LogEscaper::default();
    let mut html: String = pieces.iter().map(|piece| escaper.push(piece)).collect();
    html.push_str(&escaper.finish());
    html
}

fn in_plain(log: &[u8]) -> String {
    let mut text = PlainText::default();
    let plain = text.push(log);
    plain + text.finish()
}

/// What a hook prints that knows no secret.
fn logs() -> impl Strategy<Value = Vec<u8>> {
    vec(part(), 0..16).prop_map(|parts| printed(&parts, &["var(--\"red".to_owned()]))
}

#[test]
fn page_shows_the_text_of_a_log_and_no_markup() {
    fuzz(
        "page's log",
        (logs().prop_map(Text), chunk_sizes()),
        |(Text(log), sizes)| {
            let page = on_page(&chunks(&log, &sizes));
            assert!(!page.contains(['<', '>', '"', '\'', '\x1b']), "{page:?}");
            assert_eq!(unescaped(&page), in_plain(&log));
        },
    );
}

#[test]
fn mail_shows_the_text_of_a_log_and_no_markup() {
    let build = ended(Outcome::Failed { exit_code: 3 }, 12);
    fuzz("mail's log", logs().prop_map(Text), |Text(log)| {
        let excerpt = LogExcerpt {
            tail: String::from_utf8_lossy(&log).into_owned(),
            rest: LogRest::Shown,
        };
        let html = web::mail::html(&build, &MailContext::default(), &excerpt);
        let expected = plain(excerpt.tail.trim_end());
        assert_eq!(text_of_log(&html), expected);

        let text = mail_text(&build, &MailContext::default(), &excerpt);
        let is_bad = |c: char| c.is_control() && !c.is_ascii_whitespace();
        assert!(!text.contains(is_bad), "{text:?}");
        assert!(text.contains(plain(&excerpt.tail).trim_end()), "{text:?}");
    });
}

/// The text of the mail's log, after a look at its tags: there are styles alone, each within the others.
fn text_of_log(html: &str) -> String {
    let pieces = pieces(html);
    let is_pre = |piece: &Piece| matches!(piece, Piece::Tag(tag) if tag.starts_with("pre "));
    let Some(begin) = pieces.iter().position(is_pre) else {
        return String::new();
    };
    let log = &pieces[begin + 1..];
    let end = log
        .iter()
        .position(|piece| *piece == Piece::Tag("/pre".to_owned()));
    let log = &log[..end.expect("the log's end")];
    let mut open = Vec::new();
    for piece in log {
        let Piece::Tag(tag) = piece else { continue };
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{html:?}"),
            None => open.push(style_name(tag)),
        }
    }
    assert!(open.is_empty(), "{open:?} in {html:?}");
    tools::text(log)
}

fn style_name(tag: &str) -> &str {
    let Some((name @ ("span" | "u"), style)) = tag.split_once(" style='") else {
        assert!(matches!(tag, "b" | "i" | "u" | "s"), "<{tag}>");
        return tag;
    };
    let style = style
        .strip_suffix('\'')
        .unwrap_or_else(|| panic!("<{tag}>"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "#:;-.,()% ".contains(c);
    assert!(
        style.chars().all(plain) && !style.contains("url(") && !style.contains("var("),
        "<{tag}>"
    );
    name
}

const PROOF: &str = "\x1b]compose-ci;77;";

/// Output with the proof of the hook's end, and with what is nearly one.
fn proofs() -> impl Strategy<Value = Text> {
    let piece = prop_oneof![
        3 => Just(PROOF.as_bytes().to_vec()),
        2 => "\x1b\\]compose-ci;77;[0-9x-]{0,4}\x07?".prop_map(String::into_bytes),
        3 => (0..PROOF.len()).prop_map(|length| PROOF.as_bytes()[..length].to_vec()),
        2 => Just(vec![7]),
        2 => "[0-9]{1,4}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 1..4),
    ];
    vec(piece, 0..8).prop_map(|pieces| Text(pieces.concat()))
}

#[test]
fn proofs_are_found_wherever_the_chunks_fall() {
    fuzz(
        "proofs",
        (proofs(), chunk_sizes()),
        |(Text(output), sizes)| {
            let filtered = |chunks: Vec<&[u8]>| {
                let code = Arc::new(OnceLock::new());
                let mut filter = ProofFilter::new(PROOF, Arc::clone(&code));
                let mut left = Vec::new();
                for chunk in chunks {
                    left.extend_from_slice(&filter.push(Bytes::copy_from_slice(chunk)));
                }
                left.extend_from_slice(&filter.finish());
                (Text(left), code.get().copied())
            };
            let expected = without_proofs(&output);
            assert_eq!(filtered(vec![&output]), expected, "at once");
            assert_eq!(filtered(chunks(&output, &sizes)), expected, "in chunks");
        },
    );
}

/// The output without proofs, and the exit code of the first that names one: read from the front, byte by byte.
fn without_proofs(mut output: &[u8]) -> (Text, Option<i64>) {
    let (mut left, mut code) = (Vec::new(), None);
    while let Some((&first, rest)) = output.split_first() {
        let proof = output.strip_prefix(PROOF.as_bytes()).and_then(|behind| {
            let end = behind.iter().take(4).position(|&byte| byte == 7)?;
            Some((&behind[..end], &behind[end + 1..]))
        });
        match proof {
            Some((digits, after)) => {
                code = code.or(std::str::from_utf8(digits)
                    .ok()
                    .and_then(|text| text.parse().ok()));
                output = after;
            }
            None => {
                left.push(first);
                output = rest;
            }
        }
    }
    (Text(left), code)
}
