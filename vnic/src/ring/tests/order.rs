//! In which order chains come back, and what is given back unused.

use super::*;

for_both_formats! {
    fn chains_may_come_back_in_any_order(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        let heads: Vec<u16> = (0..4).map(|n| pair.add(&[Buffer::readable(0x8000 + n, 1)])).collect();
        let chains: Vec<Chain> = (0..4).map(|_| pair.pop().unwrap()).collect();
        for at in [2, 0, 3, 1] {
            pair.device.push_used(&chains[at], 0).unwrap();
        }
        pair.device.publish().unwrap();
        let back: Vec<u16> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).map(|used| used.head).collect();
        assert_eq!(back, [heads[2], heads[0], heads[3], heads[1]]);
    }

    fn with_in_order_chains_come_back_in_order_whatever_the_device_does(format: Format) {
        let mut pair = Pair::new(format, 8, IN_ORDER);
        let heads: Vec<u16> = (0..4).map(|n| pair.add(&[Buffer::writable(0x8000 + n, 9)])).collect();
        let chains: Vec<Chain> = (0..4).map(|_| pair.pop().unwrap()).collect();
        pair.device.push_used(&chains[1], 1).unwrap();
        pair.device.push_used(&chains[2], 2).unwrap();
        assert!(!pair.device.publish().unwrap(), "nothing to see before the first comes back");
        assert_eq!(pair.driver.pop_used(), Ok(None));
        pair.device.push_used(&chains[0], 0).unwrap();
        pair.device.publish().unwrap();
        let back: Vec<Used> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).collect();
        let expected: Vec<Used> = (0..3).map(|n| Used { head: heads[n], written: n as u32 }).collect();
        assert_eq!(back, expected);
        assert_eq!(pair.device.in_flight(), 1);
    }

    fn a_driver_takes_one_in_order_element_for_the_chains_before_it(format: Format) {
        let mut pair = Pair::new(format, 8, IN_ORDER);
        let heads: Vec<u16> = (0..3).map(|_| pair.add(&[Buffer::writable(0x8000, 9)])).collect();
        // What a batching device does: one element for the last chain; it stands for all three.
        match format {
            Format::Split => {
                pair.ram.write(pair.layout.used + 4, &u32::from(heads[2]).to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.used + 8, &5_u32.to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.used + 2, &3_u16.to_le_bytes()).unwrap();
            }
            Format::Packed => {
                pair.ram.write(pair.layout.desc + 8, &5_u32.to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.desc + 12, &heads[2].to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.desc + 14, &0x8080_u16.to_le_bytes()).unwrap();
            }
        }
        let back: Vec<Used> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).collect();
        let written = [9, 9, 5];
        let expected: Vec<Used> = heads.iter().zip(written).map(|(&head, written)| Used { head, written }).collect();
        assert_eq!(back, expected);
    }

    fn what_was_given_back_comes_again_and_is_no_news(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
            for n in 0..3 {
                pair.add(&[Buffer::writable(0x8000 + n, 1)]);
            }
            let chains: Vec<Chain> = (0..3).map(|_| pair.pop().unwrap()).collect();
            pair.device.unpop(&chains[1..]).unwrap();
            assert_eq!(pair.device.in_flight(), 1);
            assert_eq!(pair.device.enable_notifications(), Ok(false), "the caller knows of these");
            pair.driver.add(&[Buffer::writable(0x9000, 1)], Placement::Direct).unwrap();
            assert!(pair.driver.publish(), "one more is news, and worth a kick");
            assert_eq!(pair.device.enable_notifications(), Ok(true));
            pair.segments.clear();
            let again: Vec<u16> = std::iter::from_fn(|| pair.pop()).map(|chain| chain.head).collect();
            assert_eq!(again.len(), 3);
            assert_eq!(again[..2], [chains[1].head, chains[2].head]);
        }
    }

    fn what_stands_behind_a_chain_given_back_is_no_news_either(format: Format) {
        // A full link: the first chain goes back, the two behind it were never looked at.
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
            for n in 0..3 {
                pair.driver.add(&[Buffer::readable(0x8000 + n, 1)], Placement::Direct).unwrap();
            }
            pair.driver.publish();
            let chain = pair.pop().unwrap();
            pair.device.unpop(&[chain]).unwrap();
            assert_eq!(pair.device.enable_notifications(), Ok(false));
            pair.segments.clear();
            pair.pop().unwrap();
            assert_eq!(pair.device.enable_notifications(), Ok(true), "two are left, and nobody gave them back");
        }
    }

    fn chains_can_only_be_given_back_newest_last(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        pair.add(&[Buffer::readable(0x8000, 1)]);
        pair.add(&[Buffer::readable(0x8000, 1)]);
        let (first, second) = (pair.pop().unwrap(), pair.pop().unwrap());
        assert_eq!(pair.device.unpop(&[first]), Err(RingError::NotInFlight { head: first.head }));
        assert_eq!(pair.device.unpop(&[first, second]), Ok(()));
        assert_eq!(pair.device.unpop(&[second]), Err(RingError::NotInFlight { head: second.head }));
    }
}
