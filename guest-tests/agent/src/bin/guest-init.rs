//! The guest's PID 1.

#![expect(clippy::print_stderr, reason = "the console is where PID 1 speaks")]

fn main() {
    match guest_agent::init::run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("guest-init: {error:#}");
            std::process::exit(1);
        }
    }
}
