//! Runs one piece so many times that its instructions can be counted; `cargo xtask guard` runs this under callgrind.
//!
//! `guard --list` names the pieces. `guard --prepare NAME DIR` makes there what the piece works on, and `guard NAME DIR` runs it;
//! with `--plant` each tenth iteration is done twice, which the guard has to notice.

mod pieces;

use pieces::{KEPT_IN, PIECES};

fn main() {
    // cargo adds --bench.
    let (flags, args): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).filter(|arg| arg != "--bench").partition(|arg| arg.starts_with("--"));
    if flags.iter().any(|flag| flag == "--list") {
        return PIECES.iter().for_each(|(name, _)| println!("{name}"));
    }
    let [name, dir] = args.as_slice() else {
        eprintln!("the name of a piece and a folder for what it works on, not {args:?}: see --list for the names");
        std::process::exit(2);
    };
    let Some((_, make)) = PIECES.iter().find(|(known, _)| known == name) else {
        eprintln!("no piece '{name}': see --list");
        std::process::exit(2);
    };
    KEPT_IN.set(dir.into()).unwrap_or_else(|_| unreachable!("set once"));
    let mut piece = make();
    if flags.iter().any(|flag| flag == "--prepare") {
        return;
    }
    let more = if flags.iter().any(|flag| flag == "--plant") { piece.counted.div_ceil(10) } else { 0 };
    (piece.run)(piece.counted + more);
    println!("{} iterations", piece.counted);
    // Closing an engine takes a minute under the tool.
    std::process::exit(0);
}
