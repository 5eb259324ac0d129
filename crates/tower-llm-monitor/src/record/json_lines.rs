//! Records as lines of JSON, in files of bounded size.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;
use tower_llm_core::{BoxError, ConfigError};

use super::{Record, Sink};

/// Writes each record as a line of JSON, and starts a new file when one is full.
///
/// The full file is renamed with a `.1` behind its name, that with `.1` to `.2`, and so on; the oldest is removed. A line is
/// written whole: what a process that was killed has left of one is cut off when the file is opened again. Files are written on
/// tokio's threads for blocking work.
#[derive(Debug)]
pub struct JsonLines {
    /// `None` while it is being written, or if that was given up.
    files: Option<Files>,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    path: PathBuf,
    max_bytes: u64,
    keep: usize,
}

#[derive(Debug)]
struct Files {
    settings: Settings,
    open: Option<Open>,
    lines: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Up to the end of the last line.
    bytes: u64,
}

impl JsonLines {
    /// Creates a sink that writes to the file at `path`, in files of 100 MB, of which it keeps five full ones.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let settings = Settings {
            path: path.into(),
            max_bytes: 100_000_000,
            keep: 5,
        };
        Self {
            files: Some(Files::new(settings.clone())),
            settings,
        }
    }

    /// Sets how large a file may be, and how many full ones are kept besides the one that is written.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if `max_bytes` is below 1,000,000 or `keep` over 1,000.
    pub fn rotate(mut self, max_bytes: u64, keep: usize) -> Result<Self, ConfigError> {
        if max_bytes < 1_000_000 {
            let reason = "it must be at least a million bytes";
            return Err(ConfigError::new("max_bytes", max_bytes, reason));
        }
        if keep > 1_000 {
            return Err(ConfigError::new("keep", keep, "it must be at most 1,000"));
        }
        (self.settings.max_bytes, self.settings.keep) = (max_bytes, keep);
        self.files = Some(Files::new(self.settings.clone()));
        Ok(self)
    }
}

impl Sink for JsonLines {
    async fn write(&mut self, batch: &[Record]) -> Result<(), BoxError> {
        let files = self.files.take();
        let mut files = files.unwrap_or_else(|| Files::new(self.settings.clone()));
        files.lines.clear();
        for record in batch {
            serde_json::to_writer(&mut files.lines, record)?;
            files.lines.push(b'\n');
        }
        let (files, written) = spawn_blocking(move || {
            let written = files.write();
            (files, written)
        })
        .await?;
        self.files = Some(files);
        Ok(written?)
    }
}

impl Files {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            open: None,
            lines: Vec::new(),
        }
    }

    /// Writes the lines, or nothing of them.
    fn write(&mut self) -> io::Result<()> {
        let size = self.lines.len() as u64;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::at(&self.settings.path)?,
        };
        if open.bytes > 0 && open.bytes + size > self.settings.max_bytes {
            drop(open);
            self.settings.rotate()?;
            open = Open::at(&self.settings.path)?;
        }
        // After an error it is not held open, and opened with its last line whole.
        let written = open.file.write_all(&self.lines);
        if written.is_ok() {
            open.bytes += size;
            self.open = Some(open);
        } else {
            open.file.set_len(open.bytes)?;
        }
        written
    }
}

impl Open {
    /// Opens a file to append to it, and cuts off what was not written whole.
    fn at(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).read(true).append(true).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let bytes = end_of_last_line(&mut file, size)?;
        if bytes < size {
            file.set_len(bytes)?;
        }
        Ok(Self { file, bytes })
    }
}

/// How many bytes of a file are whole lines.
fn end_of_last_line(file: &mut File, size: u64) -> io::Result<u64> {
    const CHUNK: u64 = 4_096;
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        let mut chunk = Vec::new();
        file.seek(SeekFrom::Start(start))?;
        Read::by_ref(file)
            .take(end - start)
            .read_to_end(&mut chunk)?;
        if let Some(newline) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

impl Settings {
    /// Gives the full file its next name, and removes the oldest.
    fn rotate(&self) -> io::Result<()> {
        if self.keep == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.keep).rev() {
            let from = self.full(number);
            if from.exists() {
                fs::rename(from, self.full(number + 1))?;
            }
        }
        fs::rename(&self.path, self.full(1))
    }

    fn full(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}
