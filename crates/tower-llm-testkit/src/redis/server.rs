use std::{io, net::SocketAddr, path::PathBuf};

use super::{
    process::{Folder, Process, find_binary, free_port},
    resp,
};

/// A running `redis-server` or `valkey-server`.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    binary: PathBuf,
    addr: SocketAddr,
    settings: Vec<String>,
    folder: Folder,
}

impl RedisServer {
    /// Starts a server on a free port and waits until it answers.
    ///
    /// # Errors
    ///
    /// If no server is installed (`cargo xtask test` installs one), or it does not answer in time.
    pub async fn start() -> io::Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a server with more settings, such as `["--maxmemory", "1mb"]`. Set a password by a
    /// [`command`](Self::command) after the start.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and if the server does not take the settings.
    pub async fn start_with(settings: &[&str]) -> io::Result<Self> {
        let binary = find_binary()?;
        let folder = Folder::new()?;
        let settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        let mut last = io::Error::other("no port was tried");
        // Another process may take the port between our check and the server's bind.
        for _ in 0..3 {
            let addr = free_port().await?;
            match Process::start(&binary, addr, &folder, &settings).await {
                Ok(process) => {
                    return Ok(Self {
                        process,
                        binary,
                        addr,
                        settings,
                        folder,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Its URL, `redis://` with its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// The address it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends one command on a connection of its own: `["CONFIG", "SET", "maxmemory", "1mb"]`. Returns the answer as text,
    /// an array as one line for each item. If the server is frozen, it waits.
    ///
    /// # Errors
    ///
    /// If the server answers with an error, or not at all.
    pub async fn command(&self, words: &[&str]) -> io::Result<String> {
        resp::command(self.addr, words).await
    }

    /// Removes all scripts from the server.
    ///
    /// # Errors
    ///
    /// If the server is not running.
    pub async fn flush_scripts(&self) -> io::Result<()> {
        self.command(&["SCRIPT", "FLUSH"]).await.map(drop)
    }

    /// Kills the server: connections are reset and new ones refused. Does nothing if it is not
    /// running.
    ///
    /// # Errors
    ///
    /// If the process cannot be killed.
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

    /// Resumes a frozen server; it answers what it was sent meanwhile.
    ///
    /// # Errors
    ///
    /// If the server is not running.
    pub fn thaw(&self) -> io::Result<()> {
        self.process.signal("CONT")
    }

    /// Restarts the server on the same port, empty; kills it first if it runs.
    ///
    /// # Errors
    ///
    /// If the port was taken meanwhile, or the server does not answer in time.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill()?;
        self.process =
            Process::start(&self.binary, self.addr, &self.folder, &self.settings).await?;
        Ok(())
    }
}
