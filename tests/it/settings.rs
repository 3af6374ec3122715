//! Settings that cannot be used: exit code 2, and one line that names the variable.

use std::fs;

use futures_util::future::join_all;
use harness::{Setup, run_to_end};

use crate::fixture::{DEADLINE, Fixture, refused};

/// The one line that the service says of this variable; without a value the variable is not set.
async fn line_about(variable: &str, value: Option<&str>) -> String {
    let fixture = Fixture::plain().await;
    let setup = match value {
        Some(value) => complete(fixture.setup("true")).env(variable, value),
        None => complete(fixture.setup("true")).without(variable),
    };
    let told = refused(&setup, "serve").await;
    let [line] = told.lines().collect::<Vec<_>>()[..] else {
        panic!("{variable}={value:?}: {told}");
    };
    let named = format!("compose-ci: {variable}: ");
    assert!(line.starts_with(&named), "{variable}={value:?}: {told}");
    line.to_owned()
}

/// With mail and a registry's login, so that all of it is looked at.
fn complete(setup: Setup) -> Setup {
    setup
        .env("SMTP_HOST", "127.0.0.1")
        .env("SMTP_FROM", "ci@example.org")
        .env("SMTP_TO", "team@example.org")
        .env("DOCKER_REGISTRY", "registry.example.org")
        .env("REGISTRY_USER", "ci")
        .env("REGISTRY_PASS", "its password")
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let required = [
        "HOOK",
        "GITHUB_TOKEN",
        "GITHUB_REPO",
        "SMTP_FROM",
        "SMTP_TO",
        "DOCKER_REGISTRY",
        "REGISTRY_USER",
        "REGISTRY_PASS",
    ];
    let told = join_all(required.map(|variable| line_about(variable, None))).await;
    insta::assert_snapshot!(told.join("\n"), @r#"
    compose-ci: HOOK: missing (command, run as sh -c "$HOOK" in the checkout)
    compose-ci: GITHUB_TOKEN: missing (statuses, tarballs; also the webhook's ?token=)
    compose-ci: GITHUB_REPO: missing (owner/name; a comma list or owner/* accepts several)
    compose-ci: SMTP_FROM: missing (sender, needed with SMTP_HOST)
    compose-ci: SMTP_TO: missing (recipients, comma separated, needed with SMTP_HOST)
    compose-ci: DOCKER_REGISTRY: needed with REGISTRY_USER
    compose-ci: REGISTRY_USER: needed with REGISTRY_PASS
    compose-ci: REGISTRY_PASS: needed with REGISTRY_USER
    "#);
}

#[tokio::test]
async fn what_cannot_be_used_is_named() {
    let unusable = [
        ("GITHUB_REPO", "hello"),
        ("GITHUB_API_URL", "api.github.com"),
        ("GITHUB_TOKEN", "a\nb"),
        ("WEBHOOK_URL", "ci.example.org"),
        ("RECONCILE", "yes"),
        ("BRANCHES", " , "),
        ("BIND", "localhost"),
        ("BIND", "192.0.2.1"),
        ("PORT", "http"),
        ("CERT_PATH", "/nowhere/server.pem"),
        ("PUBLIC_URL", "ci.example.org"),
        ("DATA_DIR", "/dev/null/data"),
        ("QUEUE_URL", "builds"),
        ("QUEUE_URL", "https://queue.example.org/1/builds"),
        ("DLQ_URL", "https://sqs.eu-west-1.amazonaws.com/1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("DOCKER_HOST", "ssh://ci"),
        ("DOCKER_HOST", "unix:///nowhere/docker.sock"),
        ("BUILD_TIMEOUT", "an hour"),
        ("BUILD_TIMEOUT", "12h"),
        ("BUILD_MEMORY", "much"),
        ("BUILD_CPUS", "all"),
        ("BUILD_PIDS", "0"),
        ("LOG_LIMIT", "0"),
        ("GARBAGE_COLLECT", "yes"),
        ("CONCURRENCY", "0"),
        ("DRAIN_TIMEOUT", "soon"),
        ("DOCKER_REGISTRY", "https://registry.example.org"),
        ("REGISTRY_USER", "ci:me"),
        ("SMTP_PORT", "smtp"),
        ("SMTP_TLS", "some"),
        ("SMTP_FROM", "nobody"),
        ("SMTP_TO", "team@example.org, nobody"),
        ("MAIL_ON", "never"),
    ];
    let told = unusable.map(|(variable, value)| line_about(variable, Some(value)));
    let told = join_all(told).await;
    insta::assert_snapshot!(told.join("\n"), @r#"
    compose-ci: GITHUB_REPO: "hello" is not owner/name or owner/*
    compose-ci: GITHUB_API_URL: must be a URL that begins with http:// or https://
    compose-ci: GITHUB_TOKEN: holds a character that no header can carry
    compose-ci: WEBHOOK_URL: must be a URL that begins with http:// or https://
    compose-ci: RECONCILE: must be one of 1, 0
    compose-ci: BRANCHES: names no branch
    compose-ci: BIND: must be an IP address
    compose-ci: BIND: cannot listen on 192.0.2.1:0: Cannot assign requested address (os error 99)
    compose-ci: PORT: must be a port number
    compose-ci: CERT_PATH: /nowhere/server.pem: No such file or directory (os error 2)
    compose-ci: PUBLIC_URL: must be a URL that begins with http:// or https://
    compose-ci: DATA_DIR: the queue cannot be reached: /dev/null/data: File exists (os error 17)
    compose-ci: QUEUE_URL: must be a URL that begins with http:// or https://
    compose-ci: QUEUE_URL: not at amazonaws.com: set AWS_ENDPOINT_URL to that server's URL
    compose-ci: DLQ_URL: must end in /account/name-of-the-queue
    compose-ci: LOG_LEVEL: must be error, warn, info, debug or trace
    compose-ci: LOG_FORMAT: must be one of text, json
    compose-ci: SSL_CERT_FILE: /nowhere/ca.pem: I/O error: No such file or directory (os error 2)
    compose-ci: DOCKER_HOST: must begin with unix:// or tcp://
    compose-ci: DOCKER_HOST: /nowhere/docker.sock does not exist (is the engine's socket mounted?)
    compose-ci: BUILD_TIMEOUT: must be a duration, such as 90s or 1h
    compose-ci: BUILD_TIMEOUT: must be above 0 and under 12h
    compose-ci: BUILD_MEMORY: must be a size, such as 64MiB
    compose-ci: BUILD_CPUS: must be a number of CPUs, such as 1.5
    compose-ci: BUILD_PIDS: must be a number above 0
    compose-ci: LOG_LIMIT: must be a size, such as 64MiB
    compose-ci: GARBAGE_COLLECT: must be one of 1, 0
    compose-ci: CONCURRENCY: must be 1 to 256
    compose-ci: DRAIN_TIMEOUT: must be a duration, such as 90s or 1h
    compose-ci: DOCKER_REGISTRY: must be how images' names begin, such as registry.example.org/team
    compose-ci: REGISTRY_USER: must not hold a colon
    compose-ci: SMTP_PORT: must be a port number
    compose-ci: SMTP_TLS: can only be none; without it the port decides
    compose-ci: SMTP_FROM: not a mail address: nobody
    compose-ci: SMTP_TO: not a mail address: nobody
    compose-ci: MAIL_ON: must be one of always, failure, change
    "#);
}

#[tokio::test]
async fn an_image_is_needed_by_a_service_that_runs_in_none() {
    let fixture = Fixture::plain().await;
    let told = refused(&fixture.setup("true").without("BUILD_IMAGE"), "serve").await;
    // It is the engine that knows the service's own image: the service listens by then.
    insta::assert_snapshot!(told.lines().last().unwrap_or_default(), @"compose-ci: BUILD_IMAGE: missing (this service runs in no container whose image could be used)");
}

#[tokio::test]
async fn a_secret_comes_from_a_variable_or_from_a_file() {
    let fixture = Fixture::plain().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&file, format!("{}\n", fixture.github.token())).expect("written");
    let path = file.path().display().to_string();
    let both = fixture.setup("true").env("GITHUB_TOKEN_FILE", &path);
    let told = refused(&both, "serve").await;
    insta::assert_snapshot!(told.trim_end(), @"compose-ci: GITHUB_TOKEN: set either GITHUB_TOKEN or GITHUB_TOKEN_FILE");

    let built = fixture.run(both.without("GITHUB_TOKEN")).await;
    built.assert_passed();
}

/// What a second service says that is to work on the data of another one.
async fn second_on_the_same_data(setup: impl Fn(&Fixture) -> Setup) -> String {
    let fixture = Fixture::plain().await;
    let service = setup(&fixture).start().await;
    let data = service.data_dir().display().to_string();
    let told = refused(&setup(&fixture).env("DATA_DIR", &data), "serve").await;
    told.trim_end().replace(&data, "<data>")
}

#[tokio::test]
async fn data_that_another_service_works_on_is_left_alone() {
    let told = second_on_the_same_data(|fixture| fixture.setup("true")).await;
    insta::assert_snapshot!(told, @"compose-ci: DATA_DIR: <data> is in use by another process");
    // With a queue elsewhere, the records are still of one worker.
    let queue = "https://sqs.eu-west-1.amazonaws.com/1/ci";
    let elsewhere = |fixture: &Fixture| {
        fixture
            .setup("true")
            .env("QUEUE_URL", queue)
            .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    };
    assert_eq!(second_on_the_same_data(elsewhere).await, told);
}

#[tokio::test]
async fn help_lists_every_variable() {
    let fixture = Fixture::plain().await;
    let output = run_to_end(fixture.setup("true").command(&["--help"]), DEADLINE).await;
    assert!(output.status.success());
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stdout), @r#"
    A small self-hosted CI: a push builds with your own compose file on your own Docker host

    Usage: compose-ci <COMMAND>

    Commands:
      serve        Run the webhook, the queue and a worker in one process
      worker       Run a worker alone; any number share the queue at QUEUE_URL and claim builds in STORE_URL
      reconcile    Queue the pushes of the last three days that GitHub could not deliver, and exit
      healthcheck  Ask the service on this machine whether it is healthy (exit code 0) or not (1)
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Environment variables:

      The build
        HOOK               command, run as sh -c "$HOOK" in the checkout [required]
        BUILD_IMAGE        image of the build container [this service's image]
        BUILD_TIMEOUT      the hook is stopped after this time; under 12h [1h]
        BUILD_MEMORY       memory limit of the build container, such as 2GiB [none]
        BUILD_CPUS         CPU limit of the build container, such as 1.5 [none]
        BUILD_PIDS         process limit of the build container [4096]
        LOG_LIMIT          log kept of one build; head and tail are kept, the cut is told [64MiB]
        HOOK_ENV           which of the service's variables reach the hook, such as AWS_*,DOCKER_REGISTRY [*]
        MASK               variables to mask, or with a hyphen not to mask, such as NPM_AUTH,-BUILD_TOKEN [none]
        GARBAGE_COLLECT    0 keeps the build's container, checkout and services [1]
        RERUN_INTERRUPTED  1 starts a hook again whose container is gone: it runs twice [0]
        CANCEL_SUPERSEDED  1: a newer push to a branch ends the builds of older ones [0]
        CONCURRENCY        builds at a time [2]
        DRAIN_TIMEOUT      how long a stopping service waits for running builds; then they are left for its next start [8s]

      The registry of the hook's images
        DOCKER_REGISTRY    how the names of its images begin, such as registry.example.org/team [none]
        REGISTRY_USER      the hook is logged in there; ECR needs AWS credentials instead [none]
        REGISTRY_PASS      * its password or token [none]

      GitHub
        GITHUB_TOKEN       * statuses, tarballs; also the webhook's ?token= [required]
        GITHUB_REPO        owner/name; a comma list or owner/* accepts several [required]
        WEBHOOK_SECRET     * HMAC secrets, comma separated; when set, a token in the URL is refused [none]
        WEBHOOK_URL        the webhook's URL without a token, by which it is found at GitHub [PUBLIC_URL]
        RECONCILE          0: pushes that GitHub could not deliver to the webhook are not looked for [1 (worker alone: 0)]
        BRANCHES           globs of the branches and tags that build, comma separated [*]
        STATUS_CONTEXT     name of the commit status; one for each service that builds the same pushes [compose-ci]
        GITHUB_API_URL     GitHub Enterprise, or a stand-in [https://api.github.com]

      The service
        BIND               address to listen on [0.0.0.0]
        PORT               port to listen on (the image sets 80) [8080]
        CERT_PATH          PEM file with key and certificate: HTTPS [none]
        PUBLIC_URL         where people reach the log pages, such as https://ci.example.org [none]
        DATA_DIR           queue, build records, logs [/var/lib/compose-ci]
        QUEUE_URL          URL of an SQS queue; AWS_… variables and credentials as the aws CLI finds them [a queue in DATA_DIR]
        DLQ_URL            URL of that queue's dead-letter queue [by its redrive policy]
        STORE_URL          s3://bucket/prefix that all workers of the queue share: a hook starts once among all hosts [none]
        LOG_LEVEL          error, warn, info, debug or trace [info]
        LOG_FORMAT         text or json [text]
        SSL_CERT_FILE      bundle of root certificates for outgoing HTTPS [embedded roots]

      What is kept, and how much of the disks is left free
        LOG_RETENTION      the log of a build is removed after this time; 0 keeps it [90d]
        LOG_TOTAL_LIMIT    what all logs together may take up, the oldest go first; 0 is no limit [10GiB]
        IMAGE_RETENTION    an image that the worker pulled goes so long after its last build; 0 keeps it [14d]
        DISK_FREE_MIN      a build ends in an error where less is free; 0 does not look [1GiB]

      The Docker engine (as the docker CLI reads them)
        DOCKER_HOST        unix:// or tcp:// address of the engine [unix:///var/run/docker.sock]
        DOCKER_TLS_VERIFY  not empty: TLS with the certificates below [none]
        DOCKER_CERT_PATH   directory of ca.pem, cert.pem and key.pem [~/.docker]

      Mail, by SMTP or Amazon SES
        SMTP_HOST          mail server; without it and SES_FROM no mail is sent [none]
        SMTP_PORT          465 is implicit TLS, every other port STARTTLS [587]
        SMTP_TLS           none: a local relay without TLS [by port]
        SMTP_USER          user name, where the server asks for one [none]
        SMTP_PASS          * its password [none]
        SMTP_FROM          sender, needed with SMTP_HOST [none]
        SMTP_TO            recipients, comma separated, needed with SMTP_HOST [none]
        SES_FROM           verified sender at Amazon SES, needed with SES_TO; AWS_… as for QUEUE_URL [none]
        SES_TO             recipients, comma separated, needed with SES_FROM [none]
        MAIL_ON            always, failure, or change (of the branch's outcome) [always]

    Every secret (marked *) can also come from a file named by <NAME>_FILE.
    "#);
}

#[tokio::test]
async fn a_worker_alone_needs_a_queue_that_others_can_reach() {
    let fixture = Fixture::plain().await;
    let told = refused(&fixture.setup("true"), "worker").await;
    insta::assert_snapshot!(told.trim_end(), @"compose-ci: QUEUE_URL: missing (the queue in DATA_DIR serves compose-ci serve alone)");
    let elsewhere = fixture.setup("true");
    let elsewhere = elsewhere.env("QUEUE_URL", "http://127.0.0.1:9/1/builds");
    let elsewhere = elsewhere.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    // Not to ask a machine at AWS where it is.
    let elsewhere = elsewhere.env("AWS_EC2_METADATA_DISABLED", "true");
    let told = refused(&elsewhere, "worker").await;
    insta::assert_snapshot!(told.trim_end(), @"compose-ci: AWS_REGION: missing (QUEUE_URL does not name the region)");
}
