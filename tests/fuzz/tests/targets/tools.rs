//! A strict reader of the HTML that compose-ci writes, and chunks.

use proptest::collection::vec;
use proptest::prelude::Strategy;
use shared::mask::{Masker, Secrets};

/// A piece of HTML.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// A tag as it is written, without its brackets.
    Tag(String),
    /// Text between tags, with its entities resolved.
    Text(String),
}

/// Reads HTML in which every special character of a text is written as an entity.
pub(crate) fn pieces(html: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = html;
    while !rest.is_empty() {
        if let Some(tag) = rest.strip_prefix('<') {
            let end = tag_end(tag).unwrap_or_else(|| panic!("an open tag: {rest:?}"));
            pieces.push(Piece::Tag(tag[..end].to_owned()));
            rest = &tag[end + 1..];
        } else {
            let (text, after) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
            pieces.push(Piece::Text(unescaped(text)));
            rest = after;
        }
    }
    pieces
}

/// The text of all pieces.
pub(crate) fn text(pieces: &[Piece]) -> String {
    let texts = pieces.iter().filter_map(|piece| match piece {
        Piece::Text(text) => Some(&**text),
        Piece::Tag(_) => None,
    });
    texts.collect()
}

/// Resolves the entities of a text, and minds everything else that is special.
pub(crate) fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut parts = text.split('&');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, after) = part
            .split_once(';')
            .unwrap_or_else(|| panic!("& alone: {text:?}"));
        plain.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "#39" => '\'',
            _ => panic!("&{name}; in {text:?}"),
        });
        plain.push_str(after);
    }
    assert!(!text.contains(['<', '>']), "raw markup in {text:?}");
    let is_bad = |c: char| c.is_control() && !c.is_ascii_whitespace();
    assert!(!text.contains(is_bad), "control characters in {text:?}");
    plain
}

fn tag_end(tag: &str) -> Option<usize> {
    let mut quoted = None;
    tag.char_indices().find_map(|(at, c)| match (c, quoted) {
        ('>', None) => Some(at),
        ('"' | '\'', None) => {
            quoted = Some(c);
            None
        }
        (c, Some(quote)) if c == quote => {
            quoted = None;
            None
        }
        _ => None,
    })
}

/// The sizes of the chunks in which a stream comes; the last one repeats.
pub(crate) fn chunk_sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(1..40usize, 1..6)
}

/// Cuts bytes into chunks of these sizes.
pub(crate) fn chunks<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let last = sizes.last().copied().unwrap_or(1);
    let mut sizes = sizes.iter().copied().chain(std::iter::repeat(last));
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let size = sizes.next().expect("it repeats").min(bytes.len());
        let (chunk, rest) = bytes.split_at(size);
        chunks.push(chunk);
        bytes = rest;
    }
    chunks
}

/// The masked stream.
pub(crate) fn masked<'a>(secrets: &Secrets, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut masker = Masker::new(secrets.clone());
    let mut output = Vec::new();
    for chunk in chunks {
        masker.push(chunk, |bytes| output.extend_from_slice(bytes));
    }
    masker.finish(|bytes| output.extend_from_slice(bytes));
    output
}

/// Finds one of the values in the text.
pub(crate) fn found<'a>(values: &'a [String], text: &[u8]) -> Option<&'a String> {
    let stands_in = |value: &&String| memchr::memmem::find(text, value.as_bytes()).is_some();
    values.iter().find(stands_in)
}
