//! `demo`: the gateway, seen at work.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use xshell::{Shell, cmd};

use crate::{Result, root, tools};

/// Starts the gateway on a free port, makes two calls through it and shows what it counted.
pub(crate) fn demo(sh: &Shell) -> Result {
    if !tools::is_installed("curl") {
        return Err("the demo makes its calls with curl, which is not in PATH".into());
    }
    cmd!(sh, "cargo build --release -p gateway").run()?;
    let mut gateway = Gateway::start()?;
    let url = gateway.url()?;

    for streamed in ["false", "true"] {
        let body = format!(
            r#"{{"model":"gpt-4o-mini","stream":{streamed},"messages":[{{"role":"user","content":"Say hello."}}]}}"#
        );
        cmd!(
            sh,
            "curl --silent --show-error --fail-with-body --no-buffer --max-time 30
             --header 'content-type: application/json' --data {body} {url}/v1/chat/completions"
        )
        .run()?;
        println!();
    }

    let metrics = cmd!(
        sh,
        "curl --silent --show-error --fail --max-time 5 {url}/metrics"
    )
    .read()?;
    for line in metrics.lines().filter(|line| is_figure(line)) {
        println!("{line}");
    }
    Ok(())
}

/// Samples, but neither comments nor the many buckets of a histogram.
fn is_figure(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('#') && !line.contains("_bucket{")
}

/// A running gateway, stopped on drop.
struct Gateway {
    child: Child,
    // Held to the end: the gateway's next line would fail if no one could read it.
    stdout: BufReader<ChildStdout>,
}

impl Gateway {
    fn start() -> Result<Self> {
        // Simulated whatever the environment says: a demo calls no paid provider.
        let mut child = Command::new("cargo")
            .args(["run", "--quiet", "--release", "-p", "gateway", "--"])
            .args(["--simulate", "--listen", "127.0.0.1:0"])
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("stdout was asked to be piped");
        Ok(Self {
            child,
            stdout: BufReader::new(stdout),
        })
    }

    /// Waits until it listens, and tells where.
    fn url(&mut self) -> Result<String> {
        let mut line = String::new();
        while self.stdout.read_line(&mut line)? > 0 {
            if let Some((_, url)) = line.trim_end().split_once("listening on ") {
                return Ok(url.to_owned());
            }
            line.clear();
        }
        Err("the gateway ended before it listened".into())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Either may fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_buckets_are_no_figures() {
        assert!(is_figure(r#"calls_total{outcome="success"} 2"#));
        assert!(!is_figure("# TYPE calls_total counter"));
        assert!(!is_figure(r#"latency_seconds_bucket{le="0.1"} 2"#));
        assert!(!is_figure(""));
    }
}
