use super::*;

const MINIMUM: [(&str, &str); 3] = [
    ("HOOK", "make test"),
    ("GITHUB_TOKEN", "t0ken"),
    ("GITHUB_REPO", "octo/hello"),
];

fn env(more: &[(&str, &str)]) -> Env {
    let mut env = Env::from(MINIMUM);
    for (name, value) in more {
        env.0.insert((*name).to_owned(), (*value).to_owned());
    }
    env
}

fn worker(more: &[(&str, &str)]) -> Result<WorkerConfig> {
    WorkerConfig::load(&env(more))
}

#[test]
fn three_variables_are_enough() {
    let config = worker(&[]).expect("valid");
    assert_eq!(config.hook.command, "make test");
    assert_eq!(config.hook.timeout, Duration::from_secs(3600));
    assert_eq!(config.hook.log_limit_bytes, 64 * 1024 * 1024);
    assert_eq!(config.concurrency, 2);
    assert!(config.hook.garbage_collect);
    assert!(matches!(config.mail, MailConfig::Off));
    let handler = HandlerConfig::load(&env(&[])).expect("valid");
    assert_eq!(handler.listen.address.to_string(), "0.0.0.0:8080");
}

#[test]
fn a_webhook_with_a_secret_needs_no_token() {
    let load =
        |secret| HandlerConfig::load(&env(&[("GITHUB_TOKEN", ""), ("WEBHOOK_SECRET", secret)]));
    assert!(load("s3cret").expect("valid").webhook.token.is_none());
    for none in ["", ","] {
        let error = load(none).expect_err("nothing proves a request");
        assert_eq!(error.variable, "GITHUB_TOKEN");
    }
}

#[test]
fn a_problem_is_one_line_that_names_the_variable() {
    let smtp = ("SMTP_HOST", "mail");
    let cases: &[(&[(&str, &str)], &str)] = &[
        (
            &[("HOOK", "")],
            "HOOK: missing (command, run as sh -c \"$HOOK\" in the checkout)",
        ),
        (
            &[("BUILD_TIMEOUT", "soon")],
            "BUILD_TIMEOUT: must be a duration, such as 90s or 1h",
        ),
        (
            &[("BUILD_TIMEOUT", "12h")],
            "BUILD_TIMEOUT: must be above 0 and under 12h",
        ),
        (
            &[("BUILD_MEMORY", "lots")],
            "BUILD_MEMORY: must be a size, such as 64MiB",
        ),
        (
            &[("BUILD_CPUS", "0")],
            "BUILD_CPUS: must be a number of CPUs, such as 1.5",
        ),
        (&[("CONCURRENCY", "0")], "CONCURRENCY: must be 1 to 256"),
        (
            &[("GARBAGE_COLLECT", "no")],
            "GARBAGE_COLLECT: must be one of 1, 0",
        ),
        (
            &[("PUBLIC_URL", "ci.example")],
            "PUBLIC_URL: must be a URL that begins with http:// or https://",
        ),
        (
            &[("DOCKER_HOST", "ssh://x")],
            "DOCKER_HOST: must begin with unix:// or tcp://",
        ),
        (
            &[("DOCKER_HOST", "tcp://")],
            "DOCKER_HOST: must be tcp://host:port",
        ),
        (
            &[smtp],
            "SMTP_FROM: missing (sender, needed with SMTP_HOST)",
        ),
        (
            &[smtp, ("SMTP_TLS", "off")],
            "SMTP_TLS: can only be none; without it the port decides",
        ),
        (
            &[smtp, ("SMTP_USER", "me")],
            "SMTP_PASS: needed with SMTP_USER",
        ),
        (
            &[("SES_TO", "c@d")],
            "SES_FROM: missing (verified sender at Amazon SES, needed with SES_TO; AWS_… as for QUEUE_URL)",
        ),
        (
            &[("SES_FROM", "a@b")],
            "SES_TO: missing (recipients, comma separated, needed with SES_FROM)",
        ),
        (
            &[("SES_FROM", "a@b"), ("SES_TO", &"c@d,".repeat(51))],
            "SES_TO: at most 50 addresses",
        ),
        (
            &[smtp, ("SES_TO", "c@d")],
            "SMTP_HOST: set either SMTP_HOST or SES_FROM and SES_TO",
        ),
        (
            &[("GITHUB_TOKEN", ""), ("GITHUB_TOKEN_FILE", "/nowhere")],
            "GITHUB_TOKEN: GITHUB_TOKEN_FILE: /nowhere: No such file or directory (os error 2)",
        ),
    ];
    for (variables, line) in cases {
        let error = worker(variables).expect_err(line);
        assert_eq!(error.to_string(), *line);
    }
}

#[test]
fn what_is_kept_has_limits_unless_they_are_0() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let limited = worker(&[]).expect("valid").storage;
    let expected = StorageConfig {
        free_min_bytes: 1 << 30,
        log_retention: Some(90 * DAY),
        log_total_limit_bytes: Some(10 << 30),
        image_retention: Some(14 * DAY),
    };
    assert_eq!(limited, expected);

    let all = [
        "DISK_FREE_MIN",
        "LOG_RETENTION",
        "LOG_TOTAL_LIMIT",
        "IMAGE_RETENTION",
    ];
    let kept = worker(&all.map(|name| (name, "0"))).expect("valid").storage;
    let expected = StorageConfig {
        free_min_bytes: 0,
        log_retention: None,
        log_total_limit_bytes: None,
        image_retention: None,
    };
    assert_eq!(kept, expected);
}

#[test]
fn a_secret_can_come_from_a_file() {
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(&file, "from-file\n").expect("written");
    let path = file.path().to_str().expect("utf-8");
    let config = worker(&[("GITHUB_TOKEN", ""), ("GITHUB_TOKEN_FILE", path)]).expect("valid");
    assert_eq!(config.github.token.expose_secret(), "from-file");

    let both = worker(&[("GITHUB_TOKEN_FILE", path)]).expect_err("ambiguous");
    assert_eq!(
        both.to_string(),
        "GITHUB_TOKEN: set either GITHUB_TOKEN or GITHUB_TOKEN_FILE"
    );
}

#[test]
fn a_configuration_never_prints_a_secret() {
    let variables = [("WEBHOOK_SECRET", "hush-hush")];
    let handler = HandlerConfig::load(&env(&variables)).expect("valid");
    let github = worker(&variables).expect("valid").github;
    let printed = format!("{handler:?} {github:?}");
    assert!(
        !printed.contains("t0ken") && !printed.contains("hush"),
        "{printed}"
    );
}

#[test]
fn the_hook_gets_the_services_variables_but_not_its_process() {
    let config = worker(&[
        ("PATH", "/bin"),
        ("PORT", "80"),
        ("STORE_URL", "s3://builds"),
        ("JOURNAL_STREAM", "9:1"),
        ("AWS_REGION", "x"),
        ("DOCKER_HOST", "unix:///x"),
    ]);
    let names: Vec<_> = config.expect("valid").hook.env.into_keys().collect();
    assert_eq!(names, ["AWS_REGION", "GITHUB_REPO", "GITHUB_TOKEN", "HOOK"]);
}

#[test]
fn hook_env_narrows_what_the_hook_gets() {
    let config = worker(&[
        ("HOOK_ENV", "AWS_*, LANG"),
        ("AWS_A", "1"),
        ("LANG", "C"),
        ("X", "y"),
    ]);
    let names: Vec<_> = config.expect("valid").hook.env.into_keys().collect();
    assert_eq!(names, ["AWS_A", "LANG"]);
}

#[test]
fn values_under_secret_names_are_masked() {
    let config = worker(&[
        ("WEBHOOK_SECRET", "one-secret, two-secret"),
        ("NPM_TOKEN", "npm-value"),
        ("DB_PASS", "db-value"),
        ("AWS_SECRET_ACCESS_KEY", "aws-value"),
        ("AWS_ACCESS_KEY_ID", "AKIA-not-secret"),
        ("TINY_TOKEN", "1"),
        ("NAME", "plain"),
        ("DOCKER_REGISTRY", "registry.example.org"),
        ("REGISTRY_USER", "ci"),
        ("REGISTRY_PASS", "pa:ss"),
    ])
    .expect("valid");
    let mut values: Vec<_> = config.secrets.iter().map(|s| s.expose_secret()).collect();
    values.sort_unstable();
    values.dedup();
    assert_eq!(
        values,
        [
            // ci:pa:ss, as it stands in docker's configuration.
            "Y2k6cGE6c3M=",
            "aws-value",
            "db-value",
            "npm-value",
            "one-secret",
            "one-secret, two-secret",
            "pa:ss",
            "t0ken",
            "two-secret"
        ]
    );
}

#[test]
fn repositories_are_a_list_or_an_owner() {
    let filter: RepoFilter = "octo/hello, corp/*".parse().expect("valid");
    for (repo, allowed) in [
        ("octo/hello", true),
        ("Octo/Hello", true),
        ("corp/anything", true),
        ("octo/other", false),
        ("corporate/x", false),
    ] {
        assert_eq!(
            filter.allows(&repo.parse().expect("repo")),
            allowed,
            "{repo}"
        );
    }
    assert_eq!(filter.only(), None);
    let one: RepoFilter = "octo/hello".parse().expect("valid");
    assert_eq!(one.only().map(RepoName::as_str), Some("octo/hello"));
    for bad in ["", ",", "octo", "*/x", "*", "o c/*"] {
        assert!(bad.parse::<RepoFilter>().is_err(), "{bad}");
    }
}

#[test]
fn branches_are_globs_that_cross_slashes() {
    let filter: BranchFilter = "main, release/*, v?.0".parse().expect("valid");
    for (name, allowed) in [
        ("main", true),
        ("maintenance", false),
        ("release/1/hotfix", true),
        ("v2.0", true),
        ("v10.0", false),
    ] {
        assert_eq!(filter.allows(name), allowed, "{name}");
    }
    assert!(BranchFilter::default().allows("any/branch"));
}

#[test]
fn the_engine_is_found_as_the_docker_cli_finds_it() {
    let engine = |variables: &[(&str, &str)]| worker(variables).expect("valid").engine;
    assert_eq!(
        engine(&[]),
        EngineConfig::Unix {
            socket: "/var/run/docker.sock".into()
        }
    );
    for (host, verify, address, tls) in [
        ("tcp://1.2.3.4:2375", "", "1.2.3.4:2375", None),
        ("tcp://ci", "", "ci:2375", None),
        ("tcp://1.2.3.4:2376", "1", "1.2.3.4:2376", Some("/certs")),
        ("tcp://ci/", "1", "ci:2376", Some("/certs")),
        ("tcp://[::1]", "1", "[::1]:2376", Some("/certs")),
    ] {
        let variables = [
            ("DOCKER_HOST", host),
            ("DOCKER_TLS_VERIFY", verify),
            ("DOCKER_CERT_PATH", "/certs"),
        ];
        let expected = EngineConfig::Tcp {
            address: address.into(),
            tls: tls.map(Into::into),
        };
        assert_eq!(engine(&variables), expected, "{host}");
    }
}

#[test]
fn certificates_are_looked_for_where_the_docker_cli_keeps_its_own() {
    let variables = [
        ("DOCKER_HOST", "tcp://ci"),
        ("DOCKER_TLS_VERIFY", "1"),
        ("HOME", "/home/ci"),
    ];
    let expected = EngineConfig::Tcp {
        address: "ci:2376".into(),
        tls: Some("/home/ci/.docker".into()),
    };
    assert_eq!(worker(&variables).expect("valid").engine, expected);
}

#[test]
fn the_port_decides_how_mail_is_protected() {
    let base = [
        ("SMTP_HOST", "mail"),
        ("SMTP_FROM", "a@b"),
        ("SMTP_TO", "c@d, e@f"),
    ];
    for (more, expected) in [
        (&[][..], SmtpTls::StartTls),
        (&[("SMTP_PORT", "465")], SmtpTls::Implicit),
        (&[("SMTP_PORT", "25")], SmtpTls::StartTls),
        (&[("SMTP_PORT", "25"), ("SMTP_TLS", "none")], SmtpTls::Off),
    ] {
        let variables: Vec<_> = base.iter().chain(more).copied().collect();
        let MailConfig::Smtp(smtp) = worker(&variables).expect("valid").mail else {
            panic!("mail is on");
        };
        assert_eq!(smtp.tls, expected);
        assert_eq!(smtp.to, ["c@d", "e@f"]);
    }
}

#[test]
fn mail_by_ses_needs_a_sender_and_recipients() {
    let variables = [
        ("SES_FROM", "a@b"),
        ("SES_TO", "c@d, e@f"),
        ("MAIL_ON", "failure"),
    ];
    let MailConfig::Ses(ses) = worker(&variables).expect("valid").mail else {
        panic!("mail is on");
    };
    assert_eq!(ses.from, "a@b");
    assert_eq!(ses.to, ["c@d", "e@f"]);
    assert_eq!(ses.on, MailOn::Failure);
}
