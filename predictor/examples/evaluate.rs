//! Evaluates every scorer on traces: `evaluate [--model FILE] [--segments N] [--known-keys] TRACE:MAPPING...`, one JSON object a line.

use std::error::Error;
use std::path::{Path, PathBuf};

use antumbra_predictor::eval::{EvalConfig, Mapping, Requests, evaluate};
use antumbra_predictor::{Model, trace};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut model, mut segments, mut known_keys_only) = (None, 256, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--model" => model = Some(Model::load(Path::new(&args.next().ok_or("--model FILE")?))?),
            "--known-keys" => known_keys_only = true,
            "--segments" => segments = args.next().ok_or("--segments N")?.parse()?,
            trace => {
                let (path, mapping) = trace.rsplit_once(':').ok_or("TRACE:MAPPING, e.g. a.csv.zst:range")?;
                let path = PathBuf::from(path);
                let name = path.file_name().unwrap_or_default().to_string_lossy().replace(".csv.zst", "");
                let requests = Requests { trace: name, requests: trace::read_all(&path)? };
                let mapping: Mapping = mapping.parse()?;
                let config = EvalConfig { model: model.clone(), segments, known_keys_only, ..EvalConfig::new(mapping) };
                println!("{}", serde_json::to_string(&evaluate(&requests, &config)?)?);
            }
        }
    }
    Ok(())
}
