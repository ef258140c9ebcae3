//! Training itself, where libtorch is built in.

use std::path::Path;

use antumbra_predictor::eval::{EvalConfig, Mapping, Requests, evaluate};
use antumbra_predictor::model::Model;
use antumbra_predictor::trace;
use antumbra_predictor::train::{Progress, TrainConfig, TrainTrace, Trained, train as fit};
use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::*;

use super::super::{given_trace, trace_name};
use super::{LooOptions, Settings, TrainOptions};
use crate::CliError;

/// A trace as given on the command line.
fn parsed(given: &str) -> Result<TrainTrace, CliError> {
    let (path, mapping) = given_trace(given, Mapping::Range)?;
    Ok(TrainTrace { path, mapping })
}

impl Settings {
    fn config(&self) -> Result<TrainConfig, CliError> {
        let traces = self.traces.iter().map(|given| parsed(given)).collect::<Result<_, _>>()?;
        let mut config = TrainConfig::new(traces);
        config.epochs = self.epochs.unwrap_or(config.epochs);
        config.patience = self.patience.unwrap_or(config.patience);
        config.seed = self.seed.unwrap_or(config.seed);
        config.hidden = self.hidden.unwrap_or(config.hidden);
        config.horizon = self.horizon.unwrap_or(config.horizon);
        config.learning_rate = self.learning_rate.unwrap_or(config.learning_rate);
        config.order_weight = self.order_weight.unwrap_or(config.order_weight);
        config.count_weight = self.count_weight.unwrap_or(config.count_weight);
        config.features_off.clone_from(&self.features_off);
        config.mirror = !self.no_mirror;
        config.cuda = !self.cpu;
        if !self.segments.is_empty() {
            config.segments.clone_from(&self.segments);
        }
        Ok(config)
    }
}

/// Trains with a bar that is silent without a terminal, and a line for each pass where there is none.
fn trained(config: &TrainConfig, what: &str) -> Result<Trained, CliError> {
    let bar = ProgressBar::new(config.epochs as u64);
    bar.set_style(ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} {elapsed}<{eta} {msg}")?);
    bar.set_prefix(what.to_owned());
    let trained = fit(config, &mut |at: Progress| {
        let text = format!("loss {:.4}, {:.2} % of oracle, best pass {}", at.loss, at.pct_of_oracle, at.best_epoch);
        bar.set_position(at.epoch as u64);
        bar.set_message(text.clone());
        if bar.is_hidden() {
            eprintln!("{what}: pass {}/{}: {text}", at.epoch, at.epochs);
        }
    })?;
    bar.finish_and_clear();
    Ok(trained)
}

/// `antumbra predict train`.
pub fn train(options: &TrainOptions) -> Result<(), CliError> {
    let mut config = options.settings.config()?;
    config.checkpoint.clone_from(&options.checkpoint);
    config.start = options.start.as_deref().map(Model::load).transpose()?;
    let trained = trained(&config, "train")?;
    trained.model.save(&options.out)?;
    for (given, pct) in config.traces.iter().zip(&trained.validation) {
        println!("{:<24} {pct:6.2} % of the oracle in validation", trace_name(&given.path));
    }
    let device = if trained.on_cuda { "the GPU" } else { "the processor" };
    println!("trained on {device}, wrote {}", options.out.display());
    if let Some(path) = &options.curve {
        let svg = curve(&trained.curve)?;
        std::fs::write(path, svg).map_err(|cause| format!("write {}: {cause}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// Loss and validation by pass.
fn curve(curve: &[Progress]) -> Result<String, CliError> {
    let failed = |cause: &dyn std::fmt::Display| CliError::from(cause.to_string());
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (960, 420)).into_drawing_area();
        area.fill(&WHITE).map_err(|cause| failed(&cause))?;
        let (left, right) = area.split_horizontally(480);
        type Figure = fn(&Progress) -> f64;
        let figures: [(&str, Figure); 2] =
            [("training loss", |at| at.loss), ("validation, % of the oracle", |at| at.pct_of_oracle)];
        for (area, (title, figure)) in [left, right].iter().zip(figures) {
            let values: Vec<(f64, f64)> = curve.iter().map(|at| (at.epoch as f64, figure(at))).collect();
            let low = values.iter().map(|value| value.1).fold(f64::INFINITY, f64::min);
            let high = values.iter().map(|value| value.1).fold(f64::NEG_INFINITY, f64::max);
            let room = (high - low).max(1e-3) * 0.1;
            let mut chart = ChartBuilder::on(area)
                .caption(title, ("sans-serif", 18))
                .margin(10)
                .x_label_area_size(32)
                .y_label_area_size(48)
                .build_cartesian_2d(1.0..(curve.len() as f64).max(2.0), low - room..high + room)
                .map_err(|cause| failed(&cause))?;
            chart.configure_mesh().x_desc("pass").draw().map_err(|cause| failed(&cause))?;
            chart
                .draw_series(LineSeries::new(values, RGBColor(24, 80, 160).stroke_width(2)))
                .map_err(|cause| failed(&cause))?;
        }
        area.present().map_err(|cause| failed(&cause))?;
    }
    Ok(svg)
}

/// `antumbra predict loo`: for each trace a model that never saw it, evaluated on it as a host would run it.
pub fn leave_one_out(options: &LooOptions) -> Result<(), CliError> {
    let whole = options.settings.config()?;
    if whole.traces.len() < 2 {
        return Err("at least two traces: one is left out each time".into());
    }
    let (mut vs_ewma, mut vs_classic) = (Vec::new(), Vec::new());
    for left_out in 0..whole.traces.len() {
        let mut config = whole.clone();
        let given = config.traces.remove(left_out);
        let name = trace_name(&given.path);
        let kept = options.models.as_ref().map(|folder| folder.join(format!("{name}.safetensors")));
        let model = match &kept {
            Some(path) if path.exists() => Model::load(path)?,
            _ => trained(&config, &format!("without {name}"))?.model,
        };
        if let Some(path) = kept.as_deref().filter(|path| !path.exists()) {
            save(&model, path)?;
        }
        let requests = Requests { trace: name, requests: trace::read_all(&given.path)? };
        let report = evaluate(&requests, &EvalConfig { model: Some(model), ..EvalConfig::new(given.mapping) })?;
        vs_ewma.extend(report.gap_vs_ewma);
        vs_classic.extend(report.gap_vs_classic);
        if options.json {
            println!("{}", serde_json::to_string(&report)?);
            continue;
        }
        let pct = |name: &str| report.scorers.get(name).map_or(0.0, |scorer| scorer.pct_of_oracle);
        println!(
            "{:<16} ewma {:6.2}  classic {:6.2}  gru {:6.2}  auto {:6.2}  gap vs ewma {:+5.1} %  vs classic {:+5.1} %",
            report.trace,
            pct("ewma"),
            report.classic.pct_of_oracle,
            pct("gru"),
            pct("auto"),
            100.0 * report.gap_vs_ewma.unwrap_or_default(),
            100.0 * report.gap_vs_classic.unwrap_or_default(),
        );
    }
    let mean = |gaps: &[f64]| 100.0 * gaps.iter().sum::<f64>() / gaps.len().max(1) as f64;
    if !options.json {
        println!("mean gap closed: {:+.1} % vs ewma, {:+.1} % vs classic", mean(&vs_ewma), mean(&vs_classic));
    }
    Ok(())
}

fn save(model: &Model, path: &Path) -> Result<(), CliError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|cause| format!("create {}: {cause}", folder.display()))?;
    }
    Ok(model.save(path)?)
}
