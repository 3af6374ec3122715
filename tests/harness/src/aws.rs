//! AWS for a test: `aws/emulator.py`, whose clock the test moves.

mod s3;
mod ses;
mod stack;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Process, listening_address};

pub use self::stack::Stack;

const EMULATOR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/aws/emulator.py");

/// Where all queues of the emulator are.
pub const REGION: &str = "eu-west-1";

/// How long Python may take to start on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running emulator. Dropping it ends it, and so does the end of this process.
#[derive(Debug)]
pub struct Aws {
    _process: Process,
    address: SocketAddr,
}

/// Two queues that belong together; a message is a dead letter after three receives.
#[derive(Clone, Debug)]
pub struct Queues {
    /// The URL of the queue.
    pub url: String,
    /// The URL of its dead-letter queue.
    pub dead_letters_url: String,
}

impl Aws {
    /// Starts an emulator on a free port of loopback.
    ///
    /// # Panics
    /// When `aws/install` was not run.
    pub async fn start() -> Self {
        let python = tools().join("python");
        assert!(
            python.exists(),
            "{} is missing: run tests/harness/aws/install",
            python.display()
        );
        let mut command = Command::new(python);
        command.arg(EMULATOR);
        let process = Process::start(command);
        let address = process
            .wait_for_output(listening_address, START_DEADLINE)
            .await;
        Self {
            _process: process,
            address,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `AWS_ENDPOINT_URL` is set to.
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops the clock of all queues whose name begins with `family` and a hyphen, at the first
    /// call, and moves it.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub async fn advance_clock(&self, family: &str, by: Duration) {
        let seconds = by.as_secs_f64();
        self.control(&format!("advance/{family}/{seconds}")).await;
    }

    /// Returns once somebody waits for a message of a queue whose name begins with `family` and a
    /// hyphen.
    ///
    /// # Panics
    /// When nobody does.
    pub async fn receive_waits(&self, family: &str) {
        self.control(&format!("waiting/{family}")).await;
    }

    async fn control(&self, what: &str) {
        let answer = self.post(&format!("/control/{what}"), "", "").await;
        assert!(answer.contains(" 204 "), "{what}: {answer}");
    }

    /// Makes `<family>-builds` and `<family>-dead`, both with this suffix: `.fifo` or none.
    ///
    /// # Panics
    /// When they cannot be made.
    pub async fn create_queues(&self, family: &str, suffix: &str) -> Queues {
        let dead_letters_url = self.create_queue(family, "dead", suffix, json!({})).await;
        let asked = json!({ "QueueUrl": dead_letters_url, "AttributeNames": ["QueueArn"] });
        let answer = self.sqs("GetQueueAttributes", asked).await;
        let policy = json!({
            "deadLetterTargetArn": answer["Attributes"]["QueueArn"],
            "maxReceiveCount": 3,
        });
        let attributes = json!({ "RedrivePolicy": policy.to_string() });
        let url = self
            .create_queue(family, "builds", suffix, attributes)
            .await;
        Queues {
            url,
            dead_letters_url,
        }
    }

    async fn create_queue(
        &self,
        family: &str,
        name: &str,
        suffix: &str,
        mut attributes: Value,
    ) -> String {
        if suffix == ".fifo" {
            attributes["FifoQueue"] = json!("true");
        }
        let queue = json!({
            "QueueName": format!("{family}-{name}{suffix}"),
            "Attributes": attributes,
        });
        let created = self.sqs("CreateQueue", queue).await;
        created["QueueUrl"].as_str().expect("a URL").to_owned()
    }

    /// How many messages a queue holds, hidden ones included.
    ///
    /// # Panics
    /// When there is no such queue.
    pub async fn messages(&self, queue_url: &str) -> u64 {
        let asked = json!({ "QueueUrl": queue_url, "AttributeNames": ["All"] });
        let answer = self.sqs("GetQueueAttributes", asked).await;
        let count = |name: &str| {
            let count = answer["Attributes"][name].as_str();
            count.and_then(|count| count.parse::<u64>().ok())
        };
        let visible = count("ApproximateNumberOfMessages");
        let hidden = count("ApproximateNumberOfMessagesNotVisible");
        visible.zip(hidden).map(|(a, b)| a + b).expect("two counts")
    }

    /// Makes any request to SQS, and answers what it answers.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn sqs(&self, action: &str, parameters: Value) -> Value {
        let answer = self.try_sqs(action, parameters).await;
        answer.unwrap_or_else(|problem| panic!("{action}: {problem}"))
    }

    /// Makes any request to SQS.
    ///
    /// # Errors
    /// It is refused: the answer's body, which names the error.
    pub async fn try_sqs(&self, action: &str, parameters: Value) -> Result<Value, String> {
        let headers = format!(
            "content-type: application/x-amz-json-1.0\r\n\
             x-amz-target: AmazonSQS.{action}\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=id/20260101/{REGION}/sqs/aws4_request, \
             SignedHeaders=host, Signature=0\r\n"
        );
        let answer = self.post("/", &headers, &parameters.to_string()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        match head.contains(" 200 ") {
            // Some actions answer nothing.
            true => Ok(serde_json::from_str(body).unwrap_or_default()),
            false => Err(body.to_owned()),
        }
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> String {
        self.request("POST", path, headers, body).await
    }

    /// The answer as it came, its head included.
    async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nhost: {}\r\n{headers}content-length: {length}\r\n\r\n{body}",
            self.address
        );
        let mut answer = String::new();
        let asked = async {
            let mut connection = TcpStream::connect(self.address).await?;
            connection.write_all(request.as_bytes()).await?;
            connection.read_to_string(&mut answer).await
        };
        asked.await.expect("the emulator answers");
        answer
    }
}

/// The directory of the programs that `aws/install` installs.
fn tools() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME")
        .or_else(|| Some(variable("HOME")?.join(".cache")))
        .expect("HOME is set");
    cache.join("compose-ci/aws-tests/bin")
}
