//! The emulated CPU's accesses to a file's pages, as QEMU's plugin counts them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guest_fixture::{Device, Folder, Machine, judged_run, spec};
use vnic_experiment::wire::{Event, PageRun, Request};

const BYTES: u64 = 16 << 20;
/// Of the hazard's file.
const SMALL: u64 = 64 << 10;
/// For an answer; the plugin waits a minute itself for a guest that is busy.
const ANSWER: Duration = Duration::from_secs(90);

#[test]
fn the_cpu_itself_loads_what_is_copied_and_nothing_else() {
    let folder = Folder::new();
    // A copy may go over a few bytes twice at the end of a piece.
    let rows = [("sendfile", 0..=0), ("read-write", BYTES..=BYTES), ("sendfile-no-sg", BYTES..=BYTES + BYTES / 50)];
    let run = judged_run(folder.path(), "sendfile,read-write,sendfile-no-sg", &["--touches"]);
    assert_eq!(run.methods.len(), rows.len());
    for (found, (name, loaded)) in run.methods.iter().zip(rows) {
        let touches = found.touches.as_ref().unwrap_or_else(|| panic!("{name}: {:?}", found.reasons));
        let (control, pages) = (&touches.control, BYTES / 4096);
        assert_eq!([control.pages, control.before, control.after], [pages; 3], "{name}: {touches:?}");
        assert!(loaded.contains(&touches.loaded) && touches.stored == 0, "{name}: {touches:?}");
        assert_eq!((found.method.as_str(), found.verdict), (name, found.expected), "{name}: {}", found.why);
        assert!(found.why.contains("touches: the CPU loaded"), "{name}: {}", found.why);
    }
}

/// The plugin's socket: what it answers.
struct Plugin(BufReader<UnixStream>);

impl Plugin {
    fn connect(folder: &Path) -> Plugin {
        let stream = UnixStream::connect(folder.join("touches.sock")).expect("the plugin listens");
        stream.set_read_timeout(Some(ANSWER)).expect("a read timeout");
        Plugin(BufReader::new(stream))
    }

    fn ask(&mut self, request: &str) -> String {
        let mut answer = String::new();
        writeln!(self.0.get_mut(), "{request}").expect("the plugin takes a request");
        self.0.read_line(&mut answer).expect("the plugin answers");
        answer.trim_end().to_owned()
    }

    fn watch(&mut self, pages: &[PageRun]) {
        let runs: Vec<String> = pages.iter().map(|run| format!("{:#x}+{}", run.gpa, run.count)).collect();
        assert_eq!(self.ask(&format!("watch {}", runs.join(" "))), format!("watching {} pages", SMALL / 4096));
    }
}

#[test]
fn what_the_cpu_stores_into_the_files_pages_is_counted_to_the_byte() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &["--touches", "--transfer", "sendfile"]);
    let mut plugin = Plugin::connect(folder.path());
    for (method, loaded) in [("sendfile", 0), ("read-write", SMALL)] {
        // Sends a file, and then overwrites it.
        let (name, method, to) = ("mutate".to_owned(), method.to_owned(), spec(method, SMALL).to);
        agent.say(&Request::Hazard { name, method: method.clone(), to });
        let Some(Event::TransferBegin { pages, .. }) = agent.hear() else { panic!("{method} does not begin") };
        plugin.watch(&pages);
        agent.say(&Request::Go);
        assert!(matches!(agent.hear(), Some(Event::Paused { taken: SMALL })), "{method}");
        let counted = plugin.ask("count");
        assert_eq!(counted, format!("loaded user 0 kernel {loaded} stored user 0 kernel {SMALL}"), "{method}");
        assert_eq!(plugin.ask("rest"), "resting");
        agent.say(&Request::Go);
        assert!(matches!(agent.hear(), Some(Event::Shown { .. })), "{method}");
    }
    machine.power_off(agent);
    assert!(device.stop().success());
}
