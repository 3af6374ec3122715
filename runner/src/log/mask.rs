//! Hides secret values in a stream of bytes, also where one falls across two chunks.

use std::fmt;

use aho_corasick::{AhoCorasick, MatchKind};
use secrecy::{ExposeSecret, SecretString};

/// The text that stands in the log for a secret.
const MASK: &[u8] = b"***";

/// A line shorter than this in a secret of several lines says nothing, and hiding it hides much.
const LINE_MIN_BYTES: usize = 8;

/// The secret values to hide. Cheap to clone.
#[derive(Clone)]
pub struct Secrets(Option<Patterns>);

#[derive(Clone)]
struct Patterns {
    automaton: AhoCorasick,
    longest_bytes: usize,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// Prepares the search for these values. A value of several lines, such as a private key, is
    /// also hidden line by line: tools indent and prefix lines.
    pub fn new(values: &[SecretString]) -> Self {
        let mut texts: Vec<&str> = values.iter().map(SecretString::expose_secret).collect();
        let lines = texts.iter().flat_map(|text| text.lines().map(str::trim));
        let lines: Vec<&str> = lines.filter(|line| line.len() >= LINE_MIN_BYTES).collect();
        texts.extend(lines);
        texts.retain(|text| !text.is_empty());
        let Some(longest_bytes) = texts.iter().map(|text| text.len()).max() else {
            return Self(None);
        };
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .expect("secrets of a process environment fit an automaton");
        Self(Some(Patterns {
            automaton,
            longest_bytes,
        }))
    }
}

/// Masks the chunks of one stream.
pub(crate) struct Masker {
    secrets: Secrets,
    /// The end of the input, which may be the beginning of a secret.
    held: Vec<u8>,
}

impl Masker {
    pub(crate) fn new(secrets: Secrets) -> Self {
        Self {
            secrets,
            held: Vec::new(),
        }
    }

    /// Takes the next chunk and passes on the bytes that are certain by now.
    pub(crate) fn push(&mut self, chunk: &[u8], emit: impl FnMut(&[u8])) {
        let Some(patterns) = self.secrets.0.clone() else {
            let mut emit = emit;
            return emit(chunk);
        };
        self.held.extend_from_slice(chunk);
        let undecided = patterns.longest_bytes - 1;
        self.release(&patterns, undecided, emit);
    }

    /// Passes on the bytes that were held back: nothing follows.
    pub(crate) fn finish(&mut self, emit: impl FnMut(&[u8])) {
        if let Some(patterns) = self.secrets.0.clone() {
            self.release(&patterns, 0, emit);
        }
    }

    /// Passes on all but the last `undecided` bytes, masked. A match that begins before them is
    /// complete: no secret is longer than the bytes held back behind it.
    fn release(&mut self, patterns: &Patterns, undecided: usize, mut emit: impl FnMut(&[u8])) {
        let certain = self.held.len().saturating_sub(undecided);
        let mut done = 0;
        for found in patterns.automaton.find_iter(&self.held) {
            if found.start() >= certain {
                break;
            }
            emit(&self.held[done..found.start()]);
            emit(MASK);
            done = found.end();
        }
        let end = certain.max(done);
        emit(&self.held[done..end]);
        self.held.drain(..end);
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
    fn without_secrets_bytes_pass_as_they_come() {
        assert_eq!(masked(&[], &[b"as ", b"is"]), "as is");
    }
}
