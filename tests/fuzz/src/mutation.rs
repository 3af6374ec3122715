//! Bytes that were valid before somebody changed them here and there.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};

/// The most changes that are made to one text, and to most of them: with each, less is valid.
const MAX_CHANGES: usize = 6;
const FEW_CHANGES: usize = 2;
/// The longest piece that a change removes, repeats or moves, in bytes.
const MAX_PIECE: usize = 64;

/// Bytes that are shown as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

#[derive(Debug, Clone)]
enum Change {
    Flip(u8),
    Set(u8),
    Insert(Vec<u8>),
    Overwrite(&'static str),
    Remove(usize),
    Repeat(usize),
    Move(usize, Index),
    Cut,
}

/// Returns one of the samples, changed in a few places; `words` are what a change may put in.
pub fn mutated(
    samples: Vec<Vec<u8>>,
    words: &'static [&'static str],
) -> impl Strategy<Value = Text> {
    changed(select(samples), words)
}

/// The same with samples that are made up.
pub fn changed(
    samples: impl Strategy<Value = Vec<u8>>,
    words: &'static [&'static str],
) -> impl Strategy<Value = Text> {
    let changes = |most| vec((any::<Index>(), change(words)), 0..=most);
    let changes = prop_oneof![3 => changes(FEW_CHANGES), 1 => changes(MAX_CHANGES)];
    (samples, changes).prop_map(|(mut bytes, changes)| {
        for (place, change) in changes {
            apply(&mut bytes, place, change);
        }
        Text(bytes)
    })
}

fn change(words: &'static [&'static str]) -> impl Strategy<Value = Change> {
    let piece = 1..=MAX_PIECE;
    prop_oneof![
        3 => (0..8u8).prop_map(|bit| Change::Flip(1 << bit)),
        3 => any::<u8>().prop_map(Change::Set),
        6 => select(words).prop_map(|word| Change::Insert(word.into())),
        6 => select(words).prop_map(Change::Overwrite),
        2 => vec(any::<u8>(), 1..4).prop_map(Change::Insert),
        4 => piece.clone().prop_map(Change::Remove),
        2 => piece.clone().prop_map(Change::Repeat),
        2 => (piece, any::<Index>()).prop_map(|(length, to)| Change::Move(length, to)),
        1 => Just(Change::Cut),
    ]
}

fn apply(bytes: &mut Vec<u8>, place: Index, change: Change) {
    let at = place.index(bytes.len() + 1);
    let piece = |length: usize| at..bytes.len().min(at + length);
    match change {
        Change::Flip(bit) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bit;
            }
        }
        Change::Set(value) => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        Change::Insert(inserted) => drop(bytes.splice(at..at, inserted)),
        Change::Overwrite(word) => {
            for (byte, new) in bytes[at..].iter_mut().zip(word.bytes()) {
                *byte = new;
            }
        }
        Change::Remove(length) => drop(bytes.drain(piece(length))),
        Change::Repeat(length) => bytes.extend_from_within(piece(length)),
        Change::Move(length, to) => {
            let moved: Vec<_> = bytes.drain(piece(length)).collect();
            let to = to.index(bytes.len() + 1);
            bytes.splice(to..to, moved);
        }
        Change::Cut => bytes.truncate(at),
    }
}
