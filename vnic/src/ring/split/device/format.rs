//! How a chain is found in a split ring, followed, and returned.

use super::*;

impl State {
    /// Loads `avail.idx`. Returns how many entries are waiting.
    #[inline]
    pub(super) fn refresh(&mut self, ring: SplitParts<'_>) -> Result<u16, RingError> {
        // Acquire: the entries and descriptors that it promises are loaded after it.
        let to = ring.avail_idx().load(Ordering::Acquire);
        let waiting = to.wrapping_sub(self.next_avail);
        if waiting > self.rules.size {
            return Err(RingError::AvailJump { from: self.next_avail, to, size: self.rules.size });
        }
        if to != self.seen_avail {
            self.seen_avail = to;
            self.refused = false;
        }
        Ok(waiting)
    }

    /// Takes the head of available entry `idx`.
    #[inline(always)]
    fn take(&mut self, ring: SplitParts<'_>, idx: u16) -> Result<u16, RingError> {
        let head = ring.avail_entry(idx).load(Ordering::Relaxed);
        self.take_head(idx, head)
    }

    /// Takes a head, which stands in entry `idx`.
    #[inline(always)]
    pub(super) fn take_head(&mut self, idx: u16, head: u16) -> Result<u16, RingError> {
        match self.heads.take(head) {
            Ok(()) => Ok(head),
            Err(Refused::Out) => Err(RingError::HeadInFlight { idx, head }),
            Err(Refused::Unknown) => Err(RingError::HeadOutOfRange { idx, head, size: self.rules.size }),
        }
    }
}

impl Format for State {
    type Parts<'r> = SplitParts<'r>;
    /// The head, which is taken.
    type Start = u16;

    #[inline(always)]
    fn heads(&mut self) -> &mut Heads {
        &mut self.heads
    }

    #[inline(always)]
    fn begin(&mut self, ring: SplitParts<'_>, limit: u16) -> Result<(u16, DrainEnd), RingError> {
        let waiting = self.refresh(ring)?;
        for at in (0..AVAIL_AHEAD.min(waiting)).step_by(AVAIL_PER_LINE.into()) {
            ring.prefetch_avail(self.next_avail.wrapping_add(at));
        }
        let most = waiting.min(limit);
        ring.prefetch_used_run(self.next_used, most.min(USED_AHEAD));
        Ok((most, if waiting > limit { DrainEnd::Limit } else { DrainEnd::Empty }))
    }

    fn end(&mut self, _taken: u16) {}

    #[inline(always)]
    fn waiting(&mut self, ring: SplitParts<'_>, limit: u16) -> Result<u16, RingError> {
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        Ok(limit.min(if known < limit { self.refresh(ring)? } else { known }))
    }

    #[inline(always)]
    fn find_by(
        &mut self,
        at_once: impl Fn(u64, u64) -> Option<*mut u8>,
        ring: SplitParts<'_>,
        left: u16,
        batch: &mut Batch,
    ) {
        let start = self.next_avail;
        if self.seen_avail.wrapping_sub(start) > AVAIL_AHEAD {
            ring.prefetch_avail(start.wrapping_add(AVAIL_AHEAD));
        }
        let count = usize::from(left).min(BATCH);
        let mut found = 0;
        while found < count {
            // Below BATCH.
            let idx = start.wrapping_add(found as u16);
            let head = ring.avail_entry(idx).load(Ordering::Relaxed);
            let Some(desc) = ring.desc(head).filter(|desc| desc.flags == 0) else { break };
            let Some(host) = at_once(desc.addr, u64::from(desc.len)) else { break };
            if self.heads.take(head).is_err() {
                break;
            }
            let segment = Segment { addr: desc.addr, host, len: desc.len, continues: false };
            batch.set(found, head, idx, segment);
            found += 1;
        }
        batch.set_len(found);
        if left > USED_AHEAD && batch.is_full() {
            ring.prefetch_used_run(self.next_used.wrapping_add(USED_AHEAD), left - USED_AHEAD);
        }
    }

    #[inline(always)]
    fn start(&mut self, ring: SplitParts<'_>) -> Result<Option<u16>, RingError> {
        let idx = self.next_avail;
        if idx == self.seen_avail && self.refresh(ring)? == 0 {
            return Ok(None);
        }
        if self.seen_avail.wrapping_sub(idx) > USED_AHEAD && self.next_used.is_multiple_of(USED_PER_LINE) {
            ring.prefetch_used_run(self.next_used.wrapping_add(USED_AHEAD), 1);
        }
        self.take(ring, idx).map(Some)
    }

    #[inline(always)]
    fn restart(&mut self, head: u16, _len: u32) -> u16 {
        head
    }

    #[inline(always)]
    fn next_buffer(&mut self, ring: SplitParts<'_>) -> Option<(u16, u16, u64, u32)> {
        let idx = self.next_avail;
        let head = ring.avail_entry(idx).load(Ordering::Relaxed);
        let desc = ring.desc(head).filter(|desc| desc.flags == DESC_F_WRITE)?;
        self.heads.take(head).ok()?;
        Some((head, idx, desc.addr, desc.len))
    }

    #[inline(always)]
    fn fast_path(&self, ring: SplitParts<'_>, into: &mut Segments, head: u16) -> Result<Chain, Fallback> {
        let mut chain = FastPath::new(into);
        let mut desc = ring.desc(head).ok_or(Fallback)?;
        // No buffer's descriptor has other flags.
        let indirect = desc.flags & !(DESC_F_NEXT | DESC_F_WRITE) != 0;
        if indirect {
            chain.split_table(&desc, self.rules)?;
        } else {
            loop {
                chain.take(&desc, self.rules.size)?;
                if desc.flags & DESC_F_NEXT == 0 {
                    break;
                }
                desc = ring.desc(desc.next).ok_or(Fallback)?;
                if desc.flags & !(DESC_F_NEXT | DESC_F_WRITE) != 0 {
                    return Err(Fallback);
                }
            }
        }
        chain.finish(head, self.next_avail, 1, indirect)
    }

    #[inline(never)]
    fn walk(&mut self, ring: SplitParts<'_>, into: &mut Segments, head: u16) -> Result<Chain, RingError> {
        let mut chain = ChainBuilder::new(into, head);
        let walked = split_chain(&mut chain, head, self.rules, |index| ring.desc(index));
        match walked.and_then(|indirect| chain.complete().map(|()| indirect)) {
            Ok(indirect) => Ok(chain.finish(self.next_avail, 1, indirect)),
            Err(error) => {
                chain.abandon();
                self.heads.cancel(head);
                Err(error)
            }
        }
    }

    #[inline(always)]
    fn accept(&mut self, _chain: &Chain) -> Result<(), RingError> {
        Ok(())
    }

    #[inline(always)]
    fn advance(&mut self, _slots: u16) {
        self.next_avail = self.next_avail.wrapping_add(1);
        self.refused = false;
    }

    #[inline(always)]
    fn leave(&mut self, _ring: SplitParts<'_>) {
        self.refused = true;
    }

    #[inline(always)]
    fn use_up(&mut self, ring: SplitParts<'_>, idx: u16, head: u16, _slots: u16, written: u32) {
        let elem = UsedElem { id: u32::from(head), len: written };
        match &mut self.in_order {
            None => {
                ring.set_used(self.next_used, elem);
                self.next_used = self.next_used.wrapping_add(1);
            }
            Some(InOrder { filled, skew }) => {
                let mask = self.rules.size - 1;
                let place = idx.wrapping_add(*skew);
                ring.set_used(place, elem);
                filled.set(place & mask);
                while filled.clear(self.next_used & mask) {
                    self.next_used = self.next_used.wrapping_add(1);
                }
            }
        }
    }

    #[inline(always)]
    fn use_up_run(&mut self, ring: SplitParts<'_>, heads: &[u16]) {
        if heads.is_empty() {
            return;
        }
        let idx = self.next_avail;
        self.next_avail = idx.wrapping_add(heads.len() as u16);
        self.refused = false;
        if self.in_order.as_ref().is_some_and(|order| idx.wrapping_add(order.skew) != self.next_used) {
            for (at, head) in (0_u16..).zip(heads) {
                self.use_up(ring, idx.wrapping_add(at), *head, 1, 0);
            }
            return;
        }
        // In order or not, their places are the next ones: no younger chain was taken yet.
        ring.set_used_run(self.next_used, heads);
        self.next_used = self.next_used.wrapping_add(heads.len() as u16);
    }
}
