//! `--role client`: a small shell, where there is no redis-cli at hand.
//!
//! It speaks to any server of the Redis protocol and prints what redis-cli would print: one
//! command from the arguments, or a line each from a terminal or a pipe. It differs on purpose in
//! one thing: an error reply makes its exit status 1 without being asked to.

pub(super) mod link;
mod print;
mod shell;

use super::output;
use crate::command::argv::ArgvBuf;
use crate::net::resp::request::split_line;
use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser};
use link::Link;
use print::Style;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, config};
use shell::{Next, Shell};
use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// How many lines the history keeps.
const HISTORY_LINES: usize = 1000;

/// Where the history lies, in the home directory. `QUORATE_HISTORY` names another file.
const HISTORY_FILE: &str = ".quorate_history";

/// Ask a server that speaks the Redis protocol: one command, or lines from a terminal or a pipe
#[derive(Debug, Parser)]
#[command(name = "quorate --role client", disable_version_flag = true, disable_help_flag = true)]
struct Ask {
    /// Server to ask
    #[arg(short = 'h', long, default_value = "127.0.0.1")]
    host: String,
    /// Its client port
    #[arg(short, long, default_value_t = 7001)]
    port: u16,
    /// Table to begin with, as SELECT counts
    #[arg(short = 'n', long, default_value_t = 0)]
    table: u32,
    /// Speak RESP3
    #[arg(short = '3')]
    resp3: bool,
    /// Print replies bare, as is done when the output is no terminal
    #[arg(long, conflicts_with = "no_raw")]
    raw: bool,
    /// Print replies for people, even when the output is no terminal
    #[arg(long)]
    no_raw: bool,
    /// Print this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// Command and arguments; without them, commands are read line by line
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    argv: Vec<OsString>,
}

/// The role's options.
pub fn command() -> clap::Command {
    Ask::command()
}

/// Runs the role.
pub fn run(matches: &ArgMatches) -> ExitCode {
    let ask = match Ask::from_arg_matches(matches) {
        Ok(ask) => ask,
        Err(error) => error.exit(),
    };
    let bare = ask.raw || !(ask.no_raw || io::stdout().is_terminal());
    let style = if bare { Style::Raw } else { Style::Terminal };
    let link = Link::new(ask.host, ask.port);
    let mut shell = Shell::new(link, ask.table, ask.resp3, style);
    let outcome = if !ask.argv.is_empty() {
        let argv: Vec<Vec<u8>> = ask.argv.into_iter().map(OsString::into_encoded_bytes).collect();
        shell.command(&argv).map(drop)
    } else if io::stdin().is_terminal() {
        converse(&mut shell).map(|()| shell.forgive())
    } else {
        read_lines(&mut shell)
    };
    match outcome {
        Ok(()) if !shell.failed() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        // Lines that were not run yet are not run: a reader that went away did not see them all.
        Err(error) => output::failed(&error, ExitCode::FAILURE),
    }
}

/// Runs the lines of a pipe or a file, until it ends or the server is gone.
fn read_lines(shell: &mut Shell) -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match run_line(shell, &line)? {
            Next::More => {}
            Next::Lost | Next::Quit => return Ok(()),
        }
    }
}

/// Runs the lines that a person types.
fn converse(shell: &mut Shell) -> io::Result<()> {
    let config = config::Config::builder()
        .max_history_size(HISTORY_LINES)
        .map(config::Builder::build)
        .map_err(io::Error::other)?;
    let mut editor = DefaultEditor::with_config(config).map_err(io::Error::other)?;
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    shell.connect()?;
    let end = loop {
        match editor.readline(&shell.prompt()) {
            Ok(line) => {
                if is_worth_keeping(&line) && editor.add_history_entry(&line).is_err() {
                    log::debug!(target: "client", "the history took no line");
                }
                match run_line(shell, line.as_bytes()) {
                    Ok(Next::Quit) => break Ok(()),
                    // The next line connects again.
                    Ok(Next::More | Next::Lost) => {}
                    Err(error) => break Err(error),
                }
            }
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => break Ok(()),
            Err(error) => break Err(io::Error::other(error)),
        }
    };
    if let Some(file) = &history
        && let Err(error) = editor.save_history(file)
    {
        output::tell(&format!("the history could not be kept in {}: {error}", file.display()));
    }
    end
}

/// A line with a password stays out of the history.
fn is_worth_keeping(line: &str) -> bool {
    let mut argv = line.split_whitespace();
    let is_auth = |word: &str| word.eq_ignore_ascii_case("auth");
    match argv.next() {
        None => false,
        Some(word) if word.eq_ignore_ascii_case("hello") => !argv.any(is_auth),
        Some(word) => !is_auth(word),
    }
}

fn history_file() -> Option<PathBuf> {
    let named = std::env::var_os("QUORATE_HISTORY");
    named.map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(HISTORY_FILE)))
}

/// Runs a line as it was typed.
fn run_line(shell: &mut Shell, line: &[u8]) -> io::Result<Next> {
    let mut argv_buf = ArgvBuf::default();
    let whole = split_line(line, &mut argv_buf).is_some();
    let argv: Vec<Vec<u8>> = argv_buf.argv().from(0).map(<[u8]>::to_vec).collect();
    if !whole {
        writeln!(io::stdout(), "Invalid argument(s)")?;
        shell.fail();
        return Ok(Next::More);
    }
    let Some(first) = argv.first() else { return Ok(Next::More) };
    match first.to_ascii_lowercase().as_slice() {
        b"quit" | b"exit" => Ok(Next::Quit),
        b"clear" if argv.len() == 1 => {
            let mut out = io::stdout();
            out.write_all(b"\x1b[H\x1b[2J")?;
            out.flush()?;
            Ok(Next::More)
        }
        b"help" | b"?" if argv.len() == 1 => {
            writeln!(
                io::stdout(),
                "command docs NAME   what a command does\n\
                 select N            go to another table\n\
                 5 NAME ...          run a command five times\n\
                 quit                leave, as Ctrl-D does"
            )?;
            Ok(Next::More)
        }
        _ => match repetitions(first) {
            Some(times) if argv.len() > 1 => {
                for _ in 0..times {
                    match shell.command(&argv[1..])? {
                        Next::More => {}
                        other => return Ok(other),
                    }
                }
                Ok(Next::More)
            }
            _ => shell.command(&argv),
        },
    }
}

/// How often a line that begins with this word runs, if that is what the word says.
fn repetitions(word: &[u8]) -> Option<u32> {
    std::str::from_utf8(word).ok()?.parse().ok().filter(|times| *times > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Ask {
        let argv = std::iter::once("client").chain(line.split_whitespace());
        Ask::from_arg_matches(&command().get_matches_from(argv)).unwrap()
    }

    #[test]
    fn a_command_keeps_its_own_dashes() {
        let ask = parse("-h ::1 -p 6379 -n 3 -3 SET a -1 -n -p --raw");
        assert_eq!((ask.host.as_str(), ask.port, ask.table), ("::1", 6379, 3));
        assert!(ask.resp3 && !ask.raw);
        assert_eq!(ask.argv, ["SET", "a", "-1", "-n", "-p", "--raw"]);
        assert_eq!(parse("--raw").argv, [""; 0]);
    }

    #[test]
    fn passwords_stay_out_of_the_history() {
        assert!(is_worth_keeping("set auth 1"));
        assert!(!is_worth_keeping(" AUTH secret"));
        assert!(!is_worth_keeping("hello 3 auth me secret"));
        assert!(!is_worth_keeping("  "));
    }

    #[test]
    fn a_number_before_a_command_repeats_it() {
        assert_eq!(repetitions(b"5"), Some(5));
        assert_eq!(repetitions(b"0"), None);
        assert_eq!(repetitions(b"get"), None);
    }
}
