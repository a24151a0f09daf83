//! A real guest, a real device, and a lie in what one of them is heard to say: the others' figures are true, and the judge
//! must notice: the verdict is "witnesses disagree"; or, of the emulated CPU's reading, that nothing accounts for it.

use std::fs;
use std::process::Command;

use guest_fixture::{Child, Deadline, Device, Folder, Machine, between, between_lines, vnic};
use serde_json::{Value, json};
use vnic_experiment::run::{Method, Run, Verdict};
use vnic_experiment::verdict::surprises;

const A_RUN: Deadline = Deadline::secs("a judged run to end", 240);
const BYTES: u64 = 1 << 20;

/// Who lies about a row, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    /// All payload came from the file's pages.
    DeviceSawThePageCache,
    /// None did.
    DeviceSawCopies,
    /// The kernel copied each byte so often.
    GuestCopied(u64),
    /// The chunk stood so often in memory.
    MemoryHeld(u64),
    /// By the guest kernel's structures, all payload lay in pages of one file.
    KernelKnowsThePages,
    /// None did.
    KernelKnowsNoPage,
    /// The CPU loaded each byte of the file's pages so often.
    CpuLoaded(u64),
    /// It loaded nothing, not even for control: a blind witness.
    CpuSawNothing,
}

const ROWS: [(&str, Lie); 12] = [
    ("sendfile", Lie::None),
    ("sendfile", Lie::DeviceSawCopies),
    ("sendfile", Lie::GuestCopied(1)),
    ("sendfile", Lie::MemoryHeld(2)),
    ("sendfile", Lie::KernelKnowsNoPage),
    ("sendfile", Lie::CpuLoaded(1)),
    ("read-write", Lie::DeviceSawThePageCache),
    ("read-write", Lie::GuestCopied(1)),
    ("read-write", Lie::MemoryHeld(4)),
    ("read-write", Lie::KernelKnowsThePages),
    ("read-write", Lie::CpuLoaded(0)),
    ("read-write", Lie::CpuSawNothing),
];

impl Lie {
    /// What is said of a row where somebody lies like this.
    fn verdict(self, row: &Method) -> Option<Verdict> {
        match self {
            // Nobody is contradicted: who reads need not copy, and who is blind is not heard.
            Lie::None | Lie::CpuLoaded(1) | Lie::CpuSawNothing => row.expected,
            _ => Some(Verdict::WitnessesDisagree),
        }
    }

    /// What stands there of the emulated CPU.
    fn of_the_cpu(self) -> &'static str {
        if self == Lie::CpuSawNothing {
            "bytes read for control before the transfer, 0 were counted"
        } else {
            "touches: the CPU loaded"
        }
    }
}

/// The lies in the order in which one witness speaks of the rows.
fn told() -> impl FnMut() -> Lie {
    let mut rows = ROWS.iter();
    move || rows.next().expect("a row for each testimony").1
}

/// The device's accounts of a flow, and what a scan found.
fn device() -> impl FnMut(&mut Value) {
    let (mut flows, mut scans) = (told(), told());
    move |answer| match answer["reply"].as_str() {
        Some("flow-books") => {
            let (all, none) = (answer["device"]["payload_bytes"].clone(), json!(0));
            let mut kernel_knows = |bytes| {
                let known = answer.pointer_mut("/introspection/accounts/from_page_cache_bytes");
                *known.expect("the guest's kernel was looked into") = bytes;
            };
            let (cached, elsewhere) = match flows() {
                Lie::DeviceSawThePageCache => (all, none),
                Lie::DeviceSawCopies => (none, all),
                Lie::KernelKnowsThePages => return kernel_knows(all),
                Lie::KernelKnowsNoPage => return kernel_knows(none),
                _ => return,
            };
            let device = &mut answer["device"];
            device["from_page_cache_bytes"] = cached;
            device["from_elsewhere_bytes"] = elsewhere;
        }
        Some("scan") => {
            if let Lie::MemoryHeld(count) = scans() {
                let stamps = &answer["held_stamps"];
                answer["instances"] = json!({ count.to_string(): stamps });
            }
        }
        _ => {}
    }
}

/// The guest kernel's accounts.
fn guest() -> impl FnMut(&mut Value) {
    let mut transfers = told();
    move |event| {
        let Some(copied) = event.pointer_mut("/accounts/copied_bytes") else { return };
        // The probe has no accounts.
        if !copied["_copy_from_iter"].is_u64() {
            return;
        }
        if let Lie::GuestCopied(count) = transfers() {
            *copied = json!({"_copy_to_iter": 0, "_copy_from_iter": count * BYTES});
        }
    }
}

/// The emulated CPU's counts: three a row, the second is the transfer's.
fn cpu() -> impl FnMut(&str) -> std::io::Result<String> {
    let (mut rows, mut lie, mut counts) = (told(), Lie::None, 0);
    move |answer| {
        if !answer.starts_with("loaded") {
            return Ok(answer.to_owned());
        }
        if counts % 3 == 0 {
            lie = rows();
        }
        counts += 1;
        Ok(match lie {
            Lie::CpuLoaded(count) if counts % 3 == 2 => {
                format!("loaded user 0 kernel {} stored user 0 kernel 0", count * BYTES)
            }
            Lie::CpuSawNothing => "loaded user 0 kernel 0 stored user 0 kernel 0".to_owned(),
            _ => answer.to_owned(),
        })
    }
}

fn run() -> Run {
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name);
    let device_there = Device::start(folder.path(), &[]);
    let mut machine = Machine::start(folder.path(), &["--touches", "--transfer", "sendfile"]);
    machine.wait_for_record_port();
    between(&at("control.between"), device_there.control().to_owned(), device());
    between(&at("record.between"), at("record.sock"), guest());
    between_lines(&at("touches.between"), at("touches.sock"), cpu());
    let rows: Vec<&str> = ROWS.iter().map(|(row, _)| *row).collect();
    let mut judge = Command::new(vnic());
    judge.arg("judge").arg("--control").arg(at("control.between")).arg("--record").arg(at("record.between"));
    judge.arg("--touches").arg(at("touches.between"));
    judge.args(["--transfer", &rows.join(","), "--bytes", &BYTES.to_string()]).arg("--output").arg(at("run.json"));
    let mut judge = Child::start("judge", folder.path(), judge);
    let status = judge.wait(A_RUN);
    assert_eq!(status.code(), Some(1), "a lie is not as expected:\n{}", judge.output());
    assert!(device_there.stop().success());
    serde_json::from_slice(&fs::read(at("run.json")).expect("the run's record")).expect("the record is as documented")
}

/// All four other figures, whoever lied.
fn tells_all(row: &Method) -> bool {
    let figures = ["payload bytes", "the CPU copied each payload byte", "the held chunk stood", "lay in pages"];
    figures.iter().all(|figure| row.why.contains(figure))
}

#[test]
fn a_lie_of_any_one_witness_is_contradicted_by_the_others() {
    let run = run();
    assert_eq!(run.methods.len(), ROWS.len());
    for (row, (name, lie)) in run.methods.iter().zip(ROWS) {
        assert_eq!(row.verdict, lie.verdict(row), "{name}, {lie:?}: {}", row.why);
        assert!(tells_all(row), "{name}, {lie:?}: {}", row.why);
        assert!(row.why.contains(lie.of_the_cpu()), "{name}, {lie:?}: {}", row.why);
        let passes = surprises(row).iter().any(|surprise| surprise.contains("no copy accounts for"));
        assert_eq!(passes, lie == Lie::CpuLoaded(1), "{name}, {lie:?}: {:?}", surprises(row));
    }
}
