//! Times one scoring pass of each scorer: `pass_time [SEGMENTS] [BUDGET]`; microseconds a pass and the longest step.

use std::time::Instant;

use antumbra_predictor::scorer::{ScorerKind, build};
use antumbra_predictor::{Model, SegmentCounts};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let segments: usize = args.next().unwrap_or("1024".into()).parse()?;
    let budget: usize = args.next().unwrap_or("256".into()).parse()?;
    let model = Model::shipped()?;
    let mut rng = fastrand::Rng::with_seed(1);
    println!("{segments} segments, hidden {}, budget {budget}", model.hidden());
    for kind in ScorerKind::ALL {
        let mut scorer = build(kind, Some(&model), segments)?;
        let (mut passes, mut longest_steps) = (Vec::new(), Vec::new());
        for window in 0..400usize {
            let mut counts = vec![SegmentCounts::default(); segments];
            for request in 0..2000 {
                let index = if rng.bool() { (window * 3 + request / 100) % segments } else { rng.usize(0..segments) };
                counts[index].add(&SegmentCounts { reads: 1, writes: 0, bytes: 4096, sequential: 0 });
            }
            let (begin, mut longest, mut complete) = (Instant::now(), 0.0f64, false);
            scorer.begin(&counts);
            while !complete {
                let step = Instant::now();
                complete = scorer.step(budget);
                longest = longest.max(step.elapsed().as_secs_f64());
            }
            passes.push(begin.elapsed().as_secs_f64());
            longest_steps.push(longest);
        }
        // medians: one of many passes may have been interrupted
        let median = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            1e6 * times[times.len() / 2]
        };
        println!(
            "{:16} pass {:8.1} us, longest step {:6.1} us",
            kind.as_str(),
            median(&mut passes),
            median(&mut longest_steps)
        );
    }
    Ok(())
}
