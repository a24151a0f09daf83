//! A guest on a device with several queue pairs; many datagrams at once; rings that keep their size.

use guest_fixture::{Agent, Device, Folder, Machine, TEXTBOOK, available, judged_run, note, skip, spec, without_sg};
use vnic_experiment::wire::{Event, Request};

/// Every counter of this name, by queue pair: of its receiveq and its transmitq.
fn counted(device: &Device, pairs: usize, name: &str) -> Vec<[u64; 2]> {
    let of = |queue: &str, pair| device.counter(&format!("{queue}{pair}"), name);
    (0..pairs).map(|pair| [of("receiveq", pair), of("transmitq", pair)]).collect()
}

/// Several flows at once; the pairs that carried frames in both directions.
fn busy(agent: &mut Agent, device: &Device, pairs: usize) -> Vec<usize> {
    let before = counted(device, pairs, "chains");
    agent.run(&["nic-queues", "echo", "--flows", "8", "--bytes", "256K"]);
    let after = counted(device, pairs, "chains");
    let rose = |pair: &usize| before[*pair].iter().zip(after[*pair]).all(|(before, after)| after > *before + 10);
    (0..pairs).filter(rose).collect()
}

fn state(device: &Device, queue: &str) -> String {
    let status = device.status();
    let queues = status["queues"].as_array().expect("queues");
    let found = queues.iter().find(|found| found["queue"] == queue).expect("the queue");
    found["state"].as_str().expect("a state").to_owned()
}

fn no_errors(device: &Device, pairs: usize) {
    assert!(counted(device, pairs, "errors").iter().flatten().all(|count| *count == 0), "errors: {}", device.status());
    // What the guest had on its way when a pair was turned off is discarded: vhost-user asks for that.
    let discarded = |pair| {
        let counters = &device.queue(&format!("transmitq{pair}"))["counters"];
        // A reason that there never was is not named.
        counters["drop_disabled"].as_u64().unwrap_or(0)
    };
    let expected: Vec<_> = (0..pairs).map(|pair| [0, discarded(pair)]).collect();
    assert_eq!(counted(device, pairs, "drops"), expected, "drops: {}", device.status());
}

fn pairs_carry_frames_both_ways(pairs: usize, options: &[&str]) {
    let folder = Folder::new();
    let count = pairs.to_string();
    let device = Device::start(folder.path(), &["--queue-pairs", &count]);
    let (machine, mut agent) =
        Machine::boot(folder.path(), &[&["--queue-pairs", &count, "--cpus", &count], options].concat());
    let said = agent.run(&["nic-queues"]);
    assert!(said.contains(&format!("{pairs} of {pairs} queue pairs")), "{said}");
    note(&format!("{pairs} pairs, a flow on each CPU"));
    assert_eq!(busy(&mut agent, &device, pairs), (0..pairs).collect::<Vec<_>>(), "{}", device.status());

    note("half of them");
    agent.run(&["nic-queues", "pairs", &(pairs / 2).to_string()]);
    assert_eq!(busy(&mut agent, &device, pairs), (0..pairs / 2).collect::<Vec<_>>(), "{}", device.status());
    for pair in pairs / 2..pairs {
        for queue in ["receiveq", "transmitq"] {
            assert_ne!(state(&device, &format!("{queue}{pair}")), "running");
        }
    }
    agent.transfer(&spec("sendfile", 4 << 20));

    note("all again");
    agent.run(&["nic-queues", "pairs", &count]);
    assert_eq!(busy(&mut agent, &device, pairs), (0..pairs).collect::<Vec<_>>(), "{}", device.status());
    agent.transfer(&without_sg(spec("sendfile", 4 << 20)));
    agent.run(&["ping", "-c", "2", "10.0.2.2"]);
    no_errors(&device, pairs);
    machine.power_off(agent);
    assert!(device.stop().success());
}

#[test]
fn two_pairs_carry_frames_both_ways_and_their_number_can_change() {
    pairs_carry_frames_both_ways(2, &[]);
}

#[test]
fn four_pairs_carry_frames_both_ways_with_msix_and_packed_rings_on_a_newer_qemu() {
    let options = ["--newer-qemu", "--newer-kernel", "--nic-options", "packed=on"];
    match available(&options) {
        Ok(()) => pairs_carry_frames_both_ways(4, &options),
        Err(why) => skip(&why),
    }
}

#[test]
fn transfers_keep_their_verdicts_on_two_pairs() {
    let folder = Folder::new();
    let run = judged_run(folder.path(), TEXTBOOK, &["--queue-pairs", "2", "--cpus", "2"]);
    for row in &run.methods {
        assert_eq!(row.verdict, row.expected, "{}: {}", row.method, row.why);
        assert_eq!(row.device.payload_bytes, row.bytes_sent, "{}", row.method);
    }
}

#[test]
fn many_datagrams_at_once_arrive_whether_the_nic_cuts_them_or_the_kernel() {
    let options = ["--newer-qemu", "--newer-kernel"];
    if let Err(why) = available(&options) {
        return skip(&why);
    }
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &options);
    for to in ["10.0.2.2:7", "[fec0::2]:7"] {
        agent.run(&["nic-queues", "datagrams", "--to", to]);
    }
    no_errors(&device, 1);
    let status = device.status();
    let cut = status["link_counters"]["segmented_datagrams"].as_u64().expect("a count");
    if status["features"]["negotiated"].to_string().contains("host_uso") {
        assert!(cut > 0, "{status}");
    } else {
        assert_eq!(cut, 0, "{status}");
        skip("a guest that has the NIC cut datagrams: this QEMU keeps USO from vhost-user NICs");
    }
    machine.power_off(agent);
    assert!(device.stop().success());
}

/// Were RING_RESET offered, QEMU would let the guest reset its rings and tell the device nothing of it.
fn a_guest_cannot_resize_its_rings_and_keeps_its_network(options: &[&str]) {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), options);
    agent.say(&Request::Run { argv: ["nic-queues", "rings", "64", "128"].map(str::to_owned).into() });
    match agent.hear() {
        // ENOENT: what Linux's virtqueue_resize says where the device does not offer it.
        Some(Event::Ran { status: 1, output }) => assert!(output.contains("os error 2"), "{output}"),
        other => panic!("{other:?}"),
    }
    agent.transfer(&spec("sendfile", 4 << 20));
    no_errors(&device, 1);
    machine.power_off(agent);
    assert!(device.stop().success());
}

#[test]
fn a_guest_cannot_resize_its_rings_on_the_stable_kernel_and_keeps_its_network() {
    a_guest_cannot_resize_its_rings_and_keeps_its_network(&[]);
}

#[test]
fn a_guest_cannot_resize_its_rings_on_a_newer_kernel_and_qemu_and_keeps_its_network() {
    let options = ["--newer-qemu", "--newer-kernel", "--nic-options", "packed=on"];
    match available(&options) {
        Ok(()) => a_guest_cannot_resize_its_rings_and_keeps_its_network(&options),
        Err(why) => skip(&why),
    }
}
