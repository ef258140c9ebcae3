//! The predictor's commands, as an operator types them.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use antumbra_predictor::Model;
use antumbra_predictor::trace::{Op, Request, TraceWriter};
use serde_json::Value;

fn antumbra(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_antumbra")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command that has to succeed.
fn printed(args: &[&str]) -> String {
    let output = antumbra(args);
    let (out, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{args:?}: {out}{error}");
    out
}

/// Runs a command that has to fail, and gives what it says.
fn refused(args: &[&str]) -> String {
    let output = antumbra(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// A scan over 600 keys under a third of requests to a hot spot.
fn trace(path: &Path) {
    let mut random = fastrand::Rng::with_seed(1);
    let mut writer = TraceWriter::create(path).unwrap();
    for at in 0..12_000u64 {
        let key = if at % 3 == 0 { random.u64(0..40) } else { at / 5 % 600 };
        let op = if at % 4 == 0 { Op::Put } else { Op::Get };
        writer.write(&Request { ts_us: at * 1_000, op, key, size: 100 }).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn eval_prints_one_object_of_the_promised_shape_and_ablations_change_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan.csv.zst");
    trace(&path);
    let file = path.to_str().unwrap();
    let eval = ["predict", "eval", "--trace", file, "--segments", "32", "--windows", "200"];
    let with = |more: &[&str]| printed(&[&eval[..], more].concat());
    let json: Value = serde_json::from_str(&with(&["--json"])).unwrap();
    assert_eq!((&json["trace"], &json["mapping"], &json["segments"]), (&"scan".into(), &"range".into(), &32.into()));
    let names = "random last-window lru lfu ewma ewma-adaptive ewma-readahead markov linear gru auto oracle";
    for name in names.split(' ') {
        let scorer = &json["scorers"][name];
        let (share, pct) = (scorer["share"].as_f64().unwrap(), scorer["pct_of_oracle"].as_f64().unwrap());
        let [low, high] = [0, 1].map(|at| scorer["ci95"][at].as_f64().unwrap());
        assert!((0.0..=1.0).contains(&share) && low <= pct && pct <= high, "{name}: {scorer}");
    }
    assert_eq!(json["scorers"]["oracle"]["pct_of_oracle"], 100.0);
    let share = |name: &str| json["scorers"][name]["share"].as_f64().unwrap();
    let gap = (share("gru") - share("ewma")) / (share("oracle") - share("ewma"));
    assert!((json["gap_vs_ewma"].as_f64().unwrap() - gap).abs() < 1e-9);
    assert!(json["gap_vs_classic"].is_number());
    let frozen: Value = serde_json::from_str(&with(&["--json", "--online", "off", "--scorer", "gru,ewma"])).unwrap();
    assert_ne!(frozen["scorers"]["gru"], json["scorers"]["gru"]);
    assert_eq!(frozen["scorers"]["ewma"], json["scorers"]["ewma"]);
    assert_eq!(frozen["scorers"].as_object().unwrap().len(), 3);
    assert!(with(&[]).contains("gap to the oracle that gru closes against ewma"));
    let page = with(&["--html", "--mapping", "hash"]);
    assert!(page.starts_with("<!doctype html>") && page.contains("Mapping hash"));
}

#[test]
fn eval_of_several_traces_prints_a_row_each_and_their_means() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| folder.path().join(format!("{name}.csv.zst")));
    paths.iter().for_each(|path| trace(path));
    let (one, two) = (paths[0].to_str().unwrap(), format!("{}:hash", paths[1].display()));
    let both = ["predict", "eval", "--trace", one, "--trace", &two, "--segments", "32", "--windows", "200"];
    let table = printed(&both);
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[2].starts_with("| one/range | ") && rows[3].starts_with("| two/hash | "), "{table}");
    let cells = |row: &str| row.matches('|').count();
    assert!(rows[..4].iter().all(|row| cells(row) == cells(rows[0])), "{table}");
    let json: Value = serde_json::from_str(&printed(&[&both[..], &["--json"]].concat())).unwrap();
    let of = |at: usize, name: &str| json["traces"][at][name].as_f64().unwrap();
    let mean = (of(0, "gap_vs_ewma") + of(1, "gap_vs_ewma")) / 2.0;
    assert!((json["mean_gap_vs_ewma"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!(table.contains(&format!("{:+.1} % against ewma", 100.0 * mean)), "{table}");
    assert!(json["least_auto_above_best_rule"].is_number());
    assert!(refused(&[&both[..], &["--html"]].concat()).contains("--html"));
    let misspelt = refused(&["predict", "eval", "--trace", &format!("{one}:hsah")]);
    assert!(misspelt.contains(one) && misspelt.contains("unknown mapping 'hsah'"), "{misspelt}");
}

#[test]
fn eval_malformed_trace_is_refused_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.csv.zst");
    let file = path.to_str().unwrap();
    let of = |text: &str| {
        std::fs::write(&path, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        refused(&["predict", "eval", "--trace", file])
    };
    let named = |error: String, what: &str| assert!(error.contains(file) && error.contains(what), "{error}");
    named(of("ts_us,op,key,size,v2\n0,get,1,1\n"), "line 1: header is");
    named(of("ts_us,op,key,size\n0,get,1,1\nNaN,get,1,1\n"), "line 3: ts_us 'NaN'");
    named(of("ts_us,op,key,size\n0,get,1,99999999999\n"), "line 2: size '99999999999'");
    trace(&path);
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    named(refused(&["predict", "eval", "--trace", file]), "cut short");
    std::fs::write(&path, b"ts_us,op,key,size\n").unwrap();
    named(refused(&["predict", "eval", "--trace", file]), "read");
    trace(&path);
    let eval = |name: &str, value: &str| refused(&["predict", "eval", "--trace", file, name, value]);
    assert!(eval("--segments", "100000000").contains("segments"));
    assert!(eval("--windows", "100000000").contains("windows"));
    assert!(eval("--horizon", "100000000").contains("horizon"));
    assert!(eval("--scorer", "oracles").contains("unknown scorer 'oracles'"));
}

#[test]
fn eval_malformed_model_is_refused_by_file_and_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (path, model) = (folder.path().join("scan.csv.zst"), folder.path().join("m.safetensors"));
    trace(&path);
    let (file, weights) = (path.to_str().unwrap(), model.to_str().unwrap());
    let whole = Model::random(8, 8, 1).to_bytes().unwrap();
    let of = |bytes: &[u8]| {
        std::fs::write(&model, bytes).unwrap();
        let error = refused(&["predict", "eval", "--trace", file, "--model", weights]);
        assert!(error.contains(weights), "{error}");
        error
    };
    assert!(of(&whole[..whole.len() - 1]).contains("damaged"));
    assert!(of(&[]).contains("damaged"));
    assert!(of(&[255; 4096]).contains("damaged"));
    let last = whole.len() - 4;
    assert!(of(&[&whole[..last], &f32::NAN.to_le_bytes()[..]].concat()).contains("is NaN"));
    let edited = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        of(&[&whole[..at], to.as_bytes(), &whole[at + from.len()..]].concat())
    };
    assert!(edited(r#"\"format\":2"#, r#"\"format\":1"#).contains("format 1, this build reads 2"));
    assert!(edited(r#"\"hidden\":8"#, r#"\"hidden\":9"#).contains("tensor gru.weight_ih: shape"));
}

#[test]
fn signal_table_is_repeatable_and_names_its_rivals() {
    let signal = ["predict", "signal", "--seeds", "40", "--json"];
    let json: Value = serde_json::from_str(&printed(&signal)).unwrap();
    for trigger in ["predictive", "reactive", "reactive_equal_cost", "oracle"] {
        let of = &json[trigger];
        let fields = ["lead_windows", "precision", "recall", "wasted_bytes", "violations"];
        assert!(fields.iter().all(|field| of[*field].is_number()), "{trigger}: {of}");
    }
    assert!(json["oracle"]["violations"].as_f64() <= json["predictive"]["violations"].as_f64());
    assert_eq!(printed(&signal), printed(&signal));
}
