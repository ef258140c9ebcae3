//! Evaluates every scorer on traces: `evaluate [--model FILE] [--segments N] [--known-keys] TRACE:MAPPING...`, one JSON object a line.

use std::error::Error;
use std::path::{Path, PathBuf};

use antumbra_predictor::eval::{EvalConfig, Mapping, Requests, evaluate};
use antumbra_predictor::online::OnlineConfig;
use antumbra_predictor::{Model, trace};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut model, mut segments, mut known_keys_only) = (None, 256, false);
    let mut online = Some(OnlineConfig::default());
    let mut part = (0.8, 1.0);
    fn set(online: &mut Option<OnlineConfig>) -> &mut OnlineConfig {
        online.get_or_insert_default()
    }
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--model" => model = Some(Model::load(Path::new(&args.next().ok_or("--model FILE")?))?),
            "--online" => {
                online = if args.next().as_deref() == Some("off") { None } else { Some(OnlineConfig::default()) }
            }
            "--chunks" => set(&mut online).chunks_per_window = args.next().ok_or("--chunks N")?.parse()?,
            "--rate" => set(&mut online).learning_rate = args.next().ok_or("--rate X")?.parse()?,
            "--average" => set(&mut online).average = args.next().ok_or("--average X")?.parse()?,
            "--pull" => set(&mut online).pull = args.next().ok_or("--pull X")?.parse()?,
            "--lead" => set(&mut online).lead = args.next().ok_or("--lead X")?.parse()?,
            "--order" => set(&mut online).loss.order = args.next().ok_or("--order X")?.parse()?,
            "--part" => {
                let (from, to) = args
                    .next()
                    .ok_or("--part FROM,TO")?
                    .split_once(',')
                    .map(|(a, b)| (a.to_owned(), b.to_owned()))
                    .ok_or("--part FROM,TO")?;
                part = (from.parse()?, to.parse()?);
            }
            "--known-keys" => known_keys_only = true,
            "--segments" => segments = args.next().ok_or("--segments N")?.parse()?,
            trace => {
                let (path, mapping) = trace.rsplit_once(':').ok_or("TRACE:MAPPING, e.g. a.csv.zst:range")?;
                let path = PathBuf::from(path);
                let name = path.file_name().unwrap_or_default().to_string_lossy().replace(".csv.zst", "");
                let requests = Requests { trace: name, requests: trace::read_all(&path)? };
                let mapping: Mapping = mapping.parse()?;
                let config = EvalConfig {
                    model: model.clone(),
                    segments,
                    known_keys_only,
                    online,
                    evaluate_from: part.0,
                    evaluate_to: part.1,
                    ..EvalConfig::new(mapping)
                };
                println!("{}", serde_json::to_string(&evaluate(&requests, &config)?)?);
            }
        }
    }
    Ok(())
}
