//! The environment that commands run in: the user's, without what `cargo run` adds to it.
//!
//! Cargo describes the running package to its program in variables such as `CARGO_PKG_NAME`. Build scripts watch some
//! of them (ring's does), so a cargo started from here would find them changed, and rebuild what the user's own cargo
//! has built, and the other way round.

use std::{
    env, io,
    process::{Command, ExitCode},
};

/// Set by `cargo run` for the program it starts, whatever the package.
const SET_BY_CARGO: [&str; 4] = [
    "CARGO",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_MANIFEST_LINKS",
];

/// Runs this program again in the user's environment; `None` if it runs there already.
///
/// A second program, because a process can change its own environment by `unsafe` code only.
pub(crate) fn restart() -> Option<io::Result<ExitCode>> {
    let names = env::vars_os().map(|(name, _)| name);
    let added: Vec<_> = names
        .filter(|name| name.to_str().is_some_and(is_set_by_cargo))
        .collect();
    if added.is_empty() {
        return None;
    }
    let again = || {
        let mut command = Command::new(env::current_exe()?);
        command.args(env::args_os().skip(1));
        for name in added {
            command.env_remove(name);
        }
        replace_with(command)
    };
    Some(again())
}

#[cfg(unix)]
fn replace_with(mut command: Command) -> io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    // It returns only if it fails.
    Err(command.exec())
}

#[cfg(not(unix))]
fn replace_with(mut command: Command) -> io::Result<ExitCode> {
    let status = command.status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Whether `cargo run` sets the variable. The user's own settings, such as `CARGO_HOME`, `CARGO_TARGET_DIR` and
/// `CARGO_PROFILE_DEV_DEBUG`, are not among them.
fn is_set_by_cargo(name: &str) -> bool {
    SET_BY_CARGO.contains(&name) || name.starts_with("CARGO_PKG_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_cargo_are_distinguished_from_those_of_the_user() {
        for name in ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_PKG_VERSION_MAJOR"] {
            assert!(is_set_by_cargo(name), "{name}");
        }
        for name in [
            "CARGO_HOME",
            "CARGO_TARGET_DIR",
            "CARGO_BUILD_JOBS",
            "CARGO_INCREMENTAL",
            "CARGO_NET_OFFLINE",
            "CARGO_PROFILE_DEV_DEBUG",
            "CARGO_REGISTRIES_MINE_TOKEN",
            "CARGO_TERM_COLOR",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
            "PATH",
        ] {
            assert!(!is_set_by_cargo(name), "{name}");
        }
    }
}
