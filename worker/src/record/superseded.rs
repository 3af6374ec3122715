//! Which builds a newer commit ends. It is noted before a hook is stopped for it: whoever goes on with
//! such a build knows why its hook did not come to its end.

use rusqlite::{OptionalExtension, params};
use shared::build::{BuildId, CommitSha};

use super::{Build, Records, Result, unreadable};

impl Records {
    /// Notes that this newer commit ends a build.
    pub(crate) async fn supersede(&self, build: BuildId, by: &CommitSha) -> Result<()> {
        self.change(
            "INSERT OR REPLACE INTO superseded (build_id, commit_sha) VALUES (?1, ?2)",
            (build.to_string(), by.to_string()),
        )
        .await
    }

    /// The newer commit that ends a build, if there is one.
    pub(crate) async fn superseded_by(&self, build: BuildId) -> Result<Option<CommitSha>> {
        self.with(move |db| {
            let by: Option<String> = db
                .query_row(
                    "SELECT commit_sha FROM superseded WHERE build_id = ?1",
                    [build.to_string()],
                    |row| row.get(0),
                )
                .optional()?;
            by.map(|sha| sha.parse().map_err(|error| unreadable(Box::new(error))))
                .transpose()
        })
        .await
    }

    /// Whether a build of one of these commits, on the same branch, was taken up before this one.
    pub(crate) async fn came_before(
        &self,
        build: &Build,
        commits: [&CommitSha; 2],
    ) -> Result<bool> {
        let id = build.request.id.to_string();
        let repo = build.request.repo.as_str().to_owned();
        let ref_name = build.request.ref_name().map(str::to_owned);
        let [one, other] = commits.map(CommitSha::to_string);
        self.with(move |db| {
            db.query_row(
                "SELECT EXISTS (
                    SELECT 1 FROM builds
                    WHERE repo = ?1 AND ref_name IS ?2 AND id <> ?3 AND commit_sha IN (?4, ?5)
                      AND rowid < (SELECT rowid FROM builds WHERE id = ?3))",
                params![repo, ref_name, id, one, other],
                |row| row.get(0),
            )
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use shared::build::BuildRequest;

    use super::super::tests::{records, request};
    use super::*;

    fn sha(digit: &str) -> CommitSha {
        digit.repeat(40).parse().expect("sha")
    }

    #[tokio::test]
    async fn what_ends_a_build_is_remembered() {
        let (directory, records) = records();
        let build = request("main").id;
        assert_eq!(records.superseded_by(build).await.expect("read"), None);
        records.supersede(build, &sha("a")).await.expect("noted");
        records.supersede(build, &sha("b")).await.expect("noted");
        drop(records);
        let again = Records::open(directory.path()).expect("opened");
        let by = again.superseded_by(build).await.expect("read");
        assert_eq!(by, Some(sha("b")));
    }

    #[tokio::test]
    async fn a_commit_came_before_if_its_build_on_the_branch_was_taken_up_earlier() {
        let (_directory, records) = records();
        let of = |commit: &str, branch| BuildRequest {
            forge: shared::build::ForgeKind::Github,
            revision: sha(commit).as_str().parse().expect("sha"),
            ..request(branch)
        };
        let mut builds = Vec::new();
        for (commit, branch) in [("a", "main"), ("b", "other"), ("c", "main"), ("d", "main")] {
            builds.push(records.begin(&of(commit, branch)).await.expect("begun"));
        }
        let third = &builds[2];
        for (commit, came_before) in [("a", true), ("b", false), ("c", false), ("d", false)] {
            let commits = [&sha("e"), &sha(commit)];
            let found = records.came_before(third, commits).await.expect("read");
            assert_eq!(found, came_before, "{commit}");
        }
    }
}
