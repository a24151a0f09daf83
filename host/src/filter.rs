//! Which chains of a trace somebody wants to see.

use vnic::observe::protocol::ChainEvent;

/// Did it go wrong? A request that the disk could not answer well, a frame that ends within its headers.
pub(crate) fn is_error(chain: &ChainEvent) -> bool {
    let ends = ["ioerr", "unsupp", "unanswered", "no request"];
    ends.iter().any(|end| chain.summary.ends_with(end)) || chain.summary.contains("header cut short")
}

/// All that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The queue's name.
    pub(crate) queue: Option<String>,
    /// Words of the frame's summary.
    pub(crate) flow: Option<String>,
    /// Words of what its memory is: a file's path.
    pub(crate) file: Option<String>,
    /// Addresses, as the driver wrote them or guest-physical, of which one is in a buffer.
    pub(crate) addresses: Vec<u64>,
    /// Words of the queue's name, the summary or the labels.
    pub(crate) words: Vec<String>,
}

impl Filter {
    /// As somebody writes it on a line: `transmitq0 10.0.2.2:9000 /srv/big.bin 0x2ee1000`.
    pub(crate) fn parse(line: &str) -> Result<Filter, String> {
        let mut filter = Filter::default();
        for word in line.split_whitespace() {
            match word.strip_prefix("0x") {
                Some(digits) => match u64::from_str_radix(digits, 16) {
                    Ok(address) => filter.addresses.push(address),
                    Err(_) => return Err(format!("`{word}` is no address: write 0x2ee1000")),
                },
                None => filter.words.push(word.to_owned()),
            }
        }
        Ok(filter)
    }

    /// Is this queue one of those?
    pub(crate) fn is_of(&self, queue: &str) -> bool {
        self.queue.as_ref().is_none_or(|wanted| wanted == queue)
    }

    /// Is it one of those?
    pub(crate) fn admits(&self, chain: &ChainEvent) -> bool {
        let labels = |word: &str| {
            chain.buffers.iter().any(|buffer| buffer.label.as_ref().is_some_and(|label| label.contains(word)))
        };
        let holds = |wanted: &Option<String>, found: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(found);
        let address = |address: &u64| {
            let lies = |from: u64, len: u32| address.checked_sub(from).is_some_and(|at| at < u64::from(len));
            let buffers = chain.buffers.iter();
            buffers
                .into_iter()
                .any(|buffer| lies(buffer.addr, buffer.len) || buffer.gpa.is_some_and(|gpa| lies(gpa, buffer.len)))
        };
        holds(&self.queue, &|queue| chain.queue == queue)
            && holds(&self.flow, &|flow| chain.summary.contains(flow))
            && holds(&self.file, &labels)
            && self.addresses.iter().all(address)
            && self.words.iter().all(|word| chain.queue.contains(word) || chain.summary.contains(word) || labels(word))
    }
}

#[cfg(test)]
mod tests {
    use vnic::observe::protocol::BufferSnapshot;

    use super::*;

    #[test]
    fn a_line_is_of_queue_flow_label_and_address() {
        let label = Some("/srv/big.bin page 2".to_owned());
        let chain = ChainEvent {
            at_ns: 0,
            available_ns: 0,
            queue: "transmitq0".to_owned(),
            head: 1,
            idx: 14,
            indirect: true,
            buffers: vec![
                BufferSnapshot::at(0x25a_acbe, 66),
                BufferSnapshot { gpa: Some(0x2ee_1da0), label, ..BufferSnapshot::at(0x7000_0000, 608) },
            ],
            descriptors: 2,
            written: 0,
            summary: "10.0.2.15:55706 > 10.0.2.2:9000 tcp seq 1 len 7300 gso 1460".to_owned(),
            headers: None,
        };
        for (line, admitted) in [
            ("", true),
            ("transmitq0", true),
            ("receiveq", false),
            ("10.0.2.2:9000", true),
            ("10.0.2.2:9001", false),
            ("big.bin transmitq", true),
            ("big.bin receiveq", false),
            ("0x2ee1fff", true),
            ("0x2ee2000", false),
            ("0x70000010 tcp", true),
        ] {
            assert_eq!(Filter::parse(line).unwrap().admits(&chain), admitted, "{line}");
        }
        assert_eq!(Filter::parse("0xyz").unwrap_err(), "`0xyz` is no address: write 0x2ee1000");
        let of = |queue: &str| Filter { queue: Some(queue.to_owned()), ..Filter::default() };
        assert!(of("transmitq0").admits(&chain) && !of("transmitq").admits(&chain));
    }
}
