// Takes mail at 127.0.0.1:2525, or at the address given, and prints who writes to whom about what.

use std::io::Error;

use incoming::Gateway;
use incoming::delivery::{Attempt, BlockingDelivery, Outcome};

struct Print;

impl BlockingDelivery for Print {
    fn deliver(&self, message: &Attempt) -> Vec<Outcome> {
        let outcome = match print(message) {
            Ok(()) => Outcome::delivered(),
            Err(e) => Outcome::deferred(e.to_string()),
        };
        vec![outcome; message.recipients.len()]
    }
}

fn print(message: &Attempt) -> Result<(), Error> {
    let header = message.header()?;
    let subject = header.get("Subject").map(|field| field.decoded()).unwrap_or_default();
    let recipients: Vec<_> = message.paths().map(|path| path.to_string()).collect();
    println!("{} to {}: {subject:?}", message.envelope.reverse_path, recipients.join(", "));
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:2525".into());
    Gateway::builder().listen(address).blocking_delivery("print", Print).build()?.run()?;
    Ok(())
}
