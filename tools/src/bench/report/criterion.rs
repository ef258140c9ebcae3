//! What criterion keeps of its own: the estimates in its folder.

use std::path::Path;

use serde_json::{Value, json};

use crate::CliError;

/// Every benchmark of a folder that criterion wrote: name, what an iteration works on, nanoseconds of one.
pub fn estimates(home: &Path) -> Result<Value, CliError> {
    let mut found = Vec::new();
    look(home, &mut found)?;
    if found.is_empty() {
        return Err(format!("{}: criterion left no estimates.json there", home.display()).into());
    }
    found.sort_by_key(|one| one["name"].as_str().unwrap_or_default().to_string());
    Ok(json!({ "benchmarks": found }))
}

fn look(dir: &Path, found: &mut Vec<Value>) -> Result<(), CliError> {
    let failed = |cause: std::io::Error| format!("{}: {cause}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name == "new") {
            let read = |name: &str| -> Result<Value, CliError> {
                let path = path.join(name);
                let text = std::fs::read_to_string(&path).map_err(|cause| format!("{}: {cause}", path.display()))?;
                serde_json::from_str(&text).map_err(|cause| format!("{}: {cause}", path.display()).into())
            };
            found.push(one(&read("benchmark.json")?, &read("estimates.json")?)?);
        } else if path.is_dir() {
            look(&path, found)?;
        }
    }
    Ok(())
}

fn one(benchmark: &Value, estimates: &Value) -> Result<Value, CliError> {
    let name = benchmark["full_id"].as_str().ok_or("criterion's benchmark.json has no full_id")?;
    let median = &estimates["median"];
    let bounds = &median["confidence_interval"];
    let number = |value: &Value| value.as_f64().ok_or_else(|| format!("criterion's estimate of {name} is no number"));
    Ok(json!({
        "name": name,
        "throughput": benchmark["throughput"],
        "median_ns": number(&median["point_estimate"])?,
        "low_ns": number(&bounds["lower_bound"])?,
        "high_ns": number(&bounds["upper_bound"])?,
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn estimates_are_found_however_deep_and_an_empty_folder_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        assert!(estimates(home.path()).unwrap_err().to_string().contains("left no estimates"));
        let new = home.path().join("hot/get, hot row/new");
        std::fs::create_dir_all(&new).unwrap();
        let benchmark = json!({ "full_id": "hot/get, hot row", "throughput": { "Elements": 1 } });
        std::fs::write(new.join("benchmark.json"), benchmark.to_string()).unwrap();
        let bounds = json!({ "confidence_level": 0.95, "lower_bound": 90.0, "upper_bound": 110.5 });
        let estimate = json!({ "median": { "point_estimate": 100.0, "confidence_interval": bounds } });
        std::fs::write(new.join("estimates.json"), estimate.to_string()).unwrap();
        let found = estimates(home.path()).unwrap();
        assert_eq!(found["benchmarks"][0]["median_ns"], 100.0);
        assert_eq!(found["benchmarks"][0]["high_ns"], 110.5);
        assert_eq!(found["benchmarks"][0]["name"], "hot/get, hot row");
    }
}
