//! The guest by itself, on QEMU's own NIC back-end: what fails here is not the device's fault.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use guest_agent::methods::METHODS;
use guest_agent::requests::HOST_LEFT;
use guest_fixture::{Agent, Folder, Machine, available, cannot, note, receiver, skip, spec, without_sg};
use vnic_experiment::row::PROGRAM;
use vnic_experiment::wire::{Event, Request, TransferSpec};

/// Boots a guest on `-netdev user`, which maps 10.0.2.2 to the host's loopback.
fn boot(folder: &Folder, options: &[&str]) -> (Machine, Agent) {
    Machine::boot(folder.path(), &[&["--netdev", "user"], options].concat())
}

/// A transfer to a receiver of this test's own.
fn to(receiver: SocketAddr, spec: TransferSpec) -> TransferSpec {
    TransferSpec { to: SocketAddr::new(spec.to.ip(), receiver.port()), ..spec }
}

fn receiver() -> SocketAddr {
    receiver::listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).expect("a receiver")
}

/// Every method that sends a stream, once; those that go past the page cache on the disk. Who receives datagrams and says what came
/// stands behind the `peer` link, and beside the agent's own tests.
fn each_method(agent: &mut Agent) {
    let receiver = receiver();
    for method in METHODS.iter().filter(|method| !method.datagrams) {
        note(method.name);
        let mut spec = to(receiver, spec(method.name, 3 << 20));
        if method.bypasses_page_cache {
            "ext4".clone_into(&mut spec.filesystem);
        }
        if method.name == PROGRAM {
            spec.program = vec!["cat".to_owned()];
        }
        if !method.bypasses_page_cache && method.stream.is_none() {
            let (began, ended) = agent.transfer(&spec);
            assert_eq!(began.pages, ended.pages, "{}: the file's pages moved", method.name);
            assert!(ended.accounts.voluntary_switches.is_some(), "{}: {:?}", method.name, ended.accounts);
            continue;
        }
        agent.say(&Request::Transfer(spec.clone()));
        match agent.hear() {
            Some(Event::TransferBegin { sha256, stream_bytes, .. }) => {
                agent.go();
                let ended = agent.end();
                assert_eq!(ended.receipt.bytes, stream_bytes.unwrap_or(spec.bytes), "{}", method.name);
                assert!(sha256.is_empty() || ended.receipt.sha256 == sha256, "{}: other bytes arrived", method.name);
            }
            Some(Event::Unsupported { why }) => cannot(&agent.kernel, method.name, &why),
            other => panic!("{}: {other:?}", method.name),
        }
    }
}

#[test]
fn every_method_works_on_the_stable_kernel() {
    let folder = Folder::new();
    let (machine, mut agent) = boot(&folder, &[]);
    each_method(&mut agent);
    machine.power_off(agent);
}

#[test]
fn every_method_works_on_a_newer_kernel() {
    if let Err(why) = available(&["--newer-kernel"]) {
        return skip(&why);
    }
    let folder = Folder::new();
    let (machine, mut agent) = boot(&folder, &["--newer-kernel"]);
    assert!(!agent.kernel.starts_with("6.1."), "{} is not newer", agent.kernel);
    each_method(&mut agent);
    machine.power_off(agent);
}

#[test]
fn what_the_agent_cannot_do_is_an_answer_and_the_next_request_works() {
    let folder = Folder::new();
    let (mut machine, mut agent) = boot(&folder, &[]);
    let receiver = receiver();
    let good = to(receiver, spec("sendfile", 5000));
    let unsupported = |agent: &mut Agent, spec: &TransferSpec, word: &str| {
        agent.say(&Request::Transfer(spec.clone()));
        match agent.hear() {
            Some(Event::Unsupported { why }) => assert!(why.contains(word), "{why}"),
            other => panic!("{spec:?}: expected unsupported, got {other:?}"),
        }
    };
    let failed = |agent: &mut Agent, request: &Request, word: &str| {
        agent.say(request);
        match agent.hear() {
            Some(Event::Failed { error }) => assert!(error.contains(word), "{error}"),
            other => panic!("{request:?}: expected a failure, got {other:?}"),
        }
    };

    note("a method nobody knows");
    unsupported(&mut agent, &TransferSpec { method: "telepathy".to_owned(), ..good.clone() }, "telepathy");
    note("a file system that is not there");
    unsupported(&mut agent, &TransferSpec { filesystem: "zfs".to_owned(), ..good.clone() }, "zfs");
    note("a chunk of nothing");
    failed(&mut agent, &Request::Transfer(TransferSpec { chunk: 0, ..good.clone() }), "chunk");
    note("a receiver nobody is");
    let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
    failed(&mut agent, &Request::Transfer(TransferSpec { to: nobody, ..good.clone() }), "connect");
    note("a file larger than the guest");
    failed(&mut agent, &Request::Transfer(TransferSpec { bytes: 8 << 30, ..good.clone() }), "fit");
    note("go without a transfer");
    failed(&mut agent, &Request::Go, "go");
    note("a program that is not there");
    failed(&mut agent, &Request::Run { argv: vec!["no-such-program".to_owned()] }, "no-such-program");
    note("a NIC switch the device does not offer: this NIC has no scatter-gather");
    let mut wish = good.clone();
    wish.nic.sg = Some(true);
    failed(&mut agent, &Request::Transfer(wish), "sg");
    note("and switching off what is off is fine");
    agent.transfer(&without_sg(good.clone()));

    note("a program's exit status and output");
    agent.say(&Request::Run { argv: ["sh", "-c", "echo out; echo err >&2; exit 7"].map(str::to_owned).into() });
    match agent.hear() {
        Some(Event::Ran { status: 7, output }) => assert_eq!(output, "out\nerr\n"),
        other => panic!("{other:?}"),
    }

    note("the host leaves in the middle of a transfer, and comes back");
    agent.begin(&good);
    drop(agent);
    machine.wait_for_console(HOST_LEFT);
    let mut agent = machine.agent();
    agent.transfer(&good);
    machine.power_off(agent);
}
