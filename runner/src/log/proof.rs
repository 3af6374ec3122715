//! The proof of the hook's end, which is in the log's stream and not for its readers.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

/// The end of the proof.
const BEL: u8 = 7;
/// The longest exit code, in digits.
const CODE_LEN: usize = 3;

/// Takes the proof out of a stream, and keeps the exit code that it names.
#[derive(Debug)]
pub struct ProofFilter {
    begin: Vec<u8>,
    /// The last bytes that came, which may be the first ones of the proof.
    held: BytesMut,
    code: Arc<OnceLock<i64>>,
}

/// Bytes that begin as the proof does.
enum Sight<'a> {
    Proof {
        code: Option<i64>,
        after: &'a [u8],
    },
    /// They may be its first ones.
    Begun,
    Other,
}

impl ProofFilter {
    /// With what the proof begins with, see [`crate::container::end_proof`].
    pub fn new(begin: &str, code: Arc<OnceLock<i64>>) -> Self {
        Self {
            begin: begin.into(),
            held: BytesMut::new(),
            code,
        }
    }

    /// Returns what is not the proof, in order.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let chunk = match self.held.is_empty() {
            true => chunk,
            false => {
                self.held.extend_from_slice(&chunk);
                self.held.split().freeze()
            }
        };
        if self.place(&chunk).is_none() {
            return chunk;
        }
        let mut left = BytesMut::with_capacity(chunk.len());
        let mut rest = &chunk[..];
        while let Some(place) = self.place(rest) {
            left.extend_from_slice(&rest[..place]);
            rest = &rest[place..];
            match self.judge(rest) {
                Sight::Proof { code, after } => {
                    if let Some(code) = code {
                        // A container that is started again proves another end.
                        let _ = self.code.set(code);
                    }
                    rest = after;
                }
                Sight::Begun => {
                    self.held.extend_from_slice(rest);
                    rest = &[];
                }
                Sight::Other => {
                    left.extend_from_slice(&rest[..1]);
                    rest = &rest[1..];
                }
            }
        }
        left.extend_from_slice(rest);
        left.freeze()
    }

    /// Returns what was held back.
    pub fn finish(self) -> Bytes {
        self.held.freeze()
    }

    /// Judges what begins as the proof does, as far as it is there.
    fn judge<'a>(&self, bytes: &'a [u8]) -> Sight<'a> {
        let Some(rest) = bytes.strip_prefix(&self.begin[..]) else {
            return Sight::Begun;
        };
        match rest.iter().take(CODE_LEN + 1).position(|&byte| byte == BEL) {
            Some(len) => {
                let code = str::from_utf8(&rest[..len]).ok();
                Sight::Proof {
                    code: code.and_then(|code| code.parse().ok()),
                    after: &rest[len + 1..],
                }
            }
            None if rest.len() <= CODE_LEN => Sight::Begun,
            None => Sight::Other,
        }
    }

    /// The place of the proof, or of what may be its first bytes.
    fn place(&self, bytes: &[u8]) -> Option<usize> {
        let whole = memchr::memmem::find(bytes, &self.begin);
        whole.or_else(|| {
            let last = bytes.len().saturating_sub(self.begin.len() - 1);
            let escape = last + memchr::memrchr(self.begin[0], &bytes[last..])?;
            self.begin.starts_with(&bytes[escape..]).then_some(escape)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of a stream that comes in chunks of this size, and the exit code that was in it.
    fn filtered(stream: &str, size: usize) -> (String, Option<i64>) {
        let code = Arc::default();
        let mut filter = ProofFilter::new("\x1b]compose-ci;77;", Arc::clone(&code));
        let mut left = Vec::new();
        for chunk in stream.as_bytes().chunks(size) {
            left.extend_from_slice(&filter.push(Bytes::copy_from_slice(chunk)));
        }
        left.extend_from_slice(&filter.finish());
        let left = String::from_utf8(left).expect("UTF-8");
        (left, code.get().copied())
    }

    #[test]
    fn proof_of_the_end_is_found_and_taken_out() {
        for (stream, left, code) in [
            ("text\n\x1b]compose-ci;77;0\x07", "text\n", Some(0)),
            ("text\x1b]compose-ci;77;137\x07", "text", Some(137)),
            ("\x1b]compose-ci;77;3\x07later\n", "later\n", Some(3)),
            ("\x1b\x1b]compose-ci;77;3\x07", "\x1b", Some(3)),
            (
                "a\x1b]compose-ci;77;3\x07b\x1b]compose-ci;77;0\x07c",
                "abc",
                Some(3),
            ),
            (
                "\x1b]compose-ci;77;1234\x1b]compose-ci;77;0\x07",
                "\x1b]compose-ci;77;1234",
                Some(0),
            ),
        ] {
            for size in 1..=stream.len() {
                let expected = (left.to_owned(), code);
                assert_eq!(filtered(stream, size), expected, "{stream:?} by {size}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_the_proof_stays() {
        for stream in [
            "text",
            "\x1b[31mred\x1b[m",
            "\x1b]compose-ci;78;0\x07",
            "\x1b]compose-ci;77;",
            "\x1b]compose-ci;77;0",
            "\x1b]compose-ci;77;1234\x07",
        ] {
            for size in 1..=stream.len() {
                let expected = (stream.to_owned(), None);
                assert_eq!(filtered(stream, size), expected, "{stream:?} by {size}");
            }
        }
    }
}
