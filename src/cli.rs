//! The command line: `--role X` chooses a role, and the role has its own options.
//!
//! The role is taken off first, so each role's `--help` shows that role's options and no others.
//! Without a role it is `local`: a whole cluster in one process, to try things out.

mod admin;
pub mod bench;
mod client;
mod clock;
mod descriptors;
mod failpoint;
mod local;
mod node;
mod output;
mod run;

use clap::Command;
use std::ffi::OsString;
use std::process::ExitCode;

/// What `--version` tells.
pub const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("QUORATE_COMMIT"), ")");

/// Exit code of an error in what the process was given.
const USAGE: u8 = 2;

/// A role: its name, what it is, its options, and how it runs.
struct Role {
    name: &'static str,
    about: &'static str,
    command: fn() -> Command,
    run: fn(&clap::ArgMatches) -> ExitCode,
}

const ROLES: [Role; 5] = [
    Role {
        name: "local",
        about: "a whole cluster in this process, on loopback (the default)",
        command: local::command,
        run: local::run,
    },
    Role {
        name: "node",
        about: "one node of the cluster that a cluster.yaml describes",
        command: node::command,
        run: node::run,
    },
    Role {
        name: "client",
        about: "a shell that prints what redis-cli would print",
        command: client::command,
        run: client::run,
    },
    Role {
        name: "admin",
        about: "how a cluster is; moving leaders, backups",
        command: admin::command,
        run: admin::run,
    },
    Role {
        name: "bench",
        about: "a load on a server that speaks the Redis protocol",
        command: bench::command,
        run: bench::run,
    },
];

/// Runs the role that the arguments choose.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let (name, rest) = match take_role(args) {
        Ok(chosen) => chosen,
        Err(problem) => {
            output::complain(&problem);
            return ExitCode::from(USAGE);
        }
    };
    let wanted = name.as_deref().unwrap_or("local");
    let Some(role) = ROLES.iter().find(|role| role.name == wanted) else {
        let known: Vec<&str> = ROLES.iter().map(|role| role.name).collect();
        output::complain(&format!("no role '{wanted}': the roles are {}", known.join(", ")));
        return ExitCode::from(USAGE);
    };
    let mut command = (role.command)();
    if name.is_none() {
        command = command.name("quorate").bin_name("quorate").after_help(roles());
    } else {
        command = command.bin_name(format!("quorate --role {}", role.name));
    }
    match command.version(VERSION).disable_version_flag(false).try_get_matches_from(rest) {
        Ok(matches) => (role.run)(&matches),
        Err(error) => {
            // Help and version are "errors" that go to the standard output.
            let code = ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
            match error.print() {
                Err(problem) if !error.use_stderr() => output::failed(&problem, code),
                _ => code,
            }
        }
    }
}

fn roles() -> String {
    let mut text = String::from("Roles (quorate --role ROLE --help tells a role's options):\n");
    for role in &ROLES {
        text += &format!("  {:6} {}\n", role.name, role.about);
    }
    text
}

/// Takes the role off the arguments: `--role X`, `--role=X`, or `X` as the first word.
fn take_role(args: Vec<OsString>) -> Result<(Option<String>, Vec<OsString>), String> {
    let mut rest: Vec<OsString> = Vec::with_capacity(args.len());
    let mut role = None;
    let mut args = args.into_iter();
    rest.extend(args.next());
    let mut first = true;
    while let Some(arg) = args.next() {
        let word = arg.to_str().unwrap_or_default();
        let chosen = if word == "--role" {
            let name = args.next().and_then(|name| name.into_string().ok());
            Some(name.ok_or("--role needs the name of a role")?)
        } else if let Some(name) = word.strip_prefix("--role=") {
            Some(name.to_owned())
        } else if first && !word.starts_with('-') && !word.is_empty() {
            Some(word.to_owned())
        } else {
            None
        };
        first = false;
        match chosen {
            Some(_) if role.is_some() => return Err("one role at a time".into()),
            Some(name) => role = Some(name),
            None => rest.push(arg),
        }
    }
    Ok((role, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(line: &str) -> Result<(Option<String>, Vec<OsString>), String> {
        take_role(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn the_role_is_taken_off() {
        let role = |line: &str| take(line).unwrap().0;
        assert_eq!(role("quorate"), None);
        assert_eq!(role("quorate --port 9"), None);
        assert_eq!(role("quorate --role node --id 2").as_deref(), Some("node"));
        assert_eq!(role("quorate --id 2 --role=node").as_deref(), Some("node"));
        assert_eq!(role("quorate bench --port 9").as_deref(), Some("bench"));
        let (_, rest) = take("quorate --role node --id 2").unwrap();
        assert_eq!(rest, ["quorate", "--id", "2"]);
        assert!(take("quorate --role").is_err());
        assert!(take("quorate node --role local").is_err());
    }

    #[test]
    fn every_role_has_sound_options() {
        for role in &ROLES {
            (role.command)().version(VERSION).debug_assert();
        }
    }
}
