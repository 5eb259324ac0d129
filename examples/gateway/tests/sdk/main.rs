//! The official SDKs, and httpx by itself, against the gateway's binary and its simulated provider.
//!
//! The scenes are written in the clients' own languages, beside this file. The clients are installed into the target folder, in
//! pinned versions. Where they can't be, because there is no interpreter or no network, the tests pass and say so.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// The gateway's key; the scenes send another one too.
const KEY: &str = "sk-gateway-0123456789abcdef";

/// For an installation with no cache, over a slow network.
const INSTALLATION: Duration = Duration::from_secs(300);

/// Against hangs: a script takes some seconds, and each of its calls has a time-out of its own.
const SCRIPT: Duration = Duration::from_secs(300);

const SCRIPTS: [&str; 3] = ["openai_scenes", "anthropic_scenes", "google_scenes"];

/// A language's SDKs, or one client, installed.
struct Sdks {
    folder: PathBuf,
    interpreter: PathBuf,
    extension: &'static str,
}

/// A running gateway.
struct Gateway {
    url: String,
    _child: Child,
    // Kept open: the gateway may print more.
    _stdout: Lines<BufReader<ChildStdout>>,
}

#[tokio::test]
async fn the_python_sdks_work_against_the_gateway() {
    match install_python("python").await {
        Ok(sdks) => sdks.run_all(&SCRIPTS).await,
        Err(why) => skip("Python", &why),
    }
}

#[tokio::test]
async fn httpx_reads_the_413_of_what_is_too_large_each_time() {
    match install_python("httpx").await {
        Ok(httpx) => httpx.run_all(&["httpx_scenes"]).await,
        Err(why) => skip("httpx", &why),
    }
}

#[tokio::test]
async fn the_node_sdks_work_against_the_gateway() {
    match install_node().await {
        Ok(sdks) => sdks.run_all(&SCRIPTS).await,
        Err(why) => skip("Node", &why),
    }
}

/// Says it past the test harness, which shows nothing that a passing test prints.
fn skip(language: &str, why: &str) {
    let text = format!("SDK tests skipped: {language}: {}\n", why.trim());
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

// === impl Sdks ===

impl Sdks {
    async fn run_all(&self, scripts: &[&str]) {
        let mut failed = Vec::new();
        for script in scripts {
            let (success, said) = self.run(script).await;
            if !success {
                failed.push(format!("{script}:\n{said}"));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    /// Runs one script, with gateways of its own: what a scene trips stays with it.
    async fn run(&self, script: &str) -> (bool, String) {
        let gateway = Gateway::start(&[]).await;
        let limited = Gateway::start(&[
            ("RATELIMIT_OPENAI_RPM", "1"),
            ("RATELIMIT_ANTHROPIC_RPM", "1"),
            ("RATELIMIT_GEMINI_RPM", "1"),
            ("RATELIMIT_QUEUE", "0"),
            ("GATEWAY_MAX_UPLOAD_BYTES", "1000000"),
        ])
        .await;
        let mut command = Command::new(&self.interpreter);
        command
            .arg(format!("{script}.{}", self.extension))
            .current_dir(&self.folder)
            // Without what would lead the SDKs elsewhere: their own variables, and proxies.
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default())
            .envs([("GATEWAY_URL", &gateway.url), ("LIMITED_URL", &limited.url)])
            .env("GATEWAY_KEY", KEY);
        match finished(command, SCRIPT).await {
            Ok(said) => (true, said),
            Err(said) => (false, said),
        }
    }
}

/// Installs what the scenes in `folder` require, in an environment of its own.
async fn install_python(folder: &str) -> Result<Sdks, String> {
    let folder = prepared(folder);
    let (bin, interpreter) = (folder.join("venv/bin"), folder.join("venv/bin/python"));
    let requirements = folder.join("requirements.txt");
    if !is_installed(&folder, &requirements) {
        let python = ["python3", "python"].into_iter().find(|name| in_path(name));
        let python = python.ok_or("neither python3 nor python is in PATH")?;
        let mut venv = Command::new(python);
        venv.args(["-m", "venv", "--clear"])
            .arg(folder.join("venv"));
        finished(venv, INSTALLATION).await?;
        let mut pip = Command::new(bin.join("pip"));
        pip.args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ])
        .args(["--timeout", "15", "--retries", "1", "--requirement"])
        .arg(&requirements);
        finished(pip, INSTALLATION).await?;
        set_installed(&folder, &requirements);
    }
    Ok(Sdks {
        folder,
        interpreter,
        extension: "py",
    })
}

async fn install_node() -> Result<Sdks, String> {
    let folder = prepared("node");
    let package = folder.join("package.json");
    if !in_path("node") || !in_path("npm") {
        return Err("node and npm are not both in PATH".to_owned());
    }
    let mut version = Command::new("node");
    version.arg("--version");
    let version = finished(version, INSTALLATION).await?;
    let major = version.trim().trim_start_matches('v').split('.').next();
    if !major.is_some_and(|major| major.parse().is_ok_and(|major: u32| major >= 20)) {
        return Err(format!("the SDKs need Node 20 or newer; this is {version}"));
    }
    if !is_installed(&folder, &package) {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-package-lock", "--no-audit", "--no-fund"])
            .args([
                "--ignore-scripts",
                "--no-update-notifier",
                "--loglevel=error",
            ])
            .args(["--prefer-offline", "--fetch-timeout=15000"])
            // By default it waits minutes for a network that is not there.
            .args(["--fetch-retries=1", "--fetch-retry-mintimeout=1000"])
            .arg("--fetch-retry-maxtimeout=2000")
            .current_dir(&folder);
        finished(npm, INSTALLATION).await?;
        set_installed(&folder, &package);
    }
    Ok(Sdks {
        folder,
        interpreter: PathBuf::from("node"),
        extension: "mjs",
    })
}

/// A folder with the scripts in it: Node looks for packages beside the script that imports them.
fn prepared(name: &str) -> PathBuf {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/sdk")
        .join(name);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("sdk")
        .join(name);
    fs::create_dir_all(&folder).unwrap();
    for file in fs::read_dir(scripts).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
    }
    folder
}

/// Whether these very requirements have been installed; an installation that was broken off has not.
fn is_installed(folder: &Path, requirements: &Path) -> bool {
    let wanted = fs::read(requirements).unwrap();
    fs::read(folder.join("installed")).is_ok_and(|installed| installed == wanted)
}

fn set_installed(folder: &Path, requirements: &Path) {
    fs::copy(requirements, folder.join("installed")).unwrap();
}

fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// What a command printed; an error if it failed or took too long.
async fn finished(mut command: Command, limit: Duration) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(limit, output)
        .await
        .map_err(|_| format!("not finished within {limit:?}: {command:?}"))?
        .map_err(|error| format!("{command:?}: {error}"))?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{command:?} ended with {}:\n{said}", output.status))
    }
}

// === impl Gateway ===

impl Gateway {
    /// Starts the binary in front of its simulated provider, and waits until it listens.
    async fn start(settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gateway"))
            .env_clear()
            .env("GATEWAY_LISTEN", "127.0.0.1:0")
            .env("GATEWAY_KEYS", KEY)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(Duration::from_secs(30), stdout.next_line()).await;
        let line = line.expect("it starts in time").unwrap().unwrap();
        Self {
            url: line.strip_prefix("listening on ").unwrap().to_owned(),
            _child: child,
            _stdout: stdout,
        }
    }
}
