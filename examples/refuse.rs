// Takes no mail from senders of a list, one address a line, and prints the id of each message that it takes.
//
// cargo run --example refuse -- unwelcome.txt

use std::collections::HashSet;

use incoming::Gateway;
use incoming::delivery::{Attempt, Delivering, Delivery, Outcome};
use incoming::mail::{Refusal, Status};
use incoming::policy::{Answer, Facts, Phase, Phases, Policy, Verdict};

struct Unwelcome(HashSet<String>);

impl Policy for Unwelcome {
    fn name(&self) -> &str {
        "unwelcome"
    }

    fn phases(&self) -> Phases {
        Phases::of(Phase::Mail)
    }

    // It is asked on a shard, and must be quick. What takes longer is given to `Answer::wait` or `Answer::block`.
    fn check(&self, _: Phase, facts: &Facts<'_>) -> Answer {
        let sender = facts.reverse_path.map_or("", |path| path.as_str()).to_lowercase();
        match self.0.contains(&sender) {
            true => Refusal::new(Status::permanent(7, 1), "You are not welcome here").into(),
            false => Verdict::Accept.into(),
        }
    }
}

struct Print;

impl Delivery for Print {
    fn deliver<'a>(&'a self, message: &'a Attempt) -> Delivering<'a> {
        Box::pin(async move {
            println!("{}", message.id);
            vec![Outcome::delivered(); message.recipients.len()]
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("name the file with the list")?;
    let address = std::env::args().nth(2).unwrap_or("127.0.0.1:2525".into());
    let list = std::fs::read_to_string(path)?.lines().map(str::to_lowercase).collect();
    Gateway::builder().listen(address).policy(Unwelcome(list)).delivery("print", Print).build()?.run()?;
    Ok(())
}
