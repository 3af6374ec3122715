//! The AWS shape: what `infra/aws/deploy` makes, and a push that goes all the way through it.
//!
//! The emulator runs no functions: the real ones run on the harness's Lambda, with the variables
//! that the stack's functions have. And it enforces no policies: a test reads them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use harness::{
    Aws, Endpoint, Fault, LambdaHandler, Process, REGION, Request, Setup, Stack, WEBHOOK_SECRET,
    sign,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::fixture::{DEADLINE, Fixture, REPO, at_gate, open_gate, told};
use crate::reconcile::{Missing, url};
use crate::scheduled::{self, scheduled_event};

/// The stack's name, and by that the family of its queues, whose clock a test can stop.
const STACK: &str = "team";

/// Longer than a worker ever holds a message without prolonging that.
const LEASE_OVER: Duration = Duration::from_secs(5 * 60 + 1);

/// The handler, which is built with these tests where the whole workspace's are.
fn handler() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_compose-ci")).with_file_name("compose-ci-handler");
    assert!(
        program.exists(),
        "{} is missing: run cargo build --package compose-ci-handler",
        program.display()
    );
    program
}

/// A stack, and what its deploy says of it.
struct Deployed<'a> {
    aws: &'a Aws,
    stack: Stack<'a>,
    outputs: BTreeMap<String, String>,
}

impl<'a> Deployed<'a> {
    async fn of(aws: &'a Aws, fixture: &Fixture) -> Self {
        Self::with(aws, fixture, &[]).await
    }

    async fn with(aws: &'a Aws, fixture: &Fixture, more: &[(&str, &str)]) -> Self {
        let stack = aws.stack(STACK, &handler()).await;
        let variables = [
            ("GITHUB_TOKEN", fixture.github.token()),
            ("GITHUB_REPO", REPO),
            ("WEBHOOK_SECRET", WEBHOOK_SECRET),
            ("SES_FROM", "ci@example.org"),
        ];
        stack.deploy(&[&variables[..], more].concat()).await;
        let outputs = stack.outputs().await;
        Self {
            aws,
            stack,
            outputs,
        }
    }

    /// The variables of the function that this output names.
    async fn variables_of(&self, output: &str) -> BTreeMap<String, String> {
        let name = &*self.outputs[output];
        let asked = ["lambda", "get-function-configuration", "--function-name"];
        let answer = self.stack.cli(&[&asked[..], &[name]].concat()).await;
        let variables = answer["Environment"]["Variables"].clone();
        serde_json::from_value(variables).expect("texts")
    }

    /// The variables of the webhook.
    async fn variables(&self) -> BTreeMap<String, String> {
        self.variables_of("HandlerFunction").await
    }

    /// The stack's handler on Lambda.
    async fn start_handler(&self) -> LambdaHandler {
        let mut variables = self.variables().await;
        variables.insert("AWS_ENDPOINT_URL".to_owned(), self.aws.endpoint_url());
        LambdaHandler::start(&handler(), variables).await
    }

    /// The stack's search for missed pushes on Lambda.
    async fn start_reconciler(&self) -> LambdaHandler {
        let mut variables = self.variables_of("ReconcileFunction").await;
        variables.insert("AWS_ENDPOINT_URL".to_owned(), self.aws.endpoint_url());
        LambdaHandler::start(&scheduled::program(), variables).await
    }

    /// A worker that knows of the stack what its outputs say.
    fn start_worker(&self, setup: Setup) -> Worker {
        let setup = setup
            .without("WEBHOOK_SECRET")
            .env("QUEUE_URL", &self.outputs["QueueUrl"])
            .env("DLQ_URL", &self.outputs["DeadLetterQueueUrl"])
            .env("STORE_URL", &self.outputs["StoreUrl"])
            .env("SES_FROM", "ci@example.org")
            .env("SES_TO", "team@example.org")
            .env("AWS_ENDPOINT_URL", self.aws.endpoint_url())
            .env("AWS_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "an-id")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret");
        Worker {
            process: Process::start(setup.command(&["worker"])),
            _setup: setup,
        }
    }

    /// Lets time pass: leases of messages and claims to builds end.
    async fn let_leases_end(&self) {
        let bucket = self.outputs["StoreUrl"].trim_start_matches("s3://");
        self.aws.age_objects(bucket, LEASE_OVER).await;
        self.aws.advance_clock(STACK, LEASE_OVER).await;
    }

    /// How many messages the stack's queue and its dead letters hold.
    async fn messages(&self) -> [u64; 2] {
        [
            self.aws.messages(&self.outputs["QueueUrl"]).await,
            self.aws.messages(&self.outputs["DeadLetterQueueUrl"]).await,
        ]
    }
}

/// A process `compose-ci worker`.
struct Worker {
    process: Process,
    /// Its data lie there.
    _setup: Setup,
}

impl Worker {
    async fn stop(&mut self) -> ExitStatus {
        self.process.terminate();
        self.process.wait_for_end(DEADLINE).await
    }
}

/// What API Gateway's HTTP API makes of GitHub's delivery of a push: payload format 2.0.
fn push_event(payload: &Value) -> Value {
    let body = payload.to_string();
    json!({
        "version": "2.0",
        "routeKey": "POST /",
        "rawPath": "/",
        "rawQueryString": "",
        "headers": {
            "content-type": "application/json",
            "user-agent": "GitHub-Hookshot/044aadd",
            "x-github-delivery": Uuid::new_v4().to_string(),
            "x-github-event": "push",
            "x-hub-signature-256": sign(WEBHOOK_SECRET, body.as_bytes()),
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "abcdefghij",
            "domainName": format!("abcdefghij.execute-api.{REGION}.amazonaws.com"),
            "domainPrefix": "abcdefghij",
            "http": {
                "method": "POST",
                "path": "/",
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "GitHub-Hookshot/044aadd",
            },
            "requestId": Uuid::new_v4().to_string(),
            "routeKey": "POST /",
            "stage": "$default",
            "time": "22/Nov/2026:12:00:00 +0000",
            "timeEpoch": 1_795_348_800_000_u64,
        },
        "body": BASE64_STANDARD.encode(body),
        "isBase64Encoded": true,
    })
}

/// Pushes the fixture's commit, and answers the build's id.
async fn push(handler: &mut LambdaHandler, fixture: &Fixture) -> String {
    let response = handler.invoke(&push_event(&fixture.payload())).await;
    assert_eq!(response["statusCode"], 202, "{response}");
    let uuid = response["body"].as_str().unwrap_or_default().trim_end();
    uuid.parse::<Uuid>().expect("a build's id").to_string()
}

#[tokio::test]
async fn pushes_go_by_api_gateway_to_two_workers_and_their_mail_by_ses() {
    let aws = Aws::start().await;
    aws.verify_email("example.org").await;
    let mut fixture = Fixture::plain().await;
    let deployed = Deployed::of(&aws, &fixture).await;
    let mut handler = deployed.start_handler().await;

    let mut pushed = Vec::new();
    for number in ["1", "2"] {
        fixture.commit("number", number);
        let build = push(&mut handler, &fixture).await;
        pushed.push((build, fixture.sha.clone()));
    }
    assert_eq!(deployed.messages().await, [2, 0]);

    // Each hook waits for the other one: both workers must build.
    let meet = "touch /tmp/gate; until [ -e /tmp/open ]; do sleep 0.02; done; cat number";
    let one_at_a_time = || fixture.setup(meet).env("CONCURRENCY", "1");
    let mut workers = [
        deployed.start_worker(one_at_a_time()),
        deployed.start_worker(one_at_a_time()),
    ];
    for (build, _) in &pushed {
        at_gate(&fixture.engine, build).await;
    }
    for (build, commit) in &pushed {
        open_gate(build).await;
        let statuses = fixture.github.wait_for_end(commit, DEADLINE).await;
        assert_eq!(
            told(&statuses),
            ["Pending: building", "Success: passed in …"]
        );
        fixture.assert_nothing_left(build).await;
    }
    let mails = aws.wait_for_mails(2).await;
    for (build, _) in &pushed {
        let mail = mails.iter().find(|mail| mail.text.contains(build));
        let mail = mail.unwrap_or_else(|| panic!("no mail tells of {build}: {mails:#?}"));
        assert_eq!(
            [&*mail.from, &mail.to],
            ["ci@example.org", "team@example.org"]
        );
    }
    for worker in &mut workers {
        assert!(worker.stop().await.success(), "{}", worker.process.output());
        let log = worker.process.output();
        assert_eq!(log.matches(" finished ").count(), 1, "{log}");
    }
    assert_eq!(deployed.messages().await, [0, 0]);
}

#[tokio::test]
async fn a_push_that_three_workers_did_not_survive_becomes_a_dead_letter_and_an_error() {
    let aws = Aws::start().await;
    aws.verify_email("example.org").await;
    aws.advance_clock(STACK, Duration::ZERO).await;
    let fixture = Fixture::plain().await;
    let deployed = Deployed::of(&aws, &fixture).await;
    let mut handler = deployed.start_handler().await;
    let build = push(&mut handler, &fixture).await;

    fixture.github.fail_next(Endpoint::Tarball, 3, Fault::Hang);
    let fetches = |request: &Request| request.path.contains("/tarball/");
    for attempt in 1..=3 {
        let mut worker = deployed.start_worker(fixture.setup("true"));
        let fetched = fixture.github.wait_for_requests(attempt, fetches, DEADLINE);
        fetched.await;
        worker.process.kill();
        assert_eq!(deployed.messages().await, [1, 0]);
        deployed.let_leases_end().await;
    }

    // SQS moves a message when it is asked for it once more. The clock stands still: no wait.
    let asked = json!({ "QueueUrl": deployed.outputs["QueueUrl"], "WaitTimeSeconds": 0 });
    aws.sqs("ReceiveMessage", asked).await;
    assert_eq!(deployed.messages().await, [0, 1]);
    let mut worker = deployed.start_worker(fixture.setup("true"));
    let statuses = fixture.github.wait_for_end(&fixture.sha, DEADLINE).await;
    assert_eq!(
        told(&statuses),
        [
            "Pending: building",
            "Error: error: gave up after 3 attempts (the worker was interrupted)"
        ]
    );
    let mails = aws.wait_for_mails(1).await;
    assert!(mails[0].text.contains("gave up"), "{}", mails[0].text);
    fixture.assert_nothing_left(&build).await;
    worker.stop().await;
    assert_eq!(deployed.messages().await, [0, 0]);
}

#[tokio::test]
async fn pushes_that_the_webhook_missed_are_queued_and_built_once_each() {
    let aws = Aws::start().await;
    aws.verify_email("example.org").await;
    let mut missing = Missing::start().await;
    let webhook_url = url(missing.port);
    let api_url = missing.fixture.github.url();
    let more = [("WEBHOOK_URL", &*webhook_url), ("GITHUB_API_URL", &api_url)];
    let deployed = Deployed::with(&aws, &missing.fixture, &more).await;
    assert_eq!(deployed.outputs["WebhookUrl"], webhook_url);

    let commits = missing.miss(2).await;
    let mut function = deployed.start_reconciler().await;
    for _ in 0..2 {
        function.invoke(&scheduled_event()).await;
        assert_eq!(deployed.messages().await, [2, 0]);
    }
    let mut worker = deployed.start_worker(missing.fixture.setup("true"));
    missing.assert_built_once(&commits).await;
    aws.wait_for_mails(2).await;
    assert!(worker.stop().await.success(), "{}", worker.process.output());
    assert_eq!(deployed.messages().await, [0, 0]);
}

#[tokio::test]
async fn a_setting_turns_the_search_for_missed_pushes_off_and_on() {
    let aws = Aws::start().await;
    let fixture = Fixture::plain().await;
    let stack = aws.stack(STACK, &handler()).await;
    let token = ("GITHUB_TOKEN", fixture.github.token());
    let off = [token, ("GITHUB_REPO", REPO), ("RECONCILE", "0")];
    stack.deploy(&off).await;
    let without = aws.resources().await;
    assert!(without["events Rules"].is_empty(), "{without:#?}");
    assert_eq!(without["lambda Functions"].len(), 1, "{without:#?}");
    assert!(!stack.outputs().await.contains_key("ReconcileFunction"));

    stack.deploy(&[("RECONCILE", "1")]).await;
    let with = aws.resources().await;
    assert_eq!(with["events Rules"].len(), 1, "{with:#?}");
    let function = stack.outputs().await["ReconcileFunction"].clone();
    assert!(with["lambda Functions"].contains(&function), "{with:#?}");

    stack.deploy(&[("RECONCILE", "0")]).await;
    assert_eq!(aws.resources().await, without);
}

#[tokio::test]
async fn a_second_deploy_changes_nothing_and_destroy_leaves_nothing() {
    let aws = Aws::start().await;
    let fixture = Fixture::plain().await;
    let stack = aws.stack(STACK, &handler()).await;
    let before = aws.resources().await;
    stack
        .deploy(&[
            ("GITHUB_TOKEN", fixture.github.token()),
            ("GITHUB_REPO", REPO),
            ("ALARM_EMAIL", "ops@example.org"),
            ("WORKER_MAX", "2"),
            ("WORKER_IMAGE", "registry.example.org/compose-ci"),
            ("HOOK", r#"docker-compose run tests --filter "a b""#),
        ])
        .await;
    let made = aws.resources().await;
    for (kind, ids) in &made {
        assert!(ids.len() > before[kind].len(), "no {kind}: {made:#?}");
    }

    let again = stack.deploy(&[]).await;
    assert_eq!(again.matches("No changes to deploy").count(), 2, "{again}");
    assert_eq!(aws.resources().await, made);

    // Destroy must not stumble over the key that a worker elsewhere uses, or over what it stored.
    let outputs = stack.outputs().await;
    let user = &outputs["WorkerUser"];
    let key = ["iam", "create-access-key", "--user-name", user];
    stack.cli(&key).await;
    let bucket = bucket_of(&outputs);
    let object = ["s3api", "put-object", "--key", "builds/a-build"];
    stack
        .cli(&[&object[..], &["--bucket", bucket]].concat())
        .await;
    stack.destroy().await;
    assert_eq!(aws.resources().await, before);
}

#[tokio::test]
async fn a_new_secret_reaches_the_function_and_no_argument() {
    let aws = Aws::start().await;
    let fixture = Fixture::plain().await;
    let deployed = Deployed::of(&aws, &fixture).await;
    assert_eq!(deployed.variables().await["WEBHOOK_SECRET"], WEBHOOK_SECRET);

    let new = "another webhook secret";
    deployed.stack.deploy(&[("WEBHOOK_SECRET", new)]).await;
    assert_eq!(deployed.variables().await["WEBHOOK_SECRET"], new);

    let calls = deployed.stack.calls();
    assert!(calls.contains("put-secret-value"), "{calls}");
    for secret in [fixture.github.token(), WEBHOOK_SECRET, new] {
        assert!(!calls.contains(secret), "{calls}");
    }
}

#[tokio::test]
async fn a_deploy_says_in_one_line_what_is_missing() {
    let aws = Aws::start().await;
    let stack = aws.stack(STACK, &handler()).await;
    let repo = ("GITHUB_REPO", REPO);
    let token = ("GITHUB_TOKEN", "a-token");
    for (variables, line) in [
        (&[][..], "error: GITHUB_REPO: missing\n"),
        (&[repo], "error: GITHUB_TOKEN: missing\n"),
        (
            &[repo, token, ("QUEUE_TYPE", "lifo")],
            "error: QUEUE_TYPE: must be standard or fifo\n",
        ),
        (
            &[repo, token, ("WORKER_MAX", "1")],
            "error: WORKER_IMAGE: needed with WORKER_MAX\n",
        ),
        (
            &[repo, token, ("HANDLER_ZIP", "/no.zip")],
            "error: HANDLER_ZIP: there is no /no.zip\n",
        ),
        (
            &[repo, token, ("RECONCILE_ZIP", "/no.zip")],
            "error: RECONCILE_ZIP: there is no /no.zip\n",
        ),
        (
            &[repo, token, ("RECONCILE", "no")],
            "error: RECONCILE: must be 0 or 1\n",
        ),
    ] {
        let output = stack.try_deploy(variables).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), line);
    }
    assert!(!stack.calls().contains("create"), "{}", stack.calls());
}

/// `actions on resources` of each statement of a policy, with its condition.
fn statements(policy: &Value) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let several = value.as_array().cloned();
        let all = several.unwrap_or_else(|| vec![value.clone()]);
        all.iter()
            .map(|text| text.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let statement = |statement: &Value| {
        let [actions, resources] = ["Action", "Resource"].map(|name| texts(&statement[name]));
        let condition = match &statement["Condition"] {
            Value::Null => String::new(),
            condition => format!(" if {condition}"),
        };
        let effect = statement["Effect"].as_str().unwrap_or_default();
        format!(
            "{effect} {} on {}{condition}",
            actions.join(" "),
            resources.join(" ")
        )
    };
    let all = policy["Statement"].as_array().expect("statements");
    all.iter().map(statement).collect()
}

/// The statements of the policy that stands in the one role whose name begins so.
async fn statements_of_role(stack: &Stack<'_>, prefix: &str, policy: &str) -> Vec<String> {
    let query = format!("Roles[?starts_with(RoleName, '{prefix}')].RoleName");
    let names = stack.cli(&["iam", "list-roles", "--query", &query]).await;
    let name = names[0].as_str().expect("a role");
    let asked = ["iam", "get-role-policy", "--role-name", name];
    let answer = stack
        .cli(&[&asked[..], &["--policy-name", policy]].concat())
        .await;
    statements(&answer["PolicyDocument"])
}

async fn statements_of_policy(stack: &Stack<'_>, arn: &str) -> Vec<String> {
    let asked = ["iam", "get-policy-version", "--policy-arn", arn];
    let answer = stack
        .cli(&[&asked[..], &["--version-id", "v1"]].concat())
        .await;
    statements(&answer["PolicyVersion"]["Document"])
}

#[tokio::test]
async fn no_part_may_or_knows_more_than_it_needs() {
    let aws = Aws::start().await;
    let fixture = Fixture::plain().await;
    let deployed = Deployed::of(&aws, &fixture).await;
    let Deployed { stack, outputs, .. } = &deployed;
    assert_told_no_more_than_it_reads(&deployed).await;
    assert_access_log_lacks_query(&deployed).await;
    assert_started_by_its_schedule_alone(&deployed).await;
    assert_store_is_private(&deployed).await;

    let store = bucket_of(outputs);
    let handler = statements_of_role(stack, "team-HandlerRole", "queue-pushes").await;
    insta::assert_snapshot!(handler.join("\n"), @r"
    Allow sqs:SendMessage on arn:aws:sqs:eu-west-1:123456789012:team-builds
    Allow logs:CreateLogStream logs:PutLogEvents on arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/team-handler
    ");
    let reconciler = statements_of_role(stack, "team-ReconcilerRole", "queue-missed-pushes").await;
    insta::assert_snapshot!(reconciler.join("\n").replace(store, "store"), @r"
    Allow sqs:SendMessage on arn:aws:sqs:eu-west-1:123456789012:team-builds
    Allow s3:GetObject on arn:aws:s3:::store/builds/*
    Allow s3:ListBucket on arn:aws:s3:::store
    Allow logs:CreateLogStream logs:PutLogEvents on arn:aws:logs:eu-west-1:123456789012:log-group:/aws/lambda/team-reconcile
    ");
    let worker = statements_of_policy(stack, &outputs["WorkerPolicyArn"]).await;
    insta::assert_snapshot!(worker.join("\n").replace(store, "store"), @r#"
    Allow sqs:ReceiveMessage sqs:ChangeMessageVisibility sqs:DeleteMessage on arn:aws:sqs:eu-west-1:123456789012:team-builds arn:aws:sqs:eu-west-1:123456789012:team-dead
    Allow s3:GetObject s3:PutObject s3:DeleteObject on arn:aws:s3:::store/builds/* arn:aws:s3:::store/probe/*
    Allow s3:ListBucket on arn:aws:s3:::store
    Allow ses:SendRawEmail on * if {"StringEquals":{"ses:FromAddress":"ci@example.org"}}
    "#);
    for url in [&outputs["QueueUrl"], &outputs["DeadLetterQueueUrl"]] {
        let asked = json!({ "QueueUrl": url, "AttributeNames": ["Policy"] });
        let answer = aws.sqs("GetQueueAttributes", asked).await;
        let policy = answer["Attributes"]["Policy"].as_str().expect("a policy");
        let policy: Value = serde_json::from_str(policy).expect("JSON");
        let [deny] = &statements(&policy)[..] else {
            panic!("{policy}")
        };
        let without_tls = r#"if {"Bool":{"aws:SecureTransport":"false"}}"#;
        assert!(
            deny.starts_with("Deny sqs:* on ") && deny.ends_with(without_tls),
            "{deny}"
        );
    }
}

async fn assert_told_no_more_than_it_reads(deployed: &Deployed<'_>) {
    let names = async |output| {
        let variables = deployed.variables_of(output).await;
        variables.into_keys().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        names("HandlerFunction").await,
        "BRANCHES GITHUB_REPO LOG_FORMAT QUEUE_URL STATUS_CONTEXT WEBHOOK_SECRET"
    );
    assert_eq!(
        names("ReconcileFunction").await,
        "BRANCHES GITHUB_API_URL GITHUB_REPO GITHUB_TOKEN LOG_FORMAT QUEUE_URL STATUS_CONTEXT STORE_URL WEBHOOK_URL"
    );
    let reconciler = deployed.variables_of("ReconcileFunction").await;
    assert_eq!(reconciler["WEBHOOK_URL"], deployed.outputs["WebhookUrl"]);
    assert_eq!(reconciler["STORE_URL"], deployed.outputs["StoreUrl"]);
}

/// Nobody but the schedule starts the function that has the token.
async fn assert_started_by_its_schedule_alone(deployed: &Deployed<'_>) {
    let Deployed { stack, outputs, .. } = deployed;
    let rules = stack.cli(&["events", "list-rules"]).await;
    let rule = &rules["Rules"][0];
    assert_eq!(rule["ScheduleExpression"], "rate(15 minutes)");
    let name = rule["Name"].as_str().expect("a name");
    let asked = ["events", "list-targets-by-rule", "--rule", name];
    let targets = stack.cli(&asked).await;
    let function = &outputs["ReconcileFunction"];
    let target = targets["Targets"][0]["Arn"].as_str().expect("a target");
    assert!(
        target.ends_with(&format!(":function:{function}")),
        "{target}"
    );

    let asked = ["lambda", "get-policy", "--function-name", function];
    let policy = stack.cli(&asked).await;
    let policy: Value =
        serde_json::from_str(policy["Policy"].as_str().expect("a policy")).expect("JSON");
    let [statement] = &policy["Statement"].as_array().expect("statements")[..] else {
        panic!("{policy}")
    };
    assert_eq!(statement["Principal"]["Service"], "events.amazonaws.com");
    assert_eq!(
        statement["Condition"]["ArnLike"]["AWS:SourceArn"],
        rule["Arn"]
    );
}

/// The bucket of the store.
fn bucket_of(outputs: &BTreeMap<String, String>) -> &str {
    let bucket = outputs["StoreUrl"].strip_prefix("s3://");
    bucket.expect("a bucket's URL")
}

/// What is in the store is encrypted, expires, and is nobody's business.
async fn assert_store_is_private(deployed: &Deployed<'_>) {
    let bucket = bucket_of(&deployed.outputs);
    let asked = async |what| {
        let asked = ["s3api", what, "--bucket", bucket];
        deployed.stack.cli(&asked).await
    };
    let blocked = asked("get-public-access-block").await;
    let blocked = blocked["PublicAccessBlockConfiguration"].as_object();
    let blocked = blocked.expect("settings");
    assert!(blocked.len() == 4 && blocked.values().all(|is| *is == true));
    let encryption = asked("get-bucket-encryption").await;
    let rule = &encryption["ServerSideEncryptionConfiguration"]["Rules"][0];
    let by_default = &rule["ApplyServerSideEncryptionByDefault"];
    assert_eq!(by_default["SSEAlgorithm"], "AES256");
    assert_eq!(asked("get-bucket-versioning").await["Status"], Value::Null);

    let policy = asked("get-bucket-policy").await;
    let policy = policy["Policy"].as_str().expect("a policy");
    let policy = statements(&serde_json::from_str(policy).expect("JSON"));
    insta::assert_snapshot!(policy.join("\n").replace(bucket, "store"), @r#"Deny s3:* on arn:aws:s3:::store arn:aws:s3:::store/* if {"Bool":{"aws:SecureTransport":"false"}}"#);
    let lifecycle = asked("get-bucket-lifecycle-configuration").await;
    let rules = lifecycle["Rules"].as_array().expect("rules");
    let rules: Vec<_> = rules.iter().map(Value::to_string).collect();
    insta::assert_snapshot!(rules.join("\n"), @r#"
    {"Expiration":{"Days":90},"Filter":{"Prefix":"builds/"},"ID":"builds","Status":"Enabled"}
    {"Expiration":{"Days":1},"Filter":{"Prefix":"probe/"},"ID":"probes","Status":"Enabled"}
    {"AbortIncompleteMultipartUpload":{"DaysAfterInitiation":1},"Filter":{"Prefix":""},"ID":"uploads","Status":"Enabled"}
    "#);
}

async fn assert_access_log_lacks_query(deployed: &Deployed<'_>) {
    let webhook = &deployed.outputs["WebhookUrl"];
    let api = webhook.trim_start_matches("https://").split('.').next();
    let asked = [
        "apigatewayv2",
        "get-stages",
        "--api-id",
        api.expect("an id"),
    ];
    let stages = deployed.stack.cli(&asked).await;
    let format = stages["Items"][0]["AccessLogSettings"]["Format"].as_str();
    let format: Value = serde_json::from_str(format.expect("a format")).expect("JSON");
    assert_eq!(format["path"], "$context.path");
    // Nothing else that API Gateway can log holds what stands behind the question mark.
    for variable in ["querystring", "routeKey", "integration.request"] {
        assert!(!format.to_string().contains(variable), "{format}");
    }
}
