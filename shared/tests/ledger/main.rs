//! The ledger's promises among several workers, over a store that is spoken to by the wire.

mod world;
mod claims;
mod writes;
mod probe;
