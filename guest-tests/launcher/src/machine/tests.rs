use super::*;

fn machine(version: &str, accelerator: Accelerator, nic: Option<Nic>) -> Machine {
    Machine {
        qemu: Qemu { program: "/bin/qemu".into(), version: version.to_owned() },
        accelerator,
        memory: "1G".to_owned(),
        cpus: "2".to_owned(),
        kernel: "/k/vmlinuz".into(),
        initramfs: "/k/initramfs".into(),
        iommu: false,
        nic,
        disk: None,
        disk_socket: None,
        disk_is_scratch: false,
        plugin: None,
        task: Task::Shell,
        append: None,
    }
}

fn ours(listens: bool, queue_pairs: u16) -> Nic {
    let backend = Backend::VhostUser { socket: "/run/vnic.sock".into(), listens, queue_pairs };
    Nic { backend, msix: None, options: None }
}

/// The values of an option, in order.
fn values<'a>(command: &'a [String], option: &str) -> Vec<&'a str> {
    command.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
}

/// The NIC's device as QEMU is told.
fn device(machine: &Machine) -> String {
    let command = machine.command();
    let devices = values(&command, "-device");
    let nic = devices
        .iter()
        .find_map(|device| device.strip_prefix("virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,romfile="));
    nic.expect("it has a NIC").to_owned()
}

#[test]
fn a_whole_command_line() {
    let command = machine("7.2.22", Accelerator::Tcg, Some(ours(false, 1))).command();
    let expected = "/bin/qemu -machine q35,accel=tcg -m 1G -smp 2 -nodefaults -no-user-config -no-reboot -display none \
        -object memory-backend-memfd,id=ram,size=1G,share=on -numa node,memdev=ram -kernel /k/vmlinuz -initrd /k/initramfs \
        -cpu max,cx16=off -chardev socket,id=vhost,path=/run/vnic.sock,reconnect=1 \
        -netdev vhost-user,id=net,chardev=vhost,queues=1 \
        -device virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,romfile=,vectors=0 -serial mon:stdio \
        -append console=ttyS0 quiet panic=-1 no_timer_check vnic.run=shell";
    assert_eq!(command.join(" "), expected);
    assert_eq!(command.last().map(String::as_str), expected.split("-append ").nth(1), "one argument");
}

#[test]
fn msix_is_off_where_this_qemu_crashes_with_it_unless_somebody_insists() {
    for (version, accelerator, msix, pairs, expected) in [
        ("7.2.22", Accelerator::Tcg, None, 1, ",vectors=0"),
        ("7.2.22", Accelerator::Tcg, None, 2, ",mq=on,vectors=0"),
        ("7.2.22", Accelerator::Tcg, Some(true), 1, ""),
        ("7.2.22", Accelerator::Kvm, None, 2, ",mq=on,vectors=6"),
        ("10.0.2", Accelerator::Tcg, None, 1, ""),
        ("10.0.2", Accelerator::Tcg, Some(false), 4, ",mq=on,vectors=0"),
        ("11.1.3", Accelerator::Tcg, None, 128, ",mq=on,vectors=258"),
    ] {
        let machine = machine(version, accelerator, Some(Nic { msix, ..ours(false, pairs) }));
        assert_eq!(device(&machine), expected, "{version} {accelerator:?} {msix:?} {pairs}");
    }
}

#[test]
fn the_socket_is_listened_at_or_connected_to_again_and_again() {
    for (version, listens, role) in
        [("7.2.22", true, "server=on"), ("7.2.22", false, "reconnect=1"), ("10.0.2", false, "reconnect-ms=1000")]
    {
        let command = machine(version, Accelerator::Tcg, Some(ours(listens, 1))).command();
        assert_eq!(values(&command, "-chardev"), [format!("socket,id=vhost,path=/run/vnic.sock,{role}")]);
    }
}

#[test]
fn an_iommu_stands_before_the_nic_and_is_told_to_the_kernel() {
    let kvm = Machine { iommu: true, ..machine("7.2.22", Accelerator::Kvm, Some(ours(false, 1))) };
    let command = kvm.command();
    assert_eq!(values(&command, "-machine"), ["q35,accel=kvm", "kernel-irqchip=split"]);
    assert_eq!(values(&command, "-cpu"), ["host"]);
    assert!(values(&command, "-device")[0].starts_with("intel-iommu,"), "{command:?}");
    assert_eq!(device(&kvm), ",iommu_platform=on,ats=on,disable-legacy=on");
    assert_eq!(values(&command, "-append"), ["console=ttyS0 quiet panic=-1 intel_iommu=on vnic.run=shell"]);
    let tcg = Machine { accelerator: Accelerator::Tcg, ..kvm };
    assert_eq!(values(&tcg.command(), "-machine"), ["q35,accel=tcg"]);
}

#[test]
fn qemus_own_backends_have_msix_and_the_options_asked_for() {
    let own = |backend| Nic { backend, msix: None, options: Some("packed=on".to_owned()) };
    for (backend, netdev) in [
        (Backend::User { forwarded: Vec::new() }, "user,id=net"),
        (
            Backend::User { forwarded: vec![(8080, 80), (9, 7)] },
            "user,id=net,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=tcp:127.0.0.1:9-:7",
        ),
        (Backend::Tap("t0".to_owned()), "tap,id=net,ifname=t0,script=no,downscript=no"),
        (Backend::Stream("/p.sock".into()), "stream,id=net,server=off,addr.type=unix,addr.path=/p.sock"),
    ] {
        let machine = machine("7.2.22", Accelerator::Tcg, Some(own(backend)));
        assert_eq!(values(&machine.command(), "-netdev"), [netdev]);
        assert_eq!(device(&machine), ",packed=on");
    }
}

#[test]
fn a_task_is_told_to_the_kernel_and_has_its_ports() {
    let of = |task, append: Option<&str>| {
        let machine = machine("10.0.2", Accelerator::Kvm, None);
        let command = Machine { task, append: append.map(str::to_owned), disk: Some("/d".into()), ..machine }.command();
        let words = values(&command, "-append")[0].strip_prefix("console=ttyS0 quiet panic=-1 ").expect("it is quiet");
        (words.to_owned(), values(&command, "-serial")[0].to_owned(), values(&command, "-device").len())
    };
    let is = |words: &str, serial: &str, devices| (words.to_owned(), serial.to_owned(), devices);
    assert_eq!(of(Task::Shell, Some("a b")), is("vnic.run=shell a b", "mon:stdio", 1));
    assert_eq!(of(Task::Probe, None), is("vnic.run=true vnic.modules= vnic.net=off", "stdio", 1));
    let command = Task::Command("echo \"a  b\"\necho 5%".to_owned());
    assert_eq!(of(command, None), is("\"vnic.run=echo %22a  b%22%0aecho 5%25\"", "stdio", 1));
    let agent = Task::Agent { record: "/run/record.sock".into(), console: "/run/console.log".into() };
    assert_eq!(of(agent, None), is("vnic.run=agent", "file:/run/console.log", 3));
    let disk = Task::Disk { init: "/init".to_owned(), record: "/r".into(), console: "/run/console.log".into() };
    assert_eq!(of(disk, None), is("root=/dev/vda rw init=/init", "file:/run/console.log", 3));
}

#[test]
fn what_is_written_to_a_scratch_disk_is_forgotten() {
    let disk = |disk_is_scratch| {
        let machine = Machine { disk: Some("/d".into()), disk_is_scratch, ..machine("10.0.2", Accelerator::Tcg, None) };
        values(&machine.command(), "-drive")[0].contains(",snapshot=on")
    };
    assert!(disk(true) && !disk(false));
}

#[test]
fn a_plugin_is_told_where_it_answers() {
    let machine = |plugin| Machine { plugin, ..machine("7.2.22", Accelerator::Tcg, None) }.command();
    let command = machine(Some(("/p/libp.so".into(), "/run/touches.sock".into())));
    assert_eq!(values(&command, "-plugin"), ["file=/p/libp.so,socket=/run/touches.sock"]);
    assert!(values(&machine(None), "-plugin").is_empty());
}

#[test]
fn a_disk_is_qemus_own_or_served_at_a_socket() {
    let at = |version, disk_socket: Option<&str>| {
        let plain = machine(version, Accelerator::Tcg, None);
        let command =
            Machine { disk: Some("/d".into()), disk_socket: disk_socket.map(PathBuf::from), ..plain }.command();
        [values(&command, "-drive"), values(&command, "-chardev"), values(&command, "-device")].concat().join(" ")
    };
    assert_eq!(at("7.2.22", None), "if=none,id=disk,file=/d,format=raw,cache=unsafe virtio-blk-pci,drive=disk");
    let served = "socket,id=disk,path=/s,reconnect=1 vhost-user-blk-pci,chardev=disk,num-queues=1,vectors=0";
    assert_eq!(at("7.2.22", Some("/s")), served);
    assert_eq!(
        at("10.0.2", Some("/s")),
        "socket,id=disk,path=/s,reconnect-ms=1000 vhost-user-blk-pci,chardev=disk,num-queues=1"
    );
}
