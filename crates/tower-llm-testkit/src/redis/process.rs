//! A server's process and its folder, neither of which outlives its value.

use std::{
    ffi::OsStr,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use super::resp;

const BINARIES: [&str; 2] = ["redis-server", "valkey-server"];
/// How long a server may take until it answers; far more than it needs on a busy machine.
const START: Duration = Duration::from_secs(10);

/// A `redis-server` or `valkey-server`.
#[derive(Debug)]
pub(super) struct Process(Child);

/// A folder that is removed with its value.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Process {
    /// Starts a server with these settings besides those that keep it off the disk, and waits until it answers.
    pub(super) async fn start(
        binary: &Path,
        addr: SocketAddr,
        folder: &Folder,
        settings: &[String],
    ) -> io::Result<Self> {
        let mut process = Self::spawn(binary, addr, folder, settings)?;
        process.answers(addr).await?;
        Ok(process)
    }

    fn spawn(
        binary: &Path,
        addr: SocketAddr,
        folder: &Folder,
        settings: &[String],
    ) -> io::Result<Self> {
        let (port, ip) = (addr.port().to_string(), addr.ip().to_string());
        Command::new(binary)
            .args(["--port", &port, "--bind", &ip])
            .args(["--save", "", "--appendonly", "no"])
            .args(["--daemonize", "no", "--loglevel", "warning"])
            .arg("--dir")
            .arg(&folder.0)
            .args(settings)
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
            if let Ok(Ok(())) = timeout(Duration::from_secs(1), resp::ping(addr)).await {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("redis server on {addr} does not answer"),
        ))
    }

    pub(super) fn signal(&self, name: &str) -> io::Result<()> {
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

    pub(super) fn kill(&mut self) -> io::Result<()> {
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

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
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

/// The first server in `PATH`.
pub(super) fn find_binary() -> io::Result<PathBuf> {
    find_binary_in(&std::env::var_os("PATH").unwrap_or_default())
}

fn find_binary_in(path: &OsStr) -> io::Result<PathBuf> {
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

/// A loopback port that is free now; another process may take it before it is used.
pub(super) async fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_binary_is_reported_with_the_way_out() {
        let error = find_binary_in("/nowhere:/nowhere/else".as_ref()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let text = error.to_string();
        assert!(
            text.contains("redis-server") && text.contains("cargo xtask test"),
            "{text}"
        );
    }
}
