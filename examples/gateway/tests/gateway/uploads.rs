//! Bodies that are no JSON stream through; bodies that are too large are refused so that the caller reads it.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower_llm_testkit::SimulatedProvider;

use crate::{
    raw::{Raw, response},
    support::{Binary, Connection, Running, SOON, eventually, get, post, within},
};

const MB: usize = 1024 * 1024;

const UPLOADS: [(&str, &str, &str); 3] = [
    (
        "/v1/files",
        "multipart/form-data; boundary=b",
        "--b\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\nx\r\n--b--\r\n",
    ),
    ("/v1/audio/transcriptions", "audio/wav", "RIFF\0\0\0\0WAVE"),
    (
        "/v1/uploads/u/parts",
        "application/octet-stream",
        "\0\u{1}\u{2}",
    ),
];

/// How a request says how long its body is.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length,
    Chunked,
}

const FRAMINGS: [Framing; 2] = [Framing::Length, Framing::Chunked];

impl Framing {
    fn header(self, length: usize) -> String {
        match self {
            Self::Length => format!("content-length: {length}\r\n"),
            Self::Chunked => "transfer-encoding: chunked\r\n".to_owned(),
        }
    }

    fn frame(self, piece: &[u8]) -> Vec<u8> {
        match self {
            Self::Length => piece.to_vec(),
            Self::Chunked => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
        }
    }

    fn end(self) -> &'static [u8] {
        match self {
            Self::Length => b"",
            Self::Chunked => b"0\r\n\r\n",
        }
    }
}

/// The beginning of a request, up to its body.
fn head(path: &str, content_type: &str, framing: Framing, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n{}\r\n",
        framing.header(length)
    )
}

#[tokio::test]
async fn an_upload_arrives_byte_for_byte_in_the_framing_it_came_in() {
    let provider = SimulatedProvider::start().await.unwrap();
    // JSON of this length would be refused.
    let gateway = Running::over(&provider, &["--max-body-bytes", "8"]).await;
    for (path, content_type, body) in UPLOADS {
        for framing in FRAMINGS {
            let mut connection = Connection::open(gateway.addr).await;
            let head = head(path, content_type, framing, body.len());
            connection.write(head.as_bytes()).await;
            let (first, rest) = body.as_bytes().split_at(2);
            connection.write(&framing.frame(first)).await;
            connection.write(&framing.frame(rest)).await;
            connection.write(framing.end()).await;
            let answer = within(SOON, connection.answer(false)).await.unwrap();
            assert!(answer.complete);
            let recorded = provider.recorded().pop().unwrap();
            assert_eq!(
                (recorded.path.as_str(), &recorded.body[..]),
                (path, body.as_bytes())
            );
            assert_eq!(recorded.headers["content-type"], content_type);
            let length = recorded.headers.get("content-length");
            let length = length.map(|length| length.to_str().unwrap().parse().unwrap());
            let expected = matches!(framing, Framing::Length).then_some(body.len());
            assert_eq!(length, expected, "{path} {framing:?}");
        }
    }
    assert_eq!(gateway.held(), 0);
}

/// Reads until `length` bytes or more have come.
async fn take(stream: &mut TcpStream, length: usize) -> usize {
    let mut buffer = vec![0; 64 * 1024];
    let mut taken = 0;
    while taken < length {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(bytes) => taken += bytes,
        }
    }
    taken
}

#[tokio::test]
async fn what_the_upstream_does_not_take_is_not_taken_from_the_caller() {
    const LENGTH: usize = 64 * MB;
    // What the sockets of three connections may hold, in the system and not in the gateway.
    const OUTSTANDING: usize = 24 * MB;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let gateway = Running::start(&["--openai-base-url", &url]).await;

    let (path, content_type, _) = UPLOADS[0];
    let mut caller = TcpStream::connect(gateway.addr).await.unwrap();
    let head = head(path, content_type, Framing::Length, LENGTH);
    caller.write_all(head.as_bytes()).await.unwrap();
    // The first bytes tell that it is no JSON; until then nothing is sent.
    caller.write_all(b"--").await.unwrap();
    let (mut upstream, _) = within(SOON, listener.accept()).await.unwrap();
    let taken = take(&mut upstream, 1).await;

    // Written until nothing more is taken: a second in which not a byte moves.
    let piece = vec![b'-'; 64 * 1024];
    let mut written = 2;
    while written < LENGTH {
        let piece = &piece[..piece.len().min(LENGTH - written)];
        match timeout(std::time::Duration::from_secs(1), caller.write(piece)).await {
            Ok(bytes) => written += bytes.unwrap(),
            Err(_) => break,
        }
    }
    let outstanding = written - taken;
    assert!(outstanding < OUTSTANDING, "{outstanding} bytes are held");

    // The rest passes as soon as the upstream takes it.
    let left = LENGTH + head.len() - taken;
    let reading = tokio::spawn(async move { take(&mut upstream, left).await });
    while written < LENGTH {
        let piece = &piece[..piece.len().min(LENGTH - written)];
        written += within(SOON, caller.write(piece)).await.unwrap();
    }
    assert!(within(SOON, reading).await.unwrap() >= left);
}

#[tokio::test]
async fn twenty_megabytes_leave_the_gateways_memory_as_it_was() {
    const EACH: usize = 20 * MB;
    let upstream = Raw::start([response("200 OK", "", b"{}")]).await;
    let url = format!("http://{}/v1", upstream.addr);
    let gateway = Binary::start(&[("OPENAI_BASE_URL", &url)], &[]).await;
    let upload = async || {
        let (path, content_type, _) = UPLOADS[0];
        let mut caller = TcpStream::connect(gateway.addr).await.unwrap();
        let head = head(path, content_type, Framing::Length, EACH);
        caller.write_all(head.as_bytes()).await.unwrap();
        caller.write_all(&vec![b'-'; EACH]).await.unwrap();
        let mut answer = [0; 12];
        caller.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    };
    upload().await;
    let Some(before) = gateway.peak_kb() else {
        return;
    };
    for _ in 0..4 {
        tokio::join!(upload(), upload(), upload());
    }
    let grown = gateway.peak_kb().unwrap() - before;
    // 240 MB have passed, 60 of them at once.
    assert!(grown < 8 * 1024, "the gateway's peak grew by {grown} kB");
}

#[tokio::test]
async fn an_upload_over_its_limit_is_413_and_not_sent_if_its_length_is_announced() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--max-upload-bytes", "1000"]).await;
    for (path, content_type, begin) in UPLOADS {
        let body = format!("{begin}{}", "-".repeat(1001 - begin.len()));
        let headers = format!("content-type: {content_type}\r\n");
        let answer = post(gateway.addr, path, &headers, &body).await;
        assert_eq!(answer.status, 413, "{path}");
        assert_eq!(answer.json()["error"]["code"], "request_too_large");
        let answer = post(gateway.addr, path, &headers, &body[..1000]).await;
        assert_ne!(answer.status, 413, "{path}");
    }
    assert_eq!(provider.counts().requests, 3);
}

#[tokio::test]
async fn an_upload_over_its_limit_is_cut_if_its_length_is_not_announced() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--max-upload-bytes", "1000"]).await;
    for (path, content_type, begin) in UPLOADS {
        let mut connection = Connection::open(gateway.addr).await;
        let head = head(path, content_type, Framing::Chunked, 0);
        connection.write(head.as_bytes()).await;
        connection
            .write(&Framing::Chunked.frame(begin.as_bytes()))
            .await;
        connection
            .write(&Framing::Chunked.frame(&[b'-'; 1000]))
            .await;
        connection.write(Framing::Chunked.end()).await;
        let answer = within(SOON, connection.answer(false)).await.unwrap();
        assert_eq!(answer.status, 413, "{path}");
        // No request has arrived whole.
        assert_eq!(provider.recorded().len(), 0);
    }
    let metrics = get(gateway.addr, "/metrics").await.text();
    assert!(!metrics.contains("outcome=\"failed"), "{metrics}");
    eventually("all permits are free", async || gateway.held() == 0).await;
}

/// Writes all of a request before it reads a byte, as most clients do.
async fn write_then_read(addr: std::net::SocketAddr, request: &[u8]) -> u16 {
    let mut connection = Connection::open(addr).await;
    connection.write(request).await;
    let answer = within(SOON, connection.answer(false)).await;
    answer.expect("the answer is read").status
}

#[tokio::test]
async fn a_client_that_writes_all_of_a_body_that_is_too_large_reads_the_413_every_time() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let body = vec![b' '; 13 * MB];
    for framing in FRAMINGS {
        let head = head(
            "/v1/chat/completions",
            "application/json",
            framing,
            body.len(),
        );
        let request = [head.as_bytes(), &framing.frame(&body), framing.end()].concat();
        for _ in 0..20 {
            assert_eq!(
                write_then_read(gateway.addr, &request).await,
                413,
                "{framing:?}"
            );
        }
    }
    assert_eq!(provider.counts().requests, 0);
}

#[tokio::test]
async fn every_answer_that_comes_before_the_body_is_read() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--max-upload-bytes", "1000"]).await;
    let body = vec![b'-'; 13 * MB];
    for (path, headers, status) in [
        ("/elsewhere", "", 404),
        ("/v1/../admin", "", 400),
        ("/v1/responses", "sec-websocket-key: x\r\n", 426),
        ("/v1/files", "", 413),
    ] {
        for framing in FRAMINGS {
            let head = head(path, "audio/wav", framing, body.len());
            let head = head.replacen("host: x\r\n", &format!("host: x\r\n{headers}"), 1);
            let request = [head.as_bytes(), &framing.frame(&body), framing.end()].concat();
            let seen = write_then_read(gateway.addr, &request).await;
            assert_eq!(seen, status, "{path} {framing:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_was_refused() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--max-body-bytes", "1000"]).await;
    let mut connection = Connection::open(gateway.addr).await;
    for _ in 0..3 {
        let large = format!("{{\"x\":\"{}\"}}", "x".repeat(2 * MB));
        connection.send("POST", "/v1/messages", "", &large).await;
        let answer = within(SOON, connection.answer(false)).await.unwrap();
        assert_eq!(answer.status, 413);
        connection.send("POST", "/v1/messages", "", "{}").await;
        assert!(within(SOON, connection.answer(false)).await.is_some());
    }
    assert_eq!(provider.counts().requests, 3);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_to_send_too_much_gets_none() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let length = 13 * MB;
    let head = head(
        "/v1/chat/completions",
        "application/json",
        Framing::Length,
        length,
    );
    let head = head.replacen("host: x\r\n", "host: x\r\nexpect: 100-continue\r\n", 1);

    // One that then does not send it.
    let mut connection = Connection::open(gateway.addr).await;
    connection.write(head.as_bytes()).await;
    let answer = within(SOON, connection.answer(false)).await.unwrap();
    assert_eq!(
        (answer.status, &answer.headers["connection"]),
        (413, &"close".parse().unwrap())
    );

    // One that grew tired of waiting and sends it all the same.
    let request = [head.as_bytes(), &vec![b' '; length]].concat();
    for _ in 0..20 {
        assert_eq!(write_then_read(gateway.addr, &request).await, 413);
    }
    assert_eq!(provider.counts().requests, 0);
}
