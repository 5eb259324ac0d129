//! Programs that a chore needs: found in PATH, or installed with the system's package manager.

use std::{env, path::Path};

use xshell::{Shell, cmd};

use crate::Result;

/// A program from outside cargo's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// For tests against a real Redis or Valkey.
    Redis,
    /// Builds libFuzzer.
    CxxCompiler,
}

/// A package manager and what it calls our tools.
#[derive(Debug)]
struct Manager {
    program: &'static str,
    /// Fetches the package lists, where an install doesn't do so itself.
    refresh: Option<&'static [&'static str]>,
    install: &'static [&'static str],
    /// Names in the order to try: older and newer releases carry one or the other server.
    redis: &'static [&'static str],
    cxx: &'static [&'static str],
    needs_root: bool,
}

/// In the order of preference where a system has several.
const MANAGERS: &[Manager] = &[
    Manager {
        program: "apt-get",
        refresh: Some(&["apt-get", "update"]),
        install: &[
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "install",
            "--yes",
        ],
        redis: &["redis-server", "valkey-server"],
        cxx: &["g++"],
        needs_root: true,
    },
    Manager {
        program: "dnf",
        refresh: None,
        install: &["dnf", "install", "--assumeyes"],
        redis: &["valkey", "redis"],
        cxx: &["gcc-c++"],
        needs_root: true,
    },
    Manager {
        program: "yum",
        refresh: None,
        install: &["yum", "install", "--assumeyes"],
        redis: &["redis", "valkey"],
        cxx: &["gcc-c++"],
        needs_root: true,
    },
    Manager {
        program: "pacman",
        refresh: None,
        install: &["pacman", "-Sy", "--noconfirm", "--needed"],
        redis: &["valkey", "redis"],
        cxx: &["gcc"],
        needs_root: true,
    },
    Manager {
        program: "apk",
        refresh: None,
        install: &["apk", "add", "--no-cache"],
        redis: &["valkey", "redis"],
        cxx: &["g++"],
        needs_root: true,
    },
    Manager {
        program: "zypper",
        refresh: None,
        install: &["zypper", "--non-interactive", "install"],
        redis: &["valkey", "redis"],
        cxx: &["gcc-c++"],
        needs_root: true,
    },
    Manager {
        program: "brew",
        refresh: None,
        install: &["brew", "install"],
        redis: &["redis", "valkey"],
        // The compiler comes with the command line tools that Rust itself links with.
        cxx: &[],
        needs_root: false,
    },
];

/// How a command becomes root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Root,
    Sudo,
    None,
}

impl Tool {
    /// Any one of these will do.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Redis => &["redis-server", "valkey-server"],
            Self::CxxCompiler => &["c++", "g++", "clang++"],
        }
    }

    fn packages(self, manager: &Manager) -> &'static [&'static str] {
        match self {
            Self::Redis => manager.redis,
            Self::CxxCompiler => manager.cxx,
        }
    }

    fn is_installed(self) -> bool {
        self.programs().iter().any(|program| is_installed(program))
    }

    fn missing(self, why: &str) -> String {
        format!(
            "none of {} is in PATH, and {why}; install one of them by hand and run this again",
            self.programs().join(", ")
        )
    }
}

/// Makes sure that one of the tool's programs is in PATH.
pub(crate) fn find_or_install(sh: &Shell, tool: Tool) -> Result {
    if tool.is_installed() {
        return Ok(());
    }
    let manager = choose(is_installed)
        .ok_or_else(|| tool.missing("no package manager known here was found"))?;
    let rights = rights(sh);
    if manager.needs_root && rights == Rights::None {
        let why = format!("{} needs root or sudo", manager.program);
        return Err(tool.missing(&why).into());
    }
    let (programs, program) = (tool.programs().join(", "), manager.program);
    eprintln!("none of {programs} is in PATH: installing one with {program}");

    if let Some(refresh) = manager.refresh {
        // One broken source fails the refresh of all, and the package may be in another.
        let _ = run(sh, &as_root(manager, rights, refresh, None));
    }
    for package in tool.packages(manager) {
        // A failure has been printed by the manager; the next name may be the one it knows.
        let _ = run(
            sh,
            &as_root(manager, rights, manager.install, Some(package)),
        );
        if tool.is_installed() {
            return Ok(());
        }
    }
    let why = format!("{} could not install it", manager.program);
    Err(tool.missing(&why).into())
}

/// Whether PATH has a program of this name.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| is_executable(&folder.join(program)))
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.with_extension("exe").is_file()
}

fn choose(is_installed: impl Fn(&str) -> bool) -> Option<&'static Manager> {
    MANAGERS
        .iter()
        .find(|manager| is_installed(manager.program))
}

fn rights(sh: &Shell) -> Rights {
    let is_root = cmd!(sh, "id -u").quiet().read().is_ok_and(|id| id == "0");
    if is_root {
        Rights::Root
    } else if is_installed("sudo") {
        Rights::Sudo
    } else {
        Rights::None
    }
}

/// The whole command; sudo never asks for a password, as there may be no one to answer.
fn as_root(
    manager: &Manager,
    rights: Rights,
    command: &[&'static str],
    package: Option<&'static str>,
) -> Vec<&'static str> {
    let mut whole = Vec::new();
    if manager.needs_root && rights == Rights::Sudo {
        whole.extend(["sudo", "--non-interactive"]);
    }
    whole.extend(command);
    whole.extend(package);
    whole
}

/// Runs a command with nothing to read; xshell prints it.
fn run(sh: &Shell, command: &[&str]) -> xshell::Result<()> {
    let Some((program, args)) = command.split_first() else {
        return Ok(());
    };
    cmd!(sh, "{program} {args...}").stdin("").run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(program: &str) -> &'static Manager {
        MANAGERS
            .iter()
            .find(|manager| manager.program == program)
            .unwrap()
    }

    #[test]
    fn the_systems_manager_comes_before_an_added_one() {
        let chosen = choose(|program| ["brew", "apt-get"].contains(&program)).unwrap();
        assert_eq!(chosen.program, "apt-get");
        let chosen = choose(|program| ["yum", "dnf"].contains(&program)).unwrap();
        assert_eq!(chosen.program, "dnf");
        assert!(choose(|_| false).is_none());
    }

    #[test]
    fn every_manager_knows_a_redis_server() {
        for manager in MANAGERS {
            assert!(
                !Tool::Redis.packages(manager).is_empty(),
                "{}",
                manager.program
            );
        }
    }

    #[test]
    fn sudo_is_used_only_if_needed() {
        let apt = manager("apt-get");
        let command = |manager, rights| {
            as_root(
                manager,
                rights,
                manager.install,
                manager.redis.first().copied(),
            )
            .join(" ")
        };
        let plain = "env DEBIAN_FRONTEND=noninteractive apt-get install --yes redis-server";
        assert_eq!(command(apt, Rights::Root), plain);
        assert_eq!(
            command(apt, Rights::Sudo),
            format!("sudo --non-interactive {plain}")
        );
        assert_eq!(command(manager("brew"), Rights::Sudo), "brew install redis");
    }

    #[test]
    fn a_missing_tool_is_named_with_what_to_do() {
        assert_eq!(
            Tool::Redis.missing("apt-get could not install it"),
            "none of redis-server, valkey-server is in PATH, and apt-get could not install it; \
             install one of them by hand and run this again"
        );
    }
}
