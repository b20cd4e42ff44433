//! Load for a cluster that speaks Kafka's protocol, whoever made it, by the stock librdkafka.
//!
//! Usage: trilog-compare-generator create|delete|leader|starts|pace|flood|outage KEY=VALUE...
//! Each command prints one line of JSON. Keys and what they mean are in the modules.

#![expect(
    clippy::disallowed_methods,
    reason = "what is measured is the time of the machine, and nothing else is waited for"
)]

mod args;
mod flood;
mod outage;
mod pace;
mod times;
mod topics;

use std::error::Error;

use args::Args;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let mut words = std::env::args().skip(1);
    let command = words.next().ok_or("which command?")?;
    let args = Args::parse(words)?;
    let said = match command.as_str() {
        "create" => topics::create(&args)?,
        "delete" => topics::delete(&args)?,
        "leader" => topics::leader(&args)?,
        "starts" => topics::starts(&args)?,
        "pace" => pace::run(&args)?,
        "flood" => flood::run(&args)?,
        "outage" => outage::run(&args)?,
        _ => return Err(format!("no command {command:?}").into()),
    };
    args.all_used()?;
    println!("{said}");
    Ok(())
}
