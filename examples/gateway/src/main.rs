//! `cargo run --release -p gateway`, and `--help` for what can be set.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use gateway::{Gateway, Settings, StartError};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

fn main() -> ExitCode {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(error) => error.exit(),
    };
    // The address and what to try go to the standard output, everything else beside it.
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    match runtime.block_on(run(settings)) {
        Ok(code) => code,
        Err(error) => fail(&error, if error.is_setting() { 2 } else { 1 }),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}

async fn run(settings: Settings) -> Result<ExitCode, StartError> {
    // Before anything is said, so that whoever acts on it is heard.
    let (mut terminate, mut interrupt) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return Ok(fail(&error, 1)),
    };
    let deadline = settings.shutdown_deadline;
    let gateway = Gateway::bind(settings).await?;
    for notice in gateway.notices() {
        eprintln!("warning: {notice}");
    }
    // A closed standard output is no reason to stop.
    let _ = greet(&gateway, &mut io::stdout().lock());

    let (stop, stopped) = oneshot::channel();
    let signals = async {
        either(&mut terminate, &mut interrupt).await;
        eprintln!("shutting down within {deadline:?}; a second signal does it at once");
        let _ = stop.send(());
        either(&mut terminate, &mut interrupt).await;
    };
    let serving = gateway.serve(async { drop(stopped.await) });
    tokio::select! {
        stopped = serving => if stopped.cut > 0 {
            eprintln!("{} connections were cut at the deadline", stopped.cut);
        },
        () = signals => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

fn greet(gateway: &Gateway, out: &mut impl Write) -> io::Result<()> {
    let url = format!("http://{}", gateway.addr());
    writeln!(out, "listening on {url}")?;
    writeln!(out, "upstreams:")?;
    for (name, upstream) in gateway.upstreams() {
        writeln!(out, "  {name:<10} {upstream}")?;
    }
    let json = "-H 'content-type: application/json'";
    let messages = r#""messages":[{"role":"user","content":"Hello"}]"#;
    writeln!(out, "try:")?;
    writeln!(
        out,
        "  curl {url}/v1/chat/completions {json} -d '{{\"model\":\"gpt-5-mini\",{messages}}}'"
    )?;
    writeln!(
        out,
        "  curl -N {url}/v1/messages {json} -H 'anthropic-version: 2023-06-01' -d '{{\"model\":\"claude-sonnet-4-5\",\"max_tokens\":64,\"stream\":true,{messages}}}'"
    )?;
    out.flush()
}
