//! Runs one piece so many times that its instructions can be counted; `cargo xtask guard` runs this under callgrind.
//!
//! `guard --list` names the pieces. `guard NAME` runs one; with `--plant` each tenth iteration is done twice, which the
//! guard has to notice.

mod pieces;

use pieces::PIECES;

fn main() {
    // cargo adds --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let plant = args.iter().any(|arg| arg == "--plant");
    match args.first().map(String::as_str) {
        None | Some("--list") => PIECES.iter().for_each(|(name, _)| println!("{name}")),
        Some(wanted) => {
            let Some((_, make)) = PIECES.iter().find(|(name, _)| *name == wanted) else {
                eprintln!("no piece '{wanted}': see --list");
                std::process::exit(2);
            };
            let mut piece = make();
            let more = if plant { piece.counted.div_ceil(10) } else { 0 };
            (piece.run)(piece.counted + more);
            println!("{} iterations", piece.counted);
        }
    }
}
