//! `antumbra doctor`: what would make an engine slow, unsafe, or unable to start on this machine.

use std::path::PathBuf;
use std::process::ExitCode;

use antumbra_engine::doctor::{self, Diagnosis, Severity};
use clap::Args;
use serde_json::{Value, json};

use crate::CliError;

#[derive(Args)]
pub struct DoctorOptions {
    /// Where the data lies or is to lie.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: an engine works here (advice may be given); 1: it does not.
pub fn run(options: &DoctorOptions) -> Result<ExitCode, CliError> {
    let found = doctor::examine(&options.dir)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&found))?);
    } else {
        print(&found);
    }
    Ok(if found.severity() == Severity::Problem { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn name(severity: Severity) -> &'static str {
    match severity {
        Severity::Fine => "ok",
        Severity::Advice => "advice",
        Severity::Problem => "PROBLEM",
    }
}

fn print(found: &Diagnosis) {
    println!("{}", found.device.dir.display());
    for finding in &found.findings {
        println!("{:<8} {:<18} {}", name(finding.severity), finding.check, finding.found);
        if !finding.advice.is_empty() {
            println!("{:<27} -> {}", "", finding.advice);
        }
    }
    match found.severity() {
        Severity::Fine => println!("nothing to change"),
        Severity::Advice => println!("an engine works here; see the advice"),
        Severity::Problem => println!("an engine does not work here, or does not keep its promises: see each PROBLEM"),
    }
}

fn as_json(found: &Diagnosis) -> Value {
    let (host, device) = (&found.host, &found.device);
    let findings: Vec<Value> = found
        .findings
        .iter()
        .map(|finding| {
            json!({ "check": finding.check, "severity": name(finding.severity).to_lowercase(), "found": finding.found,
                    "advice": finding.advice })
        })
        .collect();
    json!({
        "severity": name(found.severity()).to_lowercase(),
        "findings": findings,
        "host": {
            "kernel": host.kernel, "cpu": host.cpu, "cpus_allowed": host.cpus_allowed, "cpus_online": host.cpus_online,
            "governors": host.governors, "virtualised": host.virtualised, "io_uring_problem": host.io_uring_problem,
            "io_uring_disabled": host.io_uring_disabled, "memlock_bytes": host.memlock_bytes,
            "may_lock_memory": host.may_lock_memory, "open_files_max": host.open_files_max,
            "memory_bytes": host.memory_bytes, "memory_available_bytes": host.memory_available_bytes,
            "swap_bytes": host.swap_bytes, "huge_pages": host.huge_pages,
        },
        "device": {
            "dir": device.dir, "file_system": device.file_system, "mount_options": device.mount_options,
            "source": device.source, "dio_memory_align": device.memory_align, "dio_offset_align": device.offset_align,
            "direct_problem": device.direct_problem, "free_bytes": device.free_bytes, "total_bytes": device.total_bytes,
            "rotational": device.rotational, "write_cache": device.write_cache, "io_poll": device.io_poll,
            "scheduler": device.scheduler, "queue_depth": device.queue_depth, "block_bytes": device.block_bytes,
        },
    })
}
