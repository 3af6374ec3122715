//! An HTTP client that can be as rude as a test needs it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// No answer takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client<S> {
    stream: S,
    received: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Client<TcpStream> {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends as much as the server takes: it may close before the end.
    pub(crate) async fn send_what_is_taken(&mut self, bytes: impl AsRef<[u8]>) {
        let _closed_early = self.stream.write_all(bytes.as_ref()).await.is_err();
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn close_writing(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// One whole answer.
    pub(crate) async fn answer(&mut self) -> Answer {
        self.answer_to("POST").await
    }

    pub(crate) async fn answer_to(&mut self, method: &str) -> Answer {
        timeout(PATIENCE, self.read_answer(method))
            .await
            .expect("an answer in time")
    }

    pub(crate) async fn is_answered_within(&mut self, time: Duration) -> bool {
        timeout(time, self.read_more()).await.is_ok()
    }

    /// Waits until the server closes; bytes that come before are dropped.
    pub(crate) async fn closed(&mut self) {
        assert!(self.is_closed_within(PATIENCE).await, "closed in time");
    }

    pub(crate) async fn is_closed_within(&mut self, time: Duration) -> bool {
        let mut buffer = [0; 4096];
        let until_closed =
            async { while !matches!(self.stream.read(&mut buffer).await, Ok(0) | Err(_)) {} };
        timeout(time, until_closed).await.is_ok()
    }

    async fn read_answer(&mut self, method: &str) -> Answer {
        let head_end = loop {
            match find(&self.received, b"\r\n\r\n") {
                Some(end) => break end,
                None => self.read_more().await,
            }
        };
        let head = String::from_utf8(self.received[..head_end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers: HashMap<_, _> = lines
            .map(|line| line.split_once(": ").expect("a header"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let size = match (method, headers.get("content-length")) {
            ("HEAD", _) | (_, None) => 0,
            (_, Some(length)) => length.parse().unwrap(),
        };
        let end = head_end + 4 + size;
        while self.received.len() < end {
            self.read_more().await;
        }
        let body = String::from_utf8(self.received[head_end + 4..end].to_vec()).unwrap();
        self.received.drain(..end);
        Answer {
            status,
            headers,
            body,
        }
    }

    async fn read_more(&mut self) {
        let read = self.stream.read_buf(&mut self.received).await.unwrap();
        assert_ne!(
            read,
            0,
            "closed before an answer: {}",
            self.received.escape_ascii()
        );
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// A request with a body of known length.
pub(crate) fn post(target: &str, headers: &[(&str, &str)], body: &str) -> String {
    let length = body.len().to_string();
    let head = head(
        "POST",
        target,
        &[headers, &[("content-length", &length)]].concat(),
    );
    head + body
}

pub(crate) fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> String {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    format!(
        "{method} {target} HTTP/1.1\r\nhost: ci\r\n{}\r\n",
        lines.collect::<String>()
    )
}
