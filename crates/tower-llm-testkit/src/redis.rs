//! A Redis server of the test's own, to be killed, frozen and restarted.
//!
//! The server keeps nothing on disk, listens on a free loopback port and ends with the value that
//! holds it.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

const BINARIES: [&str; 2] = ["redis-server", "valkey-server"];
/// How long a server may take until it answers; far more than it needs on a busy machine.
const START: Duration = Duration::from_secs(10);

/// A running `redis-server` or `valkey-server`.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    binary: PathBuf,
    addr: SocketAddr,
    folder: Folder,
}

impl RedisServer {
    /// Starts a server on a free port and waits until it answers.
    ///
    /// # Errors
    ///
    /// If no server is installed (`cargo xtask test` says what is needed), or it does not answer in
    /// time.
    pub async fn start() -> io::Result<Self> {
        let binary = find_binary(&std::env::var_os("PATH").unwrap_or_default())?;
        let folder = Folder::new()?;
        let mut last = io::Error::other("no port was tried");
        // Somebody else may take the port between our look and the server's bind.
        for _ in 0..3 {
            let addr = free_port().await?;
            let mut process = Process::spawn(&binary, addr, &folder.0)?;
            match process.answers(addr).await {
                Ok(()) => {
                    return Ok(Self {
                        process,
                        binary,
                        addr,
                        folder,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// `redis://` and where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Kills the server: connections are reset and new ones refused. Does nothing if it is not
    /// running.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()
    }

    /// Stops the server without ending it: connections stay open, and new ones are accepted, but
    /// nothing is answered.
    ///
    /// # Errors
    ///
    /// If the server is not running.
    pub fn freeze(&self) -> io::Result<()> {
        self.process.signal("STOP")
    }

    /// Lets a frozen server go on, with all it was asked meanwhile.
    ///
    /// # Errors
    ///
    /// If the server is not running.
    pub fn thaw(&self) -> io::Result<()> {
        self.process.signal("CONT")
    }

    /// Starts the server anew and empty, on the same port, killing it first if it runs.
    ///
    /// # Errors
    ///
    /// If the port was taken meanwhile, or the server does not answer in time.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.process = Process::spawn(&self.binary, self.addr, &self.folder.0)?;
        self.process.answers(self.addr).await
    }
}

/// A child that does not outlive its value.
#[derive(Debug)]
struct Process(Child);

impl Process {
    fn spawn(binary: &Path, addr: SocketAddr, folder: &Path) -> io::Result<Self> {
        Command::new(binary)
            .args([
                "--port",
                &addr.port().to_string(),
                "--bind",
                &addr.ip().to_string(),
            ])
            .args([
                "--save",
                "",
                "--appendonly",
                "no",
                "--daemonize",
                "no",
                "--loglevel",
                "warning",
            ])
            .arg("--dir")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
    }

    async fn answers(&mut self, addr: SocketAddr) -> io::Result<()> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if let Some(status) = self.0.try_wait()? {
                return Err(io::Error::other(format!(
                    "redis server on {addr} ended with {status}"
                )));
            }
            if let Ok(Ok(())) = timeout(Duration::from_secs(1), ping(addr)).await {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("redis server on {addr} does not answer"),
        ))
    }

    fn signal(&self, name: &str) -> io::Result<()> {
        // The shell's own `kill`: the program of that name is not everywhere.
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("kill -{name} {}", self.0.id()))
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("kill -{name}: {status}")))
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.kill();
    }
}

/// A folder that is removed with its value.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("tower-llm-redis-{}-{count}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left over in the system's folder for such things does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn find_binary(path: &std::ffi::OsStr) -> io::Result<PathBuf> {
    std::env::split_paths(path)
        .flat_map(|folder| BINARIES.map(|name| folder.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "neither redis-server nor valkey-server is in PATH; install one, see `cargo xtask test`",
            )
        })
}

async fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()
}

async fn ping(addr: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    if &answer == b"+PONG\r\n" {
        Ok(())
    } else {
        Err(io::Error::other("not a redis server"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_is_told_with_the_way_out() {
        let error = find_binary("/nowhere:/nowhere/else".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let text = error.to_string();
        assert!(
            text.contains("redis-server") && text.contains("cargo xtask test"),
            "{text}"
        );
    }
}
