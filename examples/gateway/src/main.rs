//! `cargo run --release -p gateway`; `--help` lists the settings.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use gateway::{Gateway, Log, Settings, StartError};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::sleep,
};
use tower_llm_stack::Dialect;

fn main() -> ExitCode {
    let settings = match Settings::load() {
        Ok(settings) => settings,
        Err(error) => error.exit(),
    };
    // The address and examples go to standard output, everything else to standard error.
    let log = Log::start();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let ended = runtime.block_on(run(settings, &log));
    log.report();
    match ended {
        Ok(code) => code,
        Err(error) => fail(&error, if error.is_setting() { 2 } else { 1 }),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(code)
}

async fn run(settings: Settings, log: &Log) -> Result<ExitCode, StartError> {
    // Before the address is printed, so that no signal sent after it is missed.
    let (mut terminate, mut interrupt) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return Ok(fail(&error, 1)),
    };
    let (delay, deadline) = (settings.drain_delay, settings.shutdown_deadline);
    let gateway = Gateway::bind(settings).await?;
    for notice in gateway.notices() {
        eprintln!("warning: {notice}");
    }
    // A closed standard output is no reason to stop.
    let _ = greet(&gateway, &mut io::stdout().lock());

    let drain = gateway.drain();
    let (stop, stopped) = oneshot::channel();
    let signals = async {
        let is_terminated = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => false,
        };
        drain.start();
        // After a SIGTERM, load balancers need time to notice; Ctrl-C is sent by a person and needs no delay.
        if is_terminated && !delay.is_zero() {
            eprintln!(
                "draining: /readyz fails, and listening ends in {delay:?}; a second signal ends everything at once"
            );
            tokio::select! {
                () = sleep(delay) => {}
                () = either(&mut terminate, &mut interrupt) => return,
            }
        }
        eprintln!(
            "shutting down: calls have {deadline:?} to end; a second signal ends them at once"
        );
        let _ = stop.send(());
        either(&mut terminate, &mut interrupt).await;
    };
    let serving = gateway.serve(async { drop(stopped.await) });
    tokio::select! {
        stopped = serving => if stopped.cut > 0 {
            eprintln!("{} connections were cut at the deadline", stopped.cut);
        },
        () = signals => {}
        () = log.report_regularly() => {}
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
    if let Some(sharing) = gateway.sharing() {
        writeln!(out, "shared through Redis: {sharing}")?;
    }
    if let Some(addr) = gateway.admin_addr() {
        writeln!(out, "administration on http://{addr}")?;
    }
    let json = "-H 'content-type: application/json'";
    let key = match gateway.requires_key() {
        true => " -H \"authorization: Bearer $KEY\"",
        false => "",
    };
    let messages = r#""messages":[{"role":"user","content":"Hello"}]"#;
    match gateway.requires_key() {
        true => writeln!(out, "try, with KEY set to one of GATEWAY_KEYS:")?,
        false => writeln!(out, "try:")?,
    }
    for (dialect, call) in [
        (
            Dialect::OpenAi,
            format!(
                "curl {url}/v1/chat/completions {json}{key} -d '{{\"model\":\"gpt-5-mini\",{messages}}}'"
            ),
        ),
        (
            Dialect::Anthropic,
            format!(
                "curl -N {url}/v1/messages {json}{key} -H 'anthropic-version: 2023-06-01' -d '{{\"model\":\"claude-sonnet-4-5\",\"max_tokens\":64,\"stream\":true,{messages}}}'"
            ),
        ),
    ] {
        if gateway.speaks(dialect) {
            writeln!(out, "  {call}")?;
        }
    }
    out.flush()
}
