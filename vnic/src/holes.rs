//! Holes that other virtio and vhost-user back-ends had, and the tests by which this one has them not.
//!
//! Whoever learns of another one adds a line to [`HOLES`] and a test; a line whose test is gone, fails or is skipped fails.

use std::collections::HashSet;

/// What was wrong, where it is known under which number, and the tests that look for it here.
struct Hole {
    what: &'static str,
    known_as: &'static str,
    tests: &'static [&'static str],
}

macro_rules! holes {
    ($($what:literal, $known_as:literal: $($test:literal)*;)*) => {
        &[$(Hole { what: $what, known_as: $known_as, tests: &[$($test),*] },)*]
    };
}

#[rustfmt::skip]
const HOLES: &[Hole] = holes! {
    "a buffer whose start is mapped and whose end is not", "CVE-2018-1059":
        "memory::tests::a_range_whose_start_is_mapped_and_whose_end_is_not_is_rejected"
        "ring::split::hostile::a_buffer_whose_end_is_not_mapped_is_rejected"
        "ring::packed::hostile::a_buffer_whose_end_is_not_mapped_is_rejected"
        "ring::split::hostile::an_indirect_table_that_is_not_memory_is_rejected"
        "ring::packed::hostile::an_indirect_table_that_is_not_memory_is_rejected";
    "a ring whose start is mapped and whose end is not", "CVE-2018-1059":
        "ring::split::hostile::a_ring_whose_end_is_not_mapped_is_rejected"
        "ring::packed::hostile::a_ring_whose_end_is_not_mapped_is_rejected"
        "vhost_user::tests::hostile::a_ring_that_ends_outside_of_memory_does_not_start"
        "vhost_user::tests::hostile::a_ring_across_two_regions_does_not_start";
    "the same message again with more files", "CVE-2019-14818 CVE-2020-10726":
        "vhost_user::tests::hostile::surplus_files_are_closed_every_time"
        "vhost_user::tests::hostile::more_files_than_a_message_may_have_end_the_session_and_are_closed"
        "vhost_user::tests::hostile::files_in_several_pieces_of_one_message_are_counted_together"
        "vhost_user::tests::hostile::endless_call_files_leave_one_open";
    "GET_INFLIGHT_FD without end; in-flight queues beyond what there is", "CVE-2022-0669 CVE-2021-3839":
        "vhost_user::tests::hostile::endless_get_inflight_fd_is_refused_and_leaks_nothing";
    "size and offset beyond 64 bits in SET_LOG_BASE", "CVE-2020-10722":
        "vhost_user::tests::hostile::a_dirty_log_is_refused_before_its_size_is_looked_at";
    "a length of 0 while writes are logged", "CVE-2019-14835":
        "vhost_user::tests::hostile::a_dirty_log_is_refused_before_its_size_is_looked_at"
        "ring::split::hostile::a_length_of_zero_with_a_bad_address_is_an_empty_buffer";
    "a vring index past 65535, cut off before it was checked", "CVE-2020-10723":
        "vhost_user::tests::hostile::a_vring_index_beyond_16_bits_is_not_cut_off"
        "vhost_user::tests::hostile::a_kick_payload_with_bits_above_the_index_is_refused"
        "ring::split::hostile::a_base_past_65535_is_not_cut_off";
    "a ring that was never set up", "":
        "vhost_user::tests::hostile::a_ring_that_was_never_set_up_does_not_start"
        "ring::split::hostile::a_ring_that_was_never_set_up_is_rejected";
    "a descriptor changed between check and use", "CVE-2020-14374 to CVE-2020-14378":
        "ring::ambush::what_changes_between_any_two_loads_is_good_or_an_error"
        "ring::ambush::an_index_that_changes_between_any_two_loads_is_good_or_an_error"
        "ring::ambush::no_word_of_a_usual_chain_is_loaded_twice"
        "ring::split::hostile::a_descriptor_changed_after_it_was_checked_changes_nothing"
        "ring::packed::hostile::a_descriptor_changed_after_it_was_checked_changes_nothing"
        "ring::split::hostile::a_descriptor_that_changes_all_the_time_is_either_good_or_an_error"
        "ring::packed::hostile::a_descriptor_that_changes_all_the_time_is_either_good_or_an_error"
        "nic::tests::unmapped::a_ring_that_is_scribbled_over_at_work_hurts_only_itself";
    "a length of 0 with a bad address", "CVE-2020-10725":
        "memory::tests::no_bytes_are_nowhere"
        "ring::split::hostile::a_length_of_zero_with_a_bad_address_is_an_empty_buffer"
        "ring::packed::hostile::a_length_of_zero_with_a_bad_address_is_an_empty_buffer";
    "a chain no longer than the virtio-net header; a header over several descriptors", "CVE-2022-2132":
        "net::tests::a_chain_no_longer_than_the_header_is_no_frame"
        "net::tests::a_header_split_over_descriptors_in_any_way_is_read_whole"
        "nic::tests::faults::a_chain_that_holds_no_frame_is_dropped_by_name_and_comes_back";
    "csum_start beyond the packet", "CVE-2024-11614":
        "net::header::tests::a_checksum_must_lie_wholly_within_the_frame";
    "gso_size 0", "":
        "net::header::tests::gso_size_0_unknown_types_and_missing_checksum_are_refused";
    "more requests than the ring holds", "CVE-2016-5403":
        "ring::split::hostile::more_requests_than_the_ring_holds_are_rejected"
        "ring::packed::hostile::more_requests_than_the_ring_holds_are_rejected"
        "ring::packed::hostile::a_chain_longer_than_the_ring_is_rejected";
    "a total over 2^31", "CVE-2018-17963":
        "ring::split::hostile::a_total_over_32_bits_is_rejected"
        "ring::packed::hostile::a_total_over_32_bits_is_rejected"
        "net::tests::the_longest_frame_passes_and_one_byte_more_does_not";
    "INDIRECT together with NEXT", "CVE-2026-16457":
        "ring::split::hostile::an_indirect_descriptor_with_next_is_rejected"
        "ring::packed::hostile::an_indirect_descriptor_with_next_is_rejected";
    "nested, empty, misaligned, over-long indirect tables", "CVE-2026-16457":
        "ring::split::hostile::a_nested_indirect_table_is_rejected"
        "ring::split::hostile::an_empty_indirect_table_is_rejected"
        "ring::split::hostile::a_misaligned_indirect_table_is_rejected"
        "ring::split::hostile::an_indirect_table_longer_than_indices_reach_is_rejected"
        "ring::split::hostile::an_indirect_chain_longer_than_any_driver_makes_is_rejected"
        "ring::packed::hostile::a_nested_indirect_table_is_rejected"
        "ring::packed::hostile::indirect_tables_of_impossible_length_are_rejected";
    "avail.idx that jumps by more than the ring", "":
        "ring::split::hostile::an_available_index_that_jumps_by_more_than_the_ring_is_rejected"
        "ring::packed::hostile::a_chain_that_goes_on_where_nothing_is_available_is_rejected";
    "the same head twice in flight", "CVE-2026-45782":
        "ring::split::hostile::the_same_head_twice_in_flight_is_rejected"
        "ring::packed::hostile::the_same_id_twice_in_flight_is_rejected"
        "nic::tests::late::a_head_that_is_in_flight_is_not_taken_again"
        "nic::tests::late::frames_that_are_done_with_late_and_out_of_order_come_back_once_each_and_unchanged"
        "nic::tests::late::what_is_in_flight_is_ended_before_a_queue_is_given_up";
    "a producer that never stops", "CVE-2019-3900":
        "nic::tests::endless::an_endless_producer_starves_no_queue_no_request_and_no_stop"
        "ring::split::hostile::a_producer_that_never_stops_gives_one_chain_at_a_time";
    "a full receive ring that freezes the device", "CVE-2020-16843":
        "nic::tests::unmapped::a_receiveq_without_buffers_freezes_nothing"
        "nic::tests::looped::looped_frames_wait_in_the_transmitq_and_none_is_lost";
    "num_buffers written after the buffer was unmapped", "CVE-2021-3748":
        "nic::tests::unmapped::a_buffer_that_came_back_is_never_written_again"
        "net::tests::a_frame_is_spread_over_mergeable_buffers_and_num_buffers_says_how_many";
    "ring addresses changed while the ring runs", "CVE-2026-5747":
        "vhost_user::tests::hostile::a_running_ring_does_not_change_under_the_device"
        "vhost_user::tests::hostile::features_do_not_change_under_a_running_ring";
    "a memory table replaced with chains in flight", "":
        "nic::tests::unmapped::replaced_memory_has_no_user_left_once_the_request_is_answered"
        "ring::split::hostile::memory_that_is_replaced_stays_mapped_for_chains_in_flight"
        "nic::tests::regions::memory_without_the_rings_is_refused_and_the_old_goes_on";
    "an IOTLB entry invalidated with chains in flight", "":
        "nic::tests::iommu::voided::once_an_invalidation_is_answered_the_old_page_is_not_touched"
        "nic::tests::iommu::voided::a_ring_whose_translation_is_void_is_left_alone_and_goes_on_when_it_is_back"
        "memory::iotlb::tests::what_was_invalidated_while_someone_waited_is_asked_again";
    "a memory file shorter than its region", "":
        "memory::tests::a_file_shorter_than_its_region_is_refused_before_it_is_mapped"
        "vhost_user::tests::hostile::memory_that_cannot_be_mapped_leaves_the_old_memory_in_use";
    "a memory file truncated while it is mapped", "":
        "memory::tests::a_file_truncated_under_its_mapping_costs_the_session_and_not_the_process"
        "ring::split::hostile::a_ring_whose_memory_file_is_truncated_is_no_crash"
        "ring::packed::hostile::a_ring_whose_memory_file_is_truncated_is_no_crash"
        "nic::tests::regions::a_truncated_memory_file_is_told_and_survived"
        "vhost_user::tests::hostile::memory_that_shrinks_while_mapped_ends_the_session";
};

/// Runs these tests in a process of their own. Returns those that ran to their end and passed without a SKIP.
fn passed(tests: &[&str]) -> (HashSet<String>, String) {
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program).args(["--exact", "--show-output"]).args(tests).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // What a test printed stands under its name, in the block of those that passed.
    let mut said = None;
    let mut skipped = HashSet::new();
    for line in text.lines() {
        said = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----")).or(said);
        if let (Some(test), true) = (said, line.contains("SKIP: ")) {
            skipped.insert(test);
        }
    }
    let ok = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"));
    (ok.filter(|test| !skipped.contains(test)).map(str::to_owned).collect(), text)
}

#[test]
fn every_hole_that_others_had_has_tests_that_run_and_pass() {
    let all: Vec<&str> = HOLES.iter().flat_map(|hole| hole.tests).copied().collect();
    let (passed, said) = passed(&all);
    for Hole { what, known_as, tests } in HOLES {
        assert!(!tests.is_empty(), "{what} {known_as}: no test");
        for test in *tests {
            assert!(passed.contains(*test), "{what} {known_as}: {test} does not run, or does not pass:\n{said}");
        }
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a skip is said so")]
fn a_test_that_is_not_there_or_skips_counts_as_none() {
    // This one itself, in the child: there it does as it is told.
    if std::env::args().any(|arg| arg == "holes::no_such_test") {
        println!("SKIP: for the test's sake");
        return;
    }
    let name = "holes::a_test_that_is_not_there_or_skips_counts_as_none";
    let (found, said) = passed(&["holes::no_such_test", name]);
    assert!(found.is_empty() && said.contains(&format!("test {name} ... ok")), "{found:?} {said}");
}
