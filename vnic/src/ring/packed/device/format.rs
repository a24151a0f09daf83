//! How a chain is found in a packed ring, followed, and returned.

use super::*;

impl State {
    #[inline]
    pub(super) fn is_available(ring: PackedParts<'_>, at: Position) -> bool {
        at.is_available(ring.word(at.slot).flags)
    }

    /// The chain at `next_avail` is left there; and what is available behind it is known too: a call for it would wake
    /// the caller for nothing.
    pub(super) fn refuse(&mut self, ring: PackedParts<'_>) {
        if self.refused.is_some() {
            return;
        }
        let mut end = self.next_avail;
        for _ in self.held..self.rules.size {
            if !Self::is_available(ring, end) {
                break;
            }
            end = end.after(1, self.rules.size);
        }
        self.refused = Some(end);
    }

    /// Writes the used descriptor for the place `at`.
    #[inline]
    fn place(&mut self, ring: PackedParts<'_>, at: Position, word: Word) {
        if at == self.published {
            self.first = Some(word);
        } else {
            ring.set_word(at.slot, word);
        }
    }
}

impl Format for State {
    type Parts<'r> = PackedParts<'r>;
    /// The first descriptor's word.
    type Start = Word;

    #[inline(always)]
    fn heads(&mut self) -> &mut Heads {
        &mut self.ids
    }

    #[inline(always)]
    fn begin(&mut self, _ring: PackedParts<'_>, limit: u16) -> Result<(u16, DrainEnd), RingError> {
        Ok((limit, DrainEnd::Limit))
    }

    #[inline(always)]
    fn end(&mut self, taken: u16) {
        // Far ahead lies what the driver has written already, if there was more than a handful.
        self.deep = taken >= SLOTS_AHEAD;
    }

    #[inline(always)]
    fn waiting(&mut self, _ring: PackedParts<'_>, limit: u16) -> Result<u16, RingError> {
        Ok(limit.min(self.rules.size - self.held))
    }

    #[inline(always)]
    fn find_by(
        &mut self,
        at_once: impl Fn(u64, u64) -> Option<*mut u8>,
        ring: PackedParts<'_>,
        left: u16,
        batch: &mut Batch,
    ) {
        let size = self.rules.size;
        let count = usize::from(left.min(size - self.held)).min(BATCH);
        let mut at = self.next_avail;
        let mut found = 0;
        while found < count {
            if self.deep && at.slot.is_multiple_of(SLOTS_PER_LINE) {
                ring.prefetch(at.after(SLOTS_AHEAD.min(size), size).slot);
            }
            let word = ring.word(at.slot);
            if word.flags != at.available() {
                break;
            }
            let addr = ring.addr(at.slot);
            let Some(host) = at_once(addr, u64::from(word.len)) else { break };
            if self.ids.take(word.id).is_err() {
                break;
            }
            let segment = Segment { addr, host, len: word.len, continues: false };
            batch.set(found, word.id, at.slot, segment);
            at = at.after(1, size);
            found += 1;
        }
        batch.set_len(found);
    }

    #[inline(always)]
    fn start(&mut self, ring: PackedParts<'_>) -> Result<Option<Word>, RingError> {
        let word = ring.word(self.next_avail.slot);
        Ok(self.next_avail.is_available(word.flags).then_some(word))
    }

    #[inline(always)]
    fn restart(&mut self, head: u16, len: u32) -> Word {
        // It is followed anew: given back first, and its word as it was when it was found.
        self.ids.cancel(head);
        Word { len, id: head, flags: self.next_avail.available() }
    }

    #[inline(always)]
    fn next_buffer(&mut self, ring: PackedParts<'_>) -> Option<(u16, u16, u64, u32)> {
        let at = self.next_avail;
        let word = ring.word(at.slot);
        if word.flags != at.available() | DESC_F_WRITE {
            return None;
        }
        self.ids.take(word.id).ok()?;
        Some((word.id, at.slot, ring.addr(at.slot), word.len))
    }

    #[inline(always)]
    fn fast_path(&self, ring: PackedParts<'_>, into: &mut Segments, mut word: Word) -> Result<Chain, Fallback> {
        let limit = self.rules.size - self.held;
        let start = self.next_avail;
        let mut chain = FastPath::new(into);
        let mut at = start;
        let desc = |at: Position, word: Word| Descriptor {
            addr: ring.addr(at.slot),
            len: word.len,
            flags: word.flags,
            next: 0,
        };
        // No buffer's descriptor has other flags.
        let other = !(DESC_F_NEXT | DESC_F_WRITE | DESC_F_AVAIL | DESC_F_USED);
        let indirect = word.flags & other != 0;
        let mut slots = 1;
        if indirect && limit > 0 {
            chain.packed_table(
                &desc(at, Word { flags: word.flags & !(DESC_F_AVAIL | DESC_F_USED), ..word }),
                self.rules,
            )?;
        } else {
            chain.take(&desc(at, word), limit)?;
            while word.flags & DESC_F_NEXT != 0 {
                slots += 1;
                at = at.after(1, self.rules.size);
                word = ring.word(at.slot);
                if !at.is_available(word.flags) || word.flags & other != 0 {
                    return Err(Fallback);
                }
                chain.take(&desc(at, word), limit)?;
            }
        }
        chain.finish(word.id, start.slot, slots, indirect)
    }

    #[inline(never)]
    fn walk(&mut self, ring: PackedParts<'_>, into: &mut Segments, word: Word) -> Result<Chain, RingError> {
        let start = self.next_avail;
        let mut chain = ChainBuilder::new(into, start.slot);
        let walked = follow(&mut chain, ring, (start, word), self.held, self.rules);
        match walked.and_then(|walked| chain.complete().map(|()| walked)) {
            Ok(Walked { slots, indirect, id }) => {
                chain.set_head(id);
                Ok(chain.finish(start.slot, slots, indirect))
            }
            Err(error) => {
                chain.abandon();
                Err(error)
            }
        }
    }

    #[inline(always)]
    fn accept(&mut self, chain: &Chain) -> Result<(), RingError> {
        let head = chain.head;
        self.ids.take(head).map_err(|_| RingError::HeadInFlight { idx: self.next_avail.slot, head })
    }

    #[inline(always)]
    fn advance(&mut self, slots: u16) {
        self.next_avail = self.next_avail.after(slots, self.rules.size);
        self.held += slots;
        self.refused = None;
    }

    /// What is available behind it is known too: a call for it would wake the caller for nothing.
    fn leave(&mut self, ring: PackedParts<'_>) {
        self.refuse(ring);
    }

    #[inline(always)]
    fn use_up(&mut self, ring: PackedParts<'_>, slot: u16, head: u16, slots: u16, written: u32) {
        let size = self.rules.size;
        // VIRTIO 1.3, 2.8.4: `len` counts only where WRITE says that something was written.
        let write = if written > 0 { DESC_F_WRITE } else { 0 };
        let word = |at: Position| Word { len: written, id: head, flags: at.used() | write };
        let next = self.next_used;
        if self.done.is_none() {
            self.place(ring, next, word(next));
            self.next_used = next.after(slots, size);
            self.held -= slots;
            return;
        }
        // Its own place is in this lap, or, before `next`, in the one that comes.
        let wrap = if slot >= next.slot { next.wrap } else { !next.wrap };
        let own = Position { slot, wrap };
        self.place(ring, own, word(own));
        let Some(done) = &mut self.done else { return };
        if let Some(taken) = done.get_mut(usize::from(own.slot)) {
            *taken = slots;
        }
        while let Some(slots) = done.get_mut(usize::from(self.next_used.slot)).map(std::mem::take)
            && slots > 0
        {
            self.next_used = self.next_used.after(slots, size);
            self.held -= slots;
        }
    }

    #[inline(always)]
    fn use_up_run(&mut self, ring: PackedParts<'_>, ids: &[u16]) {
        let size = self.rules.size;
        if self.done.is_some() && self.held > 0 {
            for id in ids {
                let slot = self.next_avail.slot;
                self.advance(1);
                self.use_up(ring, slot, *id, 1, 0);
            }
            return;
        }
        // In order or not, their places are the next ones. A batch is no longer than the ring, so it wraps once at most.
        let mut rest = ids;
        if self.next_used == self.published
            && let Some((first, behind)) = ids.split_first()
        {
            self.first = Some(Word { len: 0, id: *first, flags: self.next_used.used() });
            self.next_used = self.next_used.after(1, size);
            rest = behind;
        }
        while !rest.is_empty() {
            let next = self.next_used;
            let (here, wrapped) = rest.split_at(rest.len().min(usize::from(size - next.slot)));
            ring.set_word_run(next.slot, here, next.used());
            self.next_used = next.after(here.len() as u16, size);
            rest = wrapped;
        }
        self.next_avail = self.next_avail.after(ids.len() as u16, size);
        if !ids.is_empty() {
            self.refused = None;
        }
    }
}
