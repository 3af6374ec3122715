//! What the listener may take of the file descriptors that this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many connections there may be of those that are wanted. The limit is raised as far as this
/// process may; on many hosts it is 1,024 at first.
pub(super) fn connections(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    within(limit.current, wanted)
}

/// Half of the limit at most: anybody can open connections, and a build needs descriptors for its log
/// and for every call to the engine.
fn within(limit: Option<u64>, wanted: usize) -> usize {
    let half = limit.map_or(wanted, |limit| usize::try_from(limit / 2).unwrap_or(wanted));
    wanted.min(half).max(1)
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn connections_leave_half_of_the_descriptors_to_the_builds() {
        for (limit, connections) in [
            (None, 1024),
            (Some(1 << 20), 1024),
            (Some(1024), 512),
            (Some(256), 128),
            (Some(0), 1),
        ] {
            assert_eq!(within(limit, 1024), connections, "{limit:?}");
        }
    }
}
