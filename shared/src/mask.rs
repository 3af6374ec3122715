//! Hides secret values in a stream of bytes: where one falls across two chunks, where it stands behind codes
//! for a terminal, which pages and mails leave out, and in the usual other forms.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};

use crate::codes::CodeFilter;

/// The text that stands in the log for a secret.
const MASK: &[u8] = b"***";

/// A line shorter than this in a secret of several lines says nothing, and hiding it hides much.
const LINE_MIN_BYTES: usize = 8;

/// Base64 of fewer characters says nothing.
const BASE64_MIN_BYTES: usize = 8;

/// The characters that end a line, or begin it anew.
const LINE_ENDS: [char; 2] = ['\n', '\r'];
/// The longest run of codes for a terminal that may stand inside a secret.
const CODES_MAX_BYTES: usize = 64 << 10;

/// Everything in a URL but what RFC 3986 calls unreserved.
const URL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same without the slashes, which stay between the segments of a path.
const PATH_ENCODED: &AsciiSet = &URL_ENCODED.remove(b'/');

/// The secret values to hide. Cheap to clone.
#[derive(Clone, Default)]
pub struct Secrets(Option<Patterns>);

#[derive(Clone)]
struct Patterns {
    automaton: AhoCorasick,
    longest_bytes: usize,
    /// The secrets of several lines, each up to the end of every line but its last.
    begun: Arc<[String]>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// Prepares the search for these values, also in base64, URL-encoded and as HTML. A value of several lines, such
    /// as a private key, is also hidden line by line: tools indent and prefix lines.
    pub fn new(values: &[SecretString]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for value in values.iter().map(SecretString::expose_secret) {
            let lines = value.lines().map(str::trim);
            texts.extend(
                lines
                    .filter(|line| line.len() >= LINE_MIN_BYTES)
                    .map(str::to_owned),
            );
            texts.push(value.to_owned());
            texts.push(utf8_percent_encode(value, URL_ENCODED).to_string());
            texts.push(utf8_percent_encode(value, PATH_ENCODED).to_string());
            texts.push(in_html(value));
            texts.extend(in_base64(value.as_bytes()));
        }
        texts.retain(|text| !text.is_empty());
        texts.sort_unstable();
        texts.dedup();
        let Some(longest_bytes) = texts.iter().map(String::len).max() else {
            return Self(None);
        };
        let begun = texts.iter().flat_map(|text| {
            let ends = text.match_indices(LINE_ENDS).map(|(at, _)| at + 1);
            ends.filter(|&end| end < text.len())
                .map(|end| text[..end].to_owned())
        });
        let begun = begun.collect();
        let automaton = AhoCorasick::new(texts);
        Self(Some(Patterns {
            automaton: automaton.expect("secrets of a process environment fit an automaton"),
            longest_bytes,
            begun,
        }))
    }

    /// The text with every secret hidden.
    pub fn mask(&self, text: &str) -> String {
        let mut masker = Masker::new(self.clone());
        let mut masked = Vec::with_capacity(text.len());
        masker.push(text.as_bytes(), |bytes| masked.extend_from_slice(bytes));
        masker.finish(|bytes| masked.extend_from_slice(bytes));
        String::from_utf8_lossy(&masked).into_owned()
    }
}

/// The text as pages and mails write it.
fn in_html(value: &str) -> String {
    let escaped = value.replace('&', "&amp;").replace('<', "&lt;");
    let escaped = escaped.replace('>', "&gt;").replace('"', "&quot;");
    escaped.replace('\'', "&#39;")
}

/// The characters that all base64 texts have in common that hold the value: the first and the last depend on
/// its surroundings.
fn in_base64(value: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for before in 0..3 {
        let padded = [&[0; 3][..before], value].concat();
        // Four characters for three bytes: those that hold a bit of something else are left out.
        let begin = (before * 8).div_ceil(6);
        let end = padded.len() * 8 / 6;
        for text in [
            BASE64_STANDARD.encode(&padded),
            BASE64_URL_SAFE.encode(&padded),
        ] {
            forms.extend(text.get(begin..end).map(str::to_owned));
        }
    }
    forms.retain(|form| form.len() >= BASE64_MIN_BYTES);
    forms
}

/// Masks the chunks of one stream.
pub struct Masker {
    secrets: Secrets,
    /// The end of the input, which may be the beginning of a secret.
    held: Vec<u8>,
    /// The first bytes of `held` are part of a secret that was masked before.
    masked_bytes: usize,
    shown: Shown,
}

impl Masker {
    /// Begins a stream.
    pub fn new(secrets: Secrets) -> Self {
        Self {
            secrets,
            held: Vec::new(),
            masked_bytes: 0,
            shown: Shown::default(),
        }
    }

    /// Takes the next chunk and passes on the bytes that are certain by now.
    pub fn push(&mut self, chunk: &[u8], mut emit: impl FnMut(&[u8])) {
        let Some(patterns) = self.secrets.0.clone() else {
            return emit(chunk);
        };
        self.shown.push(chunk, self.held.len());
        self.held.extend_from_slice(chunk);
        let undecided = patterns.longest_bytes - 1;
        let certain = self.held.len().saturating_sub(undecided);
        let certain = certain.min(self.shown.place_before_last(undecided));
        let certain = certain.max(self.place_behind_lines(&patterns.begun));
        // Codes without an end, such as a picture, hide no secret.
        let least = self.held.len().saturating_sub(CODES_MAX_BYTES + undecided);
        self.release(&patterns, certain.max(least), emit);
    }

    /// The place behind the last line that has ended: no secret goes on there, unless what stands before it
    /// may be the first lines of one. Else 0.
    fn place_behind_lines(&self, begun: &[String]) -> usize {
        let Some((shown, held)) = self.shown.place_behind_lines() else {
            return 0;
        };
        let ends_with = |begun: &String| {
            let begun = begun.as_bytes();
            self.shown.text[..shown].ends_with(begun) || self.held[..held].ends_with(begun)
        };
        if begun.iter().any(ends_with) { 0 } else { held }
    }

    /// Passes on the bytes that were held back: nothing follows.
    pub fn finish(&mut self, emit: impl FnMut(&[u8])) {
        if let Some(patterns) = self.secrets.0.clone() {
            self.release(&patterns, self.held.len(), emit);
        }
    }

    /// Passes on the first bytes, masked. A match that begins among them is complete: no secret is longer
    /// than what is held back behind them.
    fn release(&mut self, patterns: &Patterns, certain: usize, mut emit: impl FnMut(&[u8])) {
        let mut done = self.masked_bytes;
        for Range { start, end } in self.secret_places(patterns) {
            if start >= certain {
                break;
            }
            if start >= done {
                emit(&self.held[done..start]);
                emit(MASK);
            }
            done = done.max(end);
        }
        if done < certain {
            emit(&self.held[done..certain]);
        }
        self.masked_bytes = done.saturating_sub(certain);
        self.held.drain(..certain);
        self.shown.forget(certain);
    }

    /// The places of all secrets among the bytes that are held, in order. They may overlap.
    fn secret_places(&self, patterns: &Patterns) -> Vec<Range<usize>> {
        let mut places: Vec<Range<usize>> = matches(&patterns.automaton, &self.held).collect();
        if self.shown.text.len() < self.held.len() {
            let shown = matches(&patterns.automaton, &self.shown.text);
            places.extend(shown.map(|place| self.shown.place_of(place)));
        }
        places.sort_unstable_by_key(|place| place.start);
        places
    }
}

/// The matches, overlapping ones included. To look whether there is any is much faster.
fn matches<'a>(
    automaton: &'a AhoCorasick,
    bytes: &'a [u8],
) -> impl Iterator<Item = Range<usize>> + 'a {
    let bytes = if automaton.is_match(bytes) {
        bytes
    } else {
        b""
    };
    automaton
        .find_overlapping_iter(bytes)
        .map(|found| found.range())
}

/// The bytes that a page or a mail shows of those that are held: all but codes for a terminal.
#[derive(Default)]
struct Shown {
    filter: CodeFilter,
    text: Vec<u8>,
    /// The pieces of the text: where each begins in it, and where among the bytes that are held.
    pieces: Vec<(usize, usize)>,
}

impl Shown {
    fn push(&mut self, chunk: &[u8], at: usize) {
        let Self {
            filter,
            text,
            pieces,
        } = self;
        filter.push(chunk, |piece| {
            let place = at + (piece.as_ptr() as usize - chunk.as_ptr() as usize);
            let goes_on = |&(begin, begins): &(usize, usize)| begins + text.len() - begin == place;
            if !pieces.last().is_some_and(goes_on) {
                pieces.push((text.len(), place));
            }
            text.extend_from_slice(piece);
        });
    }

    /// The place of so many bytes before the end.
    fn place_before_last(&self, undecided: usize) -> usize {
        match self.text.len().checked_sub(undecided) {
            Some(certain) if certain < self.text.len() => self.place(certain),
            Some(_) => usize::MAX,
            None => self.pieces.first().map_or(usize::MAX, |&(_, place)| place),
        }
    }

    /// The place behind the last line that has ended.
    fn place_behind_lines(&self) -> Option<(usize, usize)> {
        let is_end = |byte: &u8| LINE_ENDS.contains(&char::from(*byte));
        let end = self.text.iter().rposition(is_end)?;
        Some((end + 1, self.place(end) + 1))
    }

    fn place_of(&self, shown: Range<usize>) -> Range<usize> {
        self.place(shown.start)..self.place(shown.end - 1) + 1
    }

    fn place(&self, shown: usize) -> usize {
        let next = self.pieces.partition_point(|&(begin, _)| begin <= shown);
        let (begin, place) = self.pieces[next - 1];
        place + (shown - begin)
    }

    /// Forgets the first of the bytes that are held.
    fn forget(&mut self, held: usize) {
        let end = self.text.len();
        let ends = self
            .pieces
            .iter()
            .skip(1)
            .map(|&(begin, _)| begin)
            .chain([end]);
        let mut kept = Vec::new();
        let mut forgotten = end;
        for (&(begin, place), next) in self.pieces.iter().zip(ends) {
            let gone = held.saturating_sub(place).min(next - begin);
            if gone < next - begin {
                forgotten = forgotten.min(begin + gone);
                kept.push((begin + gone - forgotten, place + gone - held));
            }
        }
        self.text.drain(..forgotten);
        self.pieces = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(secrets: &[&str], chunks: &[&[u8]]) -> String {
        let values: Vec<SecretString> = secrets.iter().map(|text| (*text).into()).collect();
        let mut masker = Masker::new(Secrets::new(&values));
        let mut output = Vec::new();
        for chunk in chunks {
            masker.push(chunk, |bytes| output.extend_from_slice(bytes));
        }
        masker.finish(|bytes| output.extend_from_slice(bytes));
        String::from_utf8(output).expect("utf-8")
    }

    #[test]
    fn a_secret_is_hidden_wherever_the_chunks_fall() {
        let text = b"token=s3cret! and s3cret!s3cret! end s3cre";
        for first in 0..text.len() {
            for second in first..text.len() {
                let chunks = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(
                    masked(&["s3cret!"], &chunks),
                    "token=*** and ****** end s3cre",
                    "cut at {first} and {second}"
                );
            }
        }
    }

    #[test]
    fn byte_by_byte_is_as_good_as_at_once() {
        let text = b"aaab aab aaaab";
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(masked(&["aab"], &bytes), masked(&["aab"], &[text]));
    }

    #[test]
    fn the_longer_of_two_secrets_is_hidden_whole() {
        assert_eq!(
            masked(&["abcd", "abcdefgh"], &[b"x abcdef", b"gh y abcd"]),
            "x *** y ***"
        );
    }

    #[test]
    fn a_secret_of_several_lines_is_hidden_line_by_line() {
        let key = "-----BEGIN KEY-----\nAAAABBBBCCCC\n-----END KEY-----";
        assert_eq!(masked(&[key], &[b"  AAAABBBBCCCC\n"]), "  ***\n");
        assert_eq!(masked(&[key], &[key.as_bytes()]), "***");
    }

    #[test]
    fn a_secret_behind_codes_for_a_terminal_is_hidden() {
        for inside in [
            "\x1b[01;31m\x1b[K",
            "\0",
            "\x1b]0;title\x07",
            "\x1b[m\x07\x1b[31m",
        ] {
            for at in 1.."CANARY-value".len() {
                let (begin, end) = "CANARY-value".split_at(at);
                let text = format!("a {begin}{inside}{end} z");
                for size in [1, 3, text.len()] {
                    let chunks: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
                    let masked = masked(&["CANARY-value"], &chunks);
                    assert_eq!(masked, "a *** z", "{text:?} in {size}");
                }
            }
        }
        let coloured = b"\x1b[31mCANARY-value\x1b[m\n";
        assert_eq!(
            masked(&["CANARY-value"], &[coloured]),
            "\x1b[31m***\x1b[m\n"
        );
    }

    #[test]
    fn a_secret_behind_an_open_code_is_hidden() {
        let text = b"\x1b]0;building\nCANARY-value\n";
        assert_eq!(masked(&["CANARY-value"], &[text]), "\x1b]0;building\n***\n");
    }

    #[test]
    fn codes_without_an_end_are_not_held_back() {
        let text = [&b"ab\x1b]"[..], &vec![b'x'; 10 * CODES_MAX_BYTES]].concat();
        let mut masker = Masker::new(Secrets::new(&["abcdef".into()]));
        let mut emitted = 0;
        masker.push(&text, |bytes| emitted += bytes.len());
        assert!(text.len() - emitted <= 2 * CODES_MAX_BYTES, "{emitted}");
        masker.finish(|bytes| emitted += bytes.len());
        assert_eq!(emitted, text.len());
    }

    #[test]
    fn overlapping_secrets_are_hidden_whole() {
        for size in 1..=11 {
            let chunks: Vec<&[u8]> = b"x abcdefghi y".chunks(size).collect();
            assert_eq!(masked(&["abcdef", "defghi"], &chunks), "x *** y", "{size}");
            let chunks: Vec<&[u8]> = b"x abcababcabc y".chunks(size).collect();
            let masked = masked(&["abcabc"], &chunks);
            assert_eq!(masked, "x abcab*** y", "{size}");
        }
    }

    #[test]
    fn other_forms_of_a_secret_are_hidden() {
        let secret = "s3cret/with+signs";
        for before in ["", "a", "ab", "user:"] {
            let encoded = BASE64_STANDARD.encode(format!("{before}{secret}!?"));
            let masked = masked(&[secret], &[encoded.as_bytes()]);
            assert!(
                masked.contains("***") && masked.len() < 16,
                "{encoded}: {masked}"
            );
        }
        assert_eq!(
            masked(&[secret], &[b"?t=s3cret%2Fwith%2Bsigns&"]),
            "?t=***&"
        );
        assert_eq!(masked(&[secret], &[b"/s3cret/with%2Bsigns"]), "/***");
        assert_eq!(
            masked(
                &["<p&ss'\"w>rd"],
                &[b"<b>&lt;p&amp;ss&#39;&quot;w&gt;rd</b>"]
            ),
            "<b>***</b>"
        );
    }

    #[test]
    fn lines_pass_when_they_end_unless_they_may_begin_a_secret() {
        let secrets = Secrets::new(&["a secret\nof two\nlines".into()]);
        for (chunk, passed) in [
            ("one\n", "one\n"),
            ("one\ntwo\na sec", "one\ntwo\n"),
            ("10 %\r20 %", "10 %\r"),
            ("\x1b[31mone\x1b[0m\n", "\x1b[31mone\x1b[0m\n"),
            ("one\na secret\n", ""),
            ("one\na secret\nof two\n", ""),
            ("one\na secret\nof three\n", "one\n***\nof three\n"),
            ("one\na secret\nof two\nlines\n", "one\n***\n"),
        ] {
            let mut masker = Masker::new(secrets.clone());
            let mut output = Vec::new();
            masker.push(chunk.as_bytes(), |bytes| output.extend_from_slice(bytes));
            assert_eq!(String::from_utf8_lossy(&output), passed, "{chunk:?}");
        }
    }

    #[test]
    fn without_secrets_bytes_pass_as_they_come() {
        assert_eq!(masked(&[], &[b"as ", b"is"]), "as is");
    }
}
