//! Chains of every shape arrive as they were sent.

use super::*;

for_both_formats! {
    fn a_direct_chain_arrives_as_it_was_sent(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        let head = pair.add(&[Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 4096), Buffer::writable(0xb000, 10)]);
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [(0x8000, 78, 'R'), (0x9000, 4096, 'R'), (0xb000, 10, 'W')]);
        assert_eq!((chain.head, chain.idx, chain.descriptors, chain.indirect), (head, 0, 3, false));
        assert_eq!((chain.readable_len, chain.writable_len), (78 + 4096, 10));
        assert_eq!(pair.pop(), None);
        pair.device.push_used(&chain, 7).unwrap();
        assert_eq!(pair.driver.pop_used(), Ok(None), "not before it is published");
        pair.device.publish().unwrap();
        assert_eq!(pair.driver.pop_used(), Ok(Some(Used { head, written: 7 })));
        assert_eq!((pair.driver.free(), pair.device.in_flight()), (8, 0));
    }

    fn an_indirect_chain_takes_one_descriptor_of_the_ring(format: Format) {
        let mut pair = Pair::new(format, 4, INDIRECT);
        let buffers = [Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 1448), Buffer::writable(0xa000, 4)];
        pair.driver.add(&buffers, Placement::Indirect(0x7000)).unwrap();
        assert_eq!(pair.driver.free(), 3);
        pair.driver.publish();
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [(0x8000, 78, 'R'), (0x9000, 1448, 'R'), (0xa000, 4, 'W')]);
        assert!(chain.indirect);
        assert_eq!((chain.descriptors, chain.slots), (3, 1));
    }

    fn an_indirect_table_may_cross_regions_and_stand_unaligned(format: Format) {
        for table in [(1 << 20) - 24, (1 << 20) - 16, 0x7001] {
            let mut pair = Pair::new(format, 4, INDIRECT);
            let buffers = [Buffer::readable(0x8000, 1), Buffer::readable(0x9000, 2), Buffer::readable(0xa000, 3)];
            pair.driver.add(&buffers, Placement::Indirect(table)).unwrap();
            pair.driver.publish();
            let chain = pair.pop().unwrap();
            assert_eq!(pair.buffers(&chain), [(0x8000, 1, 'R'), (0x9000, 2, 'R'), (0xa000, 3, 'R')], "table at {table:#x}");
        }
    }

    fn a_buffer_across_regions_is_two_segments_of_one_descriptor(format: Format) {
        let mut pair = Pair::new(format, 4, Features::NONE);
        pair.add(&[Buffer::readable((1 << 20) - 100, 300)]);
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [((1 << 20) - 100, 100, 'R'), (1 << 20, 200, 'R')]);
        assert_eq!((chain.descriptors, chain.count), (1, 2));
        let continues: Vec<bool> = pair.segments.view(chain).segments().iter().map(|s| s.continues).collect();
        assert_eq!(continues, [false, true]);
    }

    fn receive_buffers_are_taken_together_up_to_what_is_none(format: Format) {
        let mut pair = Pair::new(format, 16, INDIRECT);
        let buffer = |n: u64| Buffer::writable(0x8000 + 0x100 * n, 100);
        let mut heads: Vec<u16> = (0..4).map(|n| pair.add(&[buffer(n)])).collect();
        heads.push(pair.add(&[buffer(4), buffer(5)]));
        heads.extend((6..9).map(|n| pair.add(&[buffer(n)])));
        // The arena knows no region yet: whatever comes first, `pop` takes.
        let mut chains = Vec::new();
        pair.device.pop_buffers(&mut pair.segments, 9, &mut chains).unwrap();
        assert_eq!(chains, []);
        let mut all = vec![pair.pop().unwrap()];
        pair.device.pop_buffers(&mut pair.segments, 2, &mut chains).unwrap();
        assert_eq!(chains.len(), 2, "as many as were asked for");
        pair.device.pop_buffers(&mut pair.segments, 9, &mut chains).unwrap();
        assert_eq!(chains.len(), 3, "two buffers in a chain are not one");
        all.append(&mut chains);
        assert_eq!(pair.buffers(&all[3]), [(0x8300, 100, 'W')]);
        all.push(pair.pop().unwrap());
        pair.device.pop_buffers(&mut pair.segments, 9, &mut chains).unwrap();
        assert_eq!((chains.len(), pair.device.in_flight()), (3, 8));
        all.append(&mut chains);
        assert_eq!(all.iter().map(|chain| chain.head).collect::<Vec<_>>(), heads);
        // They are as good as any: given back and taken again, written to and returned once.
        pair.device.unpop(&all[6..]).unwrap();
        pair.device.pop_buffers(&mut pair.segments, 1, &mut chains).unwrap();
        assert_eq!((chains[0].head, chains[0].writable_len), (heads[6], 100));
        assert_eq!(pair.device.push_used(&chains[0], 101).unwrap_err().name(), "written_too_much");
        assert_eq!(pair.device.push_used(&chains[0], 100), Ok(()));
        assert_eq!(pair.device.push_used(&chains[0], 100), Err(RingError::NotInFlight { head: heads[6] }));
    }

    fn a_chain_comes_back_once_and_with_no_more_than_it_holds(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        pair.add(&[Buffer::writable(0x8000, 10)]);
        let chain = pair.pop().unwrap();
        let too_much = RingError::WrittenTooMuch { head: chain.head, written: 11, room: 10 };
        assert_eq!(pair.device.push_used(&chain, 11), Err(too_much));
        assert_eq!(pair.device.push_used(&chain, 10), Ok(()));
        assert_eq!(pair.device.push_used(&chain, 10), Err(RingError::NotInFlight { head: chain.head }));
    }

    fn a_chain_may_wrap_around_the_end_of_the_ring(format: Format) {
        // Odd sizes exist for packed rings only.
        for size in if format == Format::Packed { [3, 5, 7] } else { [4, 8, 16] } {
            for features in [Features::NONE, IN_ORDER, EVENT_IDX] {
                let mut pair = Pair::new(format, size, features);
                for _ in 0..20 {
                    let head = pair.add(&[Buffer::readable(0x8000, 1), Buffer::writable(0x9000, 2)]);
                    let chain = pair.pop().unwrap();
                    assert_eq!(pair.buffers(&chain), [(0x8000, 1, 'R'), (0x9000, 2, 'W')]);
                    pair.segments.clear();
                    pair.device.push_used(&chain, 2).unwrap();
                    pair.device.publish().unwrap();
                    assert_eq!(pair.driver.pop_used(), Ok(Some(Used { head, written: 2 })));
                }
            }
        }
    }
}
