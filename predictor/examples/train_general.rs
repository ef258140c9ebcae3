//! Trains the shipped model: `train_general FOLDER OUT [--KEY VALUE]...`, with the development traces in FOLDER.
//!
//! OUT is `predictor/models/general.safetensors` for the model that ships. Keys: epochs, hidden, seed, lr, order, count,
//! segments (a list, e.g. 256,64), mirror (0 or 1), skip (names of traces left out, for a look at unseen ones).

use std::error::Error;
use std::path::Path;

use antumbra_predictor::eval::Mapping;
use antumbra_predictor::train::{TrainConfig, TrainTrace, train};

/// The development traces and how their keys lie.
const TRACES: [(&str, Mapping); 11] = [
    ("cp_w92", Mapping::Range),
    ("hplajw_1992", Mapping::Range),
    ("ms_dtrs", Mapping::Range),
    ("cp_w106", Mapping::Range),
    ("arc_p6", Mapping::Range),
    ("arc_p12", Mapping::Range),
    ("arc_oltp", Mapping::Range),
    ("orm_busy", Mapping::Range),
    ("scarab_recs", Mapping::Arrival),
    ("mooncake_conv", Mapping::Arrival),
    ("uci_retail", Mapping::Range),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("FOLDER OUT")?;
    let out = args.next().ok_or("FOLDER OUT")?;
    let traces = TRACES
        .map(|(name, mapping)| TrainTrace { path: Path::new(&folder).join(format!("{name}.csv.zst")), mapping })
        .to_vec();
    let mut config = TrainConfig::new(traces);
    while let Some(key) = args.next() {
        let value = args.next().ok_or("a value after each key")?;
        match key.as_str() {
            "--epochs" => config.epochs = value.parse()?,
            "--hidden" => config.hidden = value.parse()?,
            "--seed" => config.seed = value.parse()?,
            "--lr" => config.learning_rate = value.parse()?,
            "--order" => config.order_weight = value.parse()?,
            "--count" => config.count_weight = value.parse()?,
            "--batch" => config.batch = value.parse()?,
            "--chunk" => config.chunk = value.parse()?,
            "--patience" => config.patience = value.parse()?,
            "--mirror" => config.mirror = value != "0",
            "--segments" => config.segments = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--skip" => {
                config
                    .traces
                    .retain(|given| !value.split(',').any(|name| given.path.ends_with(format!("{name}.csv.zst"))));
            }
            other => return Err(format!("unknown key {other}").into()),
        }
    }
    let trained = train(&config, &mut |at| {
        println!(
            "epoch {:3}/{}: loss {:.4}, {:.2} % of oracle, best {}",
            at.epoch, at.epochs, at.loss, at.pct_of_oracle, at.best_epoch
        );
    })?;
    for (given, pct) in config.traces.iter().zip(&trained.validation) {
        println!("{:40} {pct:.1}", given.path.display());
    }
    trained.model.save(Path::new(&out))?;
    Ok(())
}
