//! The codes for a terminal among the bytes of a log.

use anstream::adapter::StripBytes;

/// Leaves out the codes of a stream, the same ones wherever the pieces are cut in which it arrives.
#[derive(Debug, Default)]
pub(crate) struct CodeFilter(StripBytes);

impl CodeFilter {
    /// Passes on the parts of the next piece that are no codes.
    pub(crate) fn push(&mut self, piece: &[u8], mut emit: impl FnMut(&[u8])) {
        // Behind white space within a code the stripper takes the rest of its input for text.
        for part in piece.split_inclusive(is_control_space) {
            self.0.strip_next(part).for_each(&mut emit);
        }
    }
}

fn is_control_space(byte: &u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\x0c' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_same_wherever_they_are_cut() {
        for (bytes, left) in [
            ("\x1b[\r    AaA", "\raA"),
            ("\x1b[3\n1mred\x1b[m", "\nred"),
            ("a\tb\x1b[31m c\n", "a\tb c\n"),
        ] {
            for size in 1..=bytes.len() {
                let mut filter = CodeFilter::default();
                let mut found = Vec::new();
                for piece in bytes.as_bytes().chunks(size) {
                    filter.push(piece, |part| found.extend_from_slice(part));
                }
                assert_eq!(found, left.as_bytes(), "{bytes:?} by {size}");
            }
        }
    }
}
