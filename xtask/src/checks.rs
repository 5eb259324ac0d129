//! `test` and `ci`: what CI runs is what a person can run.

use std::time::Duration;

use xshell::{Shell, cmd};

use crate::{
    Result, fuzz, links, metadata,
    tools::{self, Tool},
};

/// Whether `ci` runs the tests, or they have been run already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tests {
    Run,
    Skip,
}

/// Runs every test, doc tests included.
pub(crate) fn test(sh: &Shell) -> Result {
    tools::find_or_install(sh, Tool::Redis)?;
    cmd!(sh, "cargo test --workspace --all-features").run()?;
    Ok(())
}

/// Runs all checks, cheap ones first, and stops at the first that fails.
pub(crate) fn ci(sh: &Shell, tests: Tests) -> Result {
    step("format", || format(sh))?;
    step("manifests", || manifests(sh))?;
    step("lint", || {
        cmd!(
            sh,
            "cargo clippy --workspace --all-targets --all-features -- -D warnings"
        )
        .run()?;
        Ok(())
    })?;
    step("features", || features(sh))?;
    step("docs", || docs(sh))?;
    if tests == Tests::Run {
        step("test", || test(sh))?;
    }
    step("loom", || loom(sh))?;
    step("deny", || deny(sh))?;
    step("fuzz", || fuzz::fuzz(sh, fuzz::DEFAULT_SECONDS))
}

/// Runs one step of `ci` and prints how long it took.
fn step(name: &str, run: impl FnOnce() -> Result) -> Result {
    eprintln!("\n=== {name}");
    let (result, elapsed) = timed(run);
    let seconds = elapsed.as_secs_f64();
    match result {
        Ok(()) => {
            eprintln!("=== {name}: passed in {seconds:.1} s");
            Ok(())
        }
        Err(error) => Err(format!("{name} failed after {seconds:.1} s: {error}").into()),
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a chore's real duration, and no runtime to ask"
)]
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let started = std::time::Instant::now();
    let result = run();
    (result, started.elapsed())
}

fn format(sh: &Shell) -> Result {
    cmd!(sh, "cargo fmt --all --check").run()?;
    cmd!(sh, "cargo fmt --manifest-path fuzz/Cargo.toml --check").run()?;
    Ok(())
}

/// Lock files are complete, and cargo understands every key of every manifest.
///
/// Cargo only warns of a key that it does not know, so a misspelt one is easily overlooked.
fn manifests(sh: &Shell) -> Result {
    let host = metadata::host(sh)?;
    for manifest in ["Cargo.toml", fuzz::MANIFEST] {
        let output = cmd!(
            sh,
            "cargo fetch --locked --target {host} --manifest-path {manifest}"
        )
        .ignore_status()
        .output()?;
        let messages = String::from_utf8_lossy(&output.stderr);
        eprint!("{messages}");
        if !output.status.success() {
            return Err(format!("cargo can't use {manifest} with its lock file as it is").into());
        }
        if messages.lines().any(|line| line.starts_with("warning:")) {
            return Err(format!("cargo warns of {manifest} or a manifest below it").into());
        }
    }
    Ok(())
}

/// Every link leads somewhere: in the public docs, in those of private items, and in Markdown files.
fn docs(sh: &Shell) -> Result {
    links::check(sh)?;
    let _flags = sh.push_env("RUSTDOCFLAGS", "-D warnings");
    // Two builds: only the second refuses a public doc that links to a private item. It is the one that stays in target/doc.
    for private in [Some("--document-private-items"), None] {
        cmd!(
            sh,
            "cargo doc --workspace --no-deps --all-features {private...}"
        )
        .run()?;
    }
    Ok(())
}

/// Checks each feature of each published crate alone.
///
/// One package at a time: a workspace build would unify their features. Clippy and not `check`,
/// because it denies warnings in our crates without building the dependencies anew.
fn features(sh: &Shell) -> Result {
    let metadata = metadata::read(sh, "Cargo.toml")?;
    for package in metadata
        .packages
        .iter()
        .filter(|package| package.is_published())
    {
        let name = &package.name;
        for features in package.feature_sets() {
            let features = features.join(",");
            cmd!(
                sh,
                "cargo clippy --quiet -p {name} --no-default-features --features {features}
                 -- -D warnings"
            )
            .run()?;
        }
    }
    Ok(())
}

/// Every interleaving of the bulkhead's and the breaker's lock-free parts, of the cache's flights, of batches, and of what a
/// pool of targets shares.
///
/// Cfgs of their own, because tokio changes under `--cfg loom`, and so a target folder of its own.
fn loom(sh: &Shell) -> Result {
    let _flags = sh.push_env(
        "RUSTFLAGS",
        "--cfg batch_loom --cfg breaker_loom --cfg bulkhead_loom --cfg cache_loom --cfg fanout_loom",
    );
    // Millions of executions: a fifth of the time, and worth what it takes to build.
    let _level = sh.push_env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    cmd!(
        sh,
        "cargo test -p tower-llm-batch -p tower-llm-breaker -p tower-llm-bulkhead -p tower-llm-cache -p tower-llm-fanout --lib --target-dir target/loom loom"
    )
    .run()?;
    Ok(())
}

/// Licences, duplicates and sources of all dependencies, by `deny.toml`.
///
/// Not advisories: their database is a git repository elsewhere, and a new advisory would turn CI
/// red with no change here.
fn deny(sh: &Shell) -> Result {
    // Asked of cargo, which looks beyond PATH for its subcommands.
    let version = cmd!(sh, "cargo deny --version").quiet().ignore_stdout();
    if version.ignore_stderr().run().is_err() {
        eprintln!("cargo-deny is not installed: building it, which takes some minutes");
        // It runs for seconds, so the time to optimise it would never be won back.
        let _level = sh.push_env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
        let _lto = sh.push_env("CARGO_PROFILE_RELEASE_LTO", "off");
        cmd!(sh, "cargo install --locked cargo-deny@0.20.2").run()?;
    }
    cmd!(sh, "cargo deny check licenses bans sources").run()?;
    Ok(())
}
