//! What the golden scripts of the cores share: reading a command's arguments, and running all
//! scripts of a folder.

use goldenscript::{ArgumentConsumer, Command, Runner};
use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;

/// A command's arguments, parsed as they are taken.
pub struct Args<'a>(ArgumentConsumer<'a>);

impl<'a> Args<'a> {
    pub fn new(command: &'a Command) -> Args<'a> {
        Args(command.consume_args())
    }

    /// The next argument without a name.
    pub fn next<T: FromStr<Err: Into<Box<dyn Error>>>>(&mut self) -> Result<T, Box<dyn Error>> {
        let word = self.0.next_pos().ok_or("an argument is missing")?;
        word.parse().map_err(Into::into)
    }

    /// All arguments without a name that are left.
    pub fn words(&mut self) -> Vec<&'a str> {
        std::iter::from_fn(|| self.0.next_pos()).collect()
    }

    /// The argument with this name, or `default`.
    pub fn key<T: FromStr<Err: Into<Box<dyn Error>>>>(
        &mut self,
        name: &str,
        default: T,
    ) -> Result<T, Box<dyn Error>> {
        self.0.take_key(name).map_or(Ok(default), |word| word.parse().map_err(Into::into))
    }

    /// Fails if any argument was not taken.
    pub fn end(self) -> Result<(), Box<dyn Error>> {
        self.0.reject_next()
    }
}

/// Runs every script of a folder, each with a runner of its own: none is forgotten.
pub fn run_all<R: Runner>(folder: &str, runner: impl Fn() -> R) {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} holds no script");
    for path in paths {
        let ran = goldenscript::run(&mut runner(), &path);
        ran.unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    }
}
