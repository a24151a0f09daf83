//! What a hostile guest or front-end may write, made from a fuzzer's bytes, and what must hold whatever that is.
//!
//! | target | |
//! |---|---|
//! | `split_ring`, `packed_ring` | [`ring`]: the device half of a ring, with writes of the guest between any two of its loads |
//! | `disk` | [`disk`]: chains as requests for a disk |
//! | `net_header` | [`net`]: chains as frames, packets in words, frames in receive buffers |
//! | `vhost_user` | [`front_end`]: messages with files for a whole session, with workers behind it |
//! | `control` | [`control`]: clients of the control socket |
//! | `iotlb` | [`iotlb`]: translations against a plain list of what was said |
//! | `in_flight` | [`in_flight`]: a record of what is in flight, beside a ring |
//! | `introspect` | [`introspect`]: a kernel's memory, some of which says something else |
//! | `attach` | [`attach`]: the same of its virtio devices and their rings |
//!
//! Each module's `run` is a target: it decodes its bytes, plays them, and panics when an invariant is broken. Not part of
//! the workspace; `scripts/fuzz.sh` runs all of them. `cargo test --lib` plays what is kept in `corpus`.

pub mod attach;
pub mod control;
pub mod disk;
pub mod front_end;
pub mod in_flight;
pub mod introspect;
pub mod iotlb;
pub mod net;
pub mod ring;

#[cfg(test)]
mod tests {
    use super::*;

    /// One after the other: some of them count this process's open files.
    #[test]
    fn what_is_kept_in_the_corpora_is_played_without_a_finding() {
        type Run = fn(&[u8]);
        let targets: [(&str, Run); 10] = [
            ("attach", attach::run),
            ("control", control::run),
            ("disk", disk::run),
            ("in_flight", in_flight::run),
            ("introspect", introspect::run),
            ("iotlb", iotlb::run),
            ("net_header", net::run),
            ("packed_ring", |data| ring::run(ring::Format::Packed, data)),
            ("split_ring", |data| ring::run(ring::Format::Split, data)),
            ("vhost_user", front_end::run),
        ];
        let of = |path: &str| std::fs::read_dir(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).expect("a folder");
        assert_eq!(of("fuzz_targets").count(), targets.len(), "a target is not here");
        for (name, run) in targets {
            let mut inputs = 0;
            for input in of(&format!("corpus/{name}")).flatten() {
                run(&std::fs::read(input.path()).expect("an input"));
                inputs += 1;
            }
            assert!(inputs > 0, "{name} has no inputs");
        }
    }
}
