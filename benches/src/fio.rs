//! fio, where it is installed: what it gets out of a device with the same calls.

use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};

/// What is read of fio's JSON.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct FioJob {
    pub read: FioSide,
    pub write: FioSide,
}

#[derive(Debug, serde::Deserialize)]
pub(crate) struct FioSide {
    pub iops: f64,
    pub lat_ns: FioLatency,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct FioLatency {
    #[serde(default)]
    pub percentile: FioPercentiles,
}

#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct FioPercentiles {
    #[serde(default, rename = "50.000000")]
    pub p50: f64,
}

/// Runs fio in a folder, on files of it.
pub(crate) fn fio(dir: &Path, files: &str, arguments: &[&str], seconds: f64) -> Result<FioJob> {
    let output = Command::new("fio")
        .args(["--name=device", "--direct=1", "--ioengine=io_uring", "--time_based", "--output-format=json"])
        .args(["--lat_percentiles=1", "--clat_percentiles=0", "--numjobs=1"])
        .arg(format!("--filename={files}"))
        .arg(format!("--runtime={}ms", (seconds * 1e3) as u64))
        .args(arguments)
        .current_dir(dir)
        .output()
        .map_err(|cause| Error::refused(format!("fio: {cause}; install it (Debian: apt-get install fio)")))?;
    if !output.status.success() {
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        return Err(Error::refused(format!("fio: {}", String::from_utf8_lossy(&said))));
    }
    #[derive(serde::Deserialize)]
    struct Fio {
        jobs: [FioJob; 1],
    }
    // Notes may stand before the object.
    let start = output.stdout.iter().position(|byte| *byte == b'{').unwrap_or_default();
    let parsed: Fio = serde_json::from_slice(&output.stdout[start..])
        .map_err(|cause| Error::refused(format!("fio's report: {cause}")))?;
    let [job] = parsed.jobs;
    Ok(job)
}
