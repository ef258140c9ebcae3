//! Counts the instructions of the hot pieces under callgrind and holds them against the ones kept in the repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::jobs::in_parallel;
use crate::{Result, add_etcd, built, cargo};

const HELP: &str = "cargo xtask guard [--update | --plant NAME] [NAME ...]

Counts the instructions of each hot piece (benches/benches/pieces) and fails where they are more than 5 % above those in
benches/instructions.txt. --update writes the new ones there, for the commit that explains them. --plant does a tenth of one
piece twice, and fails unless that is noticed.";
/// What a piece may cost more.
const SLACK: f64 = 0.05;

/// What is kept: a line with the compiler, then one with count and name for each piece.
#[derive(Debug, Default)]
struct Baseline {
    /// The compiler that they hold for.
    rustc: String,
    /// By piece: of all counted iterations.
    instructions: BTreeMap<String, u64>,
}

/// Runs the guard.
pub fn run(args: &[String]) -> Result<()> {
    let mut update = false;
    let mut planted = None;
    let mut wanted = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" => {
                println!("{HELP}");
                return Ok(());
            }
            "--update" => update = true,
            "--plant" => planted = Some(args.next().ok_or("--plant takes the name of a piece")?.clone()),
            name => wanted.push(name.to_string()),
        }
    }
    let program = build()?;
    let names = listed(&program)?;
    if let Some(unknown) = wanted.iter().chain(&planted).find(|name| !names.contains(name)) {
        return Err(format!("no piece '{unknown}': {}", names.join("; ")));
    }
    let path = crate::root().join("benches/instructions.txt");
    let mut kept = Baseline::read(&path)?;
    if let Some(name) = planted {
        return plant(&program, &name, &kept);
    }
    let rustc = rustc()?;
    let same_compiler = kept.rustc == rustc;
    if !update && !same_compiler {
        println!("SKIPPED: instruction counts are kept for {}, this is {rustc}: update them with it", kept.rustc);
        return Ok(());
    }
    if update && !same_compiler {
        kept = Baseline { rustc, instructions: BTreeMap::new() };
    }
    let mut worse = Vec::new();
    let chosen: Vec<&String> = names.iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect();
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = in_parallel(&chosen, at_once, |name| count(&program, name, false));
    for (name, counted) in chosen.into_iter().zip(counts) {
        let counted = counted?;
        let before = kept.instructions.get(name).copied();
        let change = before.map_or(0.0, |before| counted as f64 / before as f64 - 1.0);
        println!("{name:<28} {counted:>12}  {:>+7.2} %", change * 100.0);
        if update {
            kept.instructions.insert(name.clone(), counted);
        } else if before.is_none() {
            worse.push(format!("{name} has no count to hold against"));
        } else if change > SLACK {
            worse.push(format!("{name} takes {:.1} % more instructions", change * 100.0));
        }
    }
    if update {
        kept.instructions.retain(|name, _| names.contains(name));
        return kept.write(&path);
    }
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!("{}\nif that is meant: cargo xtask guard --update, in the commit that says why", worse.join("\n")))
}

/// A piece that does a tenth of its work twice has to be noticed.
fn plant(program: &Path, name: &str, kept: &Baseline) -> Result<()> {
    let before = kept.instructions.get(name).ok_or_else(|| format!("{name} has no count to hold against"))?;
    let change = count(program, name, true)? as f64 / *before as f64 - 1.0;
    println!("{name}, a tenth of it twice: {:+.2} %", change * 100.0);
    if change > SLACK { Ok(()) } else { Err("the planted slowdown was not noticed".into()) }
}

impl Baseline {
    fn read(path: &Path) -> Result<Baseline> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(Baseline::default()),
            Err(cause) => return Err(format!("{}: {cause}", path.display())),
        };
        let mut lines = text.lines().enumerate();
        let rustc = lines.next().map_or_else(String::new, |(_, line)| line.to_string());
        let entry = |(number, line): (usize, &str)| {
            let parts = line.trim_start().split_once(' ');
            let parsed = parts.and_then(|(count, name)| Some((name.to_string(), count.parse().ok()?)));
            parsed.ok_or_else(|| format!("{}, line {}: a count and a name, not '{line}'", path.display(), number + 1))
        };
        Ok(Baseline { rustc, instructions: lines.map(entry).collect::<Result<_>>()? })
    }

    fn write(&self, path: &Path) -> Result<()> {
        let lines = self.instructions.iter().map(|(name, count)| format!("{count:>12} {name}\n"));
        let text: String = std::iter::once(format!("{}\n", self.rustc)).chain(lines).collect();
        std::fs::write(path, text).map_err(|cause| format!("{}: {cause}", path.display()))
    }
}

fn rustc() -> Result<String> {
    let out = Command::new("rustc").arg("--version").output().map_err(|cause| format!("rustc: {cause}"))?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// Builds the bench; its path.
fn build() -> Result<PathBuf> {
    let mut command = cargo();
    // As the tests are built, so that what they have built is used.
    command.args(["bench", "--workspace", "--bench", "guard", "--no-run"]);
    add_etcd(&mut command);
    let is_guard = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("guard-"));
    built(&mut command)?.into_iter().find(is_guard).ok_or_else(|| "cargo does not say where the bench guard is".into())
}

fn listed(program: &Path) -> Result<Vec<String>> {
    let out =
        Command::new(program).arg("--list").output().map_err(|cause| format!("{}: {cause}", program.display()))?;
    Ok(String::from_utf8_lossy(&out.stdout).lines().map(str::to_string).collect())
}

/// Instructions within the counted region, all threads together.
fn count(program: &Path, name: &str, planted: bool) -> Result<u64> {
    // On the disk, since engines write past the page cache.
    let letters = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let dir = crate::target_dir().join(format!("guard-{}-{letters}", std::process::id()));
    let counted = prepare(program, name, &dir).and_then(|()| count_in(program, name, &dir, planted));
    let removed = std::fs::remove_dir_all(&dir).map_err(|cause| format!("{}: {cause}", dir.display()));
    let counted = counted?;
    removed?;
    Ok(counted)
}

/// Makes what the piece works on in `dir`.
fn prepare(program: &Path, name: &str, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    let out = Command::new(program).arg("--prepare").arg(name).arg(dir).output();
    match out {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(format!("'{name}' was not prepared:\n{}", String::from_utf8_lossy(&out.stderr))),
        Err(cause) => Err(format!("{}: {cause}", program.display())),
    }
}

fn count_in(program: &Path, name: &str, dir: &Path, planted: bool) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*counted_region*"]);
    // A shard that looks for work would keep all other threads from theirs.
    command.arg("--fair-sched=yes");
    command.arg(program).arg(name).arg(dir);
    if planted {
        command.arg("--plant");
    }
    let out = command.output().map_err(|cause| format!("valgrind: {cause}; cargo xtask setup installs it"))?;
    let text = String::from_utf8_lossy(&out.stderr);
    let collected = text.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok());
    match collected {
        Some(count) if out.status.success() && count > 0 => Ok(count),
        _ => Err(format!("'{name}' was not counted:\n{text}")),
    }
}
