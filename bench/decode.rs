//! What each step of a first pass costs, in one thread: `cargo bench --bench decode -- [LAYER [ROUNDS
//! [STEP]]]`.
//!
//! All steps, or the one that is named, take turns in every round, over a layer blob in memory (64 MiB
//! of our own making when none is named): the budgets are of ratios, and what disturbs the machine
//! disturbs both sides. Prints the medians for people on standard error, and one JSON document with the
//! seconds of each round. Of the two that differ only in seek points, each is the other one's comparison.

mod steps;

use std::collections::BTreeMap;
use std::time::Instant;

use steps::{Result, Sample};

type Step = (&'static str, fn(&Sample) -> Result<()>);

const STEPS: [Step; 11] = [
    ("inflate", steps::inflate),
    ("pass without seek points", steps::without_points),
    ("pass with seek points", steps::with_points),
    ("inflating thread without", |sample| steps::inflating_thread(sample, false)),
    ("inflating thread with", |sample| steps::inflating_thread(sample, true)),
    ("tar scan", steps::scan),
    ("10000 plans", steps::plan),
    ("index encode", steps::encode),
    ("index open", steps::open),
    ("merge", steps::merge_one),
    ("200 random spans", steps::random_spans),
];

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let sample = match arguments.next() {
        Some(path) => Sample::of(std::fs::read(path)?)?,
        None => Sample::synthetic()?,
    };
    let rounds: usize = arguments.next().map_or(Ok(7), |n| n.parse())?;
    let wanted = arguments.next();
    let mut steps = STEPS.to_vec();
    steps.retain(|step| wanted.as_ref().is_none_or(|name| name == step.0));
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); steps.len()];
    for round in 0..rounds {
        for n in 0..steps.len() {
            let step = (round + n) % steps.len();
            let start = Instant::now();
            (steps[step].1)(&sample)?;
            seconds[step].push(start.elapsed().as_secs_f64());
        }
    }
    for (step, taken) in steps.iter().zip(&seconds) {
        let mut ordered = taken.clone();
        ordered.sort_by(f64::total_cmp);
        eprintln!("{:<26} {:>10.3} ms", step.0, 1000.0 * ordered[ordered.len() / 2]);
    }
    let seconds: BTreeMap<_, _> = steps.iter().map(|step| step.0).zip(seconds).collect();
    let told = serde_json::json!({
        "blob_bytes": sample.blob.len(),
        "tar_bytes": sample.index.tar_size,
        "index_bytes": sample.encoded.len(),
        "spans": sample.index.spans.len(),
        "entries": sample.index.entries.len(),
        "seconds": seconds,
    });
    println!("{told}");
    Ok(())
}
