//! What a hook finds: the commit's files, where it stands, and its environment.

use std::fs;

use harness::{Host, TestRepo, test_image};
use serde_json::json;

use crate::fixture::{Built, Fixture, REPO};

/// The log with `<sha>`, `<short>` and `<id>` for what differs from run to run.
fn generic(fixture: &Fixture, built: &Built) -> String {
    let project = built.id.replace('-', "");
    built
        .log
        .replace(&fixture.sha, "<sha>")
        .replace(&fixture.sha[..7], "<short>")
        .replace(&built.id, "<id>")
        .replace(&project, "<id>")
        .replace(&fixture.github.url(), "<api>")
        .replace(&test_image(), "<image>")
}

#[tokio::test]
async fn files_modes_and_links_arrive_as_they_were_committed() {
    let repo = TestRepo::new();
    repo.write("README.md", "hello\n")
        .write("empty", "")
        .write("a folder/naïve file", "in a folder\n")
        .write("binary", [0, 159, 146, 150, 255])
        .write_executable("bin/test", "#!/bin/sh\necho ran\n")
        .link("link", "a folder/naïve file")
        .link("dangling", "nowhere");
    let sha = repo.commit("Everything that git can hold");
    let fixture = Fixture::hosting(repo, sha).await;
    let hook = "LC_ALL=C; export LC_ALL
        find . -mindepth 1 -printf '%M %s %p -> %l\n' | grep -v ^d | sed 's/ -> $//' | sort -k 3
        ./bin/test; cat link; od -An -tx1 binary";
    let built = fixture.run(fixture.setup(hook)).await;
    built.assert_passed();
    insta::assert_snapshot!(built.log, @r"
    -rw-rw-r-- 6 ./README.md
    -rw-rw-r-- 12 ./a folder/naïve file
    -rwxrwxr-x 19 ./bin/test
    -rw-rw-r-- 5 ./binary
    lrwxrwxrwx 7 ./dangling -> nowhere
    -rw-rw-r-- 0 ./empty
    lrwxrwxrwx 20 ./link -> a folder/naïve file
    ran
    in a folder
     00 9f 92 96 ff
    ");
}

#[tokio::test]
async fn the_checkout_is_one_directory_here_on_the_engines_host_and_at_tarball() {
    let fixture = Fixture::plain().await;
    let hook = "set -e
        test . -ef /tarball
        test \"$PWD\" = \"$(docker volume inspect -f '{{.Mountpoint}}' compose-ci-$build_id)\"
        echo written > here; cat /tarball/here";
    let built = fixture.run(fixture.setup(hook)).await;
    built.assert_passed();
    assert_eq!(built.log, "written\n");
}

#[tokio::test]
async fn the_services_variables_and_the_builds_reach_the_hook() {
    let fixture = Fixture::plain().await;
    let setup = fixture
        .setup("env | grep -vE '^(PWD|HOSTNAME|OLDPWD|SHLVL|_)=' | sort")
        .env("AWS_REGION", "eu-west-1")
        .env("DOCKER_REGISTRY", "registry.example.org");
    let built = fixture.run(setup).await;
    insta::assert_snapshot!(generic(&fixture, &built), @r"
    AWS_REGION=eu-west-1
    BUILD_IMAGE=<image>
    CI=true
    CLICOLOR_FORCE=1
    COMPOSE_PROJECT_NAME=ci-<id>
    DOCKER_REGISTRY=registry.example.org
    FORCE_COLOR=1
    GITHUB_API_URL=<api>
    GITHUB_REPO=octo/hello
    GITHUB_TOKEN=***
    HOME=/root
    HOOK=env | grep -vE '^(PWD|HOSTNAME|OLDPWD|SHLVL|_)=' | sort
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    WEBHOOK_SECRET=***
    branch=main
    build_id=<id>
    commit=<sha>
    repo=octo/hello
    short_commit=<short>
    ");
}

#[tokio::test]
async fn links_that_climb_out_of_the_tree_stay_as_they_are() {
    let (repo, _) = TestRepo::with_files(&[("README.md", "hello\n")]);
    for (link, target) in [
        ("link", "../sibling/config"),
        ("a/b", "../../x"),
        ("up", "../../../../outside"),
        ("tidy", "./x//y/"),
    ] {
        let link = repo.path().join(link);
        fs::create_dir_all(link.parent().expect("a folder")).expect("made");
        std::os::unix::fs::symlink(target, link).expect("linked");
    }
    let sha = repo.commit("Links");
    let fixture = Fixture::hosting(repo, sha).await;
    let hook = "for link in link a/b up tidy; do readlink $link; done";
    let built = fixture.run(fixture.setup(hook)).await;
    built.assert_passed();
    let expected = "../sibling/config\n../../x\n../../../../outside\n./x//y/\n";
    assert_eq!(built.log, expected);
}

#[tokio::test]
async fn hook_env_narrows_what_reaches_the_hook() {
    let fixture = Fixture::plain().await;
    let setup = fixture
        .setup("env | grep -vE '^(PWD|HOSTNAME|OLDPWD|SHLVL|_)=' | sort")
        .env("HOOK_ENV", "AWS_*, DOCKER_REGISTRY")
        .env("AWS_REGION", "eu-west-1")
        .env("DOCKER_REGISTRY", "registry.example.org")
        .env("OTHER", "not this");
    let built = fixture.run(setup).await;
    insta::assert_snapshot!(generic(&fixture, &built), @r"
    AWS_REGION=eu-west-1
    CI=true
    CLICOLOR_FORCE=1
    COMPOSE_PROJECT_NAME=ci-<id>
    DOCKER_REGISTRY=registry.example.org
    FORCE_COLOR=1
    HOME=/root
    HOOK=env | grep -vE '^(PWD|HOSTNAME|OLDPWD|SHLVL|_)=' | sort
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    branch=main
    build_id=<id>
    commit=<sha>
    repo=octo/hello
    short_commit=<short>
    ");
}

#[tokio::test]
async fn what_was_pushed_stands_in_the_environment_and_is_never_run() {
    let hook = "env | grep -E '^(branch|tag)='";
    for (reference, found) in [
        ("refs/heads/feature/ümlaut", "branch=feature/ümlaut\n"),
        ("refs/tags/v1.0", "tag=v1.0\n"),
        (
            "refs/heads/$(touch${IFS}/tarball/pwned);`id`",
            "branch=$(touch${IFS}/tarball/pwned);`id`\n",
        ),
    ] {
        let fixture = Fixture::plain().await;
        let hook = format!("{hook}; test ! -e /tarball/pwned");
        let service = fixture.setup(&hook).start().await;
        let build = fixture.push_to(&service, reference).await;
        let built = fixture.finished(&service, build).await;
        built.assert_passed();
        assert_eq!(built.log, found);
    }
}

#[tokio::test]
async fn an_annotated_tag_builds_the_commit_that_it_is_on() {
    let fixture = Fixture::plain().await;
    let service = fixture.setup("echo $tag $commit").start().await;
    let mut payload = fixture.payload();
    payload["ref"] = "refs/tags/v1.0".into();
    payload["after"] = fixture.repo.annotate("v1.0").into();
    let build = service.push(&payload).await.build_id();
    let built = fixture.finished(&service, build).await;
    built.assert_passed();
    assert_eq!(built.log, format!("v1.0 {}\n", fixture.sha));
}

#[tokio::test]
async fn a_manual_trigger_knows_no_branch() {
    let fixture = Fixture::plain().await;
    let hook = "env | grep -E '^(branch|tag|commit|repo)='";
    let service = fixture.setup(hook).start().await;
    let bearer = format!("Bearer {}", fixture.github.token());
    let body = json!({ "after": fixture.sha }).to_string();
    let answer = service.post("/", &[("authorization", &bearer)], body).await;
    let built = fixture.finished(&service, answer.build_id()).await;
    built.assert_passed();
    let expected = format!("commit={}\nrepo={REPO}\n", fixture.sha);
    assert_eq!(sorted(&built.log), expected);
}

#[tokio::test]
async fn the_tarball_is_fetched_where_github_points_to_without_the_token() {
    let fixture = Fixture::plain().await;
    fixture.run(fixture.setup("true")).await.assert_passed();
    let requests = fixture.github.requests();
    let fetched: Vec<_> = requests
        .iter()
        .filter(|request| request.path.contains("tar"))
        .map(|request| (request.host, request.had_authorization))
        .collect();
    assert_eq!(fetched, [(Host::Api, true), (Host::Codeload, false)]);
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.iter().flat_map(|line| [*line, "\n"]).collect()
}
