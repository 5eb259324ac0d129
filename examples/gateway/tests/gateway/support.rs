//! A running gateway, its binary, and a client that sees bytes.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use gateway::{Gateway, Settings, Stopped};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower_llm_stack::BulkheadHandle;
use tower_llm_testkit::SimulatedProvider;

/// A request that any provider takes: the simulated one of the binary refuses what lacks something.
pub(crate) const COMPLETE: &str = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hello"}],"contents":[{"parts":[{"text":"hello"}]}]}"#;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A gateway in this process.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    /// Its administrator's listener.
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) bulkhead: BulkheadHandle,
    /// The gateway, as `Debug` shows it.
    pub(crate) debug: String,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Stopped>,
}

/// The gateway's binary.
pub(crate) struct Binary {
    pub(crate) addr: SocketAddr,
    pub(crate) child: Child,
    out: Lines<BufReader<ChildStdout>>,
    // Read all the time: a program that cannot log stops.
    err: JoinHandle<String>,
}

/// One HTTP/1.1 connection, read as it comes.
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    length: Length,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) chunks: Vec<Vec<u8>>,
    /// The body ended as HTTP says.
    pub(crate) complete: bool,
}

/// How a body tells where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Left(usize),
    Chunked,
    Ended,
}

// === impl Running ===

impl Running {
    /// A gateway whose upstreams are all `provider`.
    pub(crate) async fn over(provider: &SimulatedProvider, flags: &[&str]) -> Self {
        let url = provider.url();
        let v1 = format!("{url}/v1");
        let mut all = vec!["--openai-base-url", &v1];
        for flag in [
            "--anthropic-base-url",
            "--gemini-base-url",
            "--azure-endpoint",
        ] {
            all.extend([flag, &url]);
        }
        all.extend(flags);
        Self::start(&all).await
    }

    pub(crate) async fn start(flags: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(flags);
        let settings = Settings::from_flags(all).unwrap();
        let gateway = Gateway::bind(settings).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            addr: gateway.addr(),
            admin: gateway.admin_addr(),
            bulkhead: gateway.bulkhead(),
            debug: format!("{gateway:?}"),
            stop,
            serving: tokio::spawn(gateway.serve(async { drop(stopped.await) })),
        }
    }

    pub(crate) async fn stop(self) -> Stopped {
        drop(self.stop);
        self.serving.await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        post(self.addr, path, "", body).await
    }

    /// In flight and waiting, of all providers.
    pub(crate) fn held(&self) -> usize {
        let stats = self.bulkhead.stats();
        stats
            .iter()
            .map(|stats| stats.in_flight + stats.waiting)
            .sum()
    }
}

// === impl Binary ===

impl Binary {
    pub(crate) fn command(envs: &[(&str, &str)], flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command
            .env_clear()
            // A flag that a test gives is stronger.
            .env("GATEWAY_LISTEN", "127.0.0.1:0")
            .envs(envs.iter().copied())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn start(envs: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut child = Self::command(envs, flags).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let err = tokio::spawn(async move {
            let mut said = String::new();
            stderr.read_to_string(&mut said).await.unwrap();
            said
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within(SOON, lines.next_line()).await.unwrap().unwrap();
        let addr = line.strip_prefix("listening on http://").unwrap();
        Self {
            addr: addr.parse().unwrap(),
            child,
            out: lines,
            err,
        }
    }

    /// Ends it, and gives all that it has said on both outputs.
    pub(crate) async fn said(&mut self) -> String {
        self.child.kill().await.unwrap();
        let mut said = within(SOON, &mut self.err).await.unwrap();
        while let Some(line) = within(SOON, self.out.next_line()).await.unwrap() {
            said.push_str(&line);
        }
        said
    }

    /// The most memory that it has had, if the system tells.
    pub(crate) fn peak_kb(&self) -> Option<u64> {
        let id = self.child.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        peak.trim().trim_end_matches(" kB").parse().ok()
    }

    pub(crate) async fn signal(&self, name: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().await;
        assert!(status.unwrap().success());
    }

    pub(crate) async fn exit(&mut self, limit: Duration) -> ExitStatus {
        within(limit, self.child.wait()).await.unwrap()
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            read: Vec::new(),
            length: Length::Ended,
        }
    }

    /// Sends a request; `headers` are lines that end in CRLF.
    pub(crate) async fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: gateway.test\r\n{headers}");
        if method != "GET" && method != "HEAD" {
            write!(request, "content-length: {}\r\n", body.len()).unwrap();
        }
        write!(request, "\r\n{body}").unwrap();
        self.write(request.as_bytes()).await;
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Waits for more bytes; none if the connection is over.
    pub(crate) async fn more(&mut self) -> usize {
        self.stream.read_buf(&mut self.read).await.unwrap_or(0)
    }

    /// All bytes that have come and were not taken.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.read
    }

    /// Reads a head; `None` if the connection ends before.
    pub(crate) async fn head(&mut self, is_head: bool) -> Option<(u16, HeaderMap)> {
        let end = loop {
            match find(&self.read, b"\r\n\r\n") {
                Some(end) => break end,
                None if self.more().await == 0 => return None,
                None => {}
            }
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
        }
        self.length = match headers.get("content-length") {
            _ if is_head => Length::Ended,
            Some(length) => Length::Left(length.to_str().unwrap().parse().unwrap()),
            None if headers.contains_key("transfer-encoding") => Length::Chunked,
            None => Length::Ended,
        };
        Some((status.parse().unwrap(), headers))
    }

    /// Reads a chunk as the server framed it; `Ok(None)` at the end, an error where it is broken off.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, ()> {
        match self.length {
            Length::Ended | Length::Left(0) => Ok(None),
            Length::Left(left) => {
                if self.read.is_empty() && self.more().await == 0 {
                    return Err(());
                }
                let taken = left.min(self.read.len());
                self.length = Length::Left(left - taken);
                Ok(Some(self.read.drain(..taken).collect()))
            }
            Length::Chunked => {
                let (start, size) = loop {
                    if let Some(end) = find(&self.read, b"\r\n") {
                        let size = std::str::from_utf8(&self.read[..end]).unwrap();
                        break (end + 2, usize::from_str_radix(size, 16).unwrap());
                    }
                    if self.more().await == 0 {
                        return Err(());
                    }
                };
                while self.read.len() < start + size + 2 {
                    if self.more().await == 0 {
                        return Err(());
                    }
                }
                let mut chunk: Vec<u8> = self.read.drain(..start + size + 2).collect();
                chunk.truncate(start + size);
                chunk.drain(..start);
                if size == 0 {
                    self.length = Length::Ended;
                    return Ok(None);
                }
                Ok(Some(chunk))
            }
        }
    }

    pub(crate) async fn answer(&mut self, is_head: bool) -> Option<Answer> {
        let (status, headers) = self.head(is_head).await?;
        let mut chunks = Vec::new();
        let complete = loop {
            match self.chunk().await {
                Ok(Some(chunk)) => chunks.push(chunk),
                Ok(None) => break true,
                Err(()) => break false,
            }
        };
        Some(Answer {
            status,
            headers,
            chunks,
            complete,
        })
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body()).unwrap()
    }
}

pub(crate) async fn post(addr: SocketAddr, path: &str, headers: &str, body: &str) -> Answer {
    request(addr, "POST", path, headers, body).await
}

pub(crate) async fn get(addr: SocketAddr, path: &str) -> Answer {
    request(addr, "GET", path, "", "").await
}

pub(crate) async fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let mut connection = Connection::open(addr).await;
    connection.send(method, path, headers, body).await;
    let answer = within(SOON, connection.answer(method == "HEAD")).await;
    answer.expect("an answer")
}

/// The value of a sample in the metrics; `None` if it is not there.
pub(crate) async fn sample(addr: SocketAddr, sample: &str) -> Option<f64> {
    let metrics = get(addr, "/metrics").await.text();
    metrics.lines().find_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        (name == sample).then(|| value.parse().unwrap())
    })
}

/// Waits for `condition`, at most 10 s.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !condition().await {
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> T {
    timeout(limit, future).await.expect("in time")
}

/// An address at which nothing listens.
pub(crate) async fn closed_port() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}
