//! How far a queue on this machine has come: the records remember that, and so see a queue that has lost
//! pushes.

use std::fmt;

/// The state of a queue in `DATA_DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The queue's own name, made with it.
    pub id: String,
    /// The number of the last message that was ever stored.
    pub accepted: i64,
    /// The messages in it: those that wait and those that are worked on.
    pub waiting: i64,
}

/// Pushes that were accepted, and that the queue does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Another queue, not the beginning of the same one.
    is_another: bool,
    /// At the most so many, as far as the records know.
    pushes: i64,
}

impl Standing {
    /// Compares this queue with the last one that was recorded.
    pub fn loss_since(&self, recorded: &Self) -> Option<Loss> {
        let is_another = self.id != recorded.id;
        let missing = match is_another {
            true => recorded.accepted,
            false => recorded.accepted - self.accepted,
        };
        // What was settled before is no loss.
        let pushes = missing.min(recorded.waiting);
        (missing > 0).then_some(Loss { is_another, pushes })
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = match self.is_another {
            true => "is new, and builds.db knows another one",
            false => "lacks messages that builds.db knows of",
        };
        write!(
            f,
            "DATA_DIR: queue.db {found}: accepted pushes may be lost, "
        )?;
        match self.pushes {
            0 => f.write_str("none that is known to have waited")?,
            1 => f.write_str("1 of which is known to have waited")?,
            pushes => write!(f, "{pushes} of which are known to have waited")?,
        }
        f.write_str(
            "; what is left is built; send the others again from the webhook's recent deliveries at GitHub",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(id: &str, accepted: i64, waiting: i64) -> Standing {
        Standing {
            id: id.to_owned(),
            accepted,
            waiting,
        }
    }

    fn told(found: &Standing, recorded: &Standing) -> Option<String> {
        let loss = found.loss_since(recorded)?;
        Some(loss.to_string())
    }

    #[test]
    fn a_queue_that_went_on_has_lost_nothing() {
        for found in [queue("a", 22, 10), queue("a", 22, 0), queue("a", 23, 0)] {
            assert_eq!(told(&found, &queue("a", 22, 10)), None);
        }
        assert_eq!(told(&queue("b", 0, 0), &queue("a", 0, 0)), None, "both new");
    }

    #[test]
    fn a_new_or_shorter_queue_is_told() {
        insta::assert_snapshot!(
            told(&queue("b", 0, 0), &queue("a", 22, 10)).expect("told"),
            @"DATA_DIR: queue.db is new, and builds.db knows another one: accepted pushes may be lost, 10 of which are known to have waited; what is left is built; send the others again from the webhook's recent deliveries at GitHub"
        );
        insta::assert_snapshot!(
            told(&queue("a", 21, 3), &queue("a", 22, 10)).expect("told"),
            @"DATA_DIR: queue.db lacks messages that builds.db knows of: accepted pushes may be lost, 1 of which is known to have waited; what is left is built; send the others again from the webhook's recent deliveries at GitHub"
        );
        insta::assert_snapshot!(
            told(&queue("b", 4, 4), &queue("a", 22, 0)).expect("told"),
            @"DATA_DIR: queue.db is new, and builds.db knows another one: accepted pushes may be lost, none that is known to have waited; what is left is built; send the others again from the webhook's recent deliveries at GitHub"
        );
    }
}
