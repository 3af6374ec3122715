//! The plain text of what a hook printed for a terminal.

use std::mem;
use std::str;

use crate::codes::CodeFilter;

/// The text between escape sequences, out of bytes that arrive in pieces.
///
/// Bytes that are no UTF-8 become U+FFFD, also where a piece ends inside a character; control
/// characters other than white space are left out.
#[derive(Debug, Default)]
pub struct PlainText {
    filter: CodeFilter,
    /// The beginning of a character whose end is in the next piece, three bytes at most.
    begun: Vec<u8>,
}

impl PlainText {
    /// Returns the text of the next piece.
    pub fn push(&mut self, piece: &[u8]) -> String {
        let mut bytes = mem::take(&mut self.begun);
        bytes.extend_from_slice(piece);
        self.begun = bytes.split_off(bytes.len() - begun_character(&bytes));
        // Decoded first: the stripper drops bytes that are no UTF-8 without a trace.
        self.strip(&String::from_utf8_lossy(&bytes))
    }

    /// Returns the replacement of a character that the last piece began and left open.
    pub fn finish(self) -> &'static str {
        if self.begun.is_empty() {
            ""
        } else {
            "\u{FFFD}"
        }
    }

    fn strip(&mut self, text: &str) -> String {
        let mut plain = Vec::with_capacity(text.len());
        self.filter.push(text.as_bytes(), |printable| {
            plain.extend_from_slice(printable);
        });
        visible(&String::from_utf8_lossy(&plain))
    }
}

/// The controls that turn the direction of a text, and those of old terminals.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns the text with its hidden controls as escapes: they would let it look like another one.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match is_hidden(c) {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

/// Returns the text alone.
pub fn plain(text: &str) -> String {
    PlainText::default().push(text.as_bytes())
}

/// Returns the number of bytes at the end that begin a character and do not end it.
fn begun_character(bytes: &[u8]) -> usize {
    let begins = |length: &usize| {
        let end = &bytes[bytes.len() - length..];
        str::from_utf8(end).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    };
    (1..=bytes.len().min(3)).find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(bytes: &[u8], size: usize) -> String {
        let mut text = PlainText::default();
        let mut all: String = bytes.chunks(size).map(|piece| text.push(piece)).collect();
        all.push_str(text.finish());
        all
    }

    #[test]
    fn the_text_is_the_same_however_the_bytes_are_cut() {
        let bytes = b"\x1b[1;31m\xc3\xa4\x1b[0m \x1b]0;title\x07\xe2\x9c\x93 \xf0\x9f\xa6\x80 \
            \xff\xc3( \xe2\x9c\r\n\x1b[?25l\x1b[2Kend\x00\x07\xf0\x9f";
        let hidden = "a\u{202e}b\u{2066}c\u{9b}d";
        assert_eq!(plain(hidden), r"a\u{202e}b\u{2066}c\u{9b}d");
        let expected = "ä ✓ 🦀 \u{FFFD}\u{FFFD}( \u{FFFD}\r\nend\u{FFFD}";
        for size in 1..=bytes.len() {
            assert_eq!(in_pieces(bytes, size), expected, "pieces of {size}");
        }
    }
}
