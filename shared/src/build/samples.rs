//! Builds for the tests of whatever tells people about builds.

use std::time::{Duration, SystemTime};

use super::{Build, BuildId, BuildRequest, BuildState, ForgeKind, Outcome, Site, WorkerId};

const COMMIT: &str = "0d1a26e67d8f5eaf1f6ba5c57fc3c7d91ac0fd1c";

/// A new request for a commit of this branch.
pub fn request(branch: &str) -> BuildRequest {
    BuildRequest {
        forge: ForgeKind::Github,
        id: BuildId::random(),
        repo: "octo/hello".parse().expect("repo"),
        revision: COMMIT.parse().expect("sha"),
        git_ref: Some(format!("refs/heads/{branch}").parse().expect("ref")),
    }
}

/// A build of a branch whose hook runs.
pub fn running() -> Build {
    let claimed_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_834_400);
    Build {
        request: BuildRequest {
            id: "5f9ef6b0-94f6-5a58-8b5e-3d1f0a3b6c1d".parse().expect("id"),
            ..request("feature/ümlaut")
        },
        commit: Some(COMMIT.parse().expect("sha")),
        state: BuildState::Started {
            by: WorkerId::random(),
        },
        claimed_at,
        started_at: Some(claimed_at),
        ended_at: None,
        status_problem: None,
        log_removed: false,
        is_elsewhere: false,
    }
}

/// The same build after so many seconds.
pub fn ended(outcome: impl Into<Outcome>, seconds: u64) -> Build {
    let running = running();
    Build {
        state: BuildState::Ended(outcome.into()),
        ended_at: Some(running.claimed_at + Duration::from_secs(seconds)),
        ..running
    }
}

/// The outcome of a build that a newer commit ended.
pub fn superseded() -> Outcome {
    let by = "c0ffee6d8f5eaf1f6ba5c57fc3c7d91ac0fd1c00";
    Outcome::Superseded {
        by: by.parse().expect("sha"),
    }
}

/// GitHub as people see it.
pub fn github_site() -> Site {
    Site {
        url: "https://github.com".to_owned(),
        to_commit: "/commit/",
        to_ref: "/tree/",
    }
}
