//! Every variable that a person can set, in the order and words of `compose-ci --help`.
//!
//! This table is the single list: the help text, the README's table and the hook's environment
//! are checked against it.

/// One environment variable of the service.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name; a secret can also be given as `<name>_FILE`.
    pub name: &'static str,
    /// The value it has when it is not set; empty where there is none.
    pub default: &'static str,
    /// What it does, in one line.
    pub meaning: &'static str,
    /// Whether its value is masked everywhere and may come from a file.
    pub secret: bool,
}

/// Variables that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// The heading in the help text.
    pub title: &'static str,
    /// The group's members.
    pub variables: &'static [Variable],
}

const fn plain(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        default,
        meaning,
        secret: false,
    }
}

const fn secret(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        default,
        meaning,
        secret: true,
    }
}

/// All variables, by group.
pub const GROUPS: &[Group] = &[
    Group {
        title: "The build",
        variables: &[
            plain(
                "HOOK",
                "required",
                "command, run as sh -c \"$HOOK\" in the checkout",
            ),
            plain(
                "BUILD_IMAGE",
                "this service's image",
                "image of the build container",
            ),
            plain(
                "BUILD_TIMEOUT",
                "1h",
                "the hook is stopped after this time; under 12h",
            ),
            plain(
                "BUILD_MEMORY",
                "none",
                "memory limit of the build container, such as 2GiB",
            ),
            plain(
                "BUILD_CPUS",
                "none",
                "CPU limit of the build container, such as 1.5",
            ),
            plain("BUILD_PIDS", "4096", "process limit of the build container"),
            plain(
                "LOG_LIMIT",
                "64MiB",
                "log kept of one build; head and tail are kept, the cut is told",
            ),
            plain(
                "HOOK_ENV",
                "*",
                "which of the service's variables reach the hook, such as AWS_*,DOCKER_REGISTRY",
            ),
            plain(
                "MASK",
                "none",
                "variables to mask, or with a hyphen not to mask, such as NPM_AUTH,-BUILD_TOKEN",
            ),
            plain(
                "GARBAGE_COLLECT",
                "1",
                "0 keeps the build's container, checkout and services",
            ),
            plain(
                "RERUN_INTERRUPTED",
                "0",
                "1 starts a hook again whose container is gone: it runs twice",
            ),
            plain(
                "CANCEL_SUPERSEDED",
                "0",
                "1: a newer push to a branch ends the builds of older ones",
            ),
            plain("CONCURRENCY", "2", "builds at a time"),
            plain(
                "DRAIN_TIMEOUT",
                "8s",
                "how long a stopping service waits for running builds; then they are left for its next start",
            ),
        ],
    },
    Group {
        title: "The registry of the hook's images",
        variables: &[
            plain(
                "DOCKER_REGISTRY",
                "none",
                "how the names of its images begin, such as registry.example.org/team",
            ),
            plain(
                "REGISTRY_USER",
                "none",
                "the hook is logged in there; ECR needs AWS credentials instead",
            ),
            secret("REGISTRY_PASS", "none", "its password or token"),
        ],
    },
    Group {
        title: "GitHub",
        variables: &[
            secret(
                "GITHUB_TOKEN",
                "required",
                "statuses, tarballs; also the webhook's ?token=",
            ),
            plain(
                "GITHUB_REPO",
                "required",
                "owner/name; a comma list or owner/* accepts several",
            ),
            secret(
                "WEBHOOK_SECRET",
                "none",
                "HMAC secrets, comma separated; when set, a token in the URL is refused",
            ),
            plain(
                "WEBHOOK_URL",
                "PUBLIC_URL",
                "the webhook's URL without a token, by which it is found at GitHub",
            ),
            plain(
                "RECONCILE",
                "1 (worker alone: 0)",
                "0: pushes that GitHub could not deliver to the webhook are not looked for",
            ),
            plain(
                "BRANCHES",
                "*",
                "globs of the branches and tags that build, comma separated",
            ),
            plain(
                "STATUS_CONTEXT",
                "compose-ci",
                "name of the commit status; one for each service that builds the same pushes",
            ),
            plain(
                "GITHUB_API_URL",
                "https://api.github.com",
                "GitHub Enterprise, or a stand-in",
            ),
        ],
    },
    Group {
        title: "The service",
        variables: &[
            plain("BIND", "0.0.0.0", "address to listen on"),
            plain("PORT", "8080", "port to listen on (the image sets 80)"),
            plain(
                "CERT_PATH",
                "none",
                "PEM file with key and certificate: HTTPS",
            ),
            plain(
                "PUBLIC_URL",
                "none",
                "where people reach the log pages, such as https://ci.example.org",
            ),
            plain(
                "DATA_DIR",
                "/var/lib/compose-ci",
                "queue, build records, logs",
            ),
            plain(
                "QUEUE_URL",
                "a queue in DATA_DIR",
                "URL of an SQS queue; AWS_… variables and credentials as the aws CLI finds them",
            ),
            plain(
                "DLQ_URL",
                "by its redrive policy",
                "URL of that queue's dead-letter queue",
            ),
            plain(
                "STORE_URL",
                "none",
                "s3://bucket/prefix that all workers of the queue share: a hook starts once among all hosts",
            ),
            plain("LOG_LEVEL", "info", "error, warn, info, debug or trace"),
            plain("LOG_FORMAT", "text", "text or json"),
            plain(
                "SSL_CERT_FILE",
                "embedded roots",
                "bundle of root certificates for outgoing HTTPS",
            ),
        ],
    },
    Group {
        title: "What is kept, and how much of the disks is left free",
        variables: &[
            plain(
                "LOG_RETENTION",
                "90d",
                "the log of a build is removed after this time; 0 keeps it",
            ),
            plain(
                "LOG_TOTAL_LIMIT",
                "10GiB",
                "what all logs together may take up, the oldest go first; 0 is no limit",
            ),
            plain(
                "IMAGE_RETENTION",
                "14d",
                "an image that the worker pulled goes so long after its last build; 0 keeps it",
            ),
            plain(
                "DISK_FREE_MIN",
                "1GiB",
                "a build ends in an error where less is free; 0 does not look",
            ),
        ],
    },
    Group {
        title: "The Docker engine (as the docker CLI reads them)",
        variables: &[
            plain(
                "DOCKER_HOST",
                "unix:///var/run/docker.sock",
                "unix:// or tcp:// address of the engine",
            ),
            plain(
                "DOCKER_TLS_VERIFY",
                "none",
                "not empty: TLS with the certificates below",
            ),
            plain(
                "DOCKER_CERT_PATH",
                "~/.docker",
                "directory of ca.pem, cert.pem and key.pem",
            ),
        ],
    },
    Group {
        title: "Mail, by SMTP or Amazon SES",
        variables: &[
            plain(
                "SMTP_HOST",
                "none",
                "mail server; without it and SES_FROM no mail is sent",
            ),
            plain(
                "SMTP_PORT",
                "587",
                "465 is implicit TLS, every other port STARTTLS",
            ),
            plain("SMTP_TLS", "by port", "none: a local relay without TLS"),
            plain(
                "SMTP_USER",
                "none",
                "user name, where the server asks for one",
            ),
            secret("SMTP_PASS", "none", "its password"),
            plain("SMTP_FROM", "none", "sender, needed with SMTP_HOST"),
            plain(
                "SMTP_TO",
                "none",
                "recipients, comma separated, needed with SMTP_HOST",
            ),
            plain(
                "SES_FROM",
                "none",
                "verified sender at Amazon SES, needed with SES_TO; AWS_… as for QUEUE_URL",
            ),
            plain(
                "SES_TO",
                "none",
                "recipients, comma separated, needed with SES_FROM",
            ),
            plain(
                "MAIL_ON",
                "always",
                "always, failure, or change (of the branch's outcome)",
            ),
        ],
    },
];

/// All variables, without their groups.
pub fn all() -> impl Iterator<Item = &'static Variable> {
    GROUPS.iter().flat_map(|group| group.variables)
}
