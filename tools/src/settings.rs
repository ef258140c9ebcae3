//! Where a node's settings come from: the command line, then the environment, then a file, then the defaults.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};

use crate::{Cli, CliError};

/// Before each name in the environment.
const PREFIX: &str = "ANTUMBRA_";
/// Options that no file may give.
const NOT_IN_FILES: [&str; 4] = ["config", "check", "failpoint", "wire-versions"];

/// The command line as it is, for completions and manual pages.
pub fn command() -> Command {
    Cli::command().mut_subcommand("node", |node| node.mut_args(from_environment))
}

/// Parses the command line of this process.
pub fn parse() -> Result<Cli, CliError> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let mut command = command();
    if let Some(path) = config_path(&args) {
        let values = read(&path)?;
        let problem = unknown(&command, &values);
        if let Some(problem) = problem {
            return Err(format!("{}: {problem}", path.display()).into());
        }
        command = command.mut_subcommand("node", |node| node.mut_args(|arg| with_file(arg, &values)));
    }
    let matches = command.get_matches_from(args);
    Ok(Cli::from_arg_matches(&matches)?)
}

fn is_of_cli(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

fn from_environment(arg: Arg) -> Arg {
    if is_of_cli(&arg) {
        return arg;
    }
    let name = format!("{PREFIX}{}", arg.get_id().as_str().to_ascii_uppercase());
    arg.env(clap::builder::OsStr::from(OsString::from(name)))
}

/// What the file says stands where the default stood.
fn with_file(arg: Arg, values: &[(String, String)]) -> Arg {
    match values.iter().find(|(name, _)| Some(name.as_str()) == arg.get_long()) {
        Some((_, value)) => arg.default_value(value.clone()).required(false),
        None => arg,
    }
}

/// The file that a node is told to read.
fn config_path(args: &[OsString]) -> Option<PathBuf> {
    if args.get(1)? != "node" {
        return None;
    }
    let mut rest = args[2..].iter();
    while let Some(arg) = rest.next() {
        if arg == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os(format!("{PREFIX}CONFIG")).map(PathBuf::from)
}

/// Names and values, as the command line would have them.
fn read(path: &Path) -> Result<Vec<(String, String)>, CliError> {
    let failed = |cause: &dyn std::fmt::Display| CliError::from(format!("{}: {cause}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|cause| failed(&cause))?;
    // It says the line.
    let table: toml::Table = text.parse().map_err(|cause| failed(&cause))?;
    let value = |(name, value): (String, toml::Value)| match value {
        toml::Value::String(text) => Ok((name, text)),
        toml::Value::Integer(number) => Ok((name, number.to_string())),
        toml::Value::Float(number) => Ok((name, number.to_string())),
        toml::Value::Boolean(is) => Ok((name, is.to_string())),
        other => Err(failed(&format!("{name}: a word, a number, true or false, not {}", other.type_str()))),
    };
    table.into_iter().map(value).collect()
}

/// Why the settings of a file cannot all be taken, if they cannot.
fn unknown(command: &Command, values: &[(String, String)]) -> Option<String> {
    let node = command.find_subcommand("node")?;
    let known: Vec<&Arg> = node.get_arguments().filter(|arg| !is_of_cli(arg)).collect();
    values.iter().find_map(|(name, value)| {
        let arg = known.iter().find(|arg| arg.get_long() == Some(name));
        match arg {
            _ if NOT_IN_FILES.contains(&name.as_str()) => Some(format!("{name} belongs on the command line")),
            None => Some(format!("no setting is called '{name}': antumbra node --help lists them, without the dashes")),
            Some(arg) if matches!(arg.get_action(), ArgAction::SetTrue) && value != "true" && value != "false" => {
                Some(format!("{name}: true or false, not '{value}'"))
            }
            Some(_) => None,
        }
    })
}

/// A page for each command.
pub fn write_manual(dir: &Path) -> Result<(), CliError> {
    std::fs::create_dir_all(dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    clap_mangen::generate_to(command(), dir)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn command_line_is_sound() {
        super::command().debug_assert();
    }
}
