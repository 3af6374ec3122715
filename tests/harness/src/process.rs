//! A child process whose output a test waits for and reads.

use std::io::{BufRead, BufReader, PipeReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output as Printed, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::sync::watch;

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: watch::Receiver<Output>,
    /// Ends when the output does.
    collector: Option<JoinHandle<()>>,
}

/// What the program has printed so far, on both of its outputs.
#[derive(Debug, Default)]
struct Output {
    text: String,
    /// The program has closed its outputs, which it does by ending.
    ended: bool,
}

impl Process {
    /// Starts the program, with its outputs caught and no input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: Command) -> Self {
        Self::start_with_input(command, Stdio::null())
    }

    /// Starts the program, with its outputs caught and this as its input.
    pub(crate) fn start_with_input(mut command: Command, input: impl Into<Stdio>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        let both = writer.try_clone().expect("a pipe can be shared");
        command.stdin(input).stdout(both).stderr(writer);
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("starting {name}: {error}"));
        // The command holds the pipe's writing end: the output would never end.
        drop(command);
        let (sender, output) = watch::channel(Output::default());
        let collector = Some(std::thread::spawn(move || collect(reader, &sender)));
        Self {
            name,
            child,
            output,
            collector,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, whole lines, on both outputs.
    pub fn output(&self) -> String {
        self.output.borrow().text.clone()
    }

    /// Waits until `find` finds something in the output.
    ///
    /// # Panics
    /// After `deadline`, or when the program ends without it; with the output.
    pub async fn wait_for_output<T>(
        &self,
        find: impl Fn(&str) -> Option<T>,
        deadline: Duration,
    ) -> T {
        let mut output = self.output.clone();
        let waited = output.wait_for(|output| output.ended || find(&output.text).is_some());
        let in_time = tokio::time::timeout(deadline, waited).await.is_ok();
        let text = self.output();
        let name = &self.name;
        find(&text).unwrap_or_else(|| {
            let why = if in_time {
                "ended".to_owned()
            } else {
                format!("printed only this in {deadline:?}")
            };
            panic!("{name} {why}:\n{text}")
        })
    }

    /// Sends SIGTERM; does nothing when the program has ended.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Stops it where it is; does nothing when the program has ended.
    pub fn suspend(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on after [`suspend`](Self::suspend).
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        // The id of a child that was waited for may belong to another process by now.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let sent = kill_process(pid.expect("a pid is positive"), signal);
        sent.expect("a child that wasn't waited for takes signals");
    }

    /// Asks the program to end, and ends it if it has not done so after `grace`. Blocks, for
    /// where nothing can be awaited.
    pub fn end(&mut self, grace: Duration) {
        self.terminate();
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            let ended = PollFd::new(&process, PollFlags::IN);
            let grace = Timespec::try_from(grace).expect("a grace that a clock can count");
            poll(&mut [ended], Some(&grace)).ok();
        }
        self.kill();
    }

    /// Waits until the program has ended by itself.
    ///
    /// # Panics
    /// After `deadline`, with the output.
    pub async fn wait_for_end(&mut self, deadline: Duration) -> ExitStatus {
        let mut output = self.output.clone();
        let waited = output.wait_for(|output| output.ended);
        let in_time = tokio::time::timeout(deadline, waited).await.is_ok();
        assert!(
            in_time,
            "{} did not end in {deadline:?}:\n{}",
            self.name,
            self.output()
        );
        self.child.wait().expect("nobody else waits for this child")
    }

    /// Ends the program at once, and takes up the rest of its output; does nothing when it has
    /// ended.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        self.collector.take().map(JoinHandle::join);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the program to its end, and answers with what it printed.
///
/// # Panics
/// When it cannot be started, or does not end by itself before `deadline`: then it is killed.
pub async fn run_to_end(command: Command, deadline: Duration) -> Printed {
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let printed = tokio::time::timeout(deadline, command.output()).await;
    let printed = printed.unwrap_or_else(|_| panic!("{command:?} did not end in {deadline:?}"));
    printed.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn collect(reader: PipeReader, output: &watch::Sender<Output>) {
    for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
        output.send_modify(|output| {
            output.text.push_str(&String::from_utf8_lossy(&line));
            output.text.push('\n');
        });
    }
    output.send_modify(|output| output.ended = true);
}

/// The address that a program says it listens on: `… listening on HOST:PORT`, or a URL of it.
pub fn listening_address(output: &str) -> Option<SocketAddr> {
    let (_, after) = output.split_once("listening on ")?;
    let after = after
        .split_once("://")
        .map_or(after, |(_scheme, rest)| rest);
    // In a JSON log a quotation mark ends it, on a terminal the escape that ends a colour.
    let is_in_address = |c: char| c.is_ascii_hexdigit() || "[]:.".contains(c);
    let end = after.find(|c| !is_in_address(c)).unwrap_or(after.len());
    after[..end].parse().ok()
}
