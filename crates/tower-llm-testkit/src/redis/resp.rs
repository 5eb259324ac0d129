//! Commands to a server without a client: what a test asks of the server behind the client that it tests.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// Sends one command on a connection of its own.
///
/// The answer comes as text: strings and integers as they are, `nil` as nothing, an array as one line for each item. An
/// error comes as an error with its text.
pub(super) async fn command(addr: SocketAddr, words: &[&str]) -> io::Result<String> {
    let mut stream = BufReader::new(TcpStream::connect(addr).await?);
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(request.as_bytes()).await?;
    read(&mut stream).await
}

pub(super) async fn ping(addr: SocketAddr) -> io::Result<()> {
    match command(addr, &["PING"]).await?.as_str() {
        "PONG" => Ok(()),
        _ => Err(io::Error::other("not a redis server")),
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    // Items still to be read: an array puts its own in front of those that follow it.
    let mut left = 1;
    let mut lines = Vec::new();
    while left > 0 {
        left -= 1;
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" | ":" => lines.push(rest.to_owned()),
            "$" => lines.push(bulk(stream, rest).await?),
            "*" => left += usize::try_from(number(rest)?).unwrap_or(0),
            "-" => return Err(io::Error::other(rest.to_owned())),
            _ => return Err(io::Error::other(format!("not a redis answer: {line:?}"))),
        }
    }
    Ok(lines.join("\n"))
}

async fn bulk(stream: &mut BufReader<TcpStream>, length: &str) -> io::Result<String> {
    let Ok(length) = usize::try_from(number(length)?) else {
        return Ok(String::new());
    };
    let mut bytes = vec![0; length + 2];
    stream.read_exact(&mut bytes).await?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(io::Error::other)
}
