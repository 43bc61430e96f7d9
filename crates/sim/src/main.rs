//! `sim --seed N`, `--seeds A..B`, `--steps N`, `--full` (the whole trace): runs worlds from their seeds, and shows what went wrong.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

use std::ops::Range;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use sim::{Options, run};

const USAGE: &str = "usage: sim [--seed N [--seeds M] | --seeds A..B] [--steps N] [--full]";

struct Args {
    seeds: Range<u64>,
    steps: u64,
    full: bool,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(cause) => {
            println!("{cause:#}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let mut failures = 0;
    for seed in args.seeds {
        match run(&Options { seed, steps: args.steps, sabotage: None }) {
            Ok(report) => println!(
                "seed {seed}: ok, {} events, {} crashes, trace {:016x}",
                report.events, report.crashes, report.trace_hash
            ),
            Err(failure) => {
                if args.full {
                    println!("{failure:#}");
                } else {
                    println!("{failure}");
                }
                failures += 1;
            }
        }
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(args: impl Iterator<Item = String>) -> anyhow::Result<Args> {
    let (mut first, mut seeds, mut steps, mut full) = (None, None, sim::STEPS, false);
    let mut args = args;
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => first = Some(value()?.parse::<u64>()?),
            "--seeds" => seeds = Some(value()?),
            "--full" => full = true,
            "--steps" => steps = value()?.parse()?,
            _ => bail!("unknown argument {arg}"),
        }
    }
    let start = first.unwrap_or(0);
    let seeds = match seeds.as_deref().map(|seeds| seeds.split_once("..").ok_or(seeds)) {
        None => start..start.saturating_add(1),
        Some(Ok((from, to))) => from.parse()?..to.parse()?,
        Some(Err(count)) => start..start.saturating_add(count.parse()?),
    };
    Ok(Args { seeds, steps, full })
}
