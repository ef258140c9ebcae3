//! The measurements that README and book quote, each by a named command, with what was measured: `benches/results/NAME.json`.
//! The docs' test compares the text with these files.

use std::process::{Command, Stdio};

use crate::{Result, antumbra, commit, root};

/// Each measurement with the arguments for which `antumbra` prints it as JSON.
const MEASUREMENTS: &[(&str, &[&str])] = &[
    ("demo", &["demo", "--json"]),
    ("move", &["bench", "move", "--mib", "512", "--rate", "4000", "--set-point", "off", "--json"]),
    (
        "ycsb",
        &["bench", "ycsb", "--workload", "C,B,A", "--memory-mb", "256", "--rounds", "3", "--seconds", "2", "--json"],
    ),
];

/// Runs the measurements that are named.
pub fn run(names: &[String]) -> Result<()> {
    let known: Vec<&str> = MEASUREMENTS.iter().map(|one| one.0).collect();
    let found = |name: &String| MEASUREMENTS.iter().find(|one| one.0 == name);
    let unknown = |name: &String| format!("no measurement is called '{name}': {}", known.join(", "));
    if names.is_empty() {
        return Err(format!("name the measurements to run: {}", known.join(", ")));
    }
    let chosen = names.iter().map(|name| found(name).ok_or_else(|| unknown(name))).collect::<Result<Vec<_>>>()?;
    chosen.into_iter().try_for_each(|(name, args)| measure(name, args))
}

fn measure(name: &str, args: &[&str]) -> Result<()> {
    let program = antumbra()?;
    // The demo leaves its reports where it is started.
    let dir = std::env::temp_dir().join(format!("antumbra-results-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|cause| format!("{}: {cause}", dir.display()))?;
    let mut command = Command::new(program);
    command.args(args).current_dir(&dir).stderr(Stdio::inherit());
    eprintln!("xtask: {command:?}");
    let output = command.output().map_err(|cause| format!("antumbra: {cause}"))?;
    let _ = std::fs::remove_dir_all(&dir);
    if !output.status.success() {
        return Err(format!("antumbra ended with {}; nothing is kept", output.status));
    }
    let report = without_curves(&String::from_utf8_lossy(&output.stdout));
    let path = root().join("benches/results").join(format!("{name}.json"));
    let text = format!(
        "{{\n\"command\": {:?},\n\"made_by\": \"cargo xtask results {name}\",\n\"commit\": {:?},\n\"report\": {}\n}}\n",
        format!("antumbra {}", args.join(" ")),
        commit::measured(&root()).unwrap_or_else(|| "unknown".into()),
        report.trim()
    );
    std::fs::write(&path, text).map_err(|cause| format!("{}: {cause}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

/// The report without the members that are drawn and not quoted: most of its lines.
fn without_curves(report: &str) -> String {
    let mut is_left_out = false;
    let keeps = |line: &&str| {
        is_left_out |= ["  \"series\": [", "  \"curves\": ["].contains(line);
        let keeps = !is_left_out;
        is_left_out &= *line != "  ],";
        keeps
    };
    report.lines().filter(keeps).collect::<Vec<_>>().join("\n")
}
